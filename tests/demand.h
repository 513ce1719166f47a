/* For tests that go no further when something fails which they only need. */
#ifndef DEMAND_H
#define DEMAND_H

#include "inside.h"

#include <stdio.h>

static folollm_error error;
static fl_memory memory;

static void demand(folollm_status status) {
    if (status != FOLOLLM_OK) {
        printf("%s\n", error.text);
        exit(2);
    }
}

#endif
