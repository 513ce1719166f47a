/* Characters of a game talk while it draws 60 frames a second: folollm_step gets 2 ms of each frame.
 *
 *     game_loop [MODEL [SECONDS]]
 *
 * A forward pass rests where the time is up and goes on in the next frame. All prompts begin with the same scene: its
 * keys and values are computed once and found in the prefix cache from then on. At the end: what the frames paid. */
#define _POSIX_C_SOURCE 200809L
#include "folollm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FRAME_US = 1000000 / 60, MODEL_US = 2000, BIN_US = 250, N_BINS = 16, N_CHARACTERS = 4, FRAMES_MAX = 60 * 3600 };

static const char scene[] = "Verona. A public place. The Prince has forbidden all fighting in the streets, and the "
                            "feast at the house of Capulet begins tonight.\n\n";
static folollm_error error;

typedef struct character {
    const char *name;
    uint64_t seed;   /* another one for each line */
    char line[1024]; /* what has been said so far */
    size_t n_bytes;
} character;

static void check(folollm_status status)
{
    if (status != FOLOLLM_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
}

static uint64_t now_us(void *user)
{
    struct timespec now;
    (void)user;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void sleep_until(uint64_t time)
{
    uint64_t now = now_us(NULL);
    if (now < time) {
        struct timespec rest = {(time_t)((time - now) / 1000000), (long)((time - now) % 1000000 * 1000)};
        nanosleep(&rest, NULL);
    }
}

/* The character shall say something: until an empty line, or 60 tokens. */
static void ask(folollm *llm, character *c, uint64_t tag)
{
    static const folollm_text stop = {"\n\n", 2};
    char text[sizeof scene + 64];
    folollm_token tokens[sizeof text];
    size_t n = sizeof text;
    folollm_seq seq;
    folollm_sampling sampling = {.temperature = 0.8f, .top_k = 40, .seed = c->seed, .max_tokens = 60};
    sampling.stops = &stop;
    sampling.n_stops = 1;
    int n_bytes = snprintf(text, sizeof text, "%s%s:\n", scene, c->name);
    check(folollm_tokenize(llm, text, (size_t)n_bytes, NULL, 0, 0, tokens, &n, &error));
    folollm_submission submission = {.prompt = tokens, .n_prompt = n, .sampling = &sampling, .tag = tag};
    check(folollm_submit(llm, &submission, &seq, &error));
    c->seed += N_CHARACTERS;
    c->n_bytes = 0;
}

/* A character says one token more; the line is printed when it is complete, and the character asked again. */
static void hear(folollm *llm, character *cast, const folollm_event *e)
{
    character *c = &cast[e->tag];
    size_t room = sizeof c->line - c->n_bytes, n = e->n_bytes < room ? e->n_bytes : room;
    memcpy(c->line + c->n_bytes, e->text, n);
    c->n_bytes += n;
    if (e->finish != FOLOLLM_FINISH_NONE) {
        printf("%-8s (%3.0f ms) %.*s\n", c->name, (double)e->metrics.last_token_us / 1e3, (int)c->n_bytes, c->line);
        ask(llm, c, e->tag);
    }
}

/* The model's part of a frame. No event means that the next operation would not have fitted into what was left. */
static void run_model(folollm *llm, character *cast, uint64_t until)
{
    folollm_event events[N_CHARACTERS];
    size_t n = N_CHARACTERS;
    for (uint64_t now = now_us(NULL); n > 0 && now < until; now = now_us(NULL)) {
        folollm_budget budget = {.microseconds = (uint32_t)(until - now)};
        n = N_CHARACTERS;
        check(folollm_step(llm, &budget, events, &n, &error));
        for (size_t i = 0; i < n; i++) {
            hear(llm, cast, &events[i]);
        }
    }
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void print_times(uint32_t *times, size_t n)
{
    size_t bins[N_BINS] = {0}, over = 0;
    for (size_t i = 0; i < n; i++) {
        bins[times[i] / BIN_US < N_BINS ? times[i] / BIN_US : N_BINS - 1]++;
        over += times[i] > MODEL_US;
    }
    qsort(times, n, sizeof *times, compare);
    printf("\nmodel time of %zu frames\n", n);
    for (int i = 0; i < N_BINS; i++) {
        int width = (int)((bins[i] * 60 + n - 1) / n);
        printf("%5.2f ms %s %6zu %.*s\n", i * BIN_US / 1e3, i == N_BINS - 1 ? "and more" : "        ", bins[i], width,
               "############################################################");
    }
    printf("p50 %.2f ms, p99 %.2f ms, max %.2f ms; above %.0f ms: %zu frames\n", times[n / 2] / 1e3,
           times[n * 99 / 100] / 1e3, times[n - 1] / 1e3, MODEL_US / 1e3, over);
}

int main(int argc, char **argv)
{
    character cast[N_CHARACTERS] = {{.name = "ROMEO"}, {.name = "JULIET"}, {.name = "MERCUTIO"}, {.name = "NURSE"}};
    folollm_host host = {.clock = now_us};
    folollm_options options = {.host = &host, .pool_tokens = 1024, .max_requests = N_CHARACTERS, .n_threads = 1};
    folollm *llm;
    double wanted = argc > 2 ? atof(argv[2]) * 60 : 5 * 60;
    size_t n_frames = wanted < 1 ? 1 : wanted < FRAMES_MAX ? (size_t)wanted : FRAMES_MAX;
    uint32_t *times = calloc(n_frames, sizeof *times);
    if (times == NULL) {
        return 1;
    }
    check(folollm_load(argc > 1 ? argv[1] : "examples/models/tiny-shakespeare", &options, &llm, &error));
    for (uint64_t i = 0; i < N_CHARACTERS; i++) {
        cast[i].seed = i;
        ask(llm, &cast[i], i);
    }
    uint64_t frame = now_us(NULL);
    for (size_t i = 0; i < n_frames; i++, frame += FRAME_US) {
        uint64_t begin = now_us(NULL); /* the game moves and draws here, too */
        run_model(llm, cast, begin + MODEL_US);
        times[i] = (uint32_t)(now_us(NULL) - begin);
        sleep_until(frame + FRAME_US);
    }
    print_times(times, n_frames);
    free(times);
    folollm_free(llm);
    return 0;
}
