/* chat_template.jinja; behind a byte 0xFF tokenizer_config.json; behind another one the text of the messages. What is
 * recognised is rendered as long as it says, and everything of the messages lies outside the spans that the template
 * wrote. */
#include "fuzz.h"

static void check_spans(const char *text, size_t n, const folollm_span *spans, size_t n_spans, fl_str own) {
    size_t at = 0, outside = 0;
    for (size_t i = 0; i < n_spans; i++) {
        FUZZ_CHECK(spans[i].begin >= at && spans[i].end > spans[i].begin && spans[i].end <= n);
        outside += spans[i].begin - at;
        for (size_t k = spans[i].begin; k < spans[i].end; k++) {
            FUZZ_CHECK(text[k] != '\x01'); /* own may have it, templates do not */
        }
        at = spans[i].end;
    }
    outside += n - at;
    FUZZ_CHECK(outside <= 5 * (own.n + 5));
}

static void render(const fl_chat_template *c, fl_str own, unsigned flags, const char *date) {
    static const char *const roles[] = {"system", "user", "assistant", "user", "assistant"};
    static char text[8192];
    static folollm_span spans[64];
    folollm_message messages[FL_COUNT(roles)];
    for (size_t i = 0; i < FL_COUNT(roles); i++) {
        messages[i] = (folollm_message){roles[i], own.at, own.n};
    }
    for (size_t first = 0; first < 2; first++) {
        size_t n = 0, n_spans = 0, n_messages = FL_COUNT(roles) - first, n_wanted, n_wanted_spans;
        folollm_status status = fuzz_status(fl_chat_render(c, messages + first, n_messages, date, flags, NULL, &n, NULL,
                                                           &n_spans, &fuzz_error));
        FUZZ_CHECK(status == FOLOLLM_E_BUFFER || status == FOLOLLM_E_ARGUMENT || status == FOLOLLM_E_ENCODING);
        if (status != FOLOLLM_E_BUFFER) {
            continue;
        }
        FUZZ_CHECK(n <= sizeof text && n_spans <= FL_COUNT(spans));
        n_wanted = n;
        n_wanted_spans = n_spans;
        FUZZ_CHECK(fl_chat_render(c, messages + first, n_messages, date, flags, text, &n, spans, &n_spans,
                                  &fuzz_error) == FOLOLLM_OK);
        FUZZ_CHECK(n == n_wanted && n_spans == n_wanted_spans);
        if (strchr(c->bos, '\x01') == NULL && strchr(c->eos, '\x01') == NULL &&
            strchr(c->default_system, '\x01') == NULL) {
            check_spans(text, n, spans, n_spans, own);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_bytes rest = {data, size}, template = fuzz_part(&rest), config = fuzz_part(&rest);
    fl_memory m;
    fl_chat_template c;
    fl_str own = {(const char *)rest.at, rest.n < 256 ? rest.n : 256};
    fuzz_begin(24 * size + 4 * FUZZ_KIB);
    fuzz_forget_error();
    if (template.n > 0) {
        fuzz_file("mem/chat_template.jinja", template);
    }
    if (config.n > 0) {
        fuzz_file("mem/tokenizer_config.json", config);
    }
    fl_memory_init(&m, &fuzz.hooks);
    folollm_status status = fuzz_status(fl_chat_open(&m, "mem", &c, &fuzz_error));
    FUZZ_CHECK(status == FOLOLLM_OK || status == FOLOLLM_E_FORMAT);
    if (status == FOLOLLM_OK && c.format != FL_CHAT_NONE) {
        FUZZ_CHECK(fl_chat_format_name(c.format)[0] != 0);
        render(&c, own, 0, NULL);
        render(&c, own, FOLOLLM_CHAT_CONTINUE, "1");
        render(&c, own, FOLOLLM_CHAT_NO_THINKING, NULL);
    }
    FUZZ_CHECK(m.live == 0);
    fuzz_end();
    return 0;
}
