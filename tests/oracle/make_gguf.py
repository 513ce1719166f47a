"""Writes GGUF files of checkpoints in vectors/models, with the gguf package and as llama.cpp's converter does.

    python3.11 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python make_gguf.py [--models ../vectors/models] [--out ../vectors/gguf]

Made with Python 3.11, numpy 2.4.6 and gguf 0.19.0. Nothing is random: the same files come from the same checkpoints.

OUT/index.txt has a line per file: its name, the checkpoint that it was made of, and how its logits compare with that
one's: "same" (bit by bit), "near" (numbers of the metadata were rounded to float32) or "coarse" (blocks).

What differs from the checkpoint, each of it as in llama.cpp: vectors are float32; a tied head is left out; Q and K of
architecture "llama", which mistral becomes too, have the rows of a head as pairs that are rotated with each other;
llama3's scaling of RoPE is a tensor of divisors, rope_freqs.weight. The converter drops sliding windows of mistral and
qwen2; here they are written with the keys that other architectures have for them.
"""

import argparse
import json
import math
import pathlib

import gguf
import numpy as np

# file: (checkpoint, type of matrices whose rows are whole blocks of it or None, how logits compare)
FILES = {
    "qwen3-bf16": ("qwen3-gqa-bf16", None, "same"),
    "qwen3-linear-f16": ("rope-linear-new", None, "same"),
    "qwen3-yarn-f16": ("rope-yarn-beta-new", None, "same"),
    "qwen3-yarn-attention-f16": ("rope-yarn-attention-new", None, "same"),
    "qwen2-f32": ("qwen2-mha-fp32", None, "same"),
    "qwen2-window-f16": ("qwen2-window-new", None, "same"),
    "llama-f16": ("llama-gqa-fp16", None, "same"),
    "llama-bias-bf16": ("llama-gqa-bf16", None, "same"),
    "llama-llama3-f16": ("rope-llama3-middle-new", None, "near"),
    "mistral-window-bf16": ("mistral-window-new", None, "same"),
    "qwen2-q8_0": ("qwen2-gqa-bf16", gguf.GGMLQuantizationType.Q8_0, "coarse"),
    "qwen2-q4_0": ("qwen2-gqa-fp16", gguf.GGMLQuantizationType.Q4_0, "coarse"),
}

NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ffn_norm.",
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.o_proj.": "attn_output.",
    "self_attn.q_norm.": "attn_q_norm.",
    "self_attn.k_norm.": "attn_k_norm.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
    "model.layers.": "blk.",
}
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
STORED = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
}


def read_safetensors(path):
    """name: (dtype as the file spells it, array; of BF16 the bits)"""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    out = {}
    for name, entry in json.loads(data[8 : 8 + n]).items():
        if name != "__metadata__":
            begin, end = (8 + n + offset for offset in entry["data_offsets"])
            out[name] = entry["dtype"], np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return out


def as_float32(dtype, array):
    return (array.astype("<u4") << 16).view("<f4") if dtype == "BF16" else array.astype("<f4")


def pair_rows(array, n_heads):
    """Rows 0, 1, 2, ... of a head become 0, d/2, 1, d/2 + 1, ..."""
    halves = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def add_rope(writer, config, head_dim):
    """The rope keys; of llama3 the divisors are returned."""
    rope = config["rope_parameters"]
    kind = rope["rope_type"]
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if key in rope:
                add(rope[key])
    elif kind == "llama3":
        factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
        turns = [
            rope["original_max_position_embeddings"] * rope["rope_theta"] ** (-2 * i / head_dim) / (2 * math.pi)
            for i in range(head_dim // 2)
        ]
        keep = [min(max((t - low) / (high - low), 0), 1) for t in turns]
        return np.array([1 / ((1 - k) / factor + k) for k in keep], "<f4")
    else:
        assert kind == "default", kind
    return None


def write(path, checkpoint, blocks):
    config = json.loads((checkpoint / "config.json").read_text())
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(checkpoint.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window:
        writer.add_sliding_window(window)
        if "layer_types" in config:
            writer.add_sliding_window_pattern([t == "sliding_attention" for t in config["layer_types"]])
    divisors = add_rope(writer, config, head_dim)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    for name, (dtype, array) in read_safetensors(checkpoint / "model.safetensors").items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if arch == "llama" and ("attn_q." in name or "attn_k." in name):
            array = pair_rows(array, heads if "attn_q." in name else kv_heads)
        if array.ndim == 1:
            writer.add_tensor(name, as_float32(dtype, array))
        elif blocks is not None and array.shape[1] % gguf.GGML_QUANT_SIZES[blocks][0] == 0:
            writer.add_tensor(name, gguf.quants.quantize(as_float32(dtype, array), blocks), raw_dtype=blocks)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array).view(np.uint8), raw_dtype=STORED[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    here = pathlib.Path(__file__).resolve().parent.parent / "vectors"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, default=here / "models")
    parser.add_argument("--out", type=pathlib.Path, default=here / "gguf")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, (checkpoint, blocks, _) in FILES.items():
        write(args.out / f"{name}.gguf", args.models / checkpoint, blocks)
    lines = [f"{name}.gguf {checkpoint} {how}\n" for name, (checkpoint, _, how) in FILES.items()]
    (args.out / "index.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
