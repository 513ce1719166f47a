"""Writes the vectors of GGUF's block formats: what blocks decode to, and how well llama.cpp encodes.

    python3.11 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python make_blocks.py --ggml LIBGGML_BASE.so [--out ../vectors/blocks.txt]

Made with Python 3.11, numpy 2.4.6, gguf 0.19.0 and the libggml-base 0.25.3 of llama.cpp (as vendored by
llama_cpp_python 0.3.36). Everything follows from SEED.

The numbers that a block decodes to are those of gguf.quants; they were compared with those of libggml. Blocks are of
random bytes with finite scales, of extremes (scales of 0, subnormal, negative, the largest; all bits set or none), and
of normally distributed numbers as libggml encodes them. mxfp4 has an exponent for a scale; its largest numbers are
infinite.

How well llama.cpp encodes the types of TYPES is its mean squared error, in float64, over rows that the test makes again
from integers: number i of a row takes the ten values 10 i .. 10 i + 9 of a generator (SplitMix64 from SEED). A normal
number is the sum of the 16-bit parts of three of them; see `rows`.

The file is text, a record per line, words apart by one blank:

    decode TYPE BLOCK bits F*N     BLOCK: its bytes in hexadecimal; F: the 8 hexadecimal digits of a float's bits
    decode TYPE BLOCK hash H       H: FNV-1a, 64 bits, of the floats' bytes, little-endian
    error TYPE KIND E              over N_ERROR numbers of this kind, as Python prints a float
"""

import argparse
import ctypes
import pathlib

import gguf
import numpy as np

SEED = 20240117
N_ERROR = 32768
TYPES = {  # our name: gguf's type, and the bytes at which an f16 stands
    "q8": (gguf.GGMLQuantizationType.Q8_0, [0]),
    "q4": (gguf.GGMLQuantizationType.Q4_0, [0]),
    "q4_k": (gguf.GGMLQuantizationType.Q4_K, [0, 2]),
    "q5_k": (gguf.GGMLQuantizationType.Q5_K, [0, 2]),
    "q6_k": (gguf.GGMLQuantizationType.Q6_K, [208]),
}
IN_FILES_ONLY = {
    "q4_1": (gguf.GGMLQuantizationType.Q4_1, [0, 2]),
    "q5_0": (gguf.GGMLQuantizationType.Q5_0, [0]),
    "q5_1": (gguf.GGMLQuantizationType.Q5_1, [0, 2]),
    "q2_k": (gguf.GGMLQuantizationType.Q2_K, [80, 82]),
    "q3_k": (gguf.GGMLQuantizationType.Q3_K, [108]),
    "iq4_nl": (gguf.GGMLQuantizationType.IQ4_NL, [0]),
    "iq4_xs": (gguf.GGMLQuantizationType.IQ4_XS, [0]),
    "mxfp4": (gguf.GGMLQuantizationType.MXFP4, []),
}
SCALES = [0x0000, 0x8000, 0x0001, 0x03FF, 0x8001, 0x0400, 0x2C00, 0xAC00, 0x7BFF, 0xFBFF]


def generator(n):
    with np.errstate(over="ignore"):
        z = np.uint64(SEED) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, n + 1, dtype=np.uint64)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return z ^ z >> np.uint64(31)


def rows():
    """Of each kind, N_ERROR numbers. Every step is exact or one float32 operation."""
    drawn = generator(10 * N_ERROR).reshape(N_ERROR, 10)
    parts = drawn[:, :9].copy().view(np.uint16).astype(np.int64).reshape(N_ERROR, 3, 12)
    normal = ((parts.sum(axis=2) - 393210) / 65536).astype(np.float32)
    a, b, c = normal.T
    return {
        "normal": a,
        "heavy": a * b * c,
        "outliers": np.where(drawn[:, 9] % 64 == 0, a * np.float32(16), a),
        "shifted": a + np.float32(1),
        "tiny": a * np.float32(2**-18),
    }


class Ggml:
    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.ggml_quantize_chunk.restype = ctypes.c_size_t

    def encode(self, kind, x):
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        x, out = np.ascontiguousarray(x, np.float32), np.zeros(x.size // numbers * size, np.uint8)
        used = self.library.ggml_quantize_chunk(
            ctypes.c_int(kind), ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(0),
            ctypes.c_int64(1), ctypes.c_int64(x.size), None)
        assert used == out.size
        return out

    def decode(self, kind, blocks):
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        blocks, out = np.ascontiguousarray(blocks), np.zeros(blocks.size // size * numbers, np.float32)
        name = "dequantize_row_" + kind.name.lower().replace("_k", "_K")
        getattr(self.library, name)(ctypes.c_void_p(blocks.ctypes.data), ctypes.c_void_p(out.ctypes.data),
                                    ctypes.c_int64(out.size))
        return out


def make_blocks(rng, kind, halves, ggml):
    """Rows of one block each."""
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = [rng.integers(256, size=size, dtype=np.uint8) for _ in range(20)]
    for fill in (0x00, 0xFF, 0x7F, 0x80, 0x3F, 0xC0):
        blocks.append(np.full(size, fill, np.uint8))
    blocks += [rng.integers(256, size=size, dtype=np.uint8) for _ in SCALES]
    for i, block in enumerate(blocks):
        for place in halves:
            scale = int.from_bytes(block[place:place + 2].tobytes(), "little")
            forced = i - (len(blocks) - len(SCALES))
            if forced >= 0:
                scale = SCALES[(forced + place) % len(SCALES)]
            elif scale >> 10 & 31 == 31:
                scale &= 0xBFFF  # finite
            block[place:place + 2] = [scale & 255, scale >> 8]
    real = ggml.encode(kind, rng.standard_normal(4 * numbers).astype(np.float32) * np.float32(0.02))
    return np.concatenate([np.stack(blocks), real.reshape(4, size)])


def fnv(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def decode_lines(name, kind, blocks, decoded):
    for i, (block, numbers) in enumerate(zip(blocks, decoded)):
        assert np.isfinite(numbers).all() or name == "mxfp4"
        in_full = i in (0, len(blocks) - 5, len(blocks) - 1)
        said = "bits " + " ".join(f"{x:08x}" for x in numbers.view(np.uint32)) if in_full else \
            f"hash {fnv(numbers.astype('<f4').tobytes()):016x}"
        yield f"decode {name} {block.tobytes().hex()} {said}"


def mean_squared(x, kind, encoded):
    decoded = gguf.quants.dequantize(encoded, kind).astype(np.float64)
    return float(np.mean((decoded - x) ** 2))


def error_lines(name, kind, ggml):
    for what, x in rows().items():
        error = mean_squared(x, kind, ggml.encode(kind, x))
        if name in ("q8", "q4"):  # those that gguf can encode: whichever is better
            error = min(error, mean_squared(x, kind, gguf.quants.quantize(x, kind)))
        yield f"error {name} {what} {error!r}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ggml", required=True)
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--out", type=pathlib.Path, default=here.parent / "vectors" / "blocks.txt")
    arguments = parser.parse_args()
    ggml, rng, lines = Ggml(arguments.ggml), np.random.default_rng(SEED), []
    for name, (kind, halves) in (TYPES | IN_FILES_ONLY).items():
        blocks = make_blocks(rng, kind, halves, ggml)
        decoded = gguf.quants.dequantize(blocks, kind)
        theirs = ggml.decode(kind, blocks).reshape(decoded.shape)
        differ = int((theirs.view(np.uint32) != decoded.view(np.uint32)).sum())
        with np.errstate(invalid="ignore"):
            off = np.abs(theirs / np.where(decoded == 0, 1, decoded) - 1)[theirs != decoded].max(initial=0)
        print(f"{name}: {len(blocks)} blocks; libggml differs in {differ} of {decoded.size} numbers, "
              f"by up to {off:.1e}")
        lines += decode_lines(name, kind, blocks, decoded)
        if name in TYPES:
            lines += error_lines(name, kind, ggml)
    arguments.out.write_text("\n".join(lines) + "\n")
    print(arguments.out.stat().st_size, "bytes")


main()
