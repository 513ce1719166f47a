#!/usr/bin/env python3
"""Compare folollm with llama.cpp on one machine and print a Markdown report.

    python3 tests/bench/bench_peer.py --folollm examples/folollm --model CHECKPOINT \\
        --peer native=BUILD/bin --peer nobf16=OTHER_BUILD/bin --gguf MODEL.gguf -t 2 --limits

CHECKPOINT is what folollm opens (default: the GGUF file), MODEL.gguf the same weights for llama.cpp; --gguf may be
given several times, each time with a name, as NAME=MODEL.gguf, and is then a part of the report. --picture FILE.svg
draws all of it; with --draw REPORT, given as often as there are reports, it draws what earlier runs printed. BUILD/bin holds llama-bench and llama-completion, and llama-batched-bench when --batch is given. Each
build runs once per --peer-args (default: flash attention off and on). Without --folollm the peers run alone.

The tools run in turn, one repeat of each per round, so that a drift of the machine meets all of them; the figures are
medians over the rounds. Each repeat waits for a quiet machine and is done again when other processes disturbed it:
spinning barriers make llama.cpp many times slower on a busy one.

  - Throughput: "folollm bench" against llama-bench; a batch above 1 against llama-batched-bench, in tokens per second
    of all sequences together. Both warm up before they measure. Batches above 1 are measured at the first depth alone.
  - Cold start: from spawning the process to the first byte of its answer, for a prompt of 16 tokens and one generated
    token, without warm-up, the file in the page cache.
  - Memory: the largest resident set of the process, pages of the mapped file included.

Needs Python's standard library alone; --limits also a C compiler.
"""
import argparse, html, json, os, platform, re, resource, shlex, statistics, subprocess, sys, tempfile, time
from itertools import chain, repeat

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT = "The quick brown fox jumps over the lazy dog while the old cat sleeps at home"  # 16 tokens in common vocabularies
RSS_PER_MIB = 1024 * 1024 if sys.platform == "darwin" else 1024
KV_ROOM = 256  # context of llama.cpp's cold start; its default is the model's maximum


def run(cmd):
    """Run cmd to its end; return (stdout, seconds to the first byte of it or to its end, peak resident MiB)."""
    with tempfile.TemporaryFile() as err:
        begin = time.perf_counter()
        p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err)
        out = os.read(p.stdout.fileno(), 1 << 16)
        first = time.perf_counter() - begin
        with p.stdout:
            out += p.stdout.read()
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        if p.returncode:
            err.seek(0)
            sys.exit(f"{shlex.join(cmd)}: exit status {p.returncode}\n{err.read().decode(errors='replace')[-2000:]}")
    return out.decode(errors="replace"), first, usage.ru_maxrss / RSS_PER_MIB


def json_lines(text):
    """llama-batched-bench writes -nan for the speed of an empty prompt."""
    return [json.loads(re.sub(r"-?\bnan\b", "null", line)) for line in text.splitlines() if line.startswith("{")]


class Folollm:
    def __init__(self, a):
        self.label, self.version, self.a = "folollm", folollm_version(), a
        self.common = ["-m", a.model, "-t", str(a.threads), *shlex.split(a.folollm_args)]

    def bench(self):
        """Return ({(test, batch, depth): tokens per second}, peak MiB)."""
        a = self.a
        rates, most = {}, 0
        for depth, batch in zip(a.depth.split(","), chain([a.batch], repeat("1"))):
            out, _, peak = run([a.folollm, "bench", *self.common, "-p", str(a.prompt), "-n", str(a.generate), "-b", batch,
                                "--depth", depth, "-r", "1", "--json"])
            rates.update({(r["test"], r["batch"], r["depth"]): r["tokens_per_s"] for r in json_lines(out)})
            most = max(most, peak)
        return rates, most

    def start(self):
        _, first, peak = run([self.a.folollm, "generate", *self.common, "-p", PROMPT, "-n", "1", "--ids"])
        return first * 1e3, peak


class Peer:
    def __init__(self, a, name, folder, extra):
        self.label, self.version, self.a = f"{name} {extra}".strip(), None, a
        self.bin = lambda tool: os.path.join(folder, tool)
        self.common = ["-m", a.gguf, "-t", str(a.threads), *shlex.split(extra)]

    def bench(self):
        a, n = self.a, str(self.a.generate)
        out, _, peak = run([self.bin("llama-bench"), *self.common, "-p", str(a.prompt), "-n", n, "-d", a.depth, "-r", "1",
                            "-o", "jsonl"])
        rates = {}
        for r in json_lines(out):
            rates["decode" if r["n_gen"] else "prefill", 1, r["n_depth"]] = r["avg_ts"]
            self.version = f"{r['build_commit']} (build {r['build_number']})"
        batches, depth = ints(a.batch), ints(a.depth)[0]
        if max(batches) > 1:
            room = max(batches) * (depth + a.generate)
            out, _, _ = run([self.bin("llama-batched-bench"), *self.common, "-tb", str(a.threads), "-c", str(room), "-npp",
                             str(depth), "-ntg", n, "-npl", ",".join(str(b) for b in batches if b > 1),
                             "--output-format", "jsonl"])
            rates.update({("decode", r["pl"], depth): r["speed_tg"] for r in json_lines(out)})
        return rates, peak

    def start(self):
        _, first, peak = run([self.bin("llama-completion"), *self.common, "-tb", str(self.a.threads), "-p", PROMPT, "-n",
                              "1", "-c", str(KV_ROOM), "--temp", "0", "-no-cnv", "--no-warmup", "--no-display-prompt",
                              "-fit", "off"])
        return first * 1e3, peak


def ints(text):
    return [int(x) for x in text.split(",")]


def folollm_version():
    git = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def machine():
    cpu, memory = platform.processor(), ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            cpu = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), cpu)
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return f"{cpu}, {os.cpu_count()} cores{memory}, {platform.system()} {platform.release()}"


def foreign_cpu():
    """CPU seconds taken so far by anything but this process and its children (0 where Linux's /proc is absent)."""
    if not os.path.exists("/proc/stat"):
        return 0
    with open("/proc/stat") as f:
        user, nice, system, _, _, irq, softirq, steal = (int(x) for x in f.readline().split()[1:9])
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return total - sum(u.ru_utime + u.ru_stime for u in own)


def foreign_share(action):
    """Return what action() returns and the percentage of the CPU that others took meanwhile."""
    begin, foreign = time.perf_counter(), foreign_cpu()
    result = action()
    return result, 100 * (foreign_cpu() - foreign) / (time.perf_counter() - begin) / os.cpu_count()


def undisturbed(measurement, a):
    """Measure in a moment when others take less than --quiet percent of the CPU; return the result and their share."""
    for _ in range(a.tries):
        patience = time.monotonic() + a.patience
        while foreign_share(lambda: time.sleep(1))[1] > a.quiet and time.monotonic() < patience:
            pass
        result, share = foreign_share(measurement)
        if share <= a.quiet:
            break
    return result, share


def row_name(row, a):
    if isinstance(row, str):
        return row
    test, batch, depth = row
    return (f"{test} {a.prompt if test == 'prefill' else a.generate}" + (f", batch {batch}" if batch > 1 else "")
            + (f", depth {depth}" if depth else ""))


def measure(tools, a):
    """Return ({row: {label: [figure of each round]}}, [share of others]); row is (test, batch, depth) or a name."""
    rows, shares = {}, []

    def add(row, tool, figure):
        rows.setdefault(row, {}).setdefault(tool.label, []).append(figure)

    for i in range(a.rounds):
        for t in tools:
            (rates, peak), share = undisturbed(t.bench, a)
            figures = ", ".join(f"{row_name(row, a)} {rate:.1f}" for row, rate in rates.items())
            print(f"round {i + 1}, {t.label}: {figures} tokens/s; others took {share:.0f} % of the CPU", file=sys.stderr)
            shares.append(share)
            for row, figure in [*rates.items(), ("bench: peak MiB", peak)]:
                add(row, t, figure)
    for i in range(a.rounds + 1):
        for t in tools:
            (first, peak), share = undisturbed(t.start, a)
            if i:  # the first round fills the page cache
                shares.append(share)
                add("cold start: ms to first token", t, first)
                add("cold start: peak MiB", t, peak)
    return rows, shares


def table(title, rows, tools, a, best):
    """One line per row; best is max where more is better, else min."""
    peers = [t.label for t in tools if t.label != "folollm"]
    ours = len(peers) < len(tools)
    heads = [title] + ["folollm"] * ours + peers + ["best peer"] + ["folollm / best peer"] * ours
    print("\n| " + " | ".join(heads) + " |\n|---" + "|---:" * (len(heads) - 1) + "|")
    for row, figures in rows.items():
        middle = {label: statistics.median(v) for label, v in figures.items()}
        cells = [row_name(row, a)]
        for t in tools:
            v = figures.get(t.label)
            cells.append(f"{middle[t.label]:.1f} ({min(v):.1f}-{max(v):.1f})" if v else "-")
        rivals = [p for p in peers if p in middle]
        champion = best(rivals, key=middle.get) if rivals else "-"
        cells.append(champion)
        if ours:
            both = rivals and "folollm" in middle
            cells.append(f"**{middle['folollm'] / middle[champion]:.2f}**" if both else "-")
        print("| " + " | ".join(cells) + " |")


def bars(parts, a):
    """An SVG picture: for every row of every part, the rates of folollm and of the best peer beside each other."""
    lines, y = [], 40
    for name, rows, tools in parts:
        lines.append(f'<text x="10" y="{y}" font-weight="bold">{html.escape(name)}</text>')
        for row, figures in rows.items():
            if isinstance(row, str):
                continue
            middle = {label: statistics.median(v) for label, v in figures.items()}
            ours = middle.pop("folollm", None)
            if ours is None or not middle:
                continue
            theirs, y = max(middle.values()), y + 22
            scale = 380 / max(ours, theirs)
            lines.append(f'<text x="210" y="{y + 9}" text-anchor="end">{html.escape(row_name(row, a))}</text>')
            for rate, dy, colour in (ours, 0, "#2a6f97"), (theirs, 8, "#bbbbbb"):
                lines.append(f'<rect x="220" y="{y + dy - 3}" width="{rate * scale:.1f}" height="7" fill="{colour}"/>')
            lines.append(f'<text x="610" y="{y + 9}">{ours:.0f} : {theirs:.0f} = {ours / theirs:.2f}</text>')
        y += 34
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{y}" font-family="sans-serif" font-size="12">'
            f'<rect width="760" height="{y}" fill="white"/><text x="10" y="18">tokens/s, {a.threads} threads: '
            '<tspan fill="#2a6f97">folollm</tspan> and <tspan fill="#888888">the best of llama.cpp</tspan></text>')
    return "\n".join([head, *lines, "</svg>"]) + "\n"


def drawn_rows(reports, a):
    """The parts of earlier reports as measure() gives them, those of one name joined."""
    parts, head = {}, None
    for path in reports:
        with open(path, encoding="utf-8") as f:
            for line in f:
                cells = [c.strip() for c in line.strip().strip("|").split("|")]
                if line.startswith("## "):
                    rows, head = parts.setdefault(line[3:].strip(), {}), None
                elif line.startswith("| "):
                    row = re.fullmatch(r"(prefill|decode) (\d+)(?:, batch (\d+))?(?:, depth (\d+))?", cells[0])
                    if row is None:
                        head = cells
                        continue
                    figures = dict(zip(head[1:], cells[1:]))
                    rows[row[1], int(row[3] or 1), int(row[4] or 0)] = {
                        label: [float(cell.split()[0])] for label, cell in figures.items() if "(" in cell}
                    setattr(a, "prompt" if row[1] == "prefill" else "generate", int(row[2]))
    return [(name, rows, ()) for name, rows in parts.items()]


def limits(a):
    with tempfile.TemporaryDirectory() as d:
        exe = os.path.join(d, "limits")
        subprocess.run([os.environ.get("CC", "cc"), "-O2", "-march=native", "-pthread", "-o", exe,
                        os.path.join(HERE, "limits.c")], check=True)
        return run([exe, "-t", str(a.threads), "-f", a.gguf])[0]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--folollm", help="the folollm command-line tool; left out, the peers run alone")
    ap.add_argument("--model", help="checkpoint for folollm (default: the GGUF file)")
    ap.add_argument("--folollm-args", default="", metavar="ARGS", help="more arguments for folollm, in one string")
    ap.add_argument("--peer", action="append", default=[], metavar="NAME=DIR", help="a llama.cpp build's bin folder")
    ap.add_argument("--peer-args", action="append", metavar="ARGS", help='default: "-fa 0" and "-fa 1"')
    ap.add_argument("--gguf", action="append", default=[], metavar="[NAME=]FILE")
    ap.add_argument("--picture", metavar="FILE.svg")
    ap.add_argument("--draw", action="append", metavar="REPORT.md", help="measure nothing: draw what was printed before")
    ap.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    ap.add_argument("-p", "--prompt", type=int, default=512)
    ap.add_argument("-n", "--generate", type=int, default=128)
    ap.add_argument("-b", "--batch", default="1", help="sequences decoded together, such as 1,8,32")
    ap.add_argument("--depth", default="0", help="tokens already in the KV cache, such as 0,4096")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--quiet", type=float, default=5, help="percent of the CPU that others may take (default 5)")
    ap.add_argument("--tries", type=int, default=5, help="how often to repeat a disturbed measurement (default 5)")
    ap.add_argument("--patience", type=float, default=600, help="seconds to wait for a quiet machine (default 600)")
    ap.add_argument("--limits", action="store_true", help="also measure the machine with limits.c")
    a = ap.parse_args()
    if not a.draw and not (a.peer and a.gguf):
        ap.error("--peer and --gguf say what is measured, --draw what is drawn")
    parts = drawn_rows(a.draw, a) if a.draw else []
    if not a.draw:
        print(f"- machine: {machine()}")
    for part in a.gguf if not a.draw else ():
        name, _, path = part.rpartition("=")
        parts.append(compare(name or os.path.basename(path), argparse.Namespace(**{**vars(a), "gguf": path})))
    if a.picture:
        with open(a.picture, "w", encoding="utf-8") as f:
            f.write(bars(parts, a))
    if a.limits and not a.draw:
        a.gguf = a.gguf[0].rpartition("=")[2]
        print("\n" + limits(a), end="")


def compare(name, a):
    """Measure and report one model; return (name, rows, tools)."""
    a.model = a.model or a.gguf
    peers = [p.split("=", 1) for p in a.peer]
    tools = [Folollm(a)] if a.folollm else []
    tools += [Peer(a, n, folder, extra) for n, folder in peers for extra in a.peer_args or ["-fa 0", "-fa 1"]]
    rows, shares = measure(tools, a)
    print(f"\n## {name}\n\n- {a.threads} threads, {a.rounds} interleaved rounds; cells are median (min-max); other processes "
          f"took {statistics.median(shares):.0f} % of the CPU, {max(shares):.0f} % at worst")
    if a.folollm:
        print(f"- folollm {tools[0].version}: {os.path.basename(a.model.rstrip('/'))} {a.folollm_args}".rstrip())
    print(f"- llama.cpp {tools[-1].version}: {os.path.basename(a.gguf)}")
    table("tokens/s, higher is better", {r: v for r, v in rows.items() if not isinstance(r, str)}, tools, a, max)
    table("lower is better", {r: v for r, v in rows.items() if isinstance(r, str)}, tools, a, min)
    sys.stdout.flush()
    return name, rows, tools


if __name__ == "__main__":
    main()
