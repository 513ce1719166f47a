"""Writes the sampling vectors: which tokens survive, with which log-probabilities, for three engines' meanings.

    python3.11 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python make_sampling.py --llama LIBLLAMA.so [--out ../vectors/sampling.txt]

Made with Python 3.11, torch 2.15.0, transformers 5.23.0, numpy 2.4.6 and the libllama of llama.cpp 0c1e570 (0.5.0,
as vendored by llama_cpp_python 0.3.36). Everything follows from the seed. Where the truth comes from:

    hf        transformers' own processors, in the order of generate(): SequenceBias, RepetitionPenalty,
              Temperature, TopK, TopP, MinP
    llamacpp  llama.cpp's own sampler chain: logit_bias, penalties (last 64), top_k, top_p, min_p, temp
    vllm      vLLM's documented rules in numpy: bias, penalties, temperature, min-p, top-k, top-p

An order of its own ("order" below) runs the same stages shuffled. Beside each answer stands `reference`, float64
from the definitions; a case is dropped when a sum of probabilities comes within MARGIN of p, or a logit within
MARGIN of the min-p limit, because float32 sums then decide; in all others both must agree. Of equal logits of
which only some stay, the libraries keep whichever their sort leaves in front: here it is the lowest ids.

The file is text, a record per line, words apart by one blank; floats are the 8 hexadecimal digits of their bits:

    logits N F*N                             numbered from 0
    top N (ID F)*N                           the best of the logits before: the natural log of their softmax
    case ENGINE LOGITS ORDER T K P M R F S   ORDER: stages as digits of folollm_stage, or -. T to S: temperature,
                                             top_k (decimal), top_p, min_p, repetition, frequency, presence
    history PROMPT N ID*N                    of the case before: N tokens, the first PROMPT of them the prompt
    bias N (ID F)*N
    kept N (FIRST LAST)*N                    ranges of ids that survive
    logprobs N (ID F)*N                      of some of them, after normalising
    uniform SEED POSITION BITS               decimal: the 53 bits that this seed gives at this position
"""

import argparse
import ctypes
import itertools
import pathlib
import struct

import numpy as np
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

TEMPERATURE, MIN_P, TOP_K, TOP_P = 1, 2, 3, 4  # as in folollm_stage
ORDERS = {
    "hf": [TEMPERATURE, TOP_K, TOP_P, MIN_P],
    "vllm": [TEMPERATURE, MIN_P, TOP_K, TOP_P],
    "llamacpp": [TOP_K, TOP_P, MIN_P, TEMPERATURE],
}
MARGIN = 2e-5
WINDOW = 64


def f32(x):
    return float(np.float32(x))


def bits(x):
    return struct.pack(">f", float(x)).hex()


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


class Case:
    def __init__(self, engine, index, order=None, t=1.0, k=0, p=0.0, m=0.0, r=0.0, f=0.0, s=0.0, prompt=0,
                 tokens=(), bias=()):
        self.engine, self.index, self.order = engine, index, order
        self.t, self.k, self.p, self.m, self.r, self.f, self.s = f32(t), k, f32(p), f32(m), f32(r), f32(f), f32(s)
        self.prompt, self.tokens, self.bias = prompt, [int(i) for i in tokens], dict(bias)
        self.stages = order or ORDERS[engine]

    def lines(self, kept, logprobs):
        order = "".join(map(str, self.order)) if self.order else "-"
        floats = [bits(x) for x in (self.p, self.m, self.r, self.f, self.s)]
        yield " ".join(["case", self.engine, str(self.index), order, bits(self.t), str(self.k), *floats])
        if self.tokens:
            yield " ".join(map(str, ["history", self.prompt, len(self.tokens), *self.tokens]))
        if self.bias:
            yield " ".join(["bias", str(len(self.bias))] + [f"{i} {bits(b)}" for i, b in self.bias.items()])
        ranges = []
        for i in kept:
            if ranges and ranges[-1][1] == i - 1:
                ranges[-1][1] = i
            else:
                ranges.append([i, i])
        yield " ".join(["kept", str(len(ranges))] + [f"{a} {b}" for a, b in ranges])
        best = max(logprobs, key=logprobs.get)
        some = sorted({kept[i] for i in np.linspace(0, len(kept) - 1, 8).astype(int)} | {best})
        yield " ".join(["logprobs", str(len(some))] + [f"{i} {bits(logprobs[i])}" for i in some])


# ---- The definitions, in float64 after float32 penalties and scaling ----------------------------------


def penalised(case, logits):
    """float32: bias, then repetition, frequency, presence."""
    x = np.array(logits, np.float32)
    for i, b in case.bias.items():
        x[i] += np.float32(b)
    recent = case.tokens[-WINDOW:]
    seen = recent if case.engine == "llamacpp" else case.tokens
    counted = recent if case.engine == "llamacpp" else case.tokens[case.prompt:]
    if case.r not in (0, 1):
        for i in set(seen):
            x[i] = x[i] / np.float32(case.r) if x[i] > 0 else x[i] * np.float32(case.r)
    for i in set(counted):
        x[i] -= np.float32(counted.count(i)) * np.float32(case.f) + np.float32(case.s)
    return x


def reference(case, x):
    """(kept ids, their scaled logits, how near the nearest decision was)"""
    ids, scaled, near = np.arange(len(x)), x.copy(), np.inf
    for stage in case.stages:
        if stage == TEMPERATURE:
            scaled = scaled / np.float32(case.t)
        elif stage == MIN_P and case.m > 0:
            gap = scaled[ids].astype(np.float64) - (float(scaled[ids].max()) + np.log(case.m))
            near = min(near, np.abs(gap[scaled[ids] < scaled[ids].max()]).min(initial=np.inf))
            ids = ids[gap >= 0]
        elif stage == TOP_K and 0 < case.k < len(ids):
            best = ids[np.lexsort((ids, -scaled[ids]))]
            last = scaled[best[case.k - 1]]
            ids = np.sort(best[: case.k] if case.engine == "llamacpp" else best[scaled[best] >= last])
        elif stage == TOP_P and 0 < case.p < 1:
            best = ids[np.lexsort((ids, -scaled[ids]))]
            sums = np.cumsum(np.exp(log_softmax(scaled[best])))
            near = min(near, np.abs(sums - case.p).min())
            ids = np.sort(best[: int(np.searchsorted(sums, case.p)) + 1])
    return ids, scaled, near


# ---- The engines --------------------------------------------------------------------------------------


def run_hf(case, logits):
    scores = torch.tensor(np.array(logits, np.float32))[None]
    tokens = torch.tensor([case.tokens], dtype=torch.long)
    if case.bias:
        scores = SequenceBiasLogitsProcessor([[[i], b] for i, b in case.bias.items()])(tokens, scores)
    if case.r not in (0, 1):
        scores = RepetitionPenaltyLogitsProcessor(case.r)(tokens, scores)
    for stage in case.stages:
        if stage == TEMPERATURE:
            scores = TemperatureLogitsWarper(case.t)(tokens, scores)
        elif stage == MIN_P and case.m > 0:
            scores = MinPLogitsWarper(case.m)(tokens, scores)
        elif stage == TOP_K and case.k > 0:
            scores = TopKLogitsWarper(case.k)(tokens, scores)
        elif stage == TOP_P and 0 < case.p < 1:
            scores = TopPLogitsWarper(case.p)(tokens, scores)
    scores = scores[0].numpy()
    return {int(i): scores[i] for i in np.flatnonzero(scores > -np.inf)}


def run_vllm(case, logits):
    """Masks with -inf; top-p adds up from the least likely and drops while the sum is at most 1 - p."""
    x = penalised(case, logits)
    for stage in case.stages:
        probs = np.exp(log_softmax(x))
        if stage == TEMPERATURE:
            x = x / np.float32(case.t)
        elif stage == MIN_P and case.m > 0:
            x = np.where(probs < case.m * probs.max(), -np.inf, x)
        elif stage == TOP_K and case.k > 0:
            x = np.where(x < np.sort(x)[-min(case.k, len(x))], -np.inf, x)
        elif stage == TOP_P and 0 < case.p < 1:
            order = np.argsort(x, kind="stable")
            drop = np.cumsum(probs[order]) <= 1 - case.p
            drop[-1] = False
            x[order[drop]] = -np.inf
        x = x.astype(np.float32)
    return {int(i): x[i] for i in np.flatnonzero(x > -np.inf)}


class TokenData(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class TokenArray(ctypes.Structure):
    _fields_ = [("data", ctypes.POINTER(TokenData)), ("size", ctypes.c_size_t), ("selected", ctypes.c_int64),
                ("sorted", ctypes.c_bool)]


class LogitBias(ctypes.Structure):
    _fields_ = [("token", ctypes.c_int32), ("bias", ctypes.c_float)]


class Llama:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        f, i, z, p = ctypes.c_float, ctypes.c_int32, ctypes.c_size_t, ctypes.c_void_p
        signatures = {
            "chain_init": [ctypes.c_bool], "chain_add": [p, p], "accept": [p, i], "apply": [p, p], "free": [p],
            "init_logit_bias": [i, i, p], "init_penalties": [i, i, f, f, f], "init_top_k": [i],
            "init_top_p": [f, z], "init_min_p": [f, z], "init_temp": [f],
        }
        for name, arguments in signatures.items():
            function = getattr(self.lib, "llama_sampler_" + name)
            function.argtypes, function.restype = arguments, p
            setattr(self, name, function)

    def __call__(self, case, logits):
        n = len(logits)
        chain = self.chain_init(True)
        biases = (LogitBias * len(case.bias))(*case.bias.items())
        self.chain_add(chain, self.init_logit_bias(n, len(biases), biases))
        self.chain_add(chain, self.init_penalties(n, WINDOW, case.r or 1.0, case.f, case.s))
        for stage in case.stages:
            sampler = {TEMPERATURE: lambda: self.init_temp(case.t), MIN_P: lambda: self.init_min_p(case.m, 1),
                       TOP_K: lambda: self.init_top_k(case.k), TOP_P: lambda: self.init_top_p(case.p or 1.0, 1)}
            self.chain_add(chain, sampler[stage]())
        for token in case.tokens:
            self.accept(chain, token)
        data = (TokenData * n)(*[(i, float(x), 0) for i, x in enumerate(logits)])
        array = TokenArray(data, n, -1, False)
        self.apply(chain, ctypes.byref(array))
        kept = {array.data[i].id: array.data[i].logit for i in range(array.size)}
        self.free(chain)
        return kept


# ---- Cases ----------------------------------------------------------------------------------------------


def make_logits(rng):
    for n in (2, 7, 64, 257):
        yield rng.normal(0, 3, n)
    for n in (9, 120):
        yield np.round(rng.normal(0, 2, n) * 2) / 2  # ties
    yield np.full(33, 0.75)  # flat
    yield np.concatenate([rng.normal(0, 1, 60), [21.0], rng.normal(0, 1, 20)])  # peaked
    yield np.concatenate([rng.uniform(-1e4, 1e4, 40), 1e4 - rng.uniform(0, 6, 25)])
    yield rng.integers(-(2**20), 2**20, 50) * 2.0**-149  # denormal
    yield rng.normal(-9, 2, 100)  # all below 0
    yield np.concatenate([np.full(20, -0.0), np.zeros(20), rng.normal(0, 1, 10)])
    yield rng.normal(0, 2, 1000)


def make_options(rng, engine, n):
    pick = lambda *values: values[rng.integers(len(values))]
    if rng.random() < 0.2:  # one stage alone
        alone = pick({"k": pick(1, 2, 5, n)}, {"p": rng.uniform(0, 1)}, {"m": 0.1}, {})
        return {"t": pick(0.1, 0.5, 2.0, 7.5)} | alone
    return {
        "t": pick(0.3, 0.7, 1.0, 1.0, 1.6),
        "k": pick(0, 1, 3, 10, 40, n - 1, 2 * n),
        "p": pick(0.0, 0.01, rng.uniform(0.05, 0.999), rng.uniform(0.5, 0.999), 1.0),
        "m": pick(0.0, 0.0, 0.01, rng.uniform(0.001, 0.5), 1.0),
    }


def make_history(rng, engine, n):
    prompt, output = [(0, 3), (4, 0), (5, 9), (40, 30), (70, 10), (3, 90)][rng.integers(6)]
    options = {"prompt": prompt, "tokens": rng.integers(0, min(n, 24), prompt + output)}
    options["r"] = rng.choice([0.8, 1.1, 1.7])
    if engine != "hf":
        options |= {"f": rng.choice([0, 0.3, -0.2]), "s": rng.choice([0, 0.6, -0.5]), "r": rng.choice([0, 1, 1.3])}
    if rng.random() < 0.4:
        options["bias"] = {int(i): f32(rng.normal(0, 3)) for i in rng.integers(0, n, 4)}
    return options


def make_cases(rng, all_logits):
    permutations = list(itertools.permutations([TEMPERATURE, MIN_P, TOP_K, TOP_P]))
    for index, logits in enumerate(all_logits):
        for engine in ORDERS:
            for _ in range(7):
                yield Case(engine, index, **make_options(rng, engine, len(logits)))
            for _ in range(4):
                options = make_options(rng, engine, len(logits)) | make_history(rng, engine, len(logits))
                yield Case(engine, index, **options)
    for number, order in enumerate(permutations):
        for engine in ORDERS:
            index = [3, 5, 8, 12][number % 4]
            cut = rng.choice([2, 3, 4])
            options = make_options(rng, engine, len(all_logits[index]))
            yield Case(engine, index, order=list(order)[:cut], **options)


def settle(case, logits, run):
    """(kept ids, logprobs by id), or None if the case is too near to a border."""
    x = penalised(case, logits)
    ids, scaled, near = reference(case, x)
    merged = len(np.unique(scaled)) != len(np.unique(x))  # scaling made two logits equal: whose tie is it?
    if near < MARGIN or merged:
        return None
    answer = run(case, logits)
    kept = []
    for value in np.unique(x[list(answer)]):
        equal = np.flatnonzero(x == value)
        kept += list(equal[: np.isin(equal, list(answer)).sum()])
    kept = sorted(int(i) for i in kept)
    if kept != list(ids):
        raise SystemExit(f"{case.__dict__}: the engine keeps {kept}, the definitions {list(ids)}")
    values = sorted(answer.values())
    by_rank = sorted(kept, key=lambda i: (x[i], -i))
    return kept, dict(zip(by_rank, log_softmax(values)))


# ---- Draws ------------------------------------------------------------------------------------------------


def philox(counter, key):
    """Philox 4x32-10 of Random123."""
    c, k, mask = list(counter), list(key), 0xFFFFFFFF
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & mask, a >> 32 ^ c[3] ^ k[1], a & mask]
        k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
    return c


def uniform_lines(rng):
    known = "d16cfe09 94fdcceb 5001e420 24126ea1"  # Random123's kat_vectors: pi
    answer = philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0])
    assert " ".join(f"{x:08x}" for x in answer) == known
    pairs = [(0, 0), (0, 1), (1, 0), (2**64 - 1, 2**32 - 1), (2**32, 5), (2**63, 2**64 - 1)]
    pairs += [(int(rng.integers(2**63)), int(rng.integers(5000))) for _ in range(26)]
    for seed, position in pairs:
        c = philox([position & 0xFFFFFFFF, position >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32])
        yield f"uniform {seed} {position} {c[0] << 21 | c[1] >> 11}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama", required=True)
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--out", type=pathlib.Path, default=here.parent / "vectors" / "sampling.txt")
    arguments = parser.parse_args()
    rng = np.random.default_rng(20240117)
    runs = {"hf": run_hf, "vllm": run_vllm, "llamacpp": Llama(arguments.llama)}
    all_logits = [np.array(x, np.float32) for x in make_logits(rng)]
    lines, counts, dropped = [], {}, 0
    for logits in all_logits:
        lines.append(" ".join(["logits", str(len(logits)), *map(bits, logits)]))
        best = np.lexsort((np.arange(len(logits)), -logits))[:20]
        raw = log_softmax(logits)
        lines.append(" ".join(["top", str(len(best))] + [f"{i} {bits(raw[i])}" for i in best]))
    for case in make_cases(rng, all_logits):
        settled = settle(case, all_logits[case.index], runs[case.engine])
        if settled is None:
            dropped += 1
            continue
        counts[case.engine] = counts.get(case.engine, 0) + 1
        lines += case.lines(*settled)
    lines += uniform_lines(rng)
    arguments.out.write_text("\n".join(lines) + "\n")
    print(counts, dropped, "dropped,", arguments.out.stat().st_size, "bytes")


main()
