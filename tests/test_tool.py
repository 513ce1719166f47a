#!/usr/bin/env python3
"""The command-line tool's batch against its own generate, and the example programs, on the shipped model.

    python3 tests/test_tool.py [FOLDER]     where folollm, many and game_loop lie; default: what the Makefile built

Prints what fails; the last line is "N passed, N failed".
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "tests/build/plain")
MODEL = os.path.join(ROOT, "examples/models/tiny-shakespeare")
KEYS = {"id", "token_ids", "text", "finish_reason", "metrics"}
METRICS = {"prompt_tokens", "cached_tokens", "output_tokens", "preemptions", "wait_ms", "first_token_ms", "total_ms",
           "tokens_per_s"}
passed = failed = 0


def check(ok, what, detail=""):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"failed: {what}: {str(detail)[:1500]}", flush=True)


def tool(command, *arguments, stdin=b""):
    p = subprocess.run([os.path.join(FOLDER, "folollm"), command, "-m", MODEL, "-t", "1", *arguments], input=stdin,
                       capture_output=True, timeout=120)
    return p.returncode, p.stdout, p.stderr.decode()


def strict(name):
    raise ValueError(f"{name} is not JSON")


def parse(out):
    """The lines of the output, each of which must be strict JSON in UTF-8 with the same keys."""
    lines = [json.loads(line, parse_constant=strict) for line in out.decode("utf-8").split("\n")[:-1]]
    odd = [a for a in lines if set(a) - {"top_logprobs"} != KEYS | {"error"} & set(a)
           or ("error" in a) != (a["finish_reason"] == "error") or set(a["metrics"]) != METRICS]
    check(not odd, "every line has the same keys", odd)
    return lines


def batch(requests, *arguments):
    """(exit status, lines); a request is an object, or a line as it is."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in requests]
    status, out, err = tool("batch", "-f", "-", *arguments, stdin=b"\n".join(lines) + b"\n")
    check(status == 0 or re.search(r"^folollm: error: .+\n\Z", err, re.M), "an exit status of 1 has an error line", err)
    return status, parse(out)


def generate(prompt, *arguments):
    status, out, err = tool("generate", "-p", prompt, *arguments)
    check(status == 0, "generate", err)
    return out


def generated_ids(prompt, *arguments):
    return [int(i) for i in generate(prompt, "--ids", *arguments).split()]


def test_same_as_generate():
    prompts = ["ROMEO:", "JULIET:\nO Romeo", "To be, or not to be", "é, ü and 日本"]
    requests, expected = [], {}
    for i, prompt in enumerate(prompts):
        for seed, more in ((i + 7, {}), (3, {"temperature": 1.5, "top_k": 10, "top_p": 0.9, "min_p": 0.01})):
            name = f"{i}/{seed}"
            flags = [x for k, v in more.items() for x in ("--" + k.replace("erature", "").replace("_", "-"), str(v))]
            expected[name] = generated_ids(prompt, "--seed", str(seed), "-n", str(20 + i), *flags)
            requests.append({"id": name, "prompt": prompt, "seed": seed, "max_tokens": 20 + i, **more})
    for arguments in ("", "--max-seqs 2", "--max-seqs 8 --pool 160 --chunk 8", "--no-prefix-cache"):
        status, lines = batch(requests, *arguments.split())
        check(status == 0 and {a["id"]: a["token_ids"] for a in lines} == expected,
              f"batch {arguments}: gives the ids of generate", (status, lines, expected))
    text = generate(prompts[0], "--seed", "7", "-n", "20").decode()
    check(next(a["text"] for a in lines if a["id"] == "0/7") == text, "and its text", text)
    status, lines = batch([{"id": 1, "prompt": prompts[0]}], "--seed", "7", "-n", "20")
    check(status == 0 and lines[0]["token_ids"] == expected["0/7"], "flags are the defaults of lines", lines)


def test_metrics():
    prompt = "ROMEO:\nWhat light through yonder window breaks? It is the east, and Juliet is the sun. Arise, fair sun!"
    n_prompt = len(tool("tokenize", "-p", prompt)[1].split())
    _, lines = batch([{"id": i, "prompt": prompt, "max_tokens": 5 + i, "seed": i} for i in range(3)], "--max-seqs", "1")
    for i, a in enumerate(lines):
        m = a["metrics"]
        check(m["prompt_tokens"] == n_prompt and m["output_tokens"] == 5 + i == len(a["token_ids"]), "tokens", m)
        check((m["cached_tokens"] > 0) == (i > 0), "a prompt that was there before is found", m)
        check(0 <= m["wait_ms"] <= m["first_token_ms"] <= m["total_ms"] and m["tokens_per_s"] > 0, "times", m)


def test_order():
    """In order of finishing; a line that fails is out at once; priority 0 before 5 when one runs at a time."""
    status, lines = batch([{"id": n, "prompt": "A", "max_tokens": n, "ignored": 1} if n == 9 else
                           {"id": n, "prompt": "A", "max_tokens": n} for n in (40, 20, 9, 30, 10)], "--ignore-eos")
    check(status == 1 and [a["id"] for a in lines] == [9, 10, 20, 30, 40], "in order of finishing", lines)
    requests = [{"id": i, "prompt": "A", "max_tokens": 4, "priority": 5 - i} for i in range(5)]
    _, lines = batch(requests, "--max-seqs", "1")
    check([a["id"] for a in lines] == [4, 3, 2, 1, 0], "the lowest priority first", lines)


def test_ids():
    raw = [b'"plain"', b'""', b"0", b"-1.50e+3", b"123456789012345678901234567890", b'"\\u00e9\\ud83d\\ude00\\u0000"',
           '"日本\u2028"'.encode(), b'"\\"\\\\\\/\\b\\f\\n\\r\\t\\u001f"']
    _, lines = batch([b'{"id": ' + r + b', "prompt": "A", "max_tokens": 1}' for r in raw])
    check({json.dumps(a["id"]) for a in lines} == {json.dumps(json.loads(r)) for r in raw}, "ids are preserved", lines)
    _, out, _ = tool("batch", "-f", "-", stdin=b'{"id": -1.50e+3, "prompt": "A", "max_tokens": 1}')
    check(out.startswith(b'{"id": -1.50e+3, '), "a number as it is written, and a last line without an end", out)


def test_texts():
    """Escapes mean the same text as the bytes themselves; ids of the prompt the same as its text."""
    prompt = 'Sc\u00e8ne "II"\\ \u65e5\U0001f600\u0001/\t\n'
    forms = [json.dumps(prompt), json.dumps(prompt, ensure_ascii=False),
             json.dumps(prompt).replace("/", "\\/").replace("\\ud83d\\ude00", "\\uD83D\\uDE00")]
    ids = [int(i) for i in tool("tokenize", "-f", "-", stdin=prompt.encode())[1].split()]
    lines = [f'{{"id": {i}, "prompt": {f}, "max_tokens": 8}}'.encode() for i, f in enumerate(forms)]
    lines.append(json.dumps({"id": 3, "prompt_ids": ids, "max_tokens": 8}).encode())
    lines.append(b'\r\n \t\r\n{"seed":null, "max_tokens":8 ,\t"id":4,"prompt_ids":%b}\r' % json.dumps(ids).encode())
    status, out = batch(lines)
    check(status == 0 and len(out) == 5 and len({str(a["token_ids"]) for a in out}) == 1 and
          {a["metrics"]["prompt_tokens"] for a in out} == {len(ids)}, "one prompt, however it is written", out)
    _, out, _ = tool("batch", "-f", "-", stdin=b'\xef\xbb\xbf{"id": 1, "prompt": "A", "max_tokens": 1}\n')
    check(parse(out)[0]["finish_reason"] == "length", "a byte order mark begins the file", out)


def test_stops():
    base = {"prompt": "ROMEO:", "seed": 7, "max_tokens": 60}
    _, (free,) = batch([{"id": 0, **base}])
    stop = free["text"][20:24]
    cases = [{"stop": stop}, {"stop": ["never in it", stop]}, {"stop": []}, {"stop": ["\u0000", "never in it"]}]
    status, lines = batch([{"id": i, **base, **c} for i, c in enumerate(cases)])
    by_id = {a["id"]: a for a in lines}
    until = free["text"][:free["text"].index(stop)]
    for i in range(2):
        check(by_id[i]["text"] == until and by_id[i]["finish_reason"] == "stop", "the text ends before it", by_id[i])
        check(free["token_ids"][:len(by_id[i]["token_ids"])] == by_id[i]["token_ids"], "with the same ids", by_id[i])
    for i in range(2, 4):
        check(by_id[i]["text"] == free["text"] and by_id[i]["finish_reason"] == "length", "no stop", by_id[i])
    _, (flag,) = batch([{"id": 0, **base}], "--stop", stop)
    check(flag["text"] == until, "--stop for lines without", flag)
    eos = json.load(open(os.path.join(MODEL, "config.json"), encoding="utf-8"))["eos_token_id"]
    status, lines = batch([{"id": i, "prompt_ids": [eos], "seed": i, "max_tokens": 0} for i in range(8)])
    check(status == 0 and all((a["finish_reason"] == "stop") == (a["token_ids"][-1] == eos) for a in lines),
          "finish_reason tells the end of the text from that of the context", lines)


def test_top_logprobs():
    """The most likely of every token, in the lines that ask for them: the numbers that generate prints."""
    prompt, n = "ROMEO:", 6
    flags = ["-n", str(n), "--seed", "7", "--temp", "0.8", "--top-k", "2", "--logprobs", "4"]
    rows = re.findall(r"^logprobs: .*\| (.*)$", tool("generate", "-p", prompt, *flags)[2], re.M)
    expected = [[[float(x) for x in entry.split()] for entry in row.split(", ")] for row in rows]
    base = {"prompt": prompt, "max_tokens": n, "seed": 7, "temperature": 0.8, "top_k": 2}
    status, lines = batch([{"id": 0, **base}] + [{"id": i, **base, "top_logprobs": i} for i in (1, 4, 20)])
    by_id = {a["id"]: a for a in lines}
    check(status == 0 and "top_logprobs" not in by_id[0] and len(rows) == n, "only where they are asked for", lines)
    for count in (1, 4, 20):
        top = by_id[count]["top_logprobs"]
        check([len(t) for t in top] == [count] * n, "so many", top)
        check(by_id[count]["token_ids"] == by_id[0]["token_ids"], "and the same text", by_id)
        check(all((t[i][2] is None) == (i >= 2) for t in top for i in range(count)), "null for what top-k removed", top)
        close = [t[i][0] == e[i][0] and abs(t[i][1] - e[i][1]) < 1e-5 and (i >= 2 or abs(t[i][2] - e[i][2]) < 1e-5)
                 for t, e in zip(top, expected) for i in range(min(count, 4))]
        check(all(close), "the numbers of generate", (top, expected))
    _, lines = batch([{"id": 1, **base, "top_logprobs": 21}, {"id": 2, "top_logprobs": 3}])
    by_id = {a["id"]: a for a in lines}
    check("0 to 20" in by_id[1]["error"] and by_id[2]["top_logprobs"] == [], "a limit, and a line that fails", lines)


def test_log_steps():
    """What each step chose, to stderr, with answers by the line of their request; the same again, word for word."""
    requests = [b""] + [b'{"id": %d, "prompt": "%b", "max_tokens": 12}' % (i, b"ROMEO:" * (i + 1)) for i in range(4)]
    runs = [tool("batch", "-f", "-", "--pool", "64", "--ignore-eos", *more, stdin=b"\n".join(requests))
            for more in ([], ["--log-steps"], ["--log-steps"])]
    ids = [{a["id"]: a["token_ids"] for a in parse(out)} for _, out, _ in runs]
    steps = [[line for line in err.splitlines() if line.startswith("step ")] for _, _, err in runs]
    check(len(ids[0]) == 4 and ids[0] == ids[1] and not steps[0], "a log changes nothing", ids)
    check(steps[1] == steps[2], "the same steps", steps)
    said = set(re.findall(r"; (\d+)/0 (\w+)", "\n".join(steps[1])))
    check({n for n, _ in said} == {"2", "3", "4", "5"} and {w for _, w in said} >= {"admitted", "reads", "writes"},
          "lines of the input", said)


def test_bad_lines():
    good = {"id": "good", "prompt": "A", "max_tokens": 2}
    bad = [  # line, its id in the output, a word of the error
        (b"nonsense", None, "object"), (b"[]", None, "object"), (b"{", None, "string expected"),
        (b'{"id": 1}', 1, "prompt"), (b'{"prompt": "A"}', None, '"id" is missing'),
        (b'{"id": null, "prompt": "A"}', None, '"id" is missing'), (b'{"id": true, "prompt": "A"}', None, '"id"'),
        (b'{"id": 2, "prompt": "A", "prompt_ids": [1]}', 2, "one of"), (b'{"id": 3, "prompt": 5}', 3, '"prompt"'),
        (b'{"prompt": [1], "id": 4}', 4, '"prompt"'), (b'{"id": 5, "prompt": ""}', 5, "no tokens"),
        (b'{"id": 6, "prompt_ids": []}', 6, "no tokens"), (b'{"id": 7, "prompt_ids": [100000]}', 7, "vocabulary"),
        (b'{"id": 8, "prompt_ids": [-1]}', 8, "whole"), (b'{"id": 9, "prompt_ids": [1, 2.0]}', 9, "whole"),
        (b'{"id": 10, "prompt_ids": ["1"]}', 10, "number"), (b'{"id": 11, "prompt_ids": [1', 11, "expected"),
        (b'{"max_tokens": -1, "id": 12, "prompt": "A"}', 12, '"max_tokens"'),
        (b'{"max_tokens": 4294967296, "id": 13, "prompt": "A"}', 13, '"max_tokens"'),
        (b'{"temperature": 101, "id": 14, "prompt": "A"}', 14, '"temperature"'),
        (b'{"temperature": 1e999, "id": 15, "prompt": "A"}', 15, '"temperature"'),
        (b'{"top_p": "1", "id": 16, "prompt": "A"}', 16, '"top_p"'),
        (b'{"seed": 18446744073709551616, "id": 17, "prompt": "A"}', 17, '"seed"'),
        (b'{"priority": 2147483648, "id": 18, "prompt": "A"}', 18, '"priority"'),
        (b'{"stop": "", "id": 19, "prompt": "A"}', 19, "stops"),
        (b'{"stop": ' + json.dumps(["x"] * 17).encode() + b', "id": 20, "prompt": "A"}', 20, "16"),
        (b'{"typo": [{"x": [1, "}]"]}, null], "id": 21, "prompt": "A"}', 21, "typo"),
        (b'{"id": 22, "id": 23, "prompt": "A"}', 22, "twice"), (b'{"id": 24, "prompt": "A"} 5', 24, "follows"),
        (b'{"id": 25, "prompt": "A",}', 25, "string expected"), (b"{'id': 26}", None, "string expected"),
        (b'{"id": 01, "prompt": "A"}', None, "number"), (b'{"id": 1., "prompt": "A"}', None, "number"),
        (b'{"id": 27, "prompt": "\\ud83d"}', 27, "surrogate"),
        (b'{"id": 28, "prompt": "\\ude00\\ud83d"}', 28, "surrogate"),
        (b'{"id": 29, "prompt": "\\u12g4"}', 29, "hexadecimal"), (b'{"id": 30, "prompt": "\\x41"}', 30, "escape"),
        (b'{"id": 31, "prompt": "a\tb"}', 31, "control"), (b'{"id": 32, "prompt": "A', 32, "without an end"),
        (b'{"id": 33, "prompt": "\\', 33, "escape"), (b'{"id": 34, "prompt": "\xff"}', None, "UTF-8"),
        (b'{"id": 35, "prompt": "\xed\xa0\x80"}', None, "UTF-8"), (b'{"id": 36, "prompt": "\xc0\xaf"}', None, "UTF-8"),
        (b'{"id": 37, "prompt": "A"\0}', 37, "expected"), (b'{"id": 38 "prompt": "A"}', 38, "expected"),
        (b'{"id" 39, "prompt": "A"}', None, "':'"), (b'{"id": 40, "prompt": "A"', 40, "expected"),
        (b'{"id": 41, "x": ' + b"[" * 100000 + b', "prompt": "A"', 41, '"x"'),
        (json.dumps({"id": 42, "prompt_ids": [1] * 600}).encode(), 42, "600"),
    ]
    status, lines = batch([good] + [line for line, _, _ in bad] + [good])
    errors = [a for a in lines if a["finish_reason"] == "error"]
    check(status == 1 and len(lines) == len(bad) + 2 and len(errors) == len(bad), "bad lines end nothing", lines)
    for number, ((line, name, word), a) in enumerate(zip(bad, errors), 2):
        check(a["id"] == name and a["error"].startswith(f"line {number}: ") and word in a["error"] and
              a["token_ids"] == [] and a["text"] == "", f"refused with its id and line: {line[:60]}", a)
    answers = [(a["id"], a["finish_reason"]) for a in lines if a not in errors]
    check(answers == [("good", "length")] * 2, "good lines are answered", answers)


def test_files():
    for nothing in (b"", b"\n", b"\n \r\n\t\n"):
        status, out, _ = tool("batch", "-f", "-", stdin=nothing)
        check(status == 0 and out == b"", "an empty file is answered with nothing", out)
    status, out, err = tool("batch", "-f", "/nowhere/at/all")
    check(status == 1 and out == b"" and re.fullmatch(r"folollm: error: .*\n", err), "no such file", err)
    status, _, err = tool("batch")
    check(status == 2 and "-f FILE is missing" in err, "-f is needed", err)
    with tempfile.NamedTemporaryFile() as f:
        f.write(b'{"id": 1, "prompt": "A", "max_tokens": 1}\n')
        f.flush()
        check(parse(tool("batch", "-f", f.name)[1])[0]["id"] == 1, "a file")


def test_many_lines():
    """More lines than the engine takes at once, with a pool that forces preemption: all are answered, each as alone."""
    requests = [{"id": i, "prompt": f"{'ROMEO JULIET NURSE'.split()[i % 3]}:", "seed": i % 5, "max_tokens": 1 + i % 30}
                for i in range(500)]
    status, lines = batch(requests, "--max-seqs", "12", "--pool", "256", "--ignore-eos")
    check(status == 0 and sorted(a["id"] for a in lines) == list(range(500)), "every line is answered", len(lines))
    check(any(a["metrics"]["preemptions"] > 0 for a in lines), "the pool is small enough for this test")
    longest = {}
    for a in lines:
        longest[a["id"] % 15] = max(longest.get(a["id"] % 15, []), a["token_ids"], key=len)
    check(all(a["token_ids"] == longest[a["id"] % 15][:len(a["token_ids"])] and len(a["token_ids"]) == 1 + a["id"] % 30
              for a in lines), "the same prompt and seed give the same ids, whatever runs beside", lines[:3])


def test_info():
    """Which types the file has, and what became of them."""
    for more, weights, stored in (([], "bf16", "bf16"), (["--weights", "q8"], "q8", "bf16 as q8")):
        status, out, err = tool("info", *more)
        lines = dict(re.split(" +", line, maxsplit=1) for line in out.decode().splitlines() if " " in line.strip())
        check(status == 0 and lines.get("weights") == weights and lines.get("stored") == stored, f"info {more}", lines)


def test_quantize():
    """What quantize writes answers as the model converted while loading does, and is mapped."""
    with tempfile.TemporaryDirectory() as d:
        for weights in ("q8", "q8_row", "q4", "q6_k", "f16"):
            target = os.path.join(d, weights)
            status, out, err = tool("quantize", "-o", target, "--weights", weights)
            names = sorted(os.listdir(target))
            check(status == 0 and out == b"" and err == "" and "model.safetensors" in names and "config.json" in names
                  and not any(n.endswith(".part") for n in names), f"quantize --weights {weights}", (err, names))
            request = json.dumps({"id": 1, "prompt": "ROMEO:", "max_tokens": 40}).encode()
            ids = [parse(tool("batch", "-f", "-", "--ignore-eos", *more, stdin=request)[1])[0]["token_ids"]
                   for more in (["--weights", weights], ["-m", target])]
            check(ids[0] == ids[1] and len(ids[0]) == 40, f"{weights}: the same answer", ids)
            mapped = re.search(r"mapped +(\d+)", tool("info", "-m", target)[1].decode())
            check(mapped and int(mapped.group(1)) > 500_000, f"{weights}: used where it lies", mapped)
        status, _, err = tool("batch", "-f", "-", "-m", os.path.join(d, "q4"), "--weights", "q8", stdin=b"{}")
        check(status == 1 and "packed" in err, "packed weights stay what they are", err)
        for weights in ("q4_k", "bf16"):
            target = os.path.join(d, weights + ".gguf")
            status, out, err = tool("quantize", "-o", target, "--weights", weights)
            check(status == 0 and out == b"" and err == "" and os.path.isfile(target)
                  and not os.path.exists(target + ".part"), f"quantize to {weights}.gguf", err)
            greedy = json.dumps({"id": 1, "prompt": "ROMEO:", "max_tokens": 40, "temperature": 0}).encode()
            ids = [parse(tool("batch", "-f", "-", "--ignore-eos", *more, stdin=greedy)[1])[0]["token_ids"]
                   for more in (["--weights", weights], ["-m", target])]
            check(ids[0] == ids[1] and len(ids[0]) == 40, f"{weights}.gguf: the same answer", ids)
        status, _, err = tool("quantize", "-m", target, "-o", os.path.join(d, "from"), "--weights", "q8")
        check(status == 1 and "GGUF" in err, "a GGUF file does not become a directory", err)
        status, _, err = tool("quantize", "-m", target, "-o", os.path.join(d, "again.gguf"), "--weights", "q4_k")
        with open(os.path.join(d, "again.gguf"), "rb") as a, open(os.path.join(d, "q4_k.gguf"), "rb") as b:
            check(status == 0 and a.read() == b.read(), "over a GGUF file of bf16: the same file", err)
        status, _, err = tool("quantize", "-o", os.path.join(d, "x.gguf"), "--weights", "q8_row")
        check(status == 1 and "q8_row" in err and not [n for n in os.listdir(d) if n.startswith("x.gguf")],
              "q8_row is no type of GGUF", (err, os.listdir(d)))
        status, _, err = tool("quantize", "-o", os.path.join(d, "no", "such"), "--weights", "q8")
        check(status == 1 and "cannot make" in err, "nowhere to write", err)
    status, _, err = tool("quantize", "-o", "x")
    check(status == 2 and "--weights" in err, "quantize to what?", err)


def test_adapters():
    """Of the command line, of a line, of both, and merged."""
    vectors = os.path.join(ROOT, "tests/vectors")
    base, adapter = os.path.join(vectors, "models/qwen3-gqa-fp32"), os.path.join(vectors, "adapters/all")
    lines = [{"id": i, "prompt_ids": [1, 2, 3], "max_tokens": 12} for i in range(3)]
    lines[1]["adapter"] = adapter
    lines[2]["adapter"] = ""
    stdin = "".join(json.dumps(r) + "\n" for r in lines).encode()

    def ids(*arguments):
        found = parse(tool("batch", "-f", "-", "--ignore-eos", "-m", base, *arguments, stdin=stdin)[1])
        return [a["token_ids"] for a in sorted(found, key=lambda a: a["id"])]

    plain, with_it, without = ids()
    check(plain == without != with_it, "a line's adapter is its own", (plain, with_it, without))
    check(ids("--adapter", adapter) == [with_it, with_it, plain], "lines without one have that of the command line")
    check(ids("--adapter", adapter, "--adapter-scale", "0")[:2] == [plain, plain], "times nothing")
    check(ids("--merge", adapter)[0] == with_it, "merged, it says the same")
    lines[1]["adapter"] = "no/where"
    status, found = batch([json.dumps(r).encode() for r in lines], "-m", base)
    errors = [a for a in found if "error" in a]
    check(status == 1 and len(errors) == 1 and errors[0]["id"] == 1 and "no/where/adapter_config.json" in
          errors[0]["error"], "no such adapter", errors)


def test_interrupt():
    requests = [{"id": i, "prompt": "ROMEO:", "seed": i, "max_tokens": 10 + i % 400} for i in range(2000)]
    with tempfile.NamedTemporaryFile("w") as f:
        f.write("".join(json.dumps(r) + "\n" for r in requests))
        f.flush()
        p = subprocess.Popen([os.path.join(FOLDER, "folollm"), "batch", "-m", MODEL, "-f", f.name, "--ignore-eos"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        first = p.stdout.readline()  # from here on it runs
        p.send_signal(signal.SIGINT)
        begin = time.monotonic()
        out, err = p.communicate(timeout=60)
    lines = parse(first + out)
    cancelled = [a for a in lines if a["finish_reason"] == "cancelled"]
    check(p.returncode == 1 and err.decode().endswith("folollm: error: interrupted\n"), "Ctrl-C ends the run", err)
    check(0 < len(cancelled) < len(lines) < 2000 and any(a["token_ids"] and a["text"] for a in cancelled),
          "what was running is printed as far as it came", len(lines))
    check(time.monotonic() - begin < 10, "soon")


def test_examples():
    for name, arguments, words in (("many", [], ["requests", "tokens/s", "preemptions"]),
                                   ("game_loop", ["1"], ["frames", "p99"])):
        p = subprocess.run([os.path.join(FOLDER, name), MODEL, *arguments], capture_output=True, text=True, timeout=60)
        check(p.returncode == 0 and not p.stderr and all(w in p.stdout for w in words), name, p.stdout + p.stderr)


def main():
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed != 0)


main()
