#!/usr/bin/env python3
"""Measure load time and peak memory of one model in every format that folollm opens, and print a Markdown table.

    python3 tests/bench/bench_formats.py --folollm examples/folollm --work DIR --tokenizer DIRECTORY [NAME=PATH...]

The checkpoints are made in DIR, once: random weights in the shape of Qwen3-0.6B as Hugging Face holds them, plain and
quantised (all share one file with the embedding), and from the plain one, by "folollm quantize", directories and GGUF
files. They take 8 GB, and 5 more with GGUF files of f32, f16 and bf16 (--gguf). DIRECTORY holds tokenizer.json and
tokenizer_config.json of a Qwen3 model. NAME=PATH are measured beside, such as files of llama.cpp's quantiser.

The formats run in turn, each once per round; the first round is discarded, the figures are medians over the others.

  - Load and first token: from spawning "folollm generate" to the first byte of its answer, for a prompt of 16 tokens,
    without warm-up, the files in the page cache. The tokenizer is loaded too.
  - Peak: the largest resident set of the process, pages of mapped files included.
  - Result: what the engine keeps by its plan, allocated and mapped. The context is so short that about all is touched.
  - Largest tensor converted: in bytes of the file, a quantised matrix with its scales; 0.0 where all matrices are used
    as they lie there. Peak above result should be at most this, and the process itself: code, libraries and stacks.

Needs numpy.
"""
import argparse, concurrent.futures, json, os, re, shutil, statistics, struct, sys

import numpy as np

from bench_peer import PROMPT, folollm_version, machine, run, undisturbed

LAYERS, DIM, FFN, VOCAB, HEAD_DIM, Q, KV = 28, 1024, 3072, 151936, 128, 2048, 1024
LINEAR = [(DIM, {"self_attn.q_proj": Q, "self_attn.k_proj": KV, "self_attn.v_proj": KV}),  # columns, rows
          (Q, {"self_attn.o_proj": DIM}), (DIM, {"mlp.gate_proj": FFN, "mlp.up_proj": FFN}),
          (FFN, {"mlp.down_proj": DIM})]
NORMS = {"input_layernorm": DIM, "post_attention_layernorm": DIM, "self_attn.q_norm": HEAD_DIM,
         "self_attn.k_norm": HEAD_DIM}
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCAB, "hidden_size": DIM,
          "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": Q // HEAD_DIM,
          "num_key_value_heads": KV // HEAD_DIM, "head_dim": HEAD_DIM, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
          "max_position_embeddings": 40960, "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
GROUP = 128  # columns with one scale
EMBEDDING, REST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TYPES = ["q8", "q8_row", "q4", "q4_k"]
GGUF_TYPES = "q8,q4,q4_k,q5_k,q6_k,f32,f16,bf16"
ROWS_OF_LOGITS = 7 + 15  # "info" plans for 8 sequences and 16 answers in a step, "generate" has one of each
MIB = 1 << 20


# ---- Matrices: functions of (rng, rows, columns, group of each column) to {name: (type, array)} ----


def some_bytes(rng, *shape):
    return np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape)


def words(rng, rows, cols):
    return "I32", some_bytes(rng, rows, 4 * cols).view(np.int32)


def floats(rng, low, high, *shape):
    return rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)


def bf16(x):
    return "BF16", (x.view(np.uint32) >> 16).astype(np.uint16)


def plain(rng, rows, cols, order):
    return {"weight": bf16(rng.standard_normal((rows, cols), np.float32) * np.float32(0.02))}


def gptq(bits, symmetric, ordered):
    def make(rng, rows, cols, order):
        zeros = some_bytes(rng, cols // GROUP, rows * bits // 8)  # stored less one; symmetric: half of the range
        zeros = (zeros & 0x11) + np.uint8(0x66) if not symmetric else zeros & 0 | (0x77 if bits == 4 else 0x7F)
        scales = floats(rng, 0.02, 0.06, cols // GROUP, rows) / 2 ** (bits - 1)
        return {"qweight": words(rng, cols * bits // 32, rows), "qzeros": ("I32", zeros.view(np.int32)),
                "scales": ("F16", scales.astype(np.float16)),
                "g_idx": ("I32", (order if ordered else np.arange(cols) // GROUP).astype(np.int32))}
    return make, {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": symmetric, "desc_act": ordered,
                  "checkpoint_format": "gptq"}


def awq(rng, rows, cols, order):
    zeros = (some_bytes(rng, cols // GROUP, rows // 2) & 0x11) + np.uint8(0x77)
    return {"qweight": words(rng, cols, rows // 8), "qzeros": ("I32", zeros.view(np.int32)),
            "scales": ("F16", floats(rng, 0.002, 0.008, cols // GROUP, rows).astype(np.float16))}


def compressed(rng, rows, cols, order):
    return {"weight_packed": words(rng, rows, cols // 8), "weight_shape": ("I64", np.array([rows, cols], np.int64)),
            "weight_scale": bf16(floats(rng, 0.002, 0.008, rows, cols // GROUP))}


def fp8(rng, rows, cols, order):
    return {"weight": ("F8_E4M3", some_bytes(rng, rows, cols) & 0xBF),  # below 2
            "weight_scale_inv": ("F32", floats(rng, 0.01, 0.03, rows // 128, cols // 128))}


def nf4(rng, rows, cols, order):
    n = rows * cols
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, cols],
                        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.04})
    return {"weight": ("U8", some_bytes(rng, n // 2, 1)), "weight.absmax": ("U8", some_bytes(rng, n // 64)),
            "weight.quant_map": ("F32", np.linspace(-1, 1, 16, dtype=np.float32)),  # NF4's own takes as long
            "weight.nested_quant_map": ("F32", np.linspace(-1, 1, 256, dtype=np.float32)),
            "weight.nested_absmax": ("F32", floats(rng, 0.01, 0.02, n // 64 // 256)),
            "weight.quant_state.bitsandbytes__nf4": ("U8", np.frombuffer(state.encode(), np.uint8))}


def int8(rng, rows, cols, order):
    return {"weight": ("I8", some_bytes(rng, rows, cols)), "SCB": ("F32", floats(rng, 0.02, 0.06, rows))}


PACKED = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
HUGGING_FACE = {  # name: (function, "quantization_config")
    "bf16": (plain, None),
    "GPTQ 4 bits": gptq(4, True, False),
    "GPTQ 4 bits, zero points, act-order": gptq(4, False, True),
    "GPTQ 8 bits": gptq(8, True, False),
    "AWQ": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "compressed-tensors 4 bits": (compressed, {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": PACKED}}}),
    "FP8 blocks": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                         "weight_block_size": [128, 128]}),
    "bitsandbytes nf4, nested": (nf4, {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "uint8"}),
    "bitsandbytes int8": (int8, {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True})}


# ---- Checkpoints ----


def layers(rng, make):
    """Everything but the embedding, as {name: (type, array)}."""
    tensors = {"model.norm.weight": bf16(np.ones(DIM, np.float32))}
    for i in range(LAYERS):
        tensors |= {f"model.layers.{i}.{k}.weight": bf16(np.ones(n, np.float32)) for k, n in NORMS.items()}
        for cols, matrices in LINEAR:
            order = rng.permutation(cols) // GROUP
            for name, rows in matrices.items():
                tensors |= {f"model.layers.{i}.{name}.{k}": v for k, v in make(rng, rows, cols, order).items()}
    return tensors


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, (kind, array) in tensors.items():
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            array.tofile(f)


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)


def make_directory(a, name, shared, path):
    """config.json comes last: a directory that has it is complete."""
    make, quantisation = HUGGING_FACE[name]
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    os.link(shared, os.path.join(path, EMBEDDING))
    tensors = layers(np.random.default_rng(1), make)
    write_safetensors(os.path.join(path, REST), tensors)
    files = {"model.embed_tokens.weight": EMBEDDING} | dict.fromkeys(tensors, REST)
    write_json(os.path.join(path, "model.safetensors.index.json"), {"metadata": {}, "weight_map": files})
    for file in "tokenizer.json", "tokenizer_config.json":
        shutil.copyfile(os.path.join(a.tokenizer, file), os.path.join(path, file))
    write_json(os.path.join(path, "config.json"),
               CONFIG | ({"quantization_config": quantisation} if quantisation else {}))


def make_all(a):
    """Make what is not there; return [(name, path, type that "generate" is asked for, or None)]."""
    def place(name):
        return os.path.join(a.work, name)

    shared, source, formats = place("embedding.safetensors"), place("bf16"), []
    os.makedirs(a.work, exist_ok=True)
    if not os.path.exists(shared):
        embedding = plain(np.random.default_rng(0), VOCAB, DIM, None)
        write_safetensors(shared + ".part", {"model.embed_tokens.weight": embedding["weight"]})
        os.rename(shared + ".part", shared)
    for name in HUGGING_FACE:
        path = place(re.sub(r"\W+", "-", name))
        if not os.path.exists(os.path.join(path, "config.json")):
            make_directory(a, name, shared, path)
        formats.append((name, path, None))
    formats += [(f"bf16, made {kind} while loading", source, kind) for kind in TYPES]
    for name, kind, path, whole in (  # "folollm quantize" gives a file its name when it is whole
            *((f"{kind} by folollm", kind, place("made-" + kind), "model.safetensors") for kind in TYPES),
            *((f"GGUF {kind}", kind, place(kind + ".gguf"), "") for kind in filter(None, a.gguf.split(",")))):
        if not os.path.exists(os.path.join(path, whole) if whole else path):
            run([a.folollm, "quantize", "-m", source, "-o", path, "--weights", kind, "-t", str(a.threads)])
        formats.append((name, path, None))
    return formats + [(*extra.split("=", 1), None) for extra in a.extra]


# ---- What a checkpoint holds ----


def weight_files(path):
    names = sorted(f for f in os.listdir(path) if f.endswith(".safetensors")) if os.path.isdir(path) else [""]
    return [os.path.join(path, name) if name else path for name in names]


def safetensors_matrices(f):
    """[(bytes, is it used as it lies in the file?)] of each tensor, or of all that make up a quantised one."""
    found = {}
    header = json.loads(f.read(*struct.unpack("<Q", f.read(8))))
    header.pop("__metadata__", None)
    for name, t in header.items():
        module = re.sub(r"\.(weight.*|qweight|qzeros|scales|g_idx|SCB)$", "", name)
        found.setdefault(module, []).append(t["data_offsets"][1] - t["data_offsets"][0])
    return [(sum(sizes), len(sizes) == 1) for sizes in found.values()]


def gguf_matrices(f):
    """The same of a GGUF file; the types F32 (0), F16 (1) and BF16 (30) are used as they lie there."""
    def number(n):
        return int.from_bytes(f.read(n), "little")

    def skip(kind, n=1):
        if kind == 9:  # an array
            skip(number(4), number(8))
        for _ in range(n if kind == 8 else 0):  # strings
            f.seek(number(8), 1)
        f.seek({0: 1, 1: 1, 2: 2, 3: 2, 7: 1, 8: 0, 9: 0, 10: 8, 11: 8, 12: 8}.get(kind, 4) * n, 1)

    f.seek(8)
    n_tensors, n_entries, tensors = number(8), number(8), []
    for _ in range(n_entries):
        skip(8)
        skip(number(4))
    for _ in range(n_tensors):
        skip(8)
        f.seek(8 * number(4), 1)
        kind, offset = number(4), number(8)
        tensors.append((offset, kind in (0, 1, 30)))
    tensors.sort()
    ends = [offset for offset, _ in tensors[1:]] + [os.fstat(f.fileno()).st_size - f.tell()]
    return [(end - offset, in_place) for (offset, in_place), end in zip(tensors, ends)]


def largest_converted(path, asked):
    matrices = []
    for file in weight_files(path):
        with open(file, "rb") as f:
            matrices += gguf_matrices(f) if file == path else safetensors_matrices(f)
    return max((size for size, in_place in matrices if asked or not in_place), default=0)


# ---- Measuring ----


def command(a, name, path, asked, *more):
    return [a.folollm, name, "-m", path, "-t", str(a.threads), "--context", str(a.context), *more,
            *(["--weights", asked] if asked else [])]


def plan(a, path, asked):
    """(types in memory, bytes that "generate" keeps)"""
    said = dict(line.split(None, 1) for line in run(command(a, "info", path, asked))[0].splitlines() if " " in line)
    kept = sum(int(said[k].split()[0]) for k in ("allocated", "mapped"))
    types = said["stored"] if said["weights"] == "mixed" else said["weights"]
    if "quantised" in said:
        others, types = types, said["quantised"].rpartition(": ")[2]
        types = types if types.startswith(others) else f"{others}, {types}"
    return types, kept - ROWS_OF_LOGITS * 4 * int(said["vocabulary"])


def into_page_cache(path):
    for file in weight_files(path):
        with open(file, "rb", buffering=0) as f:
            while f.read(1 << 24):
                pass


def measure(formats, a):
    """Return ({name: [(ms, peak MiB)] of each round}, [share of others])."""
    rows, shares = {}, []
    for i in range(a.rounds + 1):
        for name, path, asked in formats:
            into_page_cache(path)
            generate = command(a, "generate", path, asked, "-p", PROMPT, "-n", "1", "--ids")
            (_, first, peak), share = undisturbed(lambda: run(generate), a)
            print(f"round {i}, {name}: {first * 1e3:.0f} ms, {peak:.1f} MiB; others took {share:.0f} % of the CPU",
                  file=sys.stderr)
            if i:  # the first one warms up
                rows.setdefault(name, []).append((first * 1e3, peak))
                shares.append(share)
    return rows, shares


def report(formats, plans, rows, shares, a):
    print(f"- machine: {machine()}\n- folollm {folollm_version()}, {a.threads} threads, context {a.context}")
    print(f"- medians of {a.rounds} interleaved rounds; others took {statistics.median(shares):.0f} % of the CPU, "
          f"{max(shares):.0f} % at worst")
    print("\n| format | file, MiB | computed as | load and first token, ms | peak, MiB | result, MiB "
          "| largest tensor converted, MiB | peak - result, MiB |\n|---|---:|---|---:|---:|---:|---:|---:|")
    for (name, path, asked), (types, kept) in zip(formats, plans):
        ms, peak = (statistics.median(figures) for figures in zip(*rows[name]))
        size = sum(map(os.path.getsize, weight_files(path)))
        print(f"| {name} | {size / MIB:.0f} | {types} | {ms:.0f} | {peak:.1f} | {kept / MIB:.1f} | "
              f"{largest_converted(path, asked) / MIB:.1f} | {peak - kept / MIB:.1f} |")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--folollm", required=True, help="the folollm command-line tool")
    ap.add_argument("--work", required=True, metavar="DIR", help="where the checkpoints are made and kept")
    ap.add_argument("--tokenizer", required=True, metavar="DIRECTORY", help="has the tokenizer of a Qwen3 model")
    ap.add_argument("--gguf", default=GGUF_TYPES, metavar="TYPES", help=f"of GGUF files to make (default {GGUF_TYPES})")
    ap.add_argument("extra", nargs="*", metavar="NAME=PATH", help="what else to measure")
    ap.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    ap.add_argument("--context", type=int, default=32)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--quiet", type=float, default=5, help="percent of the CPU that others may take (default 5)")
    ap.add_argument("--tries", type=int, default=3, help="how often to repeat a disturbed measurement (default 3)")
    ap.add_argument("--patience", type=float, default=600, help="seconds to wait for a quiet machine (default 600)")
    a = ap.parse_args()
    if not all("=" in extra for extra in a.extra):
        ap.error("what else to measure is given as NAME=PATH")
    with concurrent.futures.ProcessPoolExecutor(1) as maker:  # a child's peak begins with what its parent's was
        formats = maker.submit(make_all, a).result()
    plans = [plan(a, path, asked) for _, path, asked in formats]
    report(formats, plans, *measure(formats, a), a)


if __name__ == "__main__":
    main()
