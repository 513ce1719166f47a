"""Writes the model vectors: tiny random checkpoints and the logits that transformers gives for them.

    python3.11 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python make_models.py [--out ../vectors/models] [--trained DIR/tiny-shakespeare]

Made with Python 3.11, torch 2.15.0 and transformers 5.23.0 (requirements.txt has the rest). Everything follows from
the seeds. --trained adds NAME.logits.bin for a trained checkpoint whose weights stay where they are.

OUT/index.txt has one line per checkpoint, its name and a few words. OUT/NAME/ is the checkpoint, as save_pretrained
writes it (configurations in the spelling of transformers v4 are edited afterwards and checked to load to the same
bits), and OUT/NAME/logits.bin what is expected of it. Little-endian, 4 bytes each:

    char magic[4] = "FLV1"
    u32  n_cases
    per case:
      u32 n_ids, n_rows, vocab, context        context: the length to open with, 0 = the default
      i32 ids[n_ids]
      i32 rows[n_rows]                         the positions whose logits follow, ascending
      f32 logits32[n_rows * vocab]             transformers in float32
      f32 logits64[n_rows * vocab]             transformers in float64 throughout, rounded
      i32 greedy[16]                           the float32 greedy continuation of ids, never an end-of-text token
      f32 gap[16]                              its top-1 minus top-2 logit at each step

The context is at least n_ids + 16. It changes the numbers in dynamic NTK alone: frequencies are those of a sequence
as long as the context. Static NTK ("ntk") is not a transformers type: base * factor^(d / (d - 2)), d = head_dim, and
its numbers come from a model with that rope_theta.
"""

import argparse
import json
import pathlib
import shutil
import struct

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from reference import Reference

GREEDY = 16
GAP_MIN = 0.02  # prompts are drawn until every greedy choice is this clear,
DISTINCT_MIN = 4  # and the continuation has this many different tokens

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# (hidden, heads, kv heads, head_dim); None leaves head_dim out: hidden / heads
SHAPES = {
    "qwen3": {"mha": (24, 2, 2, 16), "gqa": (40, 4, 2, 8), "mqa": (20, 3, 1, 12)},
    "qwen2": {"mha": (24, 3, 3, None), "gqa": (32, 4, 2, None), "mqa": (30, 3, 1, None)},
    "llama": {"mha": (24, 2, 2, None), "gqa": (20, 4, 2, 16), "mqa": (28, 4, 1, 8)},
    "mistral": {"mha": (28, 2, 2, 20), "gqa": (24, 6, 2, 8), "mqa": (24, 4, 1, 12)},
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 24}
# name: (rope, max_position_embeddings, [(n_ids, context)])
ROPES = {
    "none": ({"rope_type": "default"}, 96, [(52, 0)]),
    "linear": ({"rope_type": "linear", "factor": 3.0}, 96, [(52, 0)]),
    "ntk": ({"rope_type": "ntk", "factor": 4.0}, 96, [(52, 0)]),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, 40, [(24, 40), (48, 64), (48, 100)]),
    "yarn": (YARN, 96, [(52, 0)]),
    "yarn-attention": (YARN | {"attention_factor": 1.5}, 96, [(52, 0)]),
    "yarn-mscale": (YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}, 96, [(52, 0)]),
    "yarn-beta": (YARN | {"beta_fast": 2.0, "beta_slow": 0.5}, 96, [(52, 0)]),
    "yarn-untruncated": (YARN | {"beta_fast": 2.0, "beta_slow": 0.5, "truncate": False}, 96, [(52, 0)]),
    "llama3": (LLAMA3 | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}, 192, [(52, 0)]),
    "llama3-middle": (LLAMA3 | {"low_freq_factor": 0.5, "high_freq_factor": 2.0}, 192, [(52, 0)]),
}


def initialise(model, rng):
    """Random weights at which attention is not flat and logits have a standard deviation of 1 to 3."""
    tied = model.config.tie_word_embeddings
    for name, weight in model.named_parameters():
        noise = torch.from_numpy(rng.standard_normal(tuple(weight.shape)))
        if name.endswith("norm.weight"):
            value = 1 + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.4 * noise
        elif "embed_tokens" in name and not tied:
            value = noise
        else:
            gain = 1.8 if "embed_tokens" in name or "lm_head" in name else 1.3
            value = gain / weight.shape[-1] ** 0.5 * noise
        weight.data.copy_(value)


def write_logits(file, path, prompts, draw, n_rows):
    """prompts: [(n_ids, context)]. draw(reference, n_ids) gives ids; n_rows positions are kept."""
    out = [b"FLV1", struct.pack("<I", len(prompts))]
    for n_ids, context in prompts:
        reference = Reference(path, context)
        eos = np.atleast_1d(reference.config.eos_token_id if reference.config.eos_token_id is not None else [])
        while True:
            ids = draw(reference, n_ids)
            greedy, gaps = reference.greedy(ids, GREEDY)
            if min(gaps) >= GAP_MIN and len(set(greedy)) >= DISTINCT_MIN and not np.isin(greedy, eos).any():
                break
        rows = np.linspace(0, n_ids - 1, n_rows).round().astype(np.int64)
        logits = [reference.logits32(ids)[rows], reference.logits64(ids)[rows]]
        out.append(struct.pack("<4I", n_ids, len(rows), reference.config.vocab_size, context))
        out += [np.asarray(a, "<i4").tobytes() for a in (ids, rows)]
        out += [np.asarray(a.numpy(), "<f4").tobytes() for a in logits]
        out += [np.asarray(greedy, "<i4").tobytes(), np.asarray(gaps, "<f4").tobytes()]
    file.write_bytes(b"".join(out))


def edit_config(path, edit):
    file = path / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config, indent=2) + "\n")


def spell_old(path, type_key, drop=()):
    """Rewrites config.json as transformers v4 did, and checks that transformers still reads the same model."""
    ids = list(range(40))
    before = Reference(path).logits32(ids)

    def edit(config):
        rope = config.pop("rope_parameters")
        theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
        config["rope_theta"] = theta
        config["rope_scaling"] = None if kind == "default" else {type_key: kind} | rope
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.45.0"
        config.pop("layer_types", None)
        for key in drop:
            config.pop(key, None)
            (config.get("rope_scaling") or {}).pop(key, None)

    edit_config(path, edit)
    assert torch.equal(before, Reference(path).logits32(ids)), path


class Writer:
    def __init__(self, out):
        self.out, self.index = out, []

    def save(self, name, about, model_type, dtype, config, shard="5GB"):
        """A new checkpoint in save_pretrained's own spelling; returns its folder."""
        self.rng = np.random.default_rng(len(self.index))
        torch.manual_seed(0)
        config = {"bos_token_id": None, "eos_token_id": None, "max_position_embeddings": 96} | config
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
        initialise(model, self.rng)
        path = self.out / name
        model.to(DTYPES[dtype]).save_pretrained(path, max_shard_size=shard)
        for file in path.iterdir():
            file.chmod(0o644)
        self.index.append(f"{name} {about}")
        return path

    def expect(self, path, prompts, n_rows=16):
        rng = self.rng

        def draw(reference, n):
            return rng.integers(0, reference.config.vocab_size, n).tolist()

        write_logits(path / "logits.bin", path, prompts, draw, n_rows)


def base_grid(writer):
    """Model type x attention x stored type; sizes, biases, tied heads and epsilons vary along."""
    i = 0
    for model_type, shapes in SHAPES.items():
        for attention, (hidden, heads, kv_heads, head_dim) in shapes.items():
            for dtype in DTYPES:
                config = {
                    "hidden_size": hidden,
                    "num_attention_heads": heads,
                    "num_key_value_heads": kv_heads,
                    "num_hidden_layers": 3 if i % 12 == 0 else 2,
                    "intermediate_size": (36, 56, 20, 40, 28, 22, 33, 23, 24)[i % 9],
                    "vocab_size": 48 if dtype == "fp32" else (64, 57, 80, 51)[i % 4],
                    "rms_norm_eps": (1e-6, 1e-5, 1e-2)[(i + i // 3) % 3],
                    "tie_word_embeddings": i % 2 == 1,
                    "rope_parameters": {"rope_type": "default", "rope_theta": (1e4, 1e6, 5e5, 100.0, 2e4)[i % 5]},
                    "eos_token_id": (None, 2, [3, 5])[i // 3 % 3],
                }
                if head_dim:
                    config["head_dim"] = head_dim
                if model_type == "mistral":
                    config["sliding_window"] = None
                if model_type == "llama":
                    config |= {"attention_bias": i % 4 in (0, 1), "mlp_bias": i % 4 in (1, 2)}
                if model_type == "qwen3":
                    config["attention_bias"] = i == 7
                words = [model_type, attention, dtype, f"{config['num_hidden_layers']} layers", f"dim {hidden}"]
                words += [f"head_dim {head_dim}"] if head_dim else []
                words += [key for key in ("attention_bias", "mlp_bias") if config.get(key)]
                words += ["tied" if config["tie_word_embeddings"] else "untied", f"eps {config['rms_norm_eps']:g}"]
                path = writer.save(f"{model_type}-{attention}-{dtype}", " ".join(words), model_type, dtype, config)
                writer.expect(path, [((24, 32, 29)[i % 3], 0)])
                i += 1


def rope_config(rope, max_position, theta):
    return {
        "hidden_size": 20,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 20,
        "vocab_size": 48,
        "tie_word_embeddings": True,
        "max_position_embeddings": max_position,
        "rope_parameters": {**rope, "rope_theta": theta},
    }


def rope_kinds(writer):
    """Each kind in the v5 spelling for one model type and in the v4 spelling, "rope_type" or "type", for the other."""
    for i, (kind, (rope, max_position, prompts)) in enumerate(ROPES.items()):
        theta, head_dim = (100.0, 50.0)[i % 2], 16
        true_rope, true_theta = rope, theta
        if kind == "ntk":
            true_rope = {"rope_type": "default"}
            true_theta = theta * rope["factor"] ** (head_dim / (head_dim - 2))
        config = rope_config(true_rope, max_position, true_theta)
        for j, spelling in enumerate(("new", ("rope_type", "type")[i % 2])):
            model_type = ("llama", "qwen3")[(i + j) % 2]
            name = f"rope-{kind}-{'new' if spelling == 'new' else 'old'}"
            about = f"{model_type} rope {kind}, " + ("rope_parameters" if j == 0 else f"rope_scaling with {spelling}")
            path = writer.save(name, about, model_type, "fp16", config)
            if kind == "dynamic":
                check_dynamic(path, 64)
            writer.expect(path, prompts)
            if spelling != "new":
                spell_old(path, spelling)
            if kind == "ntk" and spelling == "new":
                edit_config(path, lambda c: c.update(rope_parameters={**rope, "rope_theta": theta}))
            elif kind == "ntk":
                edit_config(path, lambda c: c.update(rope_theta=theta, rope_scaling={spelling: "ntk", "factor": 4.0}))

    path = writer.save("rope-yarn-bare-old", "llama rope yarn, rope_scaling with type and factor alone: "
                       "the original length is max_position_embeddings", "llama", "fp16",
                       rope_config({"rope_type": "yarn", "factor": 4.0}, 24, 100.0))
    writer.expect(path, [(52, 96)])
    spell_old(path, "type", ["original_max_position_embeddings"])

    config = rope_config({"rope_type": "default"}, 96, 10000.0)
    del config["head_dim"], config["num_key_value_heads"]
    path = writer.save("llama-sparse-old", "llama v4 config without head_dim, num_key_value_heads, rope_theta and "
                       "biases: all defaults", "llama", "fp16", config | {"tie_word_embeddings": False})
    writer.expect(path, [(32, 0)])
    spell_old(path, "type", ["head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "attention_bias",
                             "mlp_bias", "tie_word_embeddings"])


def check_dynamic(path, length):
    """Frequencies fixed to a length are transformers' own for a sequence of that length."""
    ids = [i % 48 for i in range(length)]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        own = model(torch.tensor([ids]), use_cache=False).logits[0]
    assert torch.allclose(own, Reference(path, length).logits32(ids), rtol=0, atol=1e-4), path


def windows(writer):
    """Sliding windows: a token sees itself and window - 1 before it."""
    small = {"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 20,
             "vocab_size": 48, "tie_word_embeddings": True, "num_hidden_layers": 3}
    for window in (7, 20):
        old = window == 20
        path = writer.save(f"mistral-window-{'old' if old else 'new'}", f"mistral sliding_window {window} on every "
                           "layer" + (", v4 config" if old else ""), "mistral", "bf16",
                           small | {"sliding_window": window, "head_dim": 8, "num_hidden_layers": 2})
        writer.expect(path, [(48, 0)], 24)
        if old:
            spell_old(path, "type")

    slide = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    path = writer.save("qwen2-window-new", "qwen2 window 7 on layers >= 1, with layer_types", "qwen2", "bf16",
                       small | slide)
    writer.expect(path, [(48, 0)], 24)
    path = writer.save("qwen2-window-old", "qwen2 window 20 on layers >= 2, v4 config without layer_types", "qwen2",
                       "bf16", small | slide | {"sliding_window": 20, "max_window_layers": 2})
    writer.expect(path, [(48, 0)], 24)
    spell_old(path, "type")
    path = writer.save("qwen2-window-off", "qwen2 v4 config, use_sliding_window false beside sliding_window 7: "
                       "no window", "qwen2", "bf16", small | slide | {"use_sliding_window": False})
    edit_config(path, lambda c: c.update(sliding_window=7))
    writer.expect(path, [(48, 0)], 24)
    spell_old(path, "type")
    path = writer.save("qwen3-window-mixed", "qwen3 layer_types sliding, full, sliding against max_window_layers 3: "
                       "layer_types decides", "qwen3", "bf16", small | slide | {
                           "head_dim": 8, "max_window_layers": 3,
                           "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]})
    writer.expect(path, [(48, 0)], 24)


def sharded(writer):
    path = writer.save("qwen3-sharded", "qwen3 in several safetensors files with model.safetensors.index.json", "qwen3",
                       "bf16", rope_config({"rope_type": "default"}, 96, 10000.0) | {"tie_word_embeddings": False},
                       shard="6KB")
    assert (path / "model.safetensors.index.json").exists()
    writer.expect(path, [(32, 0)])


def trained(out, path):
    """Three prompts of 200 ids that the model itself drew."""
    rng = np.random.default_rng(1)

    def draw(reference, n):
        ids = [int(rng.integers(reference.config.vocab_size))]
        while len(ids) < n:
            p = torch.softmax(reference.logits32(ids)[-1].double(), 0).numpy()
            ids.append(int(rng.choice(len(p), p=p / p.sum())))
        return ids

    write_logits(out / f"{path.name}.logits.bin", path, [(200, 0)] * 3, draw, 9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "vectors/models")
    parser.add_argument("--trained", type=pathlib.Path, help="a trained checkpoint, not copied")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    writer = Writer(args.out)
    for write in (base_grid, rope_kinds, windows, sharded):
        write(writer)
    if args.trained:
        trained(args.out, args.trained)
    (args.out / "index.txt").write_text("\n".join(writer.index) + "\n")


if __name__ == "__main__":
    main()
