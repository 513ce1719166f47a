/* BPE: replace the pair of neighbours with the lowest rank, the leftmost of equals, until no pair has a rank.
 *
 * A word's symbols lie at the end of the ids found so far and are merged in place. Short words search all pairs for
 * each merge; long ones are cut where nothing can be merged, and keep pairs in a heap over a linked list, whose stale
 * entries are recognised when they come up:
 *
 *     ids:  [ earlier words | s0 s1 s2 ... ]     next, previous: indices of symbols     heap: rank << 32 | index
 *
 * Special tokens are never made from text, not even by a merge: the merges that would are left out at load. */
#include "text/bpe.h"

#include "base/utf8.h"

#define FL_BPE_SHORT 40 /* symbols up to which searching is faster than a heap */
#define FL_BPE_DEAD UINT32_MAX

FL_LOCAL bool fl_bpe_push(fl_bpe_run *run, uint32_t id) {
    void *ids = run->ids;
    if (!fl_grow(run->memory, &ids, &run->capacity, run->n_ids + 1, sizeof *run->ids)) {
        return false;
    }
    run->ids = ids;
    run->ids[run->n_ids++] = id;
    return true;
}

FL_LOCAL void fl_bpe_run_free(fl_bpe_run *run) {
    fl_free(run->memory, run->ids, run->capacity * sizeof *run->ids);
    fl_free(run->memory, run->links, run->n_links * sizeof *run->links);
    fl_free(run->memory, run->heap, run->heap_capacity * sizeof *run->heap);
    memset(run, 0, sizeof *run);
}

/* The token of some text, if it is one that text may become. */
static uint32_t fl_bpe_plain(const fl_vocab *v, fl_str piece) {
    uint32_t id = fl_vocab_find(v, piece, !v->byte_level);
    bool control = id != FL_VOCAB_NONE && (v->pieces[id].flags & (FL_PIECE_SPECIAL | FL_PIECE_ADDED)) != 0;
    return control ? FL_VOCAB_NONE : id;
}

FL_LOCAL void fl_bpe_index(fl_bpe *b) {
    static const char hex[] = "0123456789ABCDEF";
    for (int i = 0; i < 256; i++) {
        char byte = (char)i, name[6] = {'<', '0', 'x', hex[i >> 4], hex[i & 15], '>'};
        fl_str piece = {&byte, 1}, fallback = {name, 6};
        b->first[i] = i < 128 || b->vocab->byte_level ? fl_bpe_plain(b->vocab, piece) : FL_VOCAB_NONE;
        b->fallback[i] = fl_vocab_find(b->vocab, fallback, !b->vocab->byte_level);
    }
}

/* ---- Symbols -- */

/* The tokens of a character's bytes, if there is one for every byte. */
static bool fl_bpe_push_bytes(const fl_bpe *b, fl_bpe_run *run, fl_str bytes, bool *found) {
    *found = b->byte_fallback;
    for (size_t i = 0; *found && i < bytes.n; i++) {
        *found = b->fallback[(uint8_t)bytes.at[i]] != FL_VOCAB_NONE;
    }
    for (size_t i = 0; *found && i < bytes.n; i++) {
        if (!fl_bpe_push(run, b->fallback[(uint8_t)bytes.at[i]])) {
            return false;
        }
    }
    return true;
}

/* Push the symbols of a word: a known character's token, else its bytes' tokens, else unk_token, which waits for the
 * next known character (bytes overtake it, as in the tokenizers library), else nothing. */
static folollm_status fl_bpe_symbols(const fl_bpe *b, fl_bpe_run *run, fl_str word, folollm_error *error) {
    bool waiting = false, ok = true;
    size_t used;
    for (size_t at = 0; ok && at < word.n; at += used) {
        uint8_t byte = (uint8_t)word.at[at];
        bool single = byte < 0x80 || b->vocab->byte_level, found;
        used = single ? 1 : fl_utf8_length(byte);
        fl_str piece = {word.at + at, used};
        uint32_t id = single ? b->first[byte] : fl_bpe_plain(b->vocab, piece);
        if (id != FL_VOCAB_NONE) {
            ok = (!waiting || fl_bpe_push(run, b->unk)) && fl_bpe_push(run, id);
            waiting = false;
            continue;
        }
        ok = fl_bpe_push_bytes(b, run, piece, &found);
        if (!ok || found || !b->unk_named) {
            continue;
        }
        if (b->unk == FL_VOCAB_NONE) {
            return fl_fail(error, FOLOLLM_E_FORMAT, "the text needs the tokenizer's unk_token for %S, and the "
                                                    "vocabulary does not have it", &piece);
        }
        ok = !waiting || b->fuse_unk || fl_bpe_push(run, b->unk);
        waiting = true;
    }
    ok = ok && (!waiting || fl_bpe_push(run, b->unk));
    return ok ? FOLOLLM_OK : fl_no_memory(error, "token ids", word.n * sizeof *run->ids);
}

/* ---- Short words -- */

static size_t fl_bpe_merge_short(const fl_bpe *b, uint32_t *ids, size_t n) {
    uint32_t ranks[FL_BPE_SHORT]; /* of the pair that begins here */
    for (size_t i = 0; i + 1 < n; i++) {
        ranks[i] = fl_pair_map_get(&b->ranks, ids[i], ids[i + 1]);
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            best = ranks[i] < ranks[best] ? i : best;
        }
        if (ranks[best] == FL_PAIR_NONE) {
            break;
        }
        ids[best] = b->results[ranks[best]];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            ranks[i - 1] = ranks[i];
        }
        if (best + 1 < n) {
            ranks[best] = fl_pair_map_get(&b->ranks, ids[best], ids[best + 1]);
        }
        if (best > 0) {
            ranks[best - 1] = fl_pair_map_get(&b->ranks, ids[best - 1], ids[best]);
        }
    }
    return n;
}

/* ---- Long words -- */

static void fl_bpe_sift_down(uint64_t *heap, size_t n, size_t at) {
    uint64_t key = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= n) {
            break;
        }
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (heap[child] >= key) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
}

/* Enter the pair that begins at symbol `at`, if it has a rank. sorted: keep the heap's order. */
static bool fl_bpe_enter(const fl_bpe *b, fl_bpe_run *run, const uint32_t *ids, uint32_t at, uint32_t next,
                         bool sorted) {
    uint32_t rank = fl_pair_map_get(&b->ranks, ids[at], ids[next]);
    if (rank == FL_PAIR_NONE) {
        return true;
    }
    void *heap = run->heap;
    if (!fl_grow(run->memory, &heap, &run->heap_capacity, run->n_heap + 1, sizeof *run->heap)) {
        return false;
    }
    run->heap = heap;
    size_t i = run->n_heap++;
    uint64_t key = (uint64_t)rank << 32 | at;
    while (sorted && i > 0 && run->heap[(i - 1) / 2] > key) {
        run->heap[i] = run->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    run->heap[i] = key;
    return true;
}

/* Link the symbols and fill the heap. */
static bool fl_bpe_start_long(const fl_bpe *b, fl_bpe_run *run, const uint32_t *ids, size_t n) {
    void *links = run->links;
    if (!fl_grow(run->memory, &links, &run->n_links, 2 * n, sizeof *run->links)) {
        return false;
    }
    run->links = links;
    run->n_heap = 0;
    for (uint32_t i = 0; i < n; i++) {
        run->links[i] = i + 1;
        run->links[n + i] = i - 1; /* of the first: FL_BPE_DEAD */
        if (i + 1 < n && !fl_bpe_enter(b, run, ids, i, i + 1, false)) {
            return false;
        }
    }
    for (size_t i = run->n_heap / 2; i > 0; i--) {
        fl_bpe_sift_down(run->heap, run->n_heap, i - 1);
    }
    return true;
}

static uint64_t fl_bpe_pop(fl_bpe_run *run) {
    uint64_t top = run->heap[0];
    run->heap[0] = run->heap[--run->n_heap];
    if (run->n_heap > 0) {
        fl_bpe_sift_down(run->heap, run->n_heap, 0);
    }
    return top;
}

/* Merge n symbols; *n becomes how many are left. False: no memory. */
static bool fl_bpe_merge_long(const fl_bpe *b, fl_bpe_run *run, uint32_t *ids, size_t *n) {
    if (!fl_bpe_start_long(b, run, ids, *n)) {
        return false;
    }
    uint32_t *next = run->links, *previous = run->links + *n;
    while (run->n_heap > 0) {
        uint64_t top = fl_bpe_pop(run);
        uint32_t at = (uint32_t)top, rank = (uint32_t)(top >> 32), right = next[at];
        if (ids[at] == FL_BPE_DEAD || right >= *n || fl_pair_map_get(&b->ranks, ids[at], ids[right]) != rank) {
            continue;
        }
        ids[at] = b->results[rank];
        ids[right] = FL_BPE_DEAD;
        next[at] = next[right];
        if (next[at] < *n) {
            previous[next[at]] = at;
            if (!fl_bpe_enter(b, run, ids, at, next[at], true)) {
                return false;
            }
        }
        if (previous[at] != FL_BPE_DEAD && !fl_bpe_enter(b, run, ids, previous[at], at, true)) {
            return false;
        }
    }
    size_t left = 0;
    for (size_t i = 0; i < *n; i = next[i]) {
        ids[left++] = ids[i];
    }
    *n = left;
    return true;
}

/* ---- Cutting long words --
 *
 * A SentencePiece text is one word. Between two characters that no merge ever brings together nothing can be merged
 * across, whatever happens on either side, so the parts can be merged by themselves: mostly what people call words. */

/* The bit of the character that a token ends with and the one that another begins with; FL_BPE_JOINS for none. */
static uint32_t fl_bpe_join_bit(const fl_vocab *v, uint32_t left, uint32_t right) {
    fl_str a = fl_vocab_piece(v, left), b = fl_vocab_piece(v, right);
    if (a.n == 0 || b.n == 0) {
        return FL_BPE_JOINS;
    }
    size_t last = a.n - 1, n_first = v->byte_level ? 1 : fl_min(fl_utf8_length((uint8_t)b.at[0]), b.n);
    while (!v->byte_level && last > 0 && ((uint8_t)a.at[last] & 0xC0) == 0x80) {
        last--;
    }
    uint32_t h = 0x811C9DC5u;
    for (size_t i = last; i < a.n; i++) {
        h = (h ^ (uint8_t)a.at[i]) * 0x01000193u;
    }
    for (size_t i = 0; i < n_first; i++) {
        h = (h ^ (uint8_t)b.at[i]) * 0x01000193u;
    }
    return (h ^ h >> 16) % FL_BPE_JOINS;
}

FL_LOCAL void fl_bpe_note_join(fl_bpe *b, uint32_t left, uint32_t right, uint32_t whole) {
    uint32_t bit = fl_bpe_join_bit(b->vocab, left, right);
    bool raw = b->vocab->byte_level && (b->vocab->pieces[whole].flags & FL_PIECE_RAW) != 0;
    if (bit == FL_BPE_JOINS || raw) { /* its characters are not those of its parts: let everything join */
        memset(b->joins, 0xFF, FL_BPE_JOINS / 8);
        return;
    }
    b->joins[bit / 8] |= (uint8_t)(1 << bit % 8);
}

/* How many of n symbols belong together at the beginning. */
static size_t fl_bpe_part(const fl_bpe *b, const uint32_t *ids, size_t n) {
    for (size_t i = 1; i < n; i++) {
        uint32_t bit = fl_bpe_join_bit(b->vocab, ids[i - 1], ids[i]);
        if (bit < FL_BPE_JOINS && (b->joins[bit / 8] >> bit % 8 & 1) == 0) {
            return i;
        }
    }
    return n;
}

FL_LOCAL folollm_status fl_bpe_encode(const fl_bpe *b, fl_bpe_run *run, fl_str word, folollm_error *error) {
    if (b->ignore_merges) {
        uint32_t id = fl_bpe_plain(b->vocab, word);
        if (id != FL_VOCAB_NONE) {
            return fl_bpe_push(run, id) ? FOLOLLM_OK : fl_no_memory(error, "token ids", sizeof id);
        }
    }
    size_t begin = run->n_ids;
    FL_TRY(fl_bpe_symbols(b, run, word, error));
    size_t n = run->n_ids - begin, done = 0, left = 0;
    uint32_t *ids = run->ids != NULL ? run->ids + begin : NULL;
    while (done < n) {
        size_t part = n <= FL_BPE_SHORT ? n : fl_bpe_part(b, ids + done, n - done), merged = part;
        if (part <= FL_BPE_SHORT) {
            merged = fl_bpe_merge_short(b, ids + done, part);
        } else if (!fl_bpe_merge_long(b, run, ids + done, &merged)) {
            return fl_no_memory(error, "the merges of a long word", part * sizeof *run->heap);
        }
        memmove(ids + left, ids + done, merged * sizeof *ids);
        left += merged;
        done += part;
    }
    run->n_ids = begin + left;
    return FOLOLLM_OK;
}
