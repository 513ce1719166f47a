"""Writes the adapter vectors: random LoRA adapters of some checkpoints of ../vectors/models, as PEFT saves them, and the
logits that transformers with PEFT gives.

    python3.11 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python make_adapters.py [--out ../vectors/adapters]

OUT/index.txt has one line per adapter: its name and its checkpoint. OUT/NAME/ is the adapter as save_pretrained writes it,
and OUT/NAME/logits.bin what is expected of it, laid out as make_models.py says. Everything follows from the seeds.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import make_models
import reference

MODELS = pathlib.Path(__file__).parent.parent / "vectors" / "models"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# name: (checkpoint, type of the file, LoraConfig)
ADAPTERS = {
    "all": ("qwen3-gqa-fp32", torch.float32, {"r": 4, "lora_alpha": 8, "target_modules": ALL}),
    "other": ("qwen3-gqa-fp32", torch.float32, {"r": 3, "lora_alpha": 9, "target_modules": ["q_proj", "up_proj"]}),
    "bf16": ("llama-gqa-bf16", torch.bfloat16, {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    "patterns": ("qwen2-mha-fp16", torch.float16, {
        "r": 6, "lora_alpha": 4, "use_rslora": True, "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, "^model.layers.1.mlp.down_proj": 5, "layers.0.mlp.up_proj": 1},
        "alpha_pattern": {"k_proj": 3, "self_attn.o_proj": 7.5}}),
    "wide": ("mistral-gqa-fp32", torch.float32, {
        "r": 20, "lora_alpha": 10, "target_modules": ["o_proj", "gate_proj", "up_proj", "down_proj"],
        "layers_to_transform": [1]}),
}


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


def write_adapter(path, base, dtype, config, rng):
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **config))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            gain = 1.0 / weight.shape[1] ** 0.5 if "lora_A" in name else 0.4
            weight.data.copy_(gain * torch.from_numpy(rng.standard_normal(tuple(weight.shape))))
            weight.data = weight.data.to(dtype)
    model.save_pretrained(path)
    (path / "adapter_model.safetensors").chmod(0o644)
    (path / "README.md").unlink()
    file = path / "adapter_config.json"
    saved = json.loads(file.read_text()) | {"base_model_name_or_path": base.name}
    saved["target_modules"] = sorted(saved["target_modules"])  # a set, in another order every time
    file.write_text(json.dumps(saved, indent=2) + "\n")


class Adapted(reference.Reference):
    adapter = None

    def __init__(self, path, context=0):
        load_plain = AutoModelForCausalLM.from_pretrained
        try:  # PEFT puts its layers into the model that it is given
            def from_pretrained(*args, **kwargs):
                model = load_plain(*args, **kwargs)
                PeftModel.from_pretrained(model, self.adapter, autocast_adapter_dtype=True)
                return model

            AutoModelForCausalLM.from_pretrained = from_pretrained
            super().__init__(path, context)
        finally:
            AutoModelForCausalLM.from_pretrained = load_plain


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default=MODELS.parent / "adapters")
    out = ap.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    make_models.Reference = Adapted
    index = []
    for seed, (name, (base, dtype, config)) in enumerate(ADAPTERS.items()):
        rng = np.random.default_rng(900 + seed)
        write_adapter(out / name, MODELS / base, dtype, config, rng)
        Adapted.adapter = out / name
        make_models.write_logits(
            out / name / "logits.bin", MODELS / base, [(40, 0)],
            lambda r, n: rng.integers(0, r.config.vocab_size, n).tolist(), 6)
        plain = reference.Reference(MODELS / base).logits32(list(range(20)))
        moved = (Adapted(MODELS / base).logits32(list(range(20))) - plain).std() / plain.std()
        assert moved > 0.05, f"{name} changes next to nothing: {moved}"
        index.append(f"{name} {base}\n")
        print(name, base, f"moves the logits by {moved:.2f} of their deviation")
    (out / "index.txt").write_text("".join(index))


if __name__ == "__main__":
    main()
