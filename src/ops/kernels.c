/* The tables, and the choice among them. */
#include "ops/kernels.h"

#include "ops/vec_avx2.h"
#include "ops/vec_avx512.h"
#include "ops/vec_neon.h"
#include "ops/vec_scalar.h"

#define FL_ISA scalar
#define FL_ISA_NAME "scalar"
#define FL_TARGET
#define FL_KEEP_LOOPS
#define FL_TILE_ROWS 2
#define FL_TILE_OUTS 2
#define FL_SCORE_QUERIES 1
#define FL_GATHER_VECTORS 1
#define FL_VEC_ROWS 2
#define FL_VEC_OUTS 1
#include "ops/packed.inc"
#define FL_INT scalar
#define FL_DOT_ROWS 1
#define FL_DOT_STRIPS 1
#define FL_INT_ROWS 2
#include "ops/dots.inc"
#include "ops/kernels.inc"

#if defined(__x86_64__)

#define FL_ISA avx2
#define FL_TARGET FL_TARGET_AVX2
#include "ops/packed.inc"
#undef FL_TARGET
#if defined(FL_HAS_AVXVNNI)
#define FL_TARGET FL_TARGET_AVXVNNI
#define FL_INT avxvnni
#define FL_DOT_ROWS 2
#define FL_DOT_STRIPS 2
#define FL_INT_ROWS 2
#include "ops/dots.inc"
#undef FL_TARGET
#define FL_AVXVNNI
#endif

#define FL_ISA_NAME "avx2"
#define FL_TARGET FL_TARGET_AVX2
#define FL_TILE_ROWS 2
#define FL_TILE_OUTS 3
#define FL_SCORE_QUERIES 2
#define FL_GATHER_VECTORS 4
#define FL_VEC_ROWS 4
#define FL_VEC_OUTS 1
#define FL_INT avx2
#define FL_DOT_ROWS 2
#define FL_DOT_STRIPS 2
#define FL_INT_ROWS 2
#include "ops/dots.inc"
#include "ops/kernels.inc"

#define FL_ISA avx512
#define FL_TARGET FL_TARGET_AVX512
#include "ops/packed.inc"
#undef FL_TARGET
#define FL_TARGET FL_TARGET_VNNI
#define FL_INT vnni
#define FL_DOT_ROWS 2
#define FL_DOT_STRIPS 4
#define FL_INT_ROWS 6
#include "ops/dots.inc"
#undef FL_TARGET

#define FL_ISA_NAME "avx512"
#define FL_TARGET FL_TARGET_AVX512
#define FL_TILE_ROWS 4
#define FL_TILE_OUTS 6
#define FL_SCORE_QUERIES 4
#define FL_GATHER_VECTORS 8
#define FL_VEC_ROWS 6
#define FL_VEC_OUTS 4
#define FL_VNNI
#define FL_INT avx512
#define FL_DOT_ROWS 2
#define FL_DOT_STRIPS 2
#define FL_INT_ROWS 3
#include "ops/dots.inc"
#include "ops/kernels.inc"

#endif

#if defined(__aarch64__)

#define FL_ISA neon
#define FL_TARGET
#include "ops/packed.inc"
#define FL_INT dotprod
#define FL_DOT_ROWS 2
#define FL_DOT_STRIPS 2
#define FL_INT_ROWS 2
#include "ops/dots.inc"
#define FL_INT i8mm
#define FL_INT_ONE dotprod
#define FL_INT_ROWS 4
#include "ops/dots.inc"

#define FL_ISA_NAME "neon"
#define FL_TILE_ROWS 2
#define FL_TILE_OUTS 2
#define FL_SCORE_QUERIES 2
#define FL_GATHER_VECTORS 2
#define FL_VEC_ROWS 4
#define FL_VEC_OUTS 1
#define FL_DOTPROD
#define FL_I8MM
#define FL_INT neon
#define FL_DOT_ROWS 2
#define FL_DOT_STRIPS 1
#define FL_INT_ROWS 1
#include "ops/dots.inc"
#include "ops/kernels.inc"

#endif

FL_LOCAL const fl_kernels *fl_kernels_of(folollm_isa isa) {
#if defined(__x86_64__)
    fl_cpu cpu = fl_cpu_features();
    if (cpu.avx512 && (isa == FOLOLLM_ISA_BEST || isa == FOLOLLM_ISA_AVX512)) {
        return cpu.vnni ? &fl_kernels_vnni : &fl_kernels_avx512;
    }
    if (cpu.avx2 && (isa == FOLOLLM_ISA_BEST || isa == FOLOLLM_ISA_AVX2)) {
#if defined(FL_HAS_AVXVNNI)
        return cpu.avxvnni ? &fl_kernels_avxvnni : &fl_kernels_avx2;
#else
        return &fl_kernels_avx2;
#endif
    }
#endif
#if defined(__aarch64__)
    if (isa == FOLOLLM_ISA_BEST || isa == FOLOLLM_ISA_NEON) {
        fl_cpu cpu = fl_cpu_features();
        return cpu.i8mm ? &fl_kernels_i8mm : cpu.dotprod ? &fl_kernels_dotprod : &fl_kernels_neon;
    }
#endif
    return isa == FOLOLLM_ISA_BEST || isa == FOLOLLM_ISA_SCALAR ? &fl_kernels_scalar : NULL;
}
