/* Recognising a chat template.
 *
 * The Jinja source is rewritten to a canonical form (comments, layout, quote style and the spelling of attribute
 * access are gone; what Jinja would print between tags stays) and matched with the rules below. A rule spells out
 * the tags that plain messages pass through and leaves tool branches to its wildcards: a template that prints
 * something else for them matches no rule, and is refused rather than guessed.
 *
 *     {{- message["role"] + '\n' }}   ->   {{message.role+'\n'}}
 */
#include "text/chat.h"

#include "base/os.h"
#include "formats/json.h"

#define FL_CHAT_MAX_TEMPLATE_BYTES ((size_t)1 << 17)
#define FL_CHAT_MAX_CONFIG_BYTES ((size_t)1 << 26)

typedef struct fl_chat_rule {
    fl_chat_format format;
    uint32_t variant;
    const char *pattern; /* of the canonical form; '*' is anything, '@' the default system message */
} fl_chat_rule;

#define FL_CHATML_TURN "{{'<|im_start|>'+message.role+'\\n'+message.content+'<|im_end|>\\n'}}"
#define FL_CHATML_DEFAULT "{{'<|im_start|>system\\n@<|im_end|>\\n'}}"
#define FL_CHATML_PROMPT "{%ifadd_generation_prompt%}{{'<|im_start|>assistant\\n'}}{%endif%}"
#define FL_CHATML_LOOP "{%formessageinmessages%}" FL_CHATML_TURN "{%endfor%}" FL_CHATML_PROMPT
#define FL_QWEN_SYSTEM \
    "{%iftools%}*{%else%}{%ifmessages[0].role=='system'%}" \
    "{{'<|im_start|>system\\n'+messages[0].content+'<|im_end|>\\n'}}"
#define FL_QWEN_TURN "(message.role=='user')or(message.role=='system'andnotloop.first)"
#define FL_QWEN3_ANSWER "{{'<|im_start|>'+message.role+'\\n'+content}}"
#define FL_QWEN3_STRING \
    "{%ifmessage.contentisstring%}{%setcontent=message.content%}{%else%}{%setcontent=''%}{%endif%}{%if" \
    FL_QWEN_TURN "%}{{'<|im_start|>'+message.role+'\\n'+content+'<|im_end|>\\n'}}{%elifmessage.role=='assistant'%}"
#define FL_QWEN3_ENDS "{%ifmessage.tool_calls%}*{{'<|im_end|>\\n'}}{%elifmessage.role=='tool'%}*{%endfor%}"
#define FL_QWEN3_CONTENT(from) "{%setcontent=" from ".split('</think>')[-1].lstrip('\\n')%}"
#define FL_QWEN3_REASONING(from) \
    "{%setreasoning_content=" from ".split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')%}"
#define FL_QWEN3_OLD \
    "{%if" FL_QWEN_TURN "%}" FL_CHATML_TURN "{%elifmessage.role=='assistant'%}{%setcontent=message.content%}" \
    "{%setreasoning_content=''%}*{%if'</think>'inmessage.content%}" FL_QWEN3_CONTENT("message.content") \
    FL_QWEN3_REASONING("message.content")
#define FL_QWEN3_NEW \
    FL_QWEN3_STRING "{%setreasoning_content=''%}*{%if'</think>'incontent%}" FL_QWEN3_REASONING("content") \
    FL_QWEN3_CONTENT("content")
#define FL_QWEN3_TURNS(split) \
    FL_QWEN_SYSTEM "{%endif%}{%endif%}" \
    "{%setns=namespace(multi_step_tool=true,last_query_index=messages|length-1)%}" \
    "{%formessageinmessages[::-1]%}{%setindex=(messages|length-1)-loop.index0%}" \
    "{%ifns.multi_step_toolandmessage.role=='user'and*not(message.content.startswith('<tool_response>')and" \
    "message.content.endswith('</tool_response>'))%}{%setns.multi_step_tool=false%}" \
    "{%setns.last_query_index=index%}{%endif%}{%endfor%}{%formessageinmessages%}" split "{%endif%}{%endif%}" \
    "{%ifloop.index0>ns.last_query_index%}{%ifloop.lastor(notloop.lastandreasoning_content)%}" \
    "{{'<|im_start|>'+message.role+'\\n<think>\\n'+reasoning_content.strip('\\n')+'\\n</think>\\n\\n'" \
    "+content.lstrip('\\n')}}{%else%}" FL_QWEN3_ANSWER "{%endif%}{%else%}" FL_QWEN3_ANSWER "{%endif%}" \
    FL_QWEN3_ENDS
#define FL_QWEN3_PROMPT \
    "{%ifadd_generation_prompt%}{{'<|im_start|>assistant\\n'}}" \
    "{%ifenable_thinkingisdefinedandenable_thinkingisfalse%}{{'<think>\\n\\n</think>\\n\\n'}}{%endif%}{%endif%}"
#define FL_QWEN3_OPEN_PROMPT "{%ifadd_generation_prompt%}{{'<|im_start|>assistant\\n<think>\\n'}}{%endif%}"
#define FL_LLAMA3_PROMPT "{{'<|start_header_id|>assistant<|end_header_id|>\\n\\n'}}"
#define FL_LLAMA3_IF_PROMPT "{%ifadd_generation_prompt%}" FL_LLAMA3_PROMPT "{%endif%}"
#define FL_LLAMA3_TURN \
    "'<|start_header_id|>'+message.role+'<|end_header_id|>\\n\\n'+message.content|trim+'<|eot_id|>'"
#define FL_LLAMA3_LOOP \
    "{%setloop_messages=messages%}{%formessageinloop_messages%}{%setcontent=" FL_LLAMA3_TURN "%}" \
    "{%ifloop.index0==0%}{%setcontent=bos_token+content%}{%endif%}{{content}}{%endfor%}"
#define FL_MISTRAL_RAISE "{{raise_exception('*')}}{%endif%}"
#define FL_MISTRAL_TURNS \
    "{%if(message.role=='user')!=(loop.index0%2==0)%}" FL_MISTRAL_RAISE "{%ifmessage.role=='user'%}"
#define FL_MISTRAL_SYSTEM \
    "{%ifmessages[0].role=='system'%}{%setsystem_message=messages[0].content%}{%setloop_messages=messages[1:]%}" \
    "{%else%}{%setloop_messages=messages%}{%endif%}"
#define FL_MISTRAL_ANSWER(text) \
    "{%elifmessage.role=='assistant'%}{{" text "}}{%else%}" FL_MISTRAL_RAISE "{%endfor%}"
#define FL_MISTRAL_USER(place, open, close) \
    "{%ifloop." place "andsystem_messageisdefined%}{{'" open "'+system_message+'\\n\\n'+message.content+'" close \
    "'}}{%else%}{{'" open "'+message.content+'" close "'}}{%endif%}"
#define FL_MISTRAL_V3(open, answer) \
    FL_MISTRAL_SYSTEM "*(message.role=='user')!=(ns.index%2==0)%}" FL_MISTRAL_RAISE "*{{bos_token}}" \
    "{%formessageinloop_messages%}{%ifmessage.role=='user'%}*" FL_MISTRAL_USER("last", open, "[/INST]") \
    "{%elif*message.tool_calls*{%elifmessage.role=='assistant'%}{{" answer "}}*{%else%}" FL_MISTRAL_RAISE \
    "{%endfor%}"

static const fl_chat_rule fl_chat_rules[] = {
    {FL_CHAT_CHATML, 0, FL_CHATML_LOOP},
    {FL_CHAT_CHATML, FL_CHATML_BOS, "{{bos_token}}" FL_CHATML_LOOP},
    /* Qwen2, SmolLM2 */
    {FL_CHAT_CHATML, 0,
     "{%formessageinmessages%}{%ifloop.firstandmessages[0].role!='system'%}" FL_CHATML_DEFAULT "{%endif%}"
     FL_CHATML_TURN "{%endfor%}" FL_CHATML_PROMPT},
    /* Qwen2.5 */
    {FL_CHAT_CHATML, 0,
     FL_QWEN_SYSTEM "{%else%}" FL_CHATML_DEFAULT "{%endif%}{%endif%}{%formessageinmessages%}{%if" FL_QWEN_TURN
     "or(message.role=='assistant'andnotmessage.tool_calls)%}" FL_CHATML_TURN
     "{%elifmessage.role=='assistant'%}*{%endfor%}" FL_CHATML_PROMPT},
    /* Qwen3 that does not think */
    {FL_CHAT_CHATML, 0,
     FL_QWEN_SYSTEM "{%endif%}{%endif%}{%formessageinmessages%}" FL_QWEN3_STRING FL_QWEN3_ANSWER FL_QWEN3_ENDS
     FL_CHATML_PROMPT},
    {FL_CHAT_QWEN3, 0, FL_QWEN3_TURNS(FL_QWEN3_OLD) FL_QWEN3_PROMPT},
    {FL_CHAT_QWEN3, 0, FL_QWEN3_TURNS(FL_QWEN3_NEW) FL_QWEN3_PROMPT},
    {FL_CHAT_QWEN3, FL_QWEN3_OPEN_THINK, FL_QWEN3_TURNS(FL_QWEN3_OLD) FL_QWEN3_OPEN_PROMPT},
    {FL_CHAT_QWEN3, FL_QWEN3_OPEN_THINK, FL_QWEN3_TURNS(FL_QWEN3_NEW) FL_QWEN3_OPEN_PROMPT},
    {FL_CHAT_LLAMA3, 0, FL_LLAMA3_LOOP FL_LLAMA3_IF_PROMPT},
    {FL_CHAT_LLAMA3, FL_LLAMA3_ALWAYS_PROMPT, FL_LLAMA3_LOOP FL_LLAMA3_PROMPT},
    {FL_CHAT_LLAMA3, FL_LLAMA3_DATES,
     "{{bos_token}}*{%setdate_string='26 Jul 2024'%}*{%ifmessages[0].role=='system'%}"
     "{%setsystem_message=messages[0].content|trim%}{%setmessages=messages[1:]%}{%else%}{%setsystem_message=''%}"
     "{%endif%}{{'<|start_header_id|>system<|end_header_id|>\\n\\n'}}*"
     "{{'Cutting Knowledge Date: December 2023\\n'}}{{'Today Date: '+date_string+'\\n\\n'}}*{{system_message}}"
     "{{'<|eot_id|>'}}*{%formessageinmessages%}"
     "{%ifnot(message.role=='ipython'ormessage.role=='tool'or'tool_calls'inmessage)%}{{" FL_LLAMA3_TURN "}}"
     "{%elif*{%endfor%}" FL_LLAMA3_IF_PROMPT},
    /* 7B v0.2 and Mixtral; 7B v0.1 */
    {FL_CHAT_MISTRAL, FL_MISTRAL_OPEN_SPACE | FL_MISTRAL_CLOSE_SPACE,
     "{{bos_token}}{%formessageinmessages%}" FL_MISTRAL_TURNS "{{'[INST] '+message.content+' [/INST]'}}"
     FL_MISTRAL_ANSWER("message.content+eos_token")},
    {FL_CHAT_MISTRAL, FL_MISTRAL_OPEN_SPACE | FL_MISTRAL_CLOSE_SPACE | FL_MISTRAL_EOS_SPACE,
     "{{bos_token}}{%formessageinmessages%}" FL_MISTRAL_TURNS "{{'[INST] '+message.content+' [/INST]'}}"
     FL_MISTRAL_ANSWER("message.content+eos_token+' '")},
    /* v1 with a system message; v3; v3 of Tekken; v7 */
    {FL_CHAT_MISTRAL,
     FL_MISTRAL_LEAD | FL_MISTRAL_OPEN_SPACE | FL_MISTRAL_CLOSE_SPACE | FL_MISTRAL_ANSWER_SPACE
     | FL_MISTRAL_SYSTEM_FIRST,
     FL_MISTRAL_SYSTEM "{{bos_token}}{%formessageinloop_messages%}" FL_MISTRAL_TURNS
     FL_MISTRAL_USER("first", " [INST] ", " [/INST]") FL_MISTRAL_ANSWER("' '+message.content+eos_token")},
    {FL_CHAT_MISTRAL,
     FL_MISTRAL_OPEN_SPACE | FL_MISTRAL_ANSWER_SPACE | FL_MISTRAL_ANSWER_TRIM | FL_MISTRAL_SYSTEM_LAST,
     FL_MISTRAL_V3("[INST] ", "' '+message.content|trim+eos_token")},
    {FL_CHAT_MISTRAL, FL_MISTRAL_OPEN_SPACE | FL_MISTRAL_ANSWER_SPACE | FL_MISTRAL_SYSTEM_LAST,
     FL_MISTRAL_V3("[INST] ", "' '+message.content+eos_token")},
    {FL_CHAT_MISTRAL, FL_MISTRAL_SYSTEM_LAST, FL_MISTRAL_V3("[INST]", "message.content+eos_token")},
    {FL_CHAT_MISTRAL, FL_MISTRAL_OPEN_SPACE | FL_MISTRAL_ANSWER_SPACE | FL_MISTRAL_SYSTEM_PROMPT,
     "{{bos_token}}{%formessageinmessages%}{%ifmessage.role=='user'%}{{'[INST] '+message.content+'[/INST]'}}"
     "{%elifmessage.role=='system'%}{{'[SYSTEM_PROMPT] '+message.content+'[/SYSTEM_PROMPT]'}}"
     FL_MISTRAL_ANSWER("' '+message.content+eos_token")},
};

/* ---- The canonical form -- */

typedef struct fl_chat_lexer {
    fl_str in;
    size_t at;
    char *out; /* room for 2 * in.n + 2: only a line break in a string grows, to two characters */
    size_t n;
} fl_chat_lexer;

static bool fl_chat_is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool fl_chat_is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool fl_chat_ends_with(const fl_chat_lexer *x, const char *text) {
    size_t n = strlen(text);
    return x->n >= n && memcmp(x->out + x->n - n, text, n) == 0;
}

/* What stands between two tags, as Jinja prints it with trim_blocks and lstrip_blocks. open and close: the kind of
 * the tag before and after ('{' prints, '%' and '#' do not, 0 is the edge of the text); bare: it has a '-'. */
static void fl_chat_canonical_text(fl_chat_lexer *x, fl_str text, char open, bool open_bare, char close,
                                   bool close_bare) {
    bool line_start = open == 0;
    if (open_bare) {
        while (text.n > 0 && fl_chat_is_space(text.at[0])) {
            text.at++;
            text.n--;
        }
    } else if ((open == '%' || open == '#') && text.n > 0 && text.at[0] == '\n') {
        text.at++;
        text.n--;
        line_start = true;
    }
    if (close_bare) {
        while (text.n > 0 && fl_chat_is_space(text.at[text.n - 1])) {
            text.n--;
        }
    } else if (close == '%' || close == '#') {
        size_t n = text.n;
        while (n > 0 && (text.at[n - 1] == ' ' || text.at[n - 1] == '\t')) {
            n--;
        }
        if (n > 0 ? text.at[n - 1] == '\n' : line_start) {
            text.n = n;
        }
    } else if (close == 0 && text.n > 0 && text.at[text.n - 1] == '\n') {
        text.n--;
    }
    if (text.n > 0) {
        memcpy(x->out + x->n, text.at, text.n);
    }
    x->n += text.n;
}

/* A string, in single quotes, joined to a string before it ('a'+'b' is 'ab'). False if it does not end. */
static bool fl_chat_canonical_string(fl_chat_lexer *x) {
    char quote = x->in.at[x->at++];
    if (fl_chat_ends_with(x, "'+")) {
        x->n -= 2;
    } else {
        x->out[x->n++] = '\'';
    }
    for (; x->at < x->in.n; x->at++) {
        char c = x->in.at[x->at];
        if (c == quote) {
            x->out[x->n++] = '\'';
            x->at++;
            return true;
        }
        if (c == '\n' || c == '\'') {
            x->out[x->n++] = '\\';
            c = c == '\n' ? 'n' : c;
        } else if (c == '\\' && x->at + 1 < x->in.n) {
            x->out[x->n++] = c;
            c = x->in.at[++x->at];
        }
        x->out[x->n++] = c;
    }
    return false;
}

/* After a ']': a['name'] becomes a.name. */
static void fl_chat_canonical_attribute(fl_chat_lexer *x) {
    size_t begin = x->n - 1;
    if (begin < 4 || x->out[begin - 1] != '\'') {
        return;
    }
    for (begin -= 1; begin > 0 && fl_chat_is_name(x->out[begin - 1]); begin--) {
    }
    size_t n = x->n - 2 - begin;
    if (n > 0 && begin >= 3 && x->out[begin - 1] == '\'' && x->out[begin - 2] == '['
        && (fl_chat_is_name(x->out[begin - 3]) || x->out[begin - 3] == ']')) {
        x->out[begin - 2] = '.';
        memmove(x->out + begin - 1, x->out + begin, n);
        x->n = begin - 1 + n;
    }
}

/* The tag at x->at, which is "{{" or "{%"; x->at then stands behind it, *bare says whether it ends with '-'. */
static bool fl_chat_canonical_tag(fl_chat_lexer *x, bool *bare) {
    char close = x->in.at[x->at + 1] == '{' ? '}' : '%';
    x->out[x->n++] = '{';
    x->out[x->n++] = x->in.at[x->at + 1];
    x->at += 2;
    if (x->at < x->in.n && x->in.at[x->at] == '-') {
        x->at++;
    }
    while (x->at < x->in.n) {
        const char *p = x->in.at + x->at;
        size_t left = x->in.n - x->at;
        *bare = p[0] == '-' && left > 2 && p[1] == close && p[2] == '}';
        if (*bare || (left > 1 && p[0] == close && p[1] == '}')) {
            x->out[x->n++] = close;
            x->out[x->n++] = '}';
            x->at += *bare ? 3 : 2;
            return true;
        }
        if (p[0] == '\'' || p[0] == '"') {
            if (!fl_chat_canonical_string(x)) {
                return false;
            }
            continue;
        }
        if (!fl_chat_is_space(p[0])) {
            x->out[x->n++] = p[0];
            if (p[0] == ']') {
                fl_chat_canonical_attribute(x);
            }
        }
        x->at++;
    }
    return false;
}

static bool fl_chat_canonical_comment(fl_chat_lexer *x, bool *bare) {
    for (x->at += 2; x->at + 1 < x->in.n; x->at++) {
        if (x->in.at[x->at] == '#' && x->in.at[x->at + 1] == '}') {
            *bare = x->in.at[x->at - 1] == '-';
            x->at += 2;
            return true;
        }
    }
    return false;
}

/* The next "{{", "{%" or "{#" from `from` on; x->in.n if there is none. */
static size_t fl_chat_next_tag(const fl_chat_lexer *x, size_t from) {
    for (size_t i = from; i + 1 < x->in.n; i++) {
        char c = x->in.at[i + 1];
        if (x->in.at[i] == '{' && (c == '{' || c == '%' || c == '#')) {
            return i;
        }
    }
    return x->in.n;
}

/* Rewrite x->in to x->out; false if a tag or string does not end. */
static bool fl_chat_canonical(fl_chat_lexer *x) {
    char open = 0;
    bool bare = false;
    for (;;) {
        size_t begin = x->at, end = fl_chat_next_tag(x, begin);
        char close = end < x->in.n ? x->in.at[end + 1] : 0;
        bool close_bare = end + 2 < x->in.n && x->in.at[end + 2] == '-';
        fl_str text = {x->in.at + begin, end - begin};
        fl_chat_canonical_text(x, text, open, bare, close, close != 0 && close_bare);
        if (close == 0) {
            return true;
        }
        x->at = end;
        if (!(close == '#' ? fl_chat_canonical_comment(x, &bare) : fl_chat_canonical_tag(x, &bare))) {
            return false;
        }
        open = close;
    }
}

/* ---- Matching -- */

FL_LOCAL size_t fl_chat_find(fl_str text, size_t from, fl_str needle) {
    for (size_t i = from; needle.n <= text.n && i <= text.n - needle.n; i++) {
        if (memcmp(text.at + i, needle.at, needle.n) == 0) {
            return i;
        }
    }
    return SIZE_MAX;
}

/* Does text match the pattern? Each fragment is taken where it first stands, the last one at the end: for
 * wildcards that match anything, no other choice could succeed where this one fails. */
static bool fl_chat_match(fl_str text, const char *pattern, fl_str *system) {
    size_t at = 0;
    char wild = 0;
    system->at = pattern;
    system->n = 0;
    for (;;) {
        fl_str fragment = {pattern, strcspn(pattern, "*@")};
        bool last = pattern[fragment.n] == 0;
        size_t found = at;
        if (wild != 0 && last) {
            found = fragment.n <= text.n - at ? text.n - fragment.n : SIZE_MAX;
        } else if (wild != 0) {
            found = fl_chat_find(text, at, fragment);
        }
        if (found == SIZE_MAX || fragment.n > text.n - found
            || memcmp(text.at + found, fragment.at, fragment.n) != 0) {
            return false;
        }
        if (wild == '@') {
            system->at = text.at + at;
            system->n = found - at;
        }
        at = found + fragment.n;
        if (last) {
            return at == text.n;
        }
        wild = pattern[fragment.n];
        pattern += fragment.n + 1;
    }
}

/* The content of a canonical string as the bytes it stands for; false for what is no plain string without zeros, or too
 * long. */
static bool fl_chat_unescape(fl_str string, char *out, size_t room) {
    static const char escapes[] = "n\nt\tr\r\\\\''\"\"";
    size_t n = 0;
    for (size_t i = 0; i < string.n; i++, n++) {
        char c = string.at[i];
        if (c == '\'' || c == 0 || n + 1 >= room) {
            return false;
        }
        if (c == '\\') {
            size_t k = 0;
            while (i + 1 < string.n && escapes[k] != 0 && escapes[k] != string.at[i + 1]) {
                k += 2;
            }
            if (i + 1 == string.n || escapes[k] == 0) {
                return false;
            }
            c = escapes[k + 1];
            i++;
        }
        out[n] = c;
    }
    out[n] = 0;
    return true;
}

static void fl_chat_recognise(fl_str canonical, fl_chat_template *out) {
    static const char optional[] = "{%ifnotadd_generation_promptisdefined%}"
                                   "{%setadd_generation_prompt=false%}{%endif%}";
    size_t n = sizeof optional - 1;
    if (canonical.n >= n && memcmp(canonical.at, optional, n) == 0) {
        canonical.at += n;
        canonical.n -= n;
    }
    for (size_t i = 0; i < FL_COUNT(fl_chat_rules); i++) {
        fl_str system;
        if (fl_chat_match(canonical, fl_chat_rules[i].pattern, &system)
            && fl_chat_unescape(system, out->default_system, sizeof out->default_system)) {
            out->format = fl_chat_rules[i].format;
            out->variant = fl_chat_rules[i].variant;
            return;
        }
    }
}

static folollm_status fl_chat_set_template(fl_memory *m, fl_str source, fl_chat_template *out,
                                           folollm_error *error) {
    if (source.n > FL_CHAT_MAX_TEMPLATE_BYTES) {
        return FOLOLLM_OK;
    }
    size_t room = 2 * source.n + 2;
    fl_chat_lexer x = {source, 0, fl_alloc_raw(m, room), 0};
    if (x.out == NULL) {
        return fl_no_memory(error, "the chat template", room);
    }
    if (fl_chat_canonical(&x)) {
        fl_str canonical = {x.out, x.n};
        fl_chat_recognise(canonical, out);
    }
    fl_free(m, x.out, room);
    return FOLOLLM_OK;
}

/* Keep a token's spelling. False if it is too long for us. */
static bool fl_chat_set_token(fl_str token, char *out, size_t room) {
    if (token.n >= room || (token.n > 0 && memchr(token.at, 0, token.n) != NULL)) {
        return false;
    }
    if (token.n > 0) {
        memcpy(out, token.at, token.n);
    }
    out[token.n] = 0;
    return true;
}

FL_LOCAL folollm_status fl_chat_read(fl_memory *m, fl_str source, fl_str bos, fl_str eos, fl_chat_template *out,
                                     folollm_error *error) {
    fl_chat_template c;
    memset(&c, 0, sizeof c);
    bool fits = fl_chat_set_token(bos, c.bos, sizeof c.bos) && fl_chat_set_token(eos, c.eos, sizeof c.eos);
    if (fits && source.n > 0) {
        FL_TRY(fl_chat_set_template(m, source, &c, error));
    }
    *out = c;
    return FOLOLLM_OK;
}

/* ---- Files -- */

/* A token of tokenizer_config.json: a string, or an object that holds one. */
static bool fl_chat_token(const fl_json *doc, const char *key, char *scratch, char *out, size_t room) {
    uint32_t node = fl_json_get(doc, 0, key);
    if (fl_json_type_of(doc, node) == FL_JSON_OBJECT) {
        node = fl_json_get(doc, node, "content");
    }
    if (fl_json_type_of(doc, node) != FL_JSON_STRING) {
        return true;
    }
    return fl_chat_set_token(fl_json_string(doc, node, scratch), out, room);
}

/* chat_template: a string, or a list of {name, template} of which "default" is ours. */
static uint32_t fl_chat_template_node(const fl_json *doc) {
    uint32_t node = fl_json_get(doc, 0, "chat_template");
    if (fl_json_type_of(doc, node) == FL_JSON_ARRAY) {
        uint32_t end = doc->nodes[node].next, entry = node + 1;
        node = FL_JSON_NONE;
        for (; entry < end; entry = doc->nodes[entry].next) {
            if (fl_json_is(doc, fl_json_get(doc, entry, "name"), "default")) {
                node = fl_json_get(doc, entry, "template");
            }
        }
    }
    return fl_json_type_of(doc, node) == FL_JSON_STRING ? node : FL_JSON_NONE;
}

static folollm_status fl_chat_read_config(fl_memory *m, fl_str text, bool with_template, fl_chat_template *out,
                                          folollm_error *error) {
    fl_json doc;
    FL_TRY(fl_json_parse(m, &doc, "tokenizer_config.json", text, error));
    folollm_status status = FOLOLLM_OK;
    char *scratch = fl_alloc_raw(m, text.n);
    if (scratch == NULL) {
        status = fl_no_memory(error, "tokenizer_config.json", text.n);
    } else if (fl_chat_token(&doc, "bos_token", scratch, out->bos, sizeof out->bos)
               && fl_chat_token(&doc, "eos_token", scratch, out->eos, sizeof out->eos)) {
        uint32_t node = with_template ? fl_chat_template_node(&doc) : FL_JSON_NONE;
        if (node != FL_JSON_NONE) {
            status = fl_chat_set_template(m, fl_json_string(&doc, node, scratch), out, error);
        }
    } else {
        out->format = FL_CHAT_NONE;
    }
    fl_free(m, scratch, text.n);
    fl_json_free(m, &doc);
    return status;
}

FL_LOCAL folollm_status fl_chat_open(fl_memory *m, const char *directory, fl_chat_template *out,
                                     folollm_error *error) {
    fl_chat_template c;
    memset(&c, 0, sizeof c);
    bool has_template, has_config;
    fl_str text;
    FL_TRY(fl_file_slurp(m, directory, "chat_template.jinja", FL_CHAT_MAX_CONFIG_BYTES, &has_template, &text,
                         error));
    if (has_template) {
        folollm_status status = fl_chat_set_template(m, text, &c, error);
        fl_free(m, (void *)(uintptr_t)text.at, text.n);
        FL_TRY(status);
    }
    FL_TRY(fl_file_slurp(m, directory, "tokenizer_config.json", FL_CHAT_MAX_CONFIG_BYTES, &has_config, &text,
                         error));
    if (has_config) {
        folollm_status status = fl_chat_read_config(m, text, !has_template, &c, error);
        fl_free(m, (void *)(uintptr_t)text.at, text.n);
        FL_TRY(status);
    }
    *out = c;
    return FOLOLLM_OK;
}

static folollm_status fl_chat_put_source(fl_str source, fl_text_buffer *out, folollm_error *error) {
    return fl_text_append(out, source.at, source.n) ? FOLOLLM_OK : fl_no_memory(error, "the chat template", source.n);
}

static folollm_status fl_chat_put_source_of_config(fl_memory *m, fl_str text, fl_text_buffer *out,
                                                   folollm_error *error) {
    fl_json doc;
    FL_TRY(fl_json_parse(m, &doc, "tokenizer_config.json", text, error));
    uint32_t node = fl_chat_template_node(&doc);
    folollm_status status = FOLOLLM_OK;
    if (node != FL_JSON_NONE) {
        fl_str escaped = {text.at + doc.nodes[node].begin, doc.nodes[node].n};
        size_t begin = out->n;
        status = fl_chat_put_source(escaped, out, error);
        if (status == FOLOLLM_OK && doc.nodes[node].escaped) {
            out->n = begin + fl_json_string(&doc, node, out->at + begin).n;
        }
    }
    fl_json_free(m, &doc);
    return status;
}

FL_LOCAL folollm_status fl_chat_source(fl_memory *m, const char *directory, fl_text_buffer *out,
                                       folollm_error *error) {
    static const char *const names[] = {"chat_template.jinja", "tokenizer_config.json"};
    bool found = false;
    for (size_t i = 0; i < FL_COUNT(names) && !found; i++) {
        fl_str text;
        FL_TRY(fl_file_slurp(m, directory, names[i], FL_CHAT_MAX_CONFIG_BYTES, &found, &text, error));
        if (found) {
            folollm_status status = i == 0 ? fl_chat_put_source(text, out, error)
                                           : fl_chat_put_source_of_config(m, text, out, error);
            fl_free(m, (void *)(uintptr_t)text.at, text.n);
            FL_TRY(status);
        }
    }
    return FOLOLLM_OK;
}
