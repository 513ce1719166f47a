/* The forward pass against Hugging Face: logits and greedy text of the checkpoints of vectors/models, which
 * oracle/make_models.py wrote with transformers, in every table of kernels that this processor has.
 *
 *     cc -O2 -I. -Isrc tests/test_model.c tests/inside.c -lutf8proc -lm -lpthread && ./a.out
 */
#include "inside.h"

#include "check.h"
#include "expected.h"

#include <stdlib.h>

#define GATE_F32_KV 1e-10 /* NMSE against float64 on the same weights, KV in float32 */
#define GATE_F16_KV 1e-5

static folollm *open_model(const char *path, const vector_case *c, folollm_isa isa, folollm_kv_type kv) {
    folollm_options o = {.context = c->context, .isa = isa, .kv = kv, .n_threads = 2, .chunk = 7};
    folollm_error error;
    folollm *f = NULL;
    if (!CHECK(folollm_load(path, &o, &f, &error) == FOLOLLM_OK)) {
        printf("  %s: %s\n", path, error.text);
    }
    return f;
}

/* Prefill with the logits of every position, then follow the greedy continuation step by step. */
static float *run_case(folollm *f, const vector_case *c, unsigned *n_greedy_wrong) {
    float *all = malloc((size_t)c->n_ids * c->vocab * sizeof *all);
    folollm_sampling greedy = {.ignore_eos = 1};
    folollm_sampled s;
    folollm_seq seq;
    CHECK(folollm_seq_open(f, &greedy, &seq, NULL) == FOLOLLM_OK);
    CHECK(folollm_prefill(f, seq, c->ids, c->n_ids, all, NULL) == FOLOLLM_OK);
    for (int i = 0; i < GREEDY; i++) {
        if (!CHECK(folollm_sample(f, seq, &s, NULL, 0, NULL) == FOLOLLM_OK)) {
            break;
        }
        *n_greedy_wrong += s.token != c->greedy[i];
        CHECK(folollm_decode_step(f, &seq, &s.token, 1, NULL) == FOLOLLM_OK);
    }
    return all;
}

typedef struct worst {
    double f32, f16, theirs;
    unsigned greedy_wrong, n_greedy, n_cases, n_tables;
} worst;

static void test_case(const char *path, const vector_case *c, worst *w) {
    float *first = NULL;
    for (int isa = FOLOLLM_ISA_SCALAR; isa <= FOLOLLM_ISA_NEON; isa++) {
        if (fl_kernels_of((folollm_isa)isa) == NULL) {
            continue;
        }
        folollm *f = open_model(path, c, (folollm_isa)isa, FOLOLLM_KV_F32);
        if (f == NULL) {
            return;
        }
        unsigned wrong = 0;
        float *logits = run_case(f, c, &wrong);
        double error = nmse_of_case(c, logits, c->logits64);
        w->f32 = error > w->f32 ? error : w->f32;
        w->greedy_wrong += wrong;
        w->n_greedy += GREEDY;
        w->n_tables++;
        if (!CHECK(error <= GATE_F32_KV) || !CHECK(wrong == 0)) {
            printf("  %s, %s: NMSE %.3g, %u greedy tokens differ\n", path, f->settings.kernels->name, error, wrong);
        }
        if (first == NULL) {
            first = logits;
        } else {
            CHECK_TEXT(memcmp(first, logits, (size_t)c->n_ids * c->vocab * 4) == 0, "all tables give the same bits");
            free(logits);
        }
        folollm_free(f);
    }
    double theirs = nmse_of_case(c, first, c->logits32);
    w->theirs = theirs > w->theirs ? theirs : w->theirs;
    free(first);
    unsigned wrong = 0;
    folollm *f = open_model(path, c, FOLOLLM_ISA_BEST, FOLOLLM_KV_F16);
    if (f == NULL) {
        return;
    }
    float *logits = run_case(f, c, &wrong);
    double error = nmse_of_case(c, logits, c->logits64);
    w->f16 = error > w->f16 ? error : w->f16;
    CHECK(error <= GATE_F16_KV);
    free(logits);
    folollm_free(f);
}

static void test_model(const char *model, const char *vector_path, worst *w) {
    vectors v = open_vectors(vector_path);
    for (uint32_t i = 0; i < v.n_cases; i++) {
        vector_case c = next_case(&v);
        test_case(model, &c, w);
        w->n_cases++;
    }
    free(v.words);
}

int main(void) {
    char line[512], model[600], vector_path[700];
    worst random = {0}, trained = {0};
    FILE *index = fopen("tests/vectors/models/index.txt", "r");
    if (index == NULL) {
        printf("run from the root of the repository\n");
        return 2;
    }
    while (fgets(line, sizeof line, index) != NULL) {
        line[strcspn(line, " \n")] = 0;
        snprintf(model, sizeof model, "tests/vectors/models/%s", line);
        snprintf(vector_path, sizeof vector_path, "%s/logits.bin", model);
        test_model(model, vector_path, &random);
    }
    fclose(index);
    test_model("examples/models/tiny-shakespeare", "tests/vectors/models/tiny-shakespeare.logits.bin", &trained);
    printf("random checkpoints: %u cases in %u tables; NMSE to float64 %.2g (f32 KV), %.2g (f16 KV); to float32 of "
           "transformers %.2g; greedy tokens that differ: %u of %u\n",
           random.n_cases, random.n_tables, random.f32, random.f16, random.theirs, random.greedy_wrong,
           random.n_greedy);
    printf("tiny-shakespeare: NMSE to float64 %.2g (f32 KV), %.2g (f16 KV); greedy tokens that differ: %u of %u\n",
           trained.f32, trained.f16, trained.greedy_wrong, trained.n_greedy);
    CHECK(random.n_cases > 60);
    return check_finish();
}
