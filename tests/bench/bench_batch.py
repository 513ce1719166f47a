#!/usr/bin/env python3
"""Continuous batching on one machine: run bench_batch.c, beside llama.cpp where it can do the same, and print a report.

    python3 tests/bench/bench_batch.py --model CHECKPOINT [--peer native=BUILD/bin --gguf MODEL.gguf] [EXPERIMENT...]

EXPERIMENT is one or more of throughput, arrival, prefix, overrun (explained in bench_batch.c) and fixed; default: all.
CHECKPOINT is what folollm opens, MODEL.gguf the same weights for llama.cpp. --sizes hands more options to bench_batch,
such as "--requests 16 --max-length 128". Everything runs once per round, one after the other, so that a drift of the
machine meets all of it; figures are medians over the rounds.

Beside folollm's throughput stands llama-server where a build has it: the same token ids and lengths, all posted at
once over HTTP, as many slots as folollm writes answers at once, greedy, no EOS, no answer streamed. Its loading is not
in the time.

What is compared with llama.cpp in "fixed": B requests, each with a prompt of P tokens of its own and an answer of N
tokens, from the first token read to the last one written. llama.cpp does it with llama-batched-bench: all prompts, then
N steps of all sequences. That is the most favourable workload for it: nothing arrives late and nothing ends early. It
feeds tokens without choosing them from the logits; folollm samples each one greedily, which is in its time.
arrival, prefix and overrun have no column beside folollm.

Needs Python's standard library, a C compiler and utf8proc.
"""
import argparse, concurrent.futures, json, os, shlex, socket, statistics, subprocess, sys, tempfile, time, urllib.request

from bench_peer import folollm_version, ints, json_lines, machine, run, undisturbed

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def build(folder):
    exe = os.path.join(folder, "bench_batch")
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-I", ROOT, "-o", exe, os.path.join(HERE, "bench_batch.c"),
                    os.path.join(ROOT, "folollm.c"), "-lutf8proc", "-lm", "-lpthread"], check=True)
    return exe


def ours(exe, a, *arguments):
    out, _, _ = run([exe, "-m", a.model, "-t", str(a.threads), "--kv", a.kv, *arguments])
    return json_lines(out)


def ours_fixed(exe, a, batch):
    (row,) = ours(exe, a, "--requests", str(batch), "--running", str(batch), "--prompt-length", str(a.prompt),
                  "--answer-length", str(a.generate), "--mode", "continuous", "throughput")
    return {batch: row["all_tokens_per_s"]}


def peer_fixed(folder, extra, a, batches):
    tool, threads = os.path.join(folder, "llama-batched-bench"), str(a.threads)
    room = str(max(batches) * (a.prompt + a.generate))
    out, _, _ = run([tool, "-m", a.gguf, "-t", threads, "-tb", threads, "-c", room, "-npp", str(a.prompt), "-ntg",
                     str(a.generate), "-npl", ",".join(map(str, batches)), "--output-format", "jsonl",
                     *shlex.split(extra)])
    return {r["pl"]: r["speed"] for r in json_lines(out)}


def post(url, **members):
    request = urllib.request.Request(url, json.dumps(members).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def answer(port, r):
    """One request, of exactly the tokens that were asked for."""
    reply = post(f"http://127.0.0.1:{port}/completion", prompt=r["ids"], n_predict=r["n_answer"], ignore_eos=True,
                 temperature=0, cache_prompt=False)
    if (reply["tokens_evaluated"], reply["tokens_predicted"]) != (len(r["ids"]), r["n_answer"]):
        sys.exit(f"llama-server answered {reply['tokens_predicted']} tokens to a prompt of {reply['tokens_evaluated']}, "
                 f"and {r['n_answer']} to {len(r['ids'])} were asked for")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(server, port):
    while True:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
        except OSError:
            if server.poll() is not None:
                sys.exit(f"llama-server ended with exit status {server.returncode}")
            time.sleep(0.1)


def peer_throughput(label, folder, extra, requests, running, a):
    """The seconds of the requests through llama-server, as a row beside those of bench_batch."""
    longest = max(len(r["ids"]) + r["n_answer"] for r in requests) + 16
    port, threads = free_port(), str(a.threads)
    server = subprocess.Popen(
        [os.path.join(folder, "llama-server"), "-m", a.gguf, "-t", threads, "-tb", threads, "-np", str(running), "-c",
         str(running * longest), "--port", str(port), "--no-webui", *shlex.split(extra)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(server, port)
        answer(port, {"ids": requests[0]["ids"][:8], "n_answer": 2})
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            begin = time.perf_counter()
            list(pool.map(lambda r: answer(port, r), requests))
            seconds = time.perf_counter() - begin
    finally:
        server.terminate()
        server.wait()
    n = sum(r["n_answer"] for r in requests)
    return {"mode": f"llama-server {label}", "seconds": seconds, "tokens_per_s": n / seconds}


def measure_throughput(exe, peers, a, once, name):
    rows = []
    for mode in a.modes.split(","):
        rows += once(f"{name} {mode}", lambda: ours(exe, a, *shlex.split(a.sizes), "--mode", mode, "throughput"))
    requests = ours(exe, a, *shlex.split(a.sizes), "requests")
    for label, folder, extra in peers:
        if os.path.exists(os.path.join(folder, "llama-server")):
            rows.append(once(f"{name} llama-server {label}", lambda: peer_throughput(
                label, folder, extra, requests, int(rows[0]["running"]), a)))
    return rows


def flatten(row, prefix=""):
    """Nested members as "outer.inner"."""
    flat = {}
    for name, value in row.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def measure(exe, peers, a):
    """Return ({experiment: [rows of each round]}, {label: {batch: [tokens per second of each round]}}, [share])."""
    rows, fixed, shares = {}, {}, []

    def once(label, action):
        result, share = undisturbed(action, a)
        shares.append(share)
        print(f"{label}: others took {share:.0f} % of the CPU", file=sys.stderr, flush=True)
        return result

    for i in range(a.rounds):
        for e in a.experiments:
            if e == "throughput":
                found = measure_throughput(exe, peers, a, once, f"round {i + 1}, throughput")
                rows.setdefault(e, []).append([flatten(row) for row in found])
                continue
            if e != "fixed":
                found = once(f"round {i + 1}, {e}", lambda: ours(exe, a, *shlex.split(a.sizes), e))
                rows.setdefault(e, []).append([flatten(row) for row in found])
                continue
            batches, results = ints(a.batch), []
            for b in batches:
                results.append(("folollm", once(f"round {i + 1}, fixed {b}", lambda: ours_fixed(exe, a, b))))
            for label, folder, extra in peers:
                results.append((label, once(f"round {i + 1}, {label}", lambda: peer_fixed(folder, extra, a, batches))))
            for label, result in results:
                for b, speed in result.items():
                    fixed.setdefault(label, {}).setdefault(b, []).append(speed)
    return rows, fixed, shares


def middle(rounds):
    """One row per measurement: the medians of its numbers over the rounds."""
    return [{name: value if isinstance(value, str) else statistics.median(r[name] for r in same)
             for name, value in same[0].items()} for same in zip(*rounds)]


def table(heads, lines):
    print("\n| " + " | ".join(heads) + " |\n|---" + "|---:" * (len(heads) - 1) + "|")
    for line in lines:
        print("| " + " | ".join(cell if isinstance(cell, str) else f"{cell:.{2 if abs(cell) < 100 else 0}f}" if
                                isinstance(cell, float) else str(cell) for cell in line) + " |")


def spread(row, name, points=("p50", "p99", "max")):
    return [float(row[f"{name}.{p}"]) for p in points]


def report_throughput(rows):
    r = rows[0]
    table([f"{r['requests']:.0f} requests, {r['prompt_tokens']:.0f} tokens in, {r['generated_tokens']:.0f} out",
           "seconds", "generated tokens/s", "between tokens, ms: p50", "p99", "max", "first token, ms: p50", "p99"],
          [[r["mode"], float(r["seconds"]), float(r["tokens_per_s"]), *(
              [*spread(r, "between_tokens_ms"), *spread(r, "first_token_ms", ("p50", "p99"))]
              if "between_tokens_ms.p50" in r else 5 * ["-"])] for r in rows])


def report_arrival(rows):
    table([f"{rows[0]['running']:.0f} answers being written, a prompt of {rows[0]['prompt']:.0f} tokens comes",
           "before, ms: p50", "p99", "max", "while it is read, ms: p50", "p99", "max", "its first token, ms"],
          [[f"chunk {r['chunk']:.0f}", *spread(r, "before_ms"), *spread(r, "during_ms"),
            float(r["prompt_first_token_ms"])] for r in rows])


def report_prefix(rows):
    table([f"first token behind {rows[0]['prefix']:.0f} tokens, ms", "p50", "max", "cached tokens"],
          [[kind, *spread(r, f"{kind}_ms", ("p50", "max")), int(r[f"cached_tokens_{kind}"])]
           for r in rows for kind in ("cold", "warm")])


def report_overrun(rows):
    points = ("p50", "p90", "p99", "p99.9", "max")
    r = rows[0]
    table([f"{r['running']:.0f} answers being written, {r['prompt']:.0f} tokens queued, {r['depth']:.0f} of them "
           "computed before: ms beyond the budget", *points, "calls", "above"],
          [[f"{r['budget_ms']:g} ms{what}", *spread(r, name, points), int(r[f"{name}.n"]), above]
           for r in rows for what, name, above in (("", "overrun_ms", str(int(r["calls_above"]))),
                                                   (", undisturbed", "undisturbed_overrun_ms", "-"))])


def report_fixed(fixed, a):
    labels = list(fixed)
    lines = []
    for b in ints(a.batch):
        medians = [statistics.median(fixed[label][b]) for label in labels]
        ratio = [f"{medians[0] / max(medians[1:]):.2f}"] if len(labels) > 1 else []
        lines.append([f"{b} x ({a.prompt} + {a.generate})"] + medians + ratio)
    table(["tokens/s, prompts and answers together", *labels] + ["folollm / best peer"] * (len(labels) > 1), lines)


REPORTS = {"throughput": report_throughput, "arrival": report_arrival, "prefix": report_prefix,
           "overrun": report_overrun}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("experiments", nargs="*", metavar="EXPERIMENT")
    ap.add_argument("--model", required=True, help="checkpoint for folollm")
    ap.add_argument("--kv", default="f16", help="KV type of folollm (default f16, as llama.cpp's)")
    ap.add_argument("--modes", default="continuous,static,padded,single", help="of throughput (default: all four)")
    ap.add_argument("--sizes", default="", metavar="ARGS", help="more options for bench_batch, in one string")
    ap.add_argument("--peer", action="append", default=[], metavar="NAME=DIR", help="a llama.cpp build's bin folder")
    ap.add_argument("--peer-args", action="append", metavar="ARGS", help='default: "-fa off" and "-fa on"')
    ap.add_argument("--gguf")
    ap.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    ap.add_argument("-p", "--prompt", type=int, default=128, help="fixed: tokens of a prompt (default 128)")
    ap.add_argument("-n", "--generate", type=int, default=128, help="fixed: tokens of an answer (default 128)")
    ap.add_argument("-b", "--batch", default="1,8,16", help="fixed: requests at once (default 1,8,16)")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--quiet", type=float, default=5, help="percent of the CPU that others may take (default 5)")
    ap.add_argument("--tries", type=int, default=3, help="how often to repeat a disturbed measurement (default 3)")
    ap.add_argument("--patience", type=float, default=600, help="seconds to wait for a quiet machine (default 600)")
    a = ap.parse_args()
    a.experiments = a.experiments or [*REPORTS, "fixed"]
    if not set(a.experiments) <= {*REPORTS, "fixed"}:
        ap.error("an EXPERIMENT is one of " + ", ".join([*REPORTS, "fixed"]))
    if a.peer and not a.gguf:
        ap.error("--peer needs --gguf")
    peers = [(f"{name} {extra}".strip(), folder, extra) for name, folder in (p.split("=", 1) for p in a.peer)
             for extra in a.peer_args or ["-fa off", "-fa on"]]
    with tempfile.TemporaryDirectory() as folder:
        rows, fixed, shares = measure(build(folder), peers, a)

    print(f"- machine: {machine()}")
    print(f"- {a.threads} threads, {a.rounds} rounds; figures are medians over them; other processes took "
          f"{statistics.median(shares):.0f} % of the CPU, {max(shares):.0f} % at worst")
    print(f"- folollm {folollm_version()}: {os.path.basename(a.model.rstrip('/'))}, KV {a.kv} {a.sizes}".rstrip())
    if peers:
        print(f"- llama.cpp: {os.path.basename(a.gguf)}, llama-server and llama-batched-bench")
    for e in a.experiments:
        if e == "fixed":
            report_fixed(fixed, a)
        else:
            REPORTS[e](middle(rows[e]))


if __name__ == "__main__":
    main()
