/* The numbers of GGUF's quantised types: a row is cut into blocks, each a few scales and a small integer per number.
 *
 *     type      numbers  bytes  a number is                     scales
 *     FL_Q8_0        32     34  d * q, q -127..127              d f16
 *     FL_Q4_0        32     18  d * q, q -8..7                  d f16
 *     FL_Q4_K       256    144  d * s * q - m * t, q 0..15      d, m f16; s, t of 6 bits for each 32
 *     FL_Q5_K       256    176  d * s * q - m * t, q 0..31      d, m f16; s, t of 6 bits for each 32
 *     FL_Q6_K       256    210  d * s * q, q -32..31            d f16; s of 8 bits for each 16
 *
 * Those are computed with. The others are in files only, and loading moves them to one of the first:
 *
 *     FL_Q5_0        32     22  d * q, q -16..15                d f16
 *     FL_IQ4_NL      32     18  d * q, q one of 16 levels       d f16
 *     FL_MXFP4       32     17  d * q, q one of 15 levels       d 2^-128..2^127
 *     FL_IQ4_XS     256    136  d * s * q, q one of 16 levels   d f16; s of 6 bits for each 32
 *     FL_Q3_K       256    110  d * s * q, q -4..3              d f16; s of 6 bits for each 16
 *     FL_Q4_1        32     20  d * q + m, q 0..15              d, m f16
 *     FL_Q5_1        32     24  d * q + m, q 0..31              d, m f16
 *     FL_Q2_K       256     84  d * s * q - m * t, q 0..3       d, m f16; s, t of 4 bits for each 16
 *
 * FL_Q5_0, FL_IQ4_NL and FL_Q3_K become FL_Q8_0 or FL_Q6_K of the same numbers, to the bit, and so does FL_MXFP4 where
 * its d is 2^-24..2^18; below it is the nearest, above infinite. FL_IQ4_XS becomes FL_Q8_0 of the same q, with d * s
 * rounded to f16. The last three become the FL_Q8_0 that is nearest.
 *
 * Numbers are little-endian in a file and here. */
#ifndef FL_BLOCKS_H
#define FL_BLOCKS_H

#include "formats/dtype.h"

FL_LOCAL size_t fl_block_numbers(fl_dtype type);
FL_LOCAL size_t fl_block_bytes(fl_dtype type);

/* The type that numbers are computed with if no other is asked for: their own, or one of those above. */
FL_LOCAL fl_dtype fl_computed_type(fl_dtype type);

/* n numbers, a multiple of fl_block_numbers, from blocks at any alignment: the bits that llama.cpp's decoders give. Any
 * bytes decode; a scale that is infinite or NaN gives such numbers. */
FL_LOCAL void fl_dequantise(fl_dtype type, const void *blocks, size_t n, float *y);

/* The opposite, for the first five types, to the least squared error that a search finds; the same bytes from the same
 * numbers everywhere. The scales must be finite, so |x| above 65504 counts as 65504, infinities too, and a NaN as 0. Of
 * FL_Q8_0, what was decoded gives its numbers again if it was quantised here and its scale is at least 2^-17. */
FL_LOCAL void fl_quantise(fl_dtype type, const float *x, size_t n, void *blocks);

/* n numbers of a type that is in files only -> blocks of its computed type. */
FL_LOCAL void fl_move_blocks(fl_dtype type, const void *blocks, size_t n, void *to);

/* The eight scales and minima of a block of FL_Q4_K or FL_Q5_K, from the twelve bytes behind d and m. */
FL_LOCAL void fl_get_sixes(const uint8_t *b, uint8_t *scales, uint8_t *mins);

#endif
