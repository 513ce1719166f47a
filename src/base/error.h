/* Errors: a status for the program, a sentence for the person. */
#ifndef FL_ERROR_H
#define FL_ERROR_H

#include "base/base.h"

/* Fill *error (which may be NULL) and return status. The format knows %s (char *, shortened in the middle when
 * long), %S (fl_str, by pointer, quoted, unprintable bytes escaped), %d (int64_t), %u (uint64_t), %g (double) and
 * %%: its own, because stdio is not ours to pull into a host. Every argument must have exactly the named type. */
FL_LOCAL folollm_status fl_fail(folollm_error *error, folollm_status status, const char *format, ...);

/* The same text into a buffer of n bytes; returns the length without the NUL. */
FL_LOCAL size_t fl_format(char *out, size_t n, const char *format, ...);

#endif
