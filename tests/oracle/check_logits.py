"""Compares the tool's logits and greedy tokens with transformers, and prints one line per checkpoint.

    venv/bin/python check_logits.py --tool ../../examples/folollm -m DIR [--prompts 8] [--len 64] [--seed 0]
        [--text FILE] [--greedy 16] [--chunk N] [--context N] [--tool-args "--kv f32"]
    venv/bin/python check_logits.py -m DIR --ids 1,2,3 --logits FILE      compares a file written earlier

Prompts are random ids, or with --text pieces of a file in the checkpoint's own tokens. `folollm logits` writes float32
little-endian (n_ids, vocab). nmse32 and nmse64 are sum (a - b)^2 / sum b^2 against transformers in float32 and in
float64; ref is the same between the two references, the floor of what can be asked for. kld is KL(reference64 || tool)
per position. A top-1 or greedy mismatch fails only if the reference's top-1/top-2 gap exceeds 4 x the largest
|difference| measured; the others are counted as ties. The comparison of a prompt's greedy tokens ends at its first
mismatch.

Greedy tokens come from `folollm generate --ids` where the prompt is text, and otherwise from the tool's own logits
after the reference's continuation (the same tokens, as long as they agree). Exit status 1 on a mismatch, on a
non-finite logit, or over --nmse-max or --kld-max (the defaults are for fp16 and bf16 weights with float32 activations).
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from reference import Reference

TIE = 4


def nmse(a, b):
    return float(((a - b) ** 2).sum() / (b**2).sum())


def kld(a, b):
    """KL(softmax b || softmax a) per row"""
    log_a, log_b = (torch.log_softmax(torch.from_numpy(x), -1) for x in (a, b))
    return (log_b.exp() * (log_b - log_a)).sum(-1).numpy()


def gap(logits):
    """top-1 minus top-2 along the last axis"""
    top = np.partition(logits, -2, axis=-1)
    return top[..., -1] - top[..., -2]


class Tool:
    def __init__(self, args):
        self.path, self.model, self.chunk = args.tool, str(args.model), args.chunk
        self.extra = shlex.split(args.tool_args)

    def run(self, command, *args):
        line = [self.path, command, "-m", self.model, *self.extra, *args]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(line[:4])}: exit status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def logits(self, ids):
        with tempfile.NamedTemporaryFile() as file:
            chunk = ["--chunk", str(self.chunk)] if self.chunk else []
            self.run("logits", "--ids", ",".join(map(str, ids)), "-o", file.name, *chunk)
            return read_logits(file.name, len(ids))

    def generate(self, text, n):
        return [int(x) for x in self.run("generate", "-p", text, "-n", str(n), "--temp", "0", "--ids").split()]


def read_logits(path, n_ids):
    flat = np.fromfile(path, "<f4").astype(np.float64)
    if flat.size == 0 or flat.size % n_ids:
        sys.exit(f"{path}: {flat.size} floats are not {n_ids} rows")
    return flat.reshape(n_ids, -1)


def prompts(args, vocab):
    """[(ids, text or None)]"""
    if args.ids:
        return [([int(x) for x in args.ids.split(",")], None)]
    rng = np.random.default_rng(args.seed)
    if not args.text:
        return [(rng.integers(0, vocab, args.len).tolist(), None) for _ in range(args.prompts)]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    whole = tokenizer(args.text.read_text(), add_special_tokens=False)["input_ids"]
    out = []
    for _ in range(args.prompts):
        start = int(rng.integers(0, max(1, len(whole) - args.len)))
        text = tokenizer.decode(whole[start : start + args.len])
        out.append((tokenizer(text)["input_ids"], text))
    return out


def greedy_mismatch(tool, reference, ids, text, n):
    """(tokens that agree, the reference's gap at the first mismatch or None)"""
    expected, gaps = reference.greedy(ids, n)
    if text is None:
        got = tool.logits(ids + expected[:-1])[len(ids) - 1 :].argmax(-1).tolist()
    else:
        got = tool.generate(text, n)
        eos = reference.config.eos_token_id
        stops = [i for i, token in enumerate(expected) if token in np.atleast_1d(eos if eos is not None else [])]
        expected = expected[: stops[0]] if stops else expected
        got = got[: len(expected)]
    for i, token in enumerate(expected):
        if i >= len(got) or got[i] != token:
            return i, gaps[i]
    return len(expected), None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=pathlib.Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tool")
    source.add_argument("--logits", help="a file that `folollm logits` wrote for --ids")
    parser.add_argument("--ids")
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--len", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--greedy", type=int, default=16, help="tokens to continue each prompt by; 0 leaves it out")
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--context", type=int, default=0, help="for dynamic NTK: the length the tool opens with")
    parser.add_argument("--tool-args", default="", help="more arguments for the tool, as one string")
    parser.add_argument("--nmse-max", type=float, default=1e-6, help="bound on nmse64")
    parser.add_argument("--kld-max", type=float, default=1e-5, help="bound on the mean")
    args = parser.parse_args()
    if args.logits and not args.ids:
        parser.error("--logits needs --ids")
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    reference = Reference(args.model, args.context)
    tool = Tool(args) if args.tool else None
    cases = prompts(args, reference.config.vocab_size)
    got, ref32, ref64 = [], [], []
    for ids, _ in cases:
        got.append(tool.logits(ids) if tool else read_logits(args.logits, len(ids)))
        ref32.append(reference.logits32(ids).double().numpy())
        ref64.append(reference.logits64(ids).numpy())
        if got[-1].shape != ref64[-1].shape:
            sys.exit(f"{args.model}: the tool's vocab is {got[-1].shape[1]}, the reference's {ref64[-1].shape[1]}")
    got, ref32, ref64 = (np.concatenate(x) for x in (got, ref32, ref64))

    divergence = kld(got, ref64)
    difference = float(np.abs(got - ref64).max())
    wrong = got.argmax(-1) != ref64.argmax(-1)
    ties = int((wrong & (gap(ref64) <= TIE * difference)).sum())
    failed = not np.isfinite(got).all() or int(wrong.sum()) > ties
    line = (
        f"{args.model.name} prompts {len(cases)} positions {len(got)} "
        f"nmse32 {nmse(got, ref32):.2e} nmse64 {nmse(got, ref64):.2e} ref {nmse(ref32, ref64):.2e} "
        f"kld mean {divergence.mean():.2e} p99.9 {np.quantile(divergence, 0.999):.2e} max {divergence.max():.2e} "
        f"dlogit {difference:.2e} top1 {100 * (1 - wrong.mean()):.3f}% mismatches {wrong.sum()} ties {ties}"
    )
    if tool and args.greedy:
        results = [greedy_mismatch(tool, reference, ids, text, args.greedy) for ids, text in cases]
        stops = [g for _, g in results if g is not None]
        greedy_ties = sum(g <= TIE * difference for g in stops)
        failed |= len(stops) > greedy_ties
        line += f" greedy {sum(n for n, _ in results)} mismatches {len(stops)} ties {greedy_ties}"
    failed |= not nmse(got, ref64) <= args.nmse_max or not divergence.mean() <= args.kld_max
    print(line, "FAIL" if failed else "ok")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
