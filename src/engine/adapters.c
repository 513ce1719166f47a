#include "engine/adapters.h"

FL_LOCAL void fl_adapters_layout(fl_adapters *all, fl_arena *arena, uint32_t n_slots) {
    all->n_slots = n_slots;
    all->slots = fl_take(arena, n_slots, sizeof *all->slots);
    all->generations = fl_take(arena, n_slots, sizeof *all->generations);
}

FL_LOCAL folollm_status fl_adapters_load(fl_memory *m, fl_adapters *all, const fl_config *c, const char *directory,
                                         float scale, uint32_t max_rank, folollm_adapter *out, folollm_error *error) {
    uint32_t slot = 0;
    while (slot < all->n_slots && all->slots[slot].serial != 0) {
        slot++;
    }
    if (slot == all->n_slots) {
        return fl_fail(error, FOLOLLM_E_POOL, "all %u adapters are there: free one, or load with more max_adapters",
                       (uint64_t)all->n_slots);
    }
    FL_TRY(fl_adapter_open(m, &all->slots[slot], c, directory, scale, max_rank, error));
    all->slots[slot].bound = all->slots[slot].low_ranks;
    all->slots[slot].serial = ++all->last_serial;
    all->generations[slot] = all->generations[slot] % (UINT32_MAX / FL_ADAPTERS_MAX) + 1;
    *out = all->generations[slot] * FL_ADAPTERS_MAX + slot;
    return FOLOLLM_OK;
}

FL_LOCAL folollm_status fl_adapters_find(const fl_adapters *all, folollm_adapter handle, fl_adapter **out,
                                         folollm_error *error) {
    uint32_t slot = handle % FL_ADAPTERS_MAX, generation = handle / FL_ADAPTERS_MAX;
    if (handle == 0) {
        *out = NULL;
        return FOLOLLM_OK;
    }
    if (slot >= all->n_slots || all->slots[slot].serial == 0 || all->generations[slot] != generation) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "adapter %u is none that this engine holds", (uint64_t)handle);
    }
    *out = &all->slots[slot];
    return FOLOLLM_OK;
}

FL_LOCAL const fl_adapter *fl_adapters_with(const fl_adapters *all, uint64_t fingerprint) {
    for (uint32_t i = 0; i < all->n_slots; i++) {
        if (all->slots[i].serial != 0 && all->slots[i].fingerprint == fingerprint) {
            return &all->slots[i];
        }
    }
    return NULL;
}

FL_LOCAL void fl_adapters_close(fl_memory *m, fl_adapters *all) {
    for (uint32_t i = 0; all->slots != NULL && i < all->n_slots; i++) {
        fl_adapter_close(m, &all->slots[i]);
    }
}
