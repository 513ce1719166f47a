/* Rendering a chat format. It writes twice with the same code: first it only counts, so a call that fails has
 * written nothing. */
#include "text/chat.h"

#include "base/utf8.h"

FL_LOCAL const char *fl_chat_format_name(fl_chat_format format) {
    switch (format) {
    case FL_CHAT_CHATML:
    case FL_CHAT_QWEN3:
        return "chatml";
    case FL_CHAT_LLAMA3:
        return "llama3";
    case FL_CHAT_MISTRAL:
        return "mistral";
    case FL_CHAT_NONE:
        break;
    }
    return "";
}

/* ---- Rendering -- */

typedef struct fl_chat_writer {
    const fl_chat_template *c;
    const folollm_message *messages;
    size_t n_messages;
    const char *date;
    unsigned flags;
    char *text;            /* NULL: count */
    folollm_span *trusted; /* NULL: count */
    size_t n, n_trusted;
    size_t trusted_end;    /* of the last span */
    bool overflow;
} fl_chat_writer;

/* Text of a message. */
static void fl_chat_put(fl_chat_writer *w, fl_str s) {
    if (w->text != NULL && s.n > 0) {
        memcpy(w->text + w->n, s.at, s.n);
    }
    w->overflow |= !fl_add(w->n, s.n, &w->n);
}

/* Text of the template. */
static void fl_chat_say(fl_chat_writer *w, const char *text) {
    size_t begin = w->n;
    if (text[0] == 0) {
        return;
    }
    fl_chat_put(w, fl_str_of(text));
    if (w->n_trusted == 0 || w->trusted_end != begin) {
        if (w->trusted != NULL) {
            w->trusted[w->n_trusted].begin = begin;
        }
        w->n_trusted++;
    }
    w->trusted_end = w->n;
    if (w->trusted != NULL) {
        w->trusted[w->n_trusted - 1].end = w->n;
    }
}

static fl_str fl_chat_content(const fl_chat_writer *w, size_t i) {
    fl_str s = {w->messages[i].text, w->messages[i].n_bytes};
    return s;
}

static bool fl_chat_is(const fl_chat_writer *w, size_t i, const char *role) {
    return strcmp(w->messages[i].role, role) == 0;
}

/* What Python's str.strip() takes for space. */
static bool fl_chat_is_blank(int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680
           || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F
           || c == 0x3000;
}

/* Jinja's trim filter, on valid UTF-8. */
static fl_str fl_chat_trim(fl_str s) {
    size_t used;
    while (s.n > 0 && fl_chat_is_blank(fl_utf8_decode(s.at, s.n, &used))) {
        s.at += used;
        s.n -= used;
    }
    while (s.n > 0) {
        size_t begin = s.n - 1;
        while (begin > 0 && ((uint8_t)s.at[begin] & 0xC0) == 0x80) {
            begin--;
        }
        if (!fl_chat_is_blank(fl_utf8_decode(s.at + begin, s.n - begin, &used))) {
            break;
        }
        s.n = begin;
    }
    return s;
}

static fl_str fl_chat_strip_lines(fl_str s, bool front, bool back) {
    while (front && s.n > 0 && s.at[0] == '\n') {
        s.at++;
        s.n--;
    }
    while (back && s.n > 0 && s.at[s.n - 1] == '\n') {
        s.n--;
    }
    return s;
}

/* s behind the last `mark`, and in *before what precedes the first; all of s, and "", if there is none. */
static fl_str fl_chat_cut(fl_str s, const char *mark, fl_str *before) {
    fl_str m = fl_str_of(mark);
    before->at = s.at;
    before->n = 0;
    bool first = true;
    size_t behind = 0;
    for (size_t at; (at = fl_chat_find(s, behind, m)) != SIZE_MAX; behind = at + m.n) {
        before->n = first ? at : before->n;
        first = false;
    }
    if (behind > 0) {
        s.at += behind;
        s.n -= behind;
    }
    return s;
}

static void fl_chat_chatml_header(fl_chat_writer *w, const char *role) {
    fl_chat_say(w, "<|im_start|>");
    fl_chat_say(w, role);
    fl_chat_say(w, "\n");
}

static void fl_chat_chatml_turn(fl_chat_writer *w, const char *role, fl_str content) {
    fl_chat_chatml_header(w, role);
    fl_chat_put(w, content);
    fl_chat_say(w, "<|im_end|>\n");
}

static void fl_chat_render_chatml(fl_chat_writer *w) {
    if (w->c->variant & FL_CHATML_BOS) {
        fl_chat_say(w, w->c->bos);
    }
    if (w->c->default_system[0] != 0 && !fl_chat_is(w, 0, "system")) {
        fl_chat_chatml_header(w, "system");
        fl_chat_say(w, w->c->default_system);
        fl_chat_say(w, "<|im_end|>\n");
    }
    for (size_t i = 0; i < w->n_messages; i++) {
        fl_chat_chatml_turn(w, w->messages[i].role, fl_chat_content(w, i));
    }
    if (!(w->flags & FOLOLLM_CHAT_CONTINUE)) {
        fl_chat_chatml_header(w, "assistant");
    }
}

/* The last message in which the user asks, rather than hands over what a tool answered; the last message of all if
 * there is none. */
static size_t fl_chat_last_query(const fl_chat_writer *w) {
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    const size_t n_open = sizeof open - 1, n_close = sizeof close - 1;
    for (size_t i = w->n_messages; i-- > 0;) {
        fl_str s = fl_chat_content(w, i);
        bool tool = s.n >= n_close && memcmp(s.at, open, n_open) == 0
                    && memcmp(s.at + s.n - n_close, close, n_close) == 0;
        if (fl_chat_is(w, i, "user") && !tool) {
            return i;
        }
    }
    return w->n_messages - 1;
}

/* An assistant's turn: the reasoning stays only behind the last query. */
static void fl_chat_qwen3_answer(fl_chat_writer *w, size_t i, bool reason) {
    fl_str reasoning, none, content = fl_chat_cut(fl_chat_content(w, i), "</think>", &reasoning);
    if (content.n < fl_chat_content(w, i).n) {
        content = fl_chat_strip_lines(content, true, false);
        reasoning = fl_chat_cut(fl_chat_strip_lines(reasoning, false, true), "<think>", &none);
        reasoning = fl_chat_strip_lines(reasoning, true, false);
    }
    if (!reason || (reasoning.n == 0 && i + 1 < w->n_messages)) {
        fl_chat_chatml_turn(w, "assistant", content);
        return;
    }
    fl_chat_chatml_header(w, "assistant");
    fl_chat_say(w, "<think>\n");
    fl_chat_put(w, fl_chat_strip_lines(reasoning, true, true));
    fl_chat_say(w, "\n</think>\n\n");
    fl_chat_put(w, fl_chat_strip_lines(content, true, false));
    fl_chat_say(w, "<|im_end|>\n");
}

static void fl_chat_render_qwen3(fl_chat_writer *w) {
    size_t query = fl_chat_last_query(w);
    for (size_t i = 0; i < w->n_messages; i++) {
        if (fl_chat_is(w, i, "assistant")) {
            fl_chat_qwen3_answer(w, i, i > query);
        } else {
            fl_chat_chatml_turn(w, w->messages[i].role, fl_chat_content(w, i));
        }
    }
    if (w->flags & FOLOLLM_CHAT_CONTINUE) {
        return;
    }
    fl_chat_chatml_header(w, "assistant");
    if (w->c->variant & FL_QWEN3_OPEN_THINK) {
        fl_chat_say(w, "<think>\n");
    } else if (w->flags & FOLOLLM_CHAT_NO_THINKING) {
        fl_chat_say(w, "<think>\n\n</think>\n\n");
    }
}

static void fl_chat_llama3_header(fl_chat_writer *w, const char *role) {
    fl_chat_say(w, "<|start_header_id|>");
    fl_chat_say(w, role);
    fl_chat_say(w, "<|end_header_id|>\n\n");
}

static void fl_chat_render_llama3(fl_chat_writer *w) {
    bool dates = w->c->variant & FL_LLAMA3_DATES;
    bool system = dates && fl_chat_is(w, 0, "system");
    fl_chat_say(w, w->c->bos);
    if (dates) {
        fl_chat_llama3_header(w, "system");
        fl_chat_say(w, "Cutting Knowledge Date: December 2023\nToday Date: ");
        if (w->date == NULL) {
            fl_chat_say(w, "26 Jul 2024");
        } else {
            fl_chat_put(w, fl_str_of(w->date));
        }
        fl_chat_say(w, "\n\n");
        if (system) {
            fl_chat_put(w, fl_chat_trim(fl_chat_content(w, 0)));
        }
        fl_chat_say(w, "<|eot_id|>");
    }
    for (size_t i = system; i < w->n_messages; i++) {
        fl_chat_llama3_header(w, w->messages[i].role);
        fl_chat_put(w, fl_chat_trim(fl_chat_content(w, i)));
        fl_chat_say(w, "<|eot_id|>");
    }
    if (!(w->flags & FOLOLLM_CHAT_CONTINUE) || (w->c->variant & FL_LLAMA3_ALWAYS_PROMPT)) {
        fl_chat_llama3_header(w, "assistant");
    }
}

static void fl_chat_mistral_user(fl_chat_writer *w, size_t i, bool with_system) {
    uint32_t v = w->c->variant;
    fl_chat_say(w, v & FL_MISTRAL_LEAD ? " [INST]" : "[INST]");
    fl_chat_say(w, v & FL_MISTRAL_OPEN_SPACE ? " " : "");
    if (with_system) {
        fl_chat_put(w, fl_chat_content(w, 0));
        fl_chat_say(w, "\n\n");
    }
    fl_chat_put(w, fl_chat_content(w, i));
    fl_chat_say(w, v & FL_MISTRAL_CLOSE_SPACE ? " [/INST]" : "[/INST]");
}

static void fl_chat_render_mistral(fl_chat_writer *w) {
    uint32_t v = w->c->variant;
    bool system = (v & (FL_MISTRAL_SYSTEM_FIRST | FL_MISTRAL_SYSTEM_LAST)) && fl_chat_is(w, 0, "system");
    fl_chat_say(w, w->c->bos);
    for (size_t i = system; i < w->n_messages; i++) {
        fl_str content = fl_chat_content(w, i);
        if (fl_chat_is(w, i, "user")) {
            bool here = v & FL_MISTRAL_SYSTEM_FIRST ? i == 1 : i + 1 == w->n_messages;
            fl_chat_mistral_user(w, i, system && here);
        } else if (fl_chat_is(w, i, "assistant")) {
            fl_chat_say(w, v & FL_MISTRAL_ANSWER_SPACE ? " " : "");
            fl_chat_put(w, v & FL_MISTRAL_ANSWER_TRIM ? fl_chat_trim(content) : content);
            fl_chat_say(w, w->c->eos);
            fl_chat_say(w, v & FL_MISTRAL_EOS_SPACE ? " " : "");
        } else {
            fl_chat_say(w, "[SYSTEM_PROMPT] ");
            fl_chat_put(w, content);
            fl_chat_say(w, "[/SYSTEM_PROMPT]");
        }
    }
}

static void fl_chat_run(fl_chat_writer *w) {
    w->n = 0;
    w->n_trusted = 0;
    w->trusted_end = 0;
    switch (w->c->format) {
    case FL_CHAT_CHATML:
        fl_chat_render_chatml(w);
        break;
    case FL_CHAT_QWEN3:
        fl_chat_render_qwen3(w);
        break;
    case FL_CHAT_LLAMA3:
        fl_chat_render_llama3(w);
        break;
    case FL_CHAT_MISTRAL:
        fl_chat_render_mistral(w);
        break;
    case FL_CHAT_NONE:
        break;
    }
}

/* Most Mistral templates raise an exception unless user and assistant alternate, after a system message if the
 * template has a place for one. */
static folollm_status fl_chat_check_turns(const fl_chat_writer *w, folollm_error *error) {
    uint32_t v = w->c->variant;
    if (w->c->format != FL_CHAT_MISTRAL || (v & FL_MISTRAL_SYSTEM_PROMPT)) {
        return FOLOLLM_OK;
    }
    bool system = (v & (FL_MISTRAL_SYSTEM_FIRST | FL_MISTRAL_SYSTEM_LAST)) && fl_chat_is(w, 0, "system");
    for (size_t i = system; i < w->n_messages; i++) {
        const char *expected = (i - system) % 2 == 0 ? "user" : "assistant";
        if (!fl_chat_is(w, i, expected)) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT,
                           "message %u has the role %s; the chat template wants %s there: "
                           "user and assistant in turn%s", (uint64_t)i, w->messages[i].role, expected,
                           v & (FL_MISTRAL_SYSTEM_FIRST | FL_MISTRAL_SYSTEM_LAST) ? ", after an optional system"
                                                                                 : ", and no system");
        }
    }
    return FOLOLLM_OK;
}

static folollm_status fl_chat_check_messages(const fl_chat_writer *w, folollm_error *error) {
    if (w->n_messages == 0) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "no messages");
    }
    for (size_t i = 0; i < w->n_messages; i++) {
        const folollm_message *m = &w->messages[i];
        if (m->role == NULL || (m->text == NULL && m->n_bytes > 0)) {
            return fl_fail(error, FOLOLLM_E_ARGUMENT, "message %u has no role or no text", (uint64_t)i);
        }
        if (!fl_chat_is(w, i, "system") && !fl_chat_is(w, i, "user") && !fl_chat_is(w, i, "assistant")) {
            fl_str role = fl_str_of(m->role);
            return fl_fail(error, FOLOLLM_E_ARGUMENT,
                           "message %u has the role %S; \"system\", \"user\" or \"assistant\" was expected",
                           (uint64_t)i, &role);
        }
        size_t valid = m->n_bytes == 0 ? 0 : fl_utf8_valid_prefix(m->text, m->n_bytes);
        if (valid < m->n_bytes) {
            return fl_fail(error, FOLOLLM_E_ENCODING, "message %u is not UTF-8 at byte %u", (uint64_t)i,
                           (uint64_t)valid);
        }
    }
    return fl_chat_check_turns(w, error);
}

FL_LOCAL folollm_status fl_chat_render(const fl_chat_template *c, const folollm_message *messages,
                                       size_t n_messages, const char *date, unsigned flags, char *text,
                                       size_t *n_bytes, folollm_span *trusted, size_t *n_trusted,
                                       folollm_error *error) {
    if (c->format == FL_CHAT_NONE) {
        return fl_fail(error, FOLOLLM_E_UNSUPPORTED,
                       "the checkpoint has no chat template, or none of the known ones (ChatML, Qwen2 to Qwen3, "
                       "Llama 3 to 3.3, Mistral v1 to v7); write the prompt and mark its trusted spans yourself");
    }
    fl_chat_writer w = {c, messages, n_messages, date, flags, NULL, NULL, 0, 0, 0, false};
    FL_TRY(fl_chat_check_messages(&w, error));
    if (date != NULL && fl_utf8_valid_prefix(date, strlen(date)) < strlen(date)) {
        return fl_fail(error, FOLOLLM_E_ENCODING, "the date is not UTF-8");
    }
    fl_chat_run(&w);
    if (w.overflow) {
        return fl_fail(error, FOLOLLM_E_ARGUMENT, "the messages together are longer than memory can be");
    }
    bool fits = w.n <= *n_bytes && w.n_trusted <= *n_trusted;
    size_t room = *n_bytes, room_trusted = *n_trusted;
    *n_bytes = w.n;
    *n_trusted = w.n_trusted;
    if (!fits) {
        return fl_fail(error, FOLOLLM_E_BUFFER,
                       "the chat has %u bytes and %u trusted spans; there is room for %u and %u",
                       (uint64_t)w.n, (uint64_t)w.n_trusted, (uint64_t)room, (uint64_t)room_trusted);
    }
    w.text = text;
    w.trusted = trusted;
    fl_chat_run(&w);
    return FOLOLLM_OK;
}
