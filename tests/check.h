/* Checks: each counts, a failed one prints where and what, the last line of a program is "N passed, N failed". */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>

static unsigned check_n_passed, check_n_failed;

static int check_that(int ok, const char *file, int line, const char *what) {
    if (ok) {
        check_n_passed++;
    } else if (check_n_failed++ < 50) {
        printf("%s:%d: failed: %s\n", file, line, what);
    }
    return ok;
}

#define CHECK(condition) check_that((condition) != 0, __FILE__, __LINE__, #condition)
#define CHECK_TEXT(condition, text) check_that((condition) != 0, __FILE__, __LINE__, text)

/* The closing line; the value for main to return. */
static int check_finish(void) {
    printf("%u passed, %u failed\n", check_n_passed, check_n_failed);
    return check_n_failed != 0;
}

#endif
