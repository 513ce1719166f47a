/* The numbers of GGUF's quantised types: a row is cut into blocks, each a few scales and a small integer per number.
 *
 *     type      numbers  bytes  a number is                     scales
 *     FL_Q8_0        32     34  d * q, q -127..127              d f16
 *     FL_Q4_0        32     18  d * q, q -8..7                  d f16
 *     FL_Q4_K       256    144  d * s * q - m * t, q 0..15      d, m f16; s, t of 6 bits for each 32
 *     FL_Q5_K       256    176  d * s * q - m * t, q 0..31      d, m f16; s, t of 6 bits for each 32
 *     FL_Q6_K       256    210  d * s * q, q -32..31            d f16; s of 8 bits for each 16
 *
 * Numbers are little-endian in a file and here. `type` is one of these five everywhere below. */
#ifndef FL_BLOCKS_H
#define FL_BLOCKS_H

#include "formats/dtype.h"

FL_LOCAL size_t fl_block_numbers(fl_dtype type);
FL_LOCAL size_t fl_block_bytes(fl_dtype type);

/* n numbers, a multiple of fl_block_numbers, from blocks at any alignment: the bits that llama.cpp's decoders give. Any
 * bytes decode; a scale that is infinite or NaN gives such numbers. */
FL_LOCAL void fl_dequantise(fl_dtype type, const void *blocks, size_t n, float *y);

/* The opposite, to the least squared error that a search finds; the same bytes from the same numbers everywhere. The
 * scales must be finite, so |x| above 65504 counts as 65504, infinities too, and a NaN as 0. Of FL_Q8_0, what was
 * decoded gives its numbers again if it was quantised here and its scale is at least 2^-17. */
FL_LOCAL void fl_quantise(fl_dtype type, const float *x, size_t n, void *blocks);

/* The eight scales and minima of a block of FL_Q4_K or FL_Q5_K, from the twelve bytes behind d and m. */
FL_LOCAL void fl_get_sixes(const uint8_t *b, uint8_t *scales, uint8_t *mins);

#endif
