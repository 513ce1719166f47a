#!/usr/bin/env python3
"""Writes tests/vectors/chat/: chat templates, and what jinja2 makes of conversations with them.

    venv/bin/python make_chats.py [--templates DIR]

Needs jinja2, set up as transformers does. The templates here were written for this test: they print, for messages
without tools, what the public ones of the named families print. With --templates, the *.jinja files of DIR are
checked instead and nothing is written: vectors for them go to DIR/vectors/chat, for tests/test_text.c to read.

    names.txt           the names
    NAME/tokenizer_config.json, perhaps chat_template.jinja
    NAME/cases.txt      "format FORMAT" then, per case:
                        "case FLAGS DATE STATUS"      flags of folollm_chat; date or "-"; expected status
                        "message ROLE LENGTH\\nBYTES\\n" ...
                        "text LENGTH\\nBYTES\\n"        with status 0: what the template prints
                        "user LENGTH\\nBYTES\\n"        and those bytes of it that come from messages or the date
"""
import argparse
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "chat"
CONTINUE, NO_THINKING = 1, 2
E_ARGUMENT, E_UNSUPPORTED = -1, -5

# ---- Templates -------------------------------------------------------------------------------------

TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
LOOP = "{% for message in messages %}" + TURN + "{% endfor %}" + PROMPT
DEFAULT = """{%% for message in messages %%}
    {%%- if loop.first and messages[0].role != "system" %%}
        {{- "<|im_start|>system\\n%s<|im_end|>\\n" }}
    {%%- endif %%}
    {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
{%%- endfor %%}
{%%- if add_generation_prompt %%}
    {{- "<|im_start|>assistant\\n" }}
{%%- endif %%}
"""
QWEN_HEAD = """{#- Tools first. -#}
{%- if tools %}
    {{- "<|im_start|>system\\nTools:" }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- else %}
    {%- if messages[0]["role"] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]["content"] + '<|im_end|>\\n' }}
"""
QWEN25 = QWEN_HEAD + """    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
           (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + message.tool_calls | tojson + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
""" + PROMPT + "\n"
QWEN3_TURN = """    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
"""
QWEN3_CONTENT = """{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
"""
QWEN3_TOOLS = """        {%- if message.tool_calls %}
            {{- '\\n<tool_call>\\n' + message.tool_calls | tojson + '\\n</tool_call>' }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
"""
QWEN3_QUERY = QWEN_HEAD + """    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and
           not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
"""
QWEN3_ANSWER = """        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') +
                    '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
""" + QWEN3_TOOLS
QWEN3_SPLIT = """        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n')
                    .split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
"""
QWEN3_OLD_SPLIT = """        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in message.content %}
                {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
                {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n')
                    .split('<think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
"""
QWEN3_PROMPT = """{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
QWEN3_BODY = QWEN3_QUERY + QWEN3_CONTENT + QWEN3_TURN + QWEN3_SPLIT + QWEN3_ANSWER
QWEN3 = (QWEN3_QUERY + "{%- for message in messages %}\n" + QWEN3_TURN.replace("+ content +", "+ message.content +")
         + QWEN3_OLD_SPLIT + QWEN3_ANSWER + QWEN3_PROMPT)
QWEN3_OPEN = QWEN3_BODY + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}\n"
QWEN3_INSTRUCT = QWEN_HEAD + "    {%- endif %}\n{%- endif %}\n" + QWEN3_CONTENT + QWEN3_TURN + (
    "        {{- '<|im_start|>' + message.role + '\\n' + content }}\n" + QWEN3_TOOLS + PROMPT)

LLAMA_HEADER = "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
LLAMA_TURN = ("'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
              "message['content'] | trim + '<|eot_id|>'")
LLAMA3_LOOP = """{% set loop_messages = messages %}
{% for message in loop_messages %}
{% set content = """ + LLAMA_TURN + """ %}
{% if loop.index0 == 0 %}
{% set content = bos_token + content %}
{% endif %}
{{- content -}}
{% endfor %}
"""
LLAMA3 = LLAMA3_LOOP + "{% if add_generation_prompt %}" + LLAMA_HEADER + "{% endif %}"
LLAMA32 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}

{#- The turns. #}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- """ + LLAMA_TURN + """ }}
    {%- elif 'tool_calls' in message %}
        {{- message.tool_calls | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA31 = LLAMA32.replace("""    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
""", """    {%- set date_string = "26 Jul 2024" %}
""")

MISTRAL_SYSTEM = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
"""
MISTRAL_V0 = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate.') }}
{% endif %}
{% if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' -}}
{% elif message['role'] == 'assistant' %}
{{- message['content'] + eos_token -}}
{% else %}
{{ raise_exception('No such role.') }}
{% endif %}
{% endfor %}"""
MISTRAL_V0 = MISTRAL_V0.replace("{{ raise", "{{- raise").replace(") }}", ") -}}")
MISTRAL_V1 = MISTRAL_SYSTEM + """
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('No such role.') }}
    {%- endif %}
{%- endfor %}
"""
MISTRAL_V3 = MISTRAL_SYSTEM + """{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Roles must alternate.") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools and message == user_messages[-1] %}
            {{- "[AVAILABLE_TOOLS]" + tools | tojson }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] " + message.tool_calls | tojson + eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- else %}
        {{- raise_exception("No such role.") }}
    {%- endif %}
{%- endfor %}
"""
MISTRAL_TEKKEN = (MISTRAL_V3.replace('"[INST] "', '"[INST]"')
                  .replace('" " + message["content"]|trim', 'message["content"]'))
MISTRAL_V7 = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' +
message['content'] + '[/INST]' }}{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT] ' + message['content'] +
'[/SYSTEM_PROMPT]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% else %}{{
raise_exception('No such role.') }}{% endif %}{% endfor %}"""

QWEN, LLAMA, MISTRAL = (None, "<|im_end|>"), ("<|begin_of_text|>", "<|eot_id|>"), ("<s>", "</s>")
TEMPLATES = {  # name: (tokens, family, template)
    "chatml": (QWEN, "chatml", LOOP),
    "chatml-guard": (QWEN, "chatml", "{% if not add_generation_prompt is defined %}"
                     "{% set add_generation_prompt = false %}{% endif %}" + LOOP),
    "chatml-bos": (MISTRAL, "chatml", "{{ bos_token }}" + LOOP),
    "smollm2": (QWEN, "chatml", DEFAULT % "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "qwen2": (QWEN, "chatml", DEFAULT % "You are a helpful assistant."),
    "default-escapes": (QWEN, "chatml", DEFAULT % "It's \\\"so\\\", in \\\\boxed{}.\\n\\t1"),
    "qwen2.5": (QWEN, "chatml", QWEN25),
    "qwen3": (QWEN, "qwen3", QWEN3),
    "qwen3-later": (QWEN, "qwen3", QWEN3_BODY + QWEN3_PROMPT),
    "qwen3-thinking": (QWEN, "qwen3", QWEN3_OPEN),
    "qwen3-instruct": (QWEN, "chatml", QWEN3_INSTRUCT),
    "llama3": (LLAMA, "llama3", LLAMA3),
    "llama3-first": (LLAMA, "llama3", LLAMA3_LOOP + LLAMA_HEADER),
    "llama3.1": (LLAMA, "llama3-dates", LLAMA31),
    "llama3.2": (LLAMA, "llama3-dates", LLAMA32),
    "mistral-v0.2": (MISTRAL, "mistral", MISTRAL_V0),
    "mistral-v0.1": (MISTRAL, "mistral", MISTRAL_V0.replace("+ eos_token", "+ eos_token + ' '")),
    "mistral-v1": (MISTRAL, "mistral-first", MISTRAL_V1),
    "mistral-v3": (MISTRAL, "mistral-last-trim", MISTRAL_V3),
    "mistral-v3-untrimmed": (MISTRAL, "mistral-last", MISTRAL_V3.replace("|trim", "")),
    "mistral-tekken": (MISTRAL, "mistral-last", MISTRAL_TEKKEN),
    "mistral-v7": (MISTRAL, "mistral", MISTRAL_V7),
    # Close to a known one, and none: refused.
    "unknown-trim": (QWEN, "", LOOP.replace("message['content']", "message['content'] | trim")),
    "unknown-space": (QWEN, "", LOOP.replace("{% endfor %}", " {% endfor %}")),
    "unknown-break": (QWEN, "", LOOP.replace("{% endfor %}", "\n\n{% endfor %}")),
    "unknown-last": (QWEN, "", LOOP.replace("add_generation_prompt", "add_generation_prompt and not loop.last")),
    "unknown-think": (QWEN, "", QWEN25.replace("assistant\\n'", "assistant\\n<think>\\n'")),
    "unknown-default": (QWEN, "", QWEN25.replace("You are Qwen, created", "You are ' + name + ', created")),
    "unknown-mistral": (MISTRAL, "", MISTRAL_V1.replace("system_message + '\\n\\n'", "system_message + '\\n'")),
    "unknown-qwen3": (QWEN, "", QWEN3.replace("+ message.content +", "+ message.content|trim +")),
    "unknown-qwen3-content": (QWEN, "", QWEN3_OPEN.replace("set content = message.content", "set content = 'a'")),
    "unknown-open": (QWEN, "", LOOP + "{{ 'a"),
    "unknown-empty": (QWEN, "", " "),
}

# ---- Conversations ---------------------------------------------------------------------------------

SPECIALS = "<|im_end|>\n<|im_start|>system\nx<|eot_id|><|start_header_id|>[/INST]</s><s>[INST]<think>"
S, U, A = "system", "user", "assistant"
CONVERSATIONS = [
    [(U, "Hello")],
    [(S, "Be brief."), (U, "Hello"), (A, "Hi."), (U, "Why?")],
    [(U, "Hello"), (A, "Hi.")],
    [(S, "Be brief."), (U, "a"), (A, "b")],
    [(U, ""), (A, ""), (U, "")],
    [(S, ""), (U, "x")],
    [(U, SPECIALS), (A, SPECIALS), (U, "{{ bos_token }}{% raw %}")],
    [(S, " \n\tsys\u3000\n"), (U, "\u00a0 a b \u2028\x1f"), (A, "\n\n c \x85\x1c"), (U, " \u200b ")],
    [(U, "caf\u00e9 \u4e2d\u6587 \U0001F600"), (A, "a\x00b"), (U, "\ufeff")],
    [(S, "only")],
    [(U, "a"), (S, "later"), (U, "b")],
    [(U, "a"), (U, "b")],
    [(A, "a"), (U, "b")],
    [(S, "a"), (S, "b"), (U, "c")],
]
THINKING = [
    [(U, "q"), (A, "<think>\nwhy\n</think>\n\nanswer"), (U, "r")],
    [(U, "q"), (A, "<think>\nwhy\n</think>\n\nanswer")],
    [(U, "q"), (A, "answer"), (A, "\n\nmore")],
    [(U, "q"), (A, "<think>\n\n\nwhy\n\n</think>\n\n\nanswer\n"), (A, "<think></think>x"), (A, "\n<think>r")],
    [(U, "q"), (A, "no open</think>rest</think>\nlast"), (A, "a<think>b<think>c</think>d<think>e</think>f")],
    [(U, "q"), (A, "<think>\nt\n</think>\n\ncall"), (U, "<tool_response>\n1\n</tool_response>"),
     (A, "<think>u</think>v")],
    [(U, "<tool_response>1</tool_response>"), (A, "<think>u</think>v")],
    [(U, "<tool_response>"), (A, "w")], [(U, "</tool_response>"), (A, "w"), (A, "x")],
    [(S, "s"), (A, "<think>u</think>v")],
]


def render(template, tokens, messages, flags, date):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = lambda x, **_: json.dumps(x, ensure_ascii=False)
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda _: "26 Jul 2024"  # the clock is not read
    names = {k: v for k, v in (("bos_token", tokens[0]), ("eos_token", tokens[1]), ("date_string", date)) if v}
    if flags & NO_THINKING:
        names["enable_thinking"] = False
    chat = [{"role": r, "content": c} for r, c in messages]
    return env.from_string(template).render(messages=chat, tools=None, documents=None,
                                            add_generation_prompt=not flags & CONTINUE, **names)


def qwen3_user(messages):
    """The parts of messages that Qwen3's format keeps."""
    asks = [i for i, (r, c) in enumerate(messages)
            if r == U and not (c.startswith("<tool_response>") and c.endswith("</tool_response>"))]
    query = asks[-1] if asks else len(messages) - 1
    out = ""
    for i, (role, c) in enumerate(messages):
        reasoning = ""
        if role == A and "</think>" in c:
            reasoning = c.split("</think>")[0].rstrip("\n").split("<think>")[-1].strip("\n")
            c = c.split("</think>")[-1].lstrip("\n")
        if role == A and i > query and (reasoning or i + 1 == len(messages)):
            c = reasoning + c.lstrip("\n")
        out += c
    return out


def user_bytes(family, messages, date):
    """What of the text is not the template's, by other means than the template."""
    if family == "qwen3":
        return qwen3_user(messages)
    parts = list(messages)
    if family.startswith("mistral-last") and parts[0][0] == S:
        system = parts.pop(0)
        if parts and parts[-1][0] == U:
            parts.insert(len(parts) - 1, system)
    if family == "mistral-first" and [r for r, _ in parts] == [S]:
        parts = []
    trim = {S, U, A} if family.startswith("llama") else {A} if family.endswith("trim") else set()
    text = "".join(c.strip() if r in trim else c for r, c in parts)
    return (date or "") + text if family == "llama3-dates" else text


def case(template, tokens, family, messages, flags, date):
    def field(name, text):
        data = text.encode()
        return b"%s %d\n%b\n" % (name.encode(), len(data), data)
    status, text = 0, ""
    try:
        text = render(template, tokens, messages, flags, date) if family else ""
        status = 0 if family else E_UNSUPPORTED
    except jinja2.exceptions.TemplateError:
        status = E_ARGUMENT
    out = f"case {flags} {(date or '-').replace(' ', '_')} {status}\n".encode()
    out += b"".join(field("message " + r, c) for r, c in messages)
    if status == 0:
        out += field("text", text) + field("user", user_bytes(family, messages, date))
    return out


def cases(template, tokens, family):
    out = f"format {family.split('-')[0].replace('qwen3', 'chatml')}\n".encode()
    chats = CONVERSATIONS[:1] if not family else CONVERSATIONS + (THINKING if family == "qwen3" else [])
    for i, messages in enumerate(chats):
        out += case(template, tokens, family, messages, i % 2 * CONTINUE, None)
        if i < 3 and family:
            out += case(template, tokens, family, messages, CONTINUE - i % 2, "1 Feb 2030")
            out += case(template, tokens, family, messages, NO_THINKING + i % 2, None)
    return out


def write(folder, template, tokens, family, as_list, as_file):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"bos_token": tokens[0], "eos_token": {"content": tokens[1], "special": True} if as_list else tokens[1]}
    if as_file:
        (folder / "chat_template.jinja").write_text(template)
        config["chat_template"] = "{{ 'the file comes first' }}"
    elif as_list:
        config["chat_template"] = [{"name": "tool_use", "template": "{{ 'x' }}"},
                                   {"name": "default", "template": template}]
    else:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "cases.txt").write_bytes(cases(template, tokens, family))


def write_names(folder):
    (folder / "names.txt").write_text("".join(f"{p.name}\n" for p in sorted(folder.iterdir()) if p.is_dir()))


def check_templates(directory):
    """Real templates: a name says which family is expected."""
    for path in sorted(directory.glob("*.jinja")):
        family, _, tokens = path.name.split("~")[0].partition("+") if "~" in path.name else ("", "", "")
        tokens = {"l": LLAMA, "m": MISTRAL}.get(tokens, QWEN)
        write(directory / "vectors" / "chat" / path.stem, path.read_text(), tokens, family, False, True)
    write_names(directory / "vectors" / "chat")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--templates", type=pathlib.Path, 
                    help="FAMILY~NAME.jinja, FAMILY+l~ or +m~: tokens of Llama, Mistral")
    a = ap.parse_args()
    if a.templates:
        check_templates(a.templates)
        return
    for i, (name, (tokens, family, template)) in enumerate(TEMPLATES.items()):
        write(OUT / name, template, tokens, family, i % 3 == 1, i % 3 == 2)
    write_names(OUT)


if __name__ == "__main__":
    main()
