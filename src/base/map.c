#include "base/map.h"

static size_t fl_map_slots(size_t n) {
    size_t slots = 16;
    while (slots / 2 < n && slots <= SIZE_MAX / 4) {
        slots *= 2;
    }
    return slots;
}

FL_LOCAL uint64_t fl_mix(uint64_t h) {
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

/* Not keyed: a hostile vocabulary can make its own lookups slow, up to the entries that its file can hold. */
static size_t fl_hash_text(fl_str s) {
    uint64_t h = 0xCBF29CE484222325u ^ s.n;
    for (size_t i = 0; i < s.n; i++) {
        h = (h ^ (uint8_t)s.at[i]) * 0x100000001B3u;
    }
    return (size_t)fl_mix(h);
}

static size_t fl_hash_pair(uint32_t a, uint32_t b) {
    return (size_t)fl_mix((uint64_t)a << 32 | b);
}

FL_LOCAL void fl_name_map_layout(fl_name_map *map, fl_arena *arena, size_t n) {
    size_t slots = fl_map_slots(n);
    map->slots = fl_take(arena, slots, sizeof *map->slots);
    map->mask = slots - 1;
}

FL_LOCAL void fl_pair_map_layout(fl_pair_map *map, fl_arena *arena, size_t n) {
    size_t slots = fl_map_slots(n);
    map->slots = fl_take(arena, slots, sizeof *map->slots);
    map->mask = slots - 1;
}

FL_LOCAL void fl_pair_map_clear(fl_pair_map *map) {
    for (size_t i = 0; i <= map->mask; i++) {
        map->slots[i].value = FL_PAIR_NONE;
    }
}

/* The slot of key, or the free one where it belongs. */
static fl_name_slot *fl_name_slot_of(const fl_name_map *map, fl_str key) {
    size_t i = fl_hash_text(key) & map->mask;
    while (map->slots[i].key.at != NULL && !fl_str_equal(map->slots[i].key, key)) {
        i = (i + 1) & map->mask;
    }
    return &map->slots[i];
}

FL_LOCAL int32_t fl_name_map_put(fl_name_map *map, fl_str key, int32_t value) {
    fl_name_slot *slot = fl_name_slot_of(map, key);
    if (slot->key.at == NULL) {
        slot->key = key;
        slot->value = value;
    }
    return slot->value;
}

FL_LOCAL int32_t fl_name_map_get(const fl_name_map *map, fl_str key, int32_t missing) {
    const fl_name_slot *slot = fl_name_slot_of(map, key);
    return slot->key.at != NULL ? slot->value : missing;
}

static fl_pair_slot *fl_pair_slot_of(const fl_pair_map *map, uint32_t a, uint32_t b) {
    size_t i = fl_hash_pair(a, b) & map->mask;
    while (map->slots[i].value != FL_PAIR_NONE && (map->slots[i].a != a || map->slots[i].b != b)) {
        i = (i + 1) & map->mask;
    }
    return &map->slots[i];
}

FL_LOCAL void fl_pair_map_put(fl_pair_map *map, uint32_t a, uint32_t b, uint32_t value) {
    fl_pair_slot *slot = fl_pair_slot_of(map, a, b);
    if (slot->value == FL_PAIR_NONE) {
        slot->a = a;
        slot->b = b;
        slot->value = value;
    }
}

FL_LOCAL uint32_t fl_pair_map_get(const fl_pair_map *map, uint32_t a, uint32_t b) {
    return fl_pair_slot_of(map, a, b)->value;
}
