#!/usr/bin/env python3
"""Measure folollm on a CUDA device in one run, and print a Markdown report.

    python3 tests/bench/bench_cuda.py --model QWEN3_0.6B [--big QWEN3_8B] [--cuda /usr/local/cuda] [--only WORD...]

The models are Hugging Face directories of that shape in bf16; weights may be random. Everything is built first, for the
device that is there, and quantised models are written once. Figures are medians of --repeats.

  - The device itself: reading, kernels that do nothing, barriers, cuBLASLt (limits.cu). The rates that shares are of are
    taken from there: the fastest reading, and the fastest product.
  - folollm's kernels one by one (bench_device.c). Both tables are printed last.
  - One sequence: --tokens steps behind a prompt of 32, by the host's own loop, each token the one that was chosen.
  - 32 sequences at 512 tokens, in the same way.
  - 256 requests with prompts and answers of 100 to 1024 tokens, all written at once (bench_batch.c).
  - Reading: one prompt of 512; eight of 1024 in one forward pass.
  - From the start of a process to the first token of its answer, behind a prompt of 16, the file in the page cache.
  - What floats matter to, with each of --device-floats: "exact" has the bits of the CPU, the others are as near as 16 or
    8 bits of a float allow. With all three a row has the same bits in any batch, chunk and order.
  - --hf: Hugging Face transformers on the same device, where torch is installed: generate with 32 + 128 tokens, and a
    forward pass of 512.

A step is taken to read all matrices once, embeddings only if they are the head, and the keys and values of its
sequences; a prompt to do two operations per number of them and token. --device cpu tries the script itself where there
is no device. Needs Python's standard library, a C compiler, utf8proc, and the CUDA toolkit with cuBLASLt.
"""
import argparse, json, os, re, statistics, subprocess, sys, tempfile

from bench_peer import PROMPT, folollm_version, json_lines, machine, run

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
HF = """
import json, sys, time, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).to(sys.argv[2]).eval()
ids, wait = torch.arange(512, device=model.device)[None] + 100, torch.cuda.synchronize if "cuda" in sys.argv[2] else int
def timed(call):
    call(), wait()
    begin = time.perf_counter()
    call(), wait()
    return time.perf_counter() - begin
with torch.inference_mode():
    n = int(sys.argv[3])
    decode = timed(lambda: model.generate(ids[:, :32], do_sample=False, min_new_tokens=n, max_new_tokens=n))
    prefill = timed(lambda: model(ids, logits_to_keep=1))
print(json.dumps({"version": f"transformers {transformers.__version__}, torch {torch.__version__}",
                  "decode": n / decode, "prefill": 512 / prefill}))
"""


def main():
    a = arguments()
    tools = build(a)
    itself = device_itself(a, tools)
    print(f"# folollm {folollm_version()} on {itself['name']}\n\n{machine()}; {a.repeats} repeats\n", flush=True)
    if itself["read"]:
        print(f"It reads {itself['read'] / 1e9:.0f} GB/s, and cuBLASLt multiplies at {itself['products'] / 1e12:.0f} "
              "TFLOP/s.\n")
    print("| what | weights | floats | result | share of the limit |\n|---|---|---|---:|---:|", flush=True)
    for model in filter(None, [a.model, a.big]):
        report(a, tools, itself, model)
    if a.hf and wanted(a, "hf"):
        out, _, _ = run([sys.executable, "-c", HF, a.model, a.device, str(a.tokens)])
        hf = json.loads(out.splitlines()[-1])
        for what in "decode", "prefill":
            print(f"| {hf['version']}: {what}, one sequence | bf16 | | {hf[what]:.0f} tokens/s | |", flush=True)
    print("\n" + itself["tables"])


def arguments():
    p = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    p.add_argument("--model", required=True)
    p.add_argument("--big")
    p.add_argument("--cuda", default="/usr/local/cuda")
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--requests", type=int, default=256)
    p.add_argument("--hf", action="store_true")
    p.add_argument("--only", nargs="+", metavar="WORD", help="rows with one of these words in their names")
    return p.parse_args()


def wanted(a, name):
    return not a.only or any(word in name for word in a.only)


def build(a):
    """Programs in a folder of their own: the repository's stay what they are."""
    folder = os.path.join(tempfile.gettempdir(), f"folollm-bench-{a.device}-{os.getuid()}")
    os.makedirs(folder, exist_ok=True)
    at = lambda name: os.path.join(folder, name)
    flags, objects, libraries = [], [at("engine.o")], ["-lutf8proc", "-lm", "-lpthread"]
    if a.device == "cuda":
        flags = ["-DFOLOLLM_CUDA"]
        objects.append(at("kernels.o"))
        libraries += [f"-L{a.cuda}/lib64", "-lcudart", "-lstdc++"]
        command([f"{a.cuda}/bin/nvcc", "-O3", "-arch=native", "-c", "-o", at("kernels.o"), "folollm_kernels.cu"])
    cc = os.environ.get("CC", "cc")
    command([cc, "-O2", *flags, "-c", "-o", at("engine.o"), "folollm.c"])
    for name, source in ("folollm", "examples/folollm.c"), ("bench_batch", "tests/bench/bench_batch.c"):
        command([cc, "-O2", "-I.", "-Iexamples", "-o", at(name), source, *objects, *libraries])
    if a.device == "cuda":
        command([cc, "-O2", "-Isrc", "-o", at("bench_device"), "tests/bench/bench_device.c", at("kernels.o"), *libraries])
        command([f"{a.cuda}/bin/nvcc", "-O3", "-arch=native", "-o", at("limits"), "tests/bench/limits.cu", "-lcublasLt"])
    return at


def command(words):
    subprocess.run(words, cwd=ROOT, check=True)


def device_itself(a, tools):
    if a.device == "cpu":
        return {"name": "this CPU, to try the script", "read": 0, "products": 0, "tables": ""}
    limits, kernels = run([tools("limits")])[0], run([tools("bench_device"), "20"])[0]
    rates = lambda what, unit: [float(x) for x in re.findall(rf"^\| {what}.* ([\d.]+) {unit}", limits, re.M)]
    return {"name": limits.splitlines()[0], "read": max(rates("reading", "GB/s")) * 1e9,
            "products": max(rates("cuBLASLt", "TFLOP/s")) * 1e12, "tables": f"{limits}\n{kernels}"}


class Model:
    """What a step has to read, and a row to multiply."""
    BITS = {"bf16": (16, 16), "q8": (8.5, 8.5), "q4": (4.5, 6.6)}  # of a number of a layer, and of the head

    def __init__(self, path):
        with open(os.path.join(path, "config.json")) as f:
            c = json.load(f)
        heads, kv_heads, dim = c["num_attention_heads"], c.get("num_key_value_heads", c["num_attention_heads"]), c["hidden_size"]
        head_dim = c.get("head_dim") or dim // heads
        of_layer = dim * head_dim * (2 * heads + 2 * kv_heads) + 3 * dim * c["intermediate_size"]
        self.layers, self.head = c["num_hidden_layers"] * of_layer, dim * c["vocab_size"]
        self.kv = 2 * c["num_hidden_layers"] * kv_heads * head_dim  # numbers of a token
        self.name = os.path.basename(os.path.normpath(path))

    def bytes(self, weights):
        layer, head = self.BITS[weights]
        return (self.layers * layer + self.head * head) / 8


def quantised(a, tools, path, weights):
    """The model with these weights, written once: converting while loading takes longer than all else."""
    if weights == "bf16":
        return path
    out = tools(f"{os.path.basename(os.path.normpath(path))}-{weights}")
    if not os.path.exists(out):
        run([tools("folollm"), "quantize", "-m", path, "--weights", weights, "-o", out])
    return out


def report(a, tools, itself, path):
    m, n, requests = Model(path), str(a.tokens), str(a.requests)
    on_device = ["--device", a.device] if a.device == "cuda" else []

    def row(name, weights, floats, measure, unit, limit):
        """limit: what the device would give if it did nothing but what it must; 0: unknown."""
        if wanted(a, f"{m.name} {name} {weights} {floats}"):
            result = statistics.median(measure(quantised(a, tools, path, weights), floats))
            share = f"{100 * result / limit:.0f} %" if limit else ""
            print(f"| {m.name}: {name} | {weights} | {floats} | {result:.0f} {unit} | {share} |", flush=True)

    def bench(*options):
        def measure(model, floats):
            how = [*on_device, "--device-floats", floats] if on_device else []
            out, _, _ = run([tools("folollm"), "bench", "-m", model, *how, "-r", str(a.repeats), "--json", *options])
            return [r["tokens_per_s"] for r in json_lines(out)]
        return measure

    def batch(figure, kv, *options):
        def measure(model, floats):
            how = ["--device", "1", "--floats", floats] if on_device else []
            command = [tools("bench_batch"), "-m", model, *how, "--kv", kv, "--mode", "continuous", *options, "throughput"]
            return [json_lines(run(command)[0])[0][figure] for _ in range(a.repeats)]
        return measure

    def start(model, floats):
        how = [*on_device, "--device-floats", floats] if on_device else []
        command = [tools("folollm"), "generate", "-m", model, *how, "-p", PROMPT, "-n", "1", "--ids"]
        return [run(command)[1] * 1e3 for _ in range(a.repeats)]

    def step(sequences, depth, weights):
        keys_and_values = sequences * (depth + a.tokens / 2) * m.kv * 2
        return sequences * itself["read"] / (m.bytes(weights) + keys_and_values)

    prompt = itself["products"] / (2 * m.layers)
    for weights, floats in ("bf16", "exact"), ("bf16", "bf16"), ("q8", "exact"), ("q4", "exact"):
        row("one sequence", weights, floats, bench("-p", "0", "-n", n, "-b", "1", "--depth", "32"), "tokens/s",
            step(1, 32, weights))
    row("start to first token", "bf16", "exact", start, "ms", 0)
    for floats in "exact", "split", "bf16":
        row("32 sequences at 512 tokens", "bf16", floats, bench("-p", "0", "-n", n, "-b", "32", "--depth", "512"),
            "tokens/s", step(32, 512, "bf16"))
        row("prompt of 512", "bf16", floats, bench("-p", "512", "-n", "0", "--chunk", "512"), "tokens/s", prompt)
        row("8 prompts of 1024 at once", "bf16", floats,
            batch("all_tokens_per_s", "bf16", "--requests", "8", "--prompt-length", "1024", "--answer-length", "1",
                  "--running", "8", "--chunk", "8192"), "tokens/s", prompt)
    for floats, kv in ("exact", "bf16"), ("bf16", "bf16"), ("exact", "q8"), ("bf16", "q8"):
        row(f"{requests} requests, {kv} KV", "bf16", floats,
            batch("tokens_per_s", kv, "--requests", requests, "--running", requests, "--min-length", "100",
                  "--max-length", "1024", "--chunk", "2048"), "tokens/s written", 0)


if __name__ == "__main__":
    main()
