#!/usr/bin/env python3
"""Write tests/vectors/quantised: matrices as other packages quantise and store them, and what these decode them to.

    python3 tests/oracle/make_quantised.py --auto-gptq DIR --awq DIR [OUT]

Needs torch, safetensors, transformers, compressed-tensors and bitsandbytes; of auto-gptq and autoawq only single files
are run, from where their archives (auto-gptq 0.7.1, autoawq 0.2.9) were unpacked, because both want a GPU to be imported
whole. Each vector is a directory with a config.json, and a model.safetensors with the tensors of the module "m" and
"m.reference" (rows, columns), F32.
"""
import argparse
import importlib.util
import json
import os
import shutil

import torch
from safetensors.torch import save_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT_ROWS, IN_COLS = 32, 128


def load_file(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(seed, rows=OUT_ROWS, cols=IN_COLS):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=g) * 0.05


def write(out, name, config, tensors, reference):
    directory = os.path.join(out, name)
    os.makedirs(directory)
    tensors = {"m." + k: v.contiguous() for k, v in tensors.items()}
    tensors["m.reference"] = reference.float().contiguous()
    save_file(tensors, os.path.join(directory, "model.safetensors"))
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=1)
        f.write("\n")
    print(name, {k: (str(v.dtype), tuple(v.shape)) for k, v in tensors.items()})


# ---- GPTQ: packed and decoded by auto-gptq's own layer, which stores zero points less one -----------


def grid(w, bits, group, symmetric, g_idx):
    """Scales and zero points (rows, groups) of the usual minimum and maximum."""
    groups = int(g_idx.max()) + 1
    top = 2 ** bits - 1
    scales, zeros = torch.zeros(w.shape[0], groups), torch.zeros(w.shape[0], groups)
    for g in range(groups):
        part = w[:, g_idx == g]
        low, high = part.min(1).values.clamp(max=0), part.max(1).values.clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scales[:, g] = ((high - low) / top).half().float()
        zeros[:, g] = (top + 1) / 2 if symmetric else torch.round(-low / scales[:, g]).clamp(1, top)
    return scales, zeros


def gptq(out, layers, name, bits, group, symmetric, order, seed, v2=False):
    w = weights(seed)
    width = group if group != -1 else IN_COLS
    g_idx = torch.arange(IN_COLS) // width
    if order:
        g_idx = g_idx[torch.randperm(IN_COLS, generator=torch.Generator().manual_seed(seed))]
    g_idx = g_idx.int()
    scales, zeros = grid(w, bits, group, symmetric, g_idx)
    spread, middle = scales[:, g_idx.long()], zeros[:, g_idx.long()]
    linear = torch.nn.Linear(IN_COLS, OUT_ROWS, bias=False)
    linear.weight.data = (torch.round(w / spread + middle).clamp(0, 2 ** bits - 1) - middle) * spread
    layer = layers.QuantLinear(bits, group, IN_COLS, OUT_ROWS, False, weight_dtype=torch.float32)
    layer.pack(linear, scales, zeros.clone(), g_idx)
    layer.wf = layer.wf.clone()
    reference = layer(torch.eye(IN_COLS)).t()
    tensors = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales.half(), "g_idx": layer.g_idx}
    if v2:
        one = sum(1 << (bits * i) for i in range(32 // bits))
        tensors["qzeros"] = (layer.qzeros.long() + one).to(torch.int32)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": order,
              "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    write(out, name, {"quantization_config": config}, tensors, reference)


# ---- AWQ: packed here as autoawq's layer does, decoded by autoawq -------------------------------------


def awq(out, packing, name, group, seed):
    w = weights(seed)
    width = group if group != -1 else IN_COLS
    g_idx = torch.arange(IN_COLS) // width
    scales, zeros = grid(w, 4, group, False, g_idx)
    ints = torch.round(w / scales[:, g_idx] + zeros[:, g_idx]).clamp(0, 15).int().t()

    def pack(x):
        words = torch.zeros(x.shape[0], x.shape[1] // 8, dtype=torch.int64)
        for i, column in enumerate(packing.AWQ_ORDER):
            words |= x[:, column::8].long() << (4 * i)
        return words.where(words < 2 ** 31, words - 2 ** 32).to(torch.int32)

    tensors = {"qweight": pack(ints), "qzeros": pack(zeros.t().int()), "scales": scales.t().half().contiguous()}
    reference = packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"].float(), 4, width).t()
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True,
              "modules_to_not_convert": None}
    write(out, name, {"quantization_config": config}, tensors, reference)


# ---- compressed-tensors: its own compressor and decompressor --------------------------------------------


def compressed(out, name, bits, group, symmetric, dtype, seed, cols=IN_COLS):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    w = weights(seed, cols=cols)
    args = {"num_bits": bits, "type": "int", "symmetric": symmetric,
            "strategy": "channel" if group == -1 else "group", "group_size": None if group == -1 else group}
    quantization = QuantizationArgs(**args)
    width = cols if group == -1 else group
    parts = w.reshape(w.shape[0], -1, width)
    scale, zero = calculate_qparams(parts.min(2).values, parts.max(2).values, quantization)
    scale = scale.to(dtype)
    state = {"weight": w.to(dtype), "weight_scale": scale}
    if not symmetric:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    scheme = QuantizationScheme(targets=["Linear"], weights=quantization)
    packed = compressor.compress(dict(state), scheme)
    restored = compressor.decompress({k: (v.float() if k == "weight_scale" else v) for k, v in packed.items()}, scheme)
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
              "config_groups": {"group_0": {"targets": ["Linear"], "weights": args, "input_activations": None}}}
    write(out, name, {"quantization_config": config}, packed, restored["weight"])


# ---- bitsandbytes: quantised and decoded on the CPU -------------------------------------------------------


def bitsandbytes_4(out, name, kind, nested, seed, cols=IN_COLS):
    from bitsandbytes import functional as F

    w = weights(seed, cols=cols)
    packed, state = F.quantize_4bit(w, quant_type=kind, blocksize=64, compress_statistics=nested)
    reference = F.dequantize_4bit(packed, state)
    tensors = {"weight": packed, **{"weight." + k: v for k, v in state.as_dict(packed=True).items()}}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
              "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested, "bnb_4bit_quant_storage": "uint8"}
    write(out, name, {"quantization_config": config}, tensors, reference)


def bitsandbytes_8(out, name, seed):
    from bitsandbytes import functional as F

    w = weights(seed)
    ints, scales, _ = F.int8_vectorwise_quant(w.half())
    config = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}
    write(out, name, {"quantization_config": config}, {"weight": ints, "SCB": scales},
          F.int8_vectorwise_dequant(ints, scales))


# ---- FP8: torch's own conversions ----------------------------------------------------------------------------


def fp8(out, name, block, seed, rows=130, cols=136):
    w = weights(seed, rows, cols)
    if block:
        down, across = -(-rows // 128), -(-cols // 128)
        scales = torch.zeros(down, across)
        for i in range(down):
            for k in range(across):
                scales[i, k] = w[i * 128:i * 128 + 128, k * 128:k * 128 + 128].abs().max() / 448
        spread = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
        config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
        suffix = "weight_scale_inv"
    else:
        scales = w.abs().max(1, keepdim=True).values / 448
        spread = scales
        args = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
        config = {"quant_method": "compressed-tensors", "format": "float-quantized",
                  "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}}}
        suffix = "weight_scale"
    values = (w / spread).to(torch.float8_e4m3fn)
    write(out, name, {"quantization_config": config}, {"weight": values, suffix: scales}, values.float() * spread)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--auto-gptq", required=True)
    parser.add_argument("--awq", required=True)
    parser.add_argument("out", nargs="?", default=os.path.join(ROOT, "vectors", "quantised"))
    args = parser.parse_args()
    layers = load_file("qlinear_cuda", os.path.join(args.auto_gptq, "auto_gptq/nn_modules/qlinear/qlinear_cuda.py"))
    packing = load_file("packing_utils", os.path.join(args.awq, "awq/utils/packing_utils.py"))
    shutil.rmtree(args.out, ignore_errors=True)
    gptq(args.out, layers, "gptq-4-sym", 4, 64, True, False, 1)
    gptq(args.out, layers, "gptq-4-zeros", 4, 32, False, False, 2)
    gptq(args.out, layers, "gptq-4-sym-order", 4, 32, True, True, 3)
    gptq(args.out, layers, "gptq-4-zeros-order-v2", 4, 64, False, True, 4, v2=True)
    gptq(args.out, layers, "gptq-2-zeros", 2, 32, False, False, 5)
    gptq(args.out, layers, "gptq-3-sym", 3, 64, True, False, 6)
    gptq(args.out, layers, "gptq-3-zeros-order", 3, 32, False, True, 7)
    gptq(args.out, layers, "gptq-8-sym-whole", 8, -1, True, False, 8)
    gptq(args.out, layers, "gptq-8-zeros", 8, 64, False, False, 9)
    awq(args.out, packing, "awq-4", 64, 10)
    awq(args.out, packing, "awq-4-whole", -1, 11)
    compressed(args.out, "compressed-4-sym", 4, 64, True, torch.bfloat16, 12)
    compressed(args.out, "compressed-4-zeros", 4, 32, False, torch.float16, 13)
    compressed(args.out, "compressed-4-whole", 4, -1, True, torch.bfloat16, 14, cols=100)
    compressed(args.out, "compressed-8-whole", 8, -1, True, torch.float32, 15)
    compressed(args.out, "compressed-8-zeros", 8, 64, False, torch.float16, 16)
    bitsandbytes_4(args.out, "bitsandbytes-nf4", "nf4", True, 17)
    bitsandbytes_4(args.out, "bitsandbytes-fp4", "fp4", False, 18, cols=100)
    bitsandbytes_8(args.out, "bitsandbytes-8", 19)
    fp8(args.out, "fp8-blocks", True, 20)
    fp8(args.out, "fp8-rows", False, 21)


if __name__ == "__main__":
    main()
