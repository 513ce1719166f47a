#!/usr/bin/env python3
"""seeds.py DIR   writes what fuzzing begins with to DIR/NAME/: small files of each kind that a harness reads.

The harness of snapshots makes its own."""
import glob
import json
import os
import struct
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # tests
out = sys.argv[1]


def put(harness, name, *parts):
    """The pieces of an input are put together with 0xFF, a byte that no text has."""
    os.makedirs(f"{out}/{harness}", exist_ok=True)
    with open(f"{out}/{harness}/{name}", "wb") as f:
        f.write(b"\xff".join(p if isinstance(p, bytes) else p.encode() for p in parts))


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def read(path):
    with open(f"{ROOT}/vectors/{path}", "rb") as f:
        return f.read()


# ---- JSON ------------------------------------------------------------------------------------------

for i, text in enumerate([
        "{}", "[]", '""', "0", "-1.5e-10", "true", "[null,false]", '{"a":1,"b":[1,2,{"c":"d"}],"a":2}',
        "123456789012345678901", '"\\u0041\\u00e9\\ud83d\\ude00\\n\\"\\\\"', '{"\\u0061":{"a":true}}', "[[[[[[]]]]]]",
        ' { "x" : [ 1e400 , 0.1 ] }\n',
        '{"a":4294967296,"b":"\u00e9\u4e2d\U0001f600"}', "[" * 64 + "]" * 64, '{"a":' * 64 + "1" + "}" * 64]):
    put("json", f"{i:02}", text)

# ---- safetensors -----------------------------------------------------------------------------------


def safetensors(tensors, metadata=None):
    header, at = ({"__metadata__": metadata} if metadata else {}), 0
    for name, dtype, shape, n in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = compact(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(i % 251 for i in range(at))


put("safetensors", "none", safetensors([]))
put("safetensors", "one", safetensors([("a", "F32", [2, 3], 24)], {"format": "pt"}))
put("safetensors", "three", safetensors([("a", "BF16", [3], 6), ("b", "U8", [], 1), ("c.weight", "I64", [1, 0], 0),
                                         ("d", "F8_E4M3", [1, 1, 1, 1, 1, 1, 1, 2], 2)]))
put("safetensors", "index", compact({"metadata": {"total_size": 2}, "weight_map": {"a": "a", "b": "b", "c": "a"}}))

# ---- Adapters --------------------------------------------------------------------------------------

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_dora": False, "modules_to_save": None}
LAYERS = "base_model.model.model.layers."
for i, (config, pairs) in enumerate([
        (LORA, [("0.self_attn.q_proj", 2, 4, 4)]),
        (LORA | {"use_rslora": True, "rank_pattern": {"mlp.down_proj": 1}, "alpha_pattern": {"^model.layers.1": 3}},
         [("1.mlp.down_proj", 1, 4, 3), ("0.mlp.up_proj", 2, 3, 4), ("1.self_attn.k_proj", 2, 2, 4)])]):
    put("adapter", f"{i}", compact(config), safetensors([
        (f"{LAYERS}{name}.lora_{side}.weight", "BF16", shape, 2 * shape[0] * shape[1])
        for name, rank, n_out, n_in in pairs for side, shape in (("A", [rank, n_in]), ("B", [n_out, rank]))]))

# ---- config.json -----------------------------------------------------------------------------------

CONFIG = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
          "intermediate_size": 6, "vocab_size": 40, "max_position_embeddings": 32, "rms_norm_eps": 1e-6,
          "rope_theta": 10000.0}
SCALINGS = [None, {"rope_type": "linear", "factor": 2}, {"type": "ntk", "factor": 2},
            {"rope_type": "dynamic", "factor": 2},
            {"rope_type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1,
             "truncate": False, "attention_factor": 1, "original_max_position_embeddings": 8},
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
             "original_max_position_embeddings": 8}]
GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.01,
              "repetition_penalty": 1.05, "eos_token_id": [2, 3]}
for i, scaling in enumerate(SCALINGS):
    arch = ("qwen3", "qwen2", "llama", "mistral")[i % 4]
    put("config", f"{i}-{arch}", compact({"model_type": arch, **CONFIG, "rope_scaling": scaling, "eos_token_id": 2}),
        compact(GENERATION))
put("config", "window", compact({"model_type": "qwen3", **CONFIG, "use_sliding_window": True, "sliding_window": 4,
                                 "layer_types": ["full_attention", "sliding_attention"], "tie_word_embeddings": True,
                                 "attention_bias": True,
                                 "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}))

# ---- Checkpoints -----------------------------------------------------------------------------------

SIZES = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn", "gate_proj": "mlp",
         "up_proj": "mlp", "down_proj": "mlp"}
BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "I8": 1, "U8": 1, "F8_E4M3": 1}


def checkpoint(name, quantization, parts):
    """One layer of eight numbers; parts: of each matrix, (suffix, type, shape, bytes or None)."""
    tensors = [("model.embed_tokens.weight", "F16", [3, 8], None), ("model.norm.weight", "F32", [8], None)]
    norms = "input_layernorm", "post_attention_layernorm"
    tensors += [(f"model.layers.0.{norm}.weight", "F32", [8], None) for norm in norms]
    tensors += [(f"model.layers.0.{group}.{matrix}.{suffix}", kind, shape, content)
                for matrix, group in SIZES.items() for suffix, kind, shape, content in parts]
    header, data = {}, b""
    for key, kind, shape, content in tensors:
        n = BYTES_OF[kind]
        for size in shape:
            n *= size
        if content is None:
            content = bytes((0x2C, 0x3C)[i % 2] if kind[0] == "F" or kind == "BF16" else i * 37 % 256 for i in range(n))
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + n]}
        data += content
    text = compact(header).encode()
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1,
              "num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 3, "max_position_embeddings": 8,
              "tie_word_embeddings": True} | ({"quantization_config": quantization} if quantization else {})
    put("checkpoint", name, compact(config), struct.pack("<Q", len(text)) + text + data)


def compressed(bits, zeros):
    weights = {"num_bits": bits, "type": "int", "symmetric": not zeros, "strategy": "group", "group_size": 8}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}}


SHAPE = ("weight_shape", "I64", [2], struct.pack("<qq", 8, 8))
PACKED = ("weight_packed", "I32", [8, 1], None), ("weight_scale", "F16", [8, 1], None), SHAPE
checkpoint("plain", None, [("weight", "BF16", [8, 8], None)])
checkpoint("gptq", {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": False, "desc_act": True,
                    "checkpoint_format": "gptq"},
           [("qweight", "I32", [1, 8], None), ("qzeros", "I32", [1, 1], b"\x11" * 4), ("scales", "F16", [1, 8], None),
            ("g_idx", "I32", [8], bytes(32))])
checkpoint("awq", {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm", "zero_point": True,
                   "modules_to_not_convert": None},
           [("qweight", "I32", [8, 1], None), ("qzeros", "I32", [1, 1], None), ("scales", "F16", [1, 8], None)])
checkpoint("compressed", compressed(4, False), PACKED)
checkpoint("compressed-zeros", compressed(4, True), [*PACKED, ("weight_zero_point", "I32", [1, 1], None)])
checkpoint("fp8", {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [8, 8]},
           [("weight", "F8_E4M3", [8, 8], None), ("weight_scale_inv", "F32", [1, 1], None)])
checkpoint("bnb-8", {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True},
           [("weight", "I8", [8, 8], None), ("SCB", "F32", [8], None)])
STATE = compact({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [8, 8]}).encode()
checkpoint("bnb-4", {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
                     "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
           [("weight", "U8", [32, 1], None), ("weight.quant_map", "F32", [16], None),
            ("weight.absmax", "F32", [1], None), ("weight.quant_state.bitsandbytes__nf4", "U8", [len(STATE)], STATE)])

# ---- tokenizer.json --------------------------------------------------------------------------------


def shrink(d):
    """The same stages over a vocabulary of a few tokens."""
    model = d["model"]
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    pieces = list("ab12s' ") + ["\u0120", "\u010a", "\u00c3", "\u2581", "e", "\u00e9", "<0xC3>", "<0x0A>"]
    vocab = [p for p in pieces if p in model["vocab"]]
    kept = []
    for left, right in merges:
        if left in vocab and right in vocab and left + right not in vocab and len(kept) < 6:
            vocab.append(left + right)
            kept.append([left, right])
    added = [{k: v for k, v in a.items() if v} | {"id": len(vocab) + i} for i, a in enumerate(d["added_tokens"][:3])]
    ids = {a["content"]: a["id"] for a in added}
    for part in [d["post_processor"], *((d["post_processor"] or {}).get("processors", []))]:
        for name, entry in (part or {}).get("special_tokens", {}).items():
            entry["ids"] = [ids.get(name, 0)]
        (part or {}).pop("pair", None)
    keep = {k: d[k] for k in ("normalizer", "pre_tokenizer", "decoder", "post_processor") if d[k]}
    small = {"type": "BPE", "vocab": {p: i for i, p in enumerate(vocab)}, "merges": kept}
    small |= {k: model[k] for k in ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges") if model[k]}
    return {"added_tokens": added, **keep, "model": small}


TEXT = "ab  12 \u00e9a<s> it's\n"
for path in sorted(glob.glob(f"{ROOT}/vectors/tokenizers/*/tokenizer.json")):
    name = path.split("/")[-2]
    put("tokenizer", name, compact(shrink(json.loads(read(f"tokenizers/{name}/tokenizer.json")))),
        '{"bos_token":"<s>","eos_token":{"content":"</s>"}}', TEXT)
put("tokenizer", "long", compact(shrink(json.loads(read("tokenizers/llama2/tokenizer.json")))), "", "a" * 95)
LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
for i, step in enumerate([{"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Lowercase"},
                          {"type": "NFD"}, {"type": "NFKD"},
                          {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}]):
    put("tokenizer", f"normalizer-{i}", compact({
        "added_tokens": [{"id": 2, "content": "\u00c9", "normalized": True, "lstrip": True, "rstrip": True,
                          "single_word": True}],
        "normalizer": {"type": "Sequence", "normalizers": [step, step]}, "pre_tokenizer": LEVEL, "decoder": LEVEL,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["#version: 0.2"]}}), "", TEXT)

# ---- chat templates --------------------------------------------------------------------------------

for directory in sorted(glob.glob(f"{ROOT}/vectors/chat/*/")):
    name = directory.split("/")[-2]
    jinja = read(f"chat/{name}/chat_template.jinja") if os.path.exists(directory + "chat_template.jinja") else b""
    config = json.loads(read(f"chat/{name}/tokenizer_config.json"))
    put("chat", name, jinja, compact(config), "Hi\x01 there</think>\n")

# ---- GGUF ------------------------------------------------------------------------------------------

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = "<B <b <H <h <I <i <f <? s a <Q <q <d".split()


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, v):
    if kind == STRING:
        return string(v)
    if kind == ARRAY:
        of, elements = v
        return struct.pack("<IQ", of, len(elements)) + b"".join(value(of, e) for e in elements)
    return struct.pack(FORMATS[kind], v)


def gguf(entries, tensors=(), align=32):
    """tensors: (name, sizes from the contiguous one on, type, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    head += b"".join(string(k) + struct.pack("<I", kind) + value(kind, v) for k, kind, v in entries)
    data = b""
    for name, sizes, kind, content in tensors:
        data += bytes(-len(data) % align)
        head += string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, len(data))
        data += content
    return head + (bytes(-len(head) % align) if tensors else b"") + data


BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
          11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), 30: (1, 2),
          39: (32, 17)}


def model(arch, dim, kind, extra=(), entries=(), vocab=3):
    """One layer of one head of two numbers. kind: of the matrices whose rows are long enough."""
    def tensor(name, cols, rows=None):
        k = 0 if rows is None else kind if cols % BLOCKS[kind][0] == 0 else 1
        n = cols * (rows or 1) // BLOCKS[k][0] * BLOCKS[k][1]
        sizes = [cols] if rows is None else [cols, rows]
        content = bytes(0x2C if i % 2 else i * 7 % 256 for i in range(n))
        return name, sizes, k, content if name != "rope_freqs.weight" else struct.pack("<f", 1.0)
    block = "blk.0."
    tensors = [tensor("token_embd.weight", dim, vocab), tensor(block + "attn_norm.weight", dim),
               tensor(block + "attn_q.weight", dim, 2), tensor(block + "attn_k.weight", dim, 2),
               tensor(block + "attn_v.weight", dim, 2), tensor(block + "attn_output.weight", 2, dim),
               tensor(block + "ffn_norm.weight", dim), tensor(block + "ffn_gate.weight", dim, 1),
               tensor(block + "ffn_up.weight", dim, 1), tensor(block + "ffn_down.weight", 1, dim),
               tensor("output_norm.weight", dim), *(tensor(*e) for e in extra)]
    sizes = {"block_count": 1, "context_length": 8, "embedding_length": dim, "feed_forward_length": 1,
             "attention.head_count": 1, "attention.head_count_kv": 1, "attention.key_length": 2}
    return gguf([("general.architecture", STRING, arch), *((f"{arch}.{k}", U32, v) for k, v in sizes.items()),
                 ("general.alignment", U32, 4), *entries], tensors, 4)


NORMS = (("blk.0.attn_q_norm.weight", 2), ("blk.0.attn_k_norm.weight", 2))
BIASES = (("blk.0.attn_q.bias", 2), ("blk.0.attn_k.bias", 2), ("blk.0.attn_v.bias", 2))
put("gguf", "llama-f16", model("llama", 2, 1, [("output.weight", 2, 3), ("rope_freqs.weight", 1)]))
put("gguf", "split", model("llama", 2, 1, (), [("split.no", U16, 0), ("split.count", U16, 2)]))
put("gguf", "qwen3-f32", model("qwen3", 2, 0, NORMS, [("qwen3.rope.freq_base", F32, 1e6)]))
put("gguf", "qwen2-bf16", model("qwen2", 2, 30, BIASES, [
    ("qwen2.rope.scaling.type", STRING, "yarn"), ("qwen2.rope.scaling.factor", F32, 4.0),
    ("qwen2.rope.scaling.original_context_length", U32, 8), ("qwen2.rope.scaling.yarn_beta_fast", F32, 32.0)]))
put("gguf", "llama-q8_0", model("llama", 32, 8, (), [
    ("llama.attention.sliding_window", U32, 4), ("llama.attention.sliding_window_pattern", ARRAY, (BOOL, [True]))]))
put("gguf", "llama-q4_0", model("llama", 32, 2, (), [("llama.rope.scaling.type", STRING, "linear"),
                                                     ("llama.rope.scaling.factor", F32, 2.0)]))
for name, kind in (("q4_1", 3), ("q5_0", 6), ("q5_1", 7), ("iq4_nl", 20), ("mxfp4", 39)):
    put("gguf", f"llama-{name}", model("llama", 32, kind))
for name, kind in (("q2_k", 10), ("q3_k", 11), ("q4_k", 12), ("q5_k", 13), ("q6_k", 14), ("iq4_xs", 23)):
    put("gguf", f"qwen2-{name}", model("qwen2", 256, kind, BIASES))
put("gguf", "values", gguf([("u8", U8, 200), ("i8", I8, -100), ("u16", U16, 60000), ("i16", I16, -1), ("i32", I32, -1),
                            ("f32", F32, 0.5), ("b", BOOL, True), ("u64", U64, 1 << 63), ("i64", I64, -1),
                            ("f64", F64, -2.5), ("s", ARRAY, (STRING, ["a", "", "ccc"])),
                            ("n", ARRAY, (ARRAY, [(ARRAY, []), (U8, [1])])), ("i", ARRAY, (I16, [1, -1])),
                            ("bs", ARRAY, (BOOL, [True, False])), ("e", ARRAY, (U64, []))]))


def vocabulary(kind, tokens, types, *more):
    return [("tokenizer.ggml.model", STRING, kind), ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
            ("tokenizer.ggml.token_type", ARRAY, (I32, types)), *more]


CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
          " + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
BYTES = ["a", "b", "c", "ab", "<|im_end|>", "<think>", "abc", "\u0120\u0120", "\u00c3", "[PAD9]", "\u00a9", "1"]
for pre in ("gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "gpt-4o", "tekken"):
    put("gguf_tokenizer", pre, gguf(vocabulary(
        "gpt2", BYTES, [1, 1, 1, 1, 3, 4, 4, 4, 1, 5, 1, 1], ("tokenizer.ggml.pre", STRING, pre),
        ("tokenizer.ggml.merges", ARRAY, (STRING, ["a b", "ab c", "\u00c3 \u00a9"][:2])),
        ("tokenizer.ggml.eos_token_id", U32, 4), ("tokenizer.ggml.bos_token_id", U32, 4),
        ("tokenizer.ggml.add_eos_token", BOOL, True), ("tokenizer.chat_template", STRING, CHATML),
        ("text", STRING, TEXT))))
PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "\u2581", "a", "b", "ab", "\u2581ab", "aba", "\u00e9"]
put("gguf_tokenizer", "llama", gguf(vocabulary(
    "llama", PIECES, [2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 4, 1],
    ("tokenizer.ggml.scores", ARRAY, (F32, [0, 0, 0, 0, 0, -1, -2, -3, -0.5, -0.25, -0.5, -4])),
    ("tokenizer.ggml.bos_token_id", U32, 1), ("tokenizer.ggml.eos_token_id", U32, 2),
    ("tokenizer.ggml.unknown_token_id", U32, 0), ("tokenizer.ggml.add_space_prefix", BOOL, False),
    ("text", STRING, "ab" * 45))))
put("gguf", "tokenizer", model("llama", 2, 1, (), vocabulary(
    "llama", ["<s>", "a", "b"], [3, 1, 1], ("tokenizer.ggml.scores", ARRAY, (F32, [0, -1, -2])),
    ("tokenizer.ggml.eos_token_id", U32, 0))))
