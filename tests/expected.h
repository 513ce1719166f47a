/* What transformers gives: the cases of a logits.bin, laid out as oracle/make_models.py says. */
#ifndef EXPECTED_H
#define EXPECTED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GREEDY 16

typedef struct vector_case {
    uint32_t n_ids, n_rows, vocab, context;
    const int32_t *ids, *rows;
    const float *logits32, *logits64;
    const int32_t *greedy;
    const float *gaps;
} vector_case;

typedef struct vectors {
    uint32_t *words; /* the whole file */
    size_t n_words, at;
    uint32_t n_cases;
} vectors;

static uint32_t *take(vectors *v, size_t n) {
    uint32_t *p = v->words + v->at;
    if (v->at + n > v->n_words) {
        printf("a vector file is too short\n");
        exit(2);
    }
    v->at += n;
    return p;
}

static vectors open_vectors(const char *path) {
    vectors v = {NULL, 0, 0, 0};
    FILE *f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) {
        printf("cannot read %s: run from the root of the repository\n", path);
        exit(2);
    }
    v.n_words = (size_t)ftell(f) / 4;
    v.words = malloc(v.n_words * 4);
    rewind(f);
    if (fread(v.words, 4, v.n_words, f) != v.n_words || memcmp(take(&v, 1), "FLV1", 4) != 0) {
        exit(2);
    }
    fclose(f);
    v.n_cases = *take(&v, 1);
    return v;
}

static vector_case next_case(vectors *v) {
    vector_case c;
    uint32_t *head = take(v, 4);
    c.n_ids = head[0];
    c.n_rows = head[1];
    c.vocab = head[2];
    c.context = head[3];
    size_t n = (size_t)c.n_rows * c.vocab;
    c.ids = (const int32_t *)take(v, c.n_ids);
    c.rows = (const int32_t *)take(v, c.n_rows);
    c.logits32 = (const float *)take(v, n);
    c.logits64 = (const float *)take(v, n);
    c.greedy = (const int32_t *)take(v, GREEDY);
    c.gaps = (const float *)take(v, GREEDY);
    return c;
}

/* Sum of squared differences over sum of squares, at the rows of the case. */
static double nmse_of_case(const vector_case *c, const float *ours, const float *theirs) {
    double difference = 0, total = 0;
    for (uint32_t r = 0; r < c->n_rows; r++) {
        for (uint32_t i = 0; i < c->vocab; i++) {
            double a = ours[(size_t)c->rows[r] * c->vocab + i], b = theirs[(size_t)r * c->vocab + i];
            difference += (a - b) * (a - b);
            total += b * b;
        }
    }
    return difference / total;
}

#endif
