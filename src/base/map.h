/* Maps: open addressing over memory that the caller planned, so that filling one cannot fail.
 *
 * fl_name_map: text -> int32, the text owned by the caller.   fl_pair_map: two uint32 -> uint32.
 * A table of size n holds at most n / 2 entries. */
#ifndef FL_MAP_H
#define FL_MAP_H

#include "base/memory.h"

typedef struct fl_name_slot {
    fl_str key; /* at NULL: free */
    int32_t value;
} fl_name_slot;

typedef struct fl_name_map {
    fl_name_slot *slots; /* (mask + 1) */
    size_t mask;
} fl_name_map;

typedef struct fl_pair_slot {
    uint32_t a, b, value; /* value FL_PAIR_NONE: free */
} fl_pair_slot;

typedef struct fl_pair_map {
    fl_pair_slot *slots; /* (mask + 1) */
    size_t mask;
} fl_pair_map;

#define FL_PAIR_NONE UINT32_MAX

/* Spread h: every bit of it moves about half of the result's. */
FL_LOCAL uint64_t fl_mix(uint64_t h);

/* Lay out for at most n entries; false while dry. fl_pair_map needs fl_pair_map_clear before its first use. */
FL_LOCAL void fl_name_map_layout(fl_name_map *map, fl_arena *arena, size_t n);
FL_LOCAL void fl_pair_map_layout(fl_pair_map *map, fl_arena *arena, size_t n);
FL_LOCAL void fl_pair_map_clear(fl_pair_map *map);

/* Returns the value that stands under key: `value`, or that of an earlier entry, which stays. */
FL_LOCAL int32_t fl_name_map_put(fl_name_map *map, fl_str key, int32_t value);
FL_LOCAL int32_t fl_name_map_get(const fl_name_map *map, fl_str key, int32_t missing);
FL_LOCAL void fl_pair_map_put(fl_pair_map *map, uint32_t a, uint32_t b, uint32_t value);
FL_LOCAL uint32_t fl_pair_map_get(const fl_pair_map *map, uint32_t a, uint32_t b);

#endif
