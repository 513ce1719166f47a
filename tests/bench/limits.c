/* limits.c - what this machine can do at best: memory read bandwidth and multiply-add rates.
 *
 *     gcc -O2 -march=native -pthread -o limits limits.c
 *     ./limits [-t THREADS] [-s MIB] [-f FILE] [-r REPEATS] [--json]
 *
 * Every row is measured with one thread and with THREADS (default: all). A repeat starts the
 * threads together and ends with the slowest; the median and the best repeat are shown. -f reads
 * a mapped file, once with fresh page tables ("first touch") and then again; -s sets the size of
 * the anonymous buffer (default 1024), which must exceed the last cache level. Rates count a
 * multiply and an add as two operations; a row appears only where the CPU has the instruction. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define IN_REGISTER "v"
#elif defined(__aarch64__)
#include <arm_neon.h>
#define IN_REGISTER "w"
#endif

#define THREADS_MAX 256
#define REPEATS_MAX 100

typedef struct {
    void (*fn)(const void *data, size_t n); /* n: bytes to read, or rounds of 12 instructions */
    const char *data;                       /* NULL for a rate */
    size_t n;
    pthread_barrier_t *start;
    double begin, end;
} job;

typedef struct {
    const char *file;
    size_t bytes;
    int n_threads, repeats, json;
} options;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- kernels ---- */

typedef uint64_t lanes __attribute__((vector_size(64)));

static void read_bytes(const void *data, size_t n)
{
    const lanes *p = data, *end = p + n / sizeof *p / 8 * 8;
    lanes a = {0}, b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    for (; p < end; p += 8) {
        a |= p[0], b |= p[1], c |= p[2], d |= p[3], e |= p[4], f |= p[5], g |= p[6], h |= p[7];
    }
    a |= b | c | d | e | f | g | h;
    __asm__ volatile("" : : "m"(a));
}

/* 12 independent chains hide a latency of 4 cycles at up to 3 instructions per cycle. The empty asm
 * keeps the compiler from seeing that all chains are equal. */
#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DECLARE(i) REG a##i = zero; __asm__ volatile("" : "+" IN_REGISTER(a##i));
#define STEP(i) a##i = OP(a##i);
#define SINK(i) __asm__ volatile("" : : IN_REGISTER(a##i));
#define KERNEL \
    CHAINS(DECLARE) \
    while (n--) { \
        CHAINS(STEP) \
    } \
    CHAINS(SINK) \
    (void)data;

#if defined(__x86_64__)
#define TARGET(t) __attribute__((target(t)))

TARGET("avx2,fma") static void fma_256(const void *data, size_t n)
{
    const __m256 zero = _mm256_setzero_ps(), x = _mm256_set1_ps(0.5f);
#define REG __m256
#define OP(a) _mm256_fmadd_ps(a, x, x)
    KERNEL
#undef REG
#undef OP
}

TARGET("avx512f") static void fma_512(const void *data, size_t n)
{
    const __m512 zero = _mm512_setzero_ps(), x = _mm512_set1_ps(0.5f);
#define REG __m512
#define OP(a) _mm512_fmadd_ps(a, x, x)
    KERNEL
#undef REG
#undef OP
}

TARGET("avx512f,avx512vnni") static void vnni_512(const void *data, size_t n)
{
    const __m512i zero = _mm512_setzero_si512(), x = _mm512_set1_epi8(1);
#define REG __m512i
#define OP(a) _mm512_dpbusd_epi32(a, x, x)
    KERNEL
#undef REG
#undef OP
}

TARGET("avx512f,avx512bf16") static void bf16_512(const void *data, size_t n)
{
    const __m512 zero = _mm512_setzero_ps();
    const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f00);
#define REG __m512
#define OP(a) _mm512_dpbf16_ps(a, x, x)
    KERNEL
#undef REG
#undef OP
}

#if defined(__AVX512FP16__) /* by -march=native: older compilers lack the type */
static void fp16_512(const void *data, size_t n)
{
    const __m512h zero = _mm512_setzero_ph(), x = (__m512h)_mm512_set1_epi16(0x3800);
#define REG __m512h
#define OP(a) _mm512_fmadd_ph(a, x, x)
    KERNEL
#undef REG
#undef OP
}
#endif

#elif defined(__aarch64__)

static void fma_128(const void *data, size_t n)
{
    const float32x4_t zero = vdupq_n_f32(0), x = vdupq_n_f32(0.5f);
#define REG float32x4_t
#define OP(a) vfmaq_f32(a, x, x)
    KERNEL
#undef REG
#undef OP
}
#endif

/* ---- measuring ---- */

static void *work(void *arg)
{
    job *j = arg;
    pthread_barrier_wait(j->start);
    j->begin = now();
    j->fn(j->data, j->n);
    j->end = now();
    return NULL;
}

/* Seconds that n_threads need when they share the data, or when each does n rounds without data. */
static double run(void (*fn)(const void *, size_t), const char *data, size_t n, int n_threads)
{
    pthread_t id[THREADS_MAX];
    job jobs[THREADS_MAX];
    pthread_barrier_t start;
    size_t share = data ? n / (size_t)n_threads & ~(size_t)4095 : n;
    double begin = 0, end = 0;

    if (pthread_barrier_init(&start, NULL, (unsigned)n_threads)) {
        fail("pthread_barrier_init");
    }
    for (int i = 0; i < n_threads; i++) {
        jobs[i] = (job){fn, data ? data + share * (size_t)i : NULL, share, &start, 0, 0};
        if (pthread_create(&id[i], NULL, work, &jobs[i])) {
            fail("pthread_create");
        }
    }
    for (int i = 0; i < n_threads; i++) {
        pthread_join(id[i], NULL);
        begin = i && begin < jobs[i].begin ? begin : jobs[i].begin;
        end = i && end > jobs[i].end ? end : jobs[i].end;
    }
    pthread_barrier_destroy(&start);
    return end - begin;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_row(const options *o, const char *name, const char *unit, int n_threads,
                      double *rates, int n)
{
    qsort(rates, (size_t)n, sizeof *rates, ascending);
    printf(o->json ? "{\"limit\": \"%s\", \"unit\": \"%s\", \"threads\": %d, "
                     "\"median\": %.1f, \"best\": %.1f}\n"
                   : "| %s | %s | %d | %.1f | %.1f |\n",
           name, unit, n_threads, rates[n / 2], rates[n - 1]);
}

static void bandwidth(const options *o, const char *name, const char *data, size_t n, int n_threads)
{
    double rates[REPEATS_MAX];
    for (int i = 0; i < o->repeats; i++) {
        rates[i] = (double)n / run(read_bytes, data, n, n_threads) * 1e-9;
    }
    print_row(o, name, "GB/s", n_threads, rates, o->repeats);
}

static void anonymous_memory(const options *o, const char *name, int advice, int n_threads)
{
    void *p = mmap(NULL, o->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        fail("mmap");
    }
    madvise(p, o->bytes, advice);
    memset(p, 1, o->bytes);
    bandwidth(o, name, p, o->bytes, n_threads);
    munmap(p, o->bytes);
}

static void *map(const char *file, int fd, size_t n)
{
    void *p = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        fail(file);
    }
    return p;
}

static void mapped_file(const options *o, int n_threads)
{
    double rates[REPEATS_MAX];
    struct stat st;
    size_t n;
    void *p;
    int fd = open(o->file, O_RDONLY);

    if (fd < 0 || fstat(fd, &st)) {
        fail(o->file);
    }
    n = (size_t)st.st_size;
    p = map(o->file, fd, n);
    run(read_bytes, p, n, n_threads);
    bandwidth(o, "read mapped file", p, n, n_threads);
    munmap(p, n);
    for (int i = 0; i < o->repeats; i++) {
        p = map(o->file, fd, n);
        rates[i] = (double)n / run(read_bytes, p, n, n_threads) * 1e-9;
        munmap(p, n);
    }
    print_row(o, "read mapped file, first touch", "GB/s", n_threads, rates, o->repeats);
    close(fd);
}

/* ops: operations of one instruction. The repeats are short, so there are ten times as many. */
static void rate(const options *o, const char *name, void (*fn)(const void *, size_t), int ops,
                 int n_threads)
{
    const size_t rounds = 4000000; /* about 10 ms */
    double rates[10 * REPEATS_MAX], total = 12.0 * ops * (double)rounds * n_threads;
    int n = 10 * o->repeats;

    for (int i = 0; i < n; i++) {
        rates[i] = total / run(fn, NULL, rounds, n_threads) * 1e-9;
    }
    print_row(o, name, "Gop/s", n_threads, rates, n);
}

static void all_rates(const options *o, int n_threads)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        rate(o, "fp32 FMA, 256 bit", fma_256, 16, n_threads);
    }
    if (__builtin_cpu_supports("avx512f")) {
        rate(o, "fp32 FMA, 512 bit", fma_512, 32, n_threads);
    }
    if (__builtin_cpu_supports("avx512vnni")) {
        rate(o, "int8 vpdpbusd, 512 bit", vnni_512, 128, n_threads);
    }
    if (__builtin_cpu_supports("avx512bf16")) {
        rate(o, "bf16 vdpbf16ps, 512 bit", bf16_512, 64, n_threads);
    }
#if defined(__AVX512FP16__)
    rate(o, "fp16 FMA, 512 bit", fp16_512, 64, n_threads);
#endif
#elif defined(__aarch64__)
    rate(o, "fp32 FMA, 128 bit", fma_128, 8, n_threads);
#endif
}

static int parse(options *o, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        int more = i + 1 < argc;
        if (!strcmp(argv[i], "--json")) {
            o->json = 1;
        } else if (more && !strcmp(argv[i], "-t")) {
            o->n_threads = atoi(argv[++i]);
        } else if (more && !strcmp(argv[i], "-s")) {
            o->bytes = (size_t)atoi(argv[++i]) << 20;
        } else if (more && !strcmp(argv[i], "-r")) {
            o->repeats = atoi(argv[++i]);
        } else if (more && !strcmp(argv[i], "-f")) {
            o->file = argv[++i];
        } else {
            return 0;
        }
    }
    return o->n_threads >= 1 && o->n_threads <= THREADS_MAX && o->bytes && o->repeats >= 1 &&
           o->repeats <= REPEATS_MAX;
}

int main(int argc, char **argv)
{
    options o = {NULL, (size_t)1024 << 20, (int)sysconf(_SC_NPROCESSORS_ONLN), 9, 0};

    if (!parse(&o, argc, argv)) {
        fprintf(stderr, "usage: limits [-t THREADS] [-s MIB] [-f FILE] [-r REPEATS] [--json]\n");
        return 2;
    }
    if (!o.json) {
        printf("| limit | unit | threads | median | best |\n|---|---|---:|---:|---:|\n");
    }
    for (int t = 1; t <= o.n_threads; t += o.n_threads > 1 ? o.n_threads - 1 : 1) {
        anonymous_memory(&o, "read anonymous, 4 KiB pages", MADV_NOHUGEPAGE, t);
        anonymous_memory(&o, "read anonymous, huge pages", MADV_HUGEPAGE, t);
        if (o.file) {
            mapped_file(&o, t);
        }
        all_rates(&o, t);
    }
    return 0;
}
