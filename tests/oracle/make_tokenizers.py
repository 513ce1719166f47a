#!/usr/bin/env python3
"""Writes tests/vectors/tokenizers/: small tokenizers and what Hugging Face's `tokenizers` makes of many texts.

    venv/bin/python make_tokenizers.py [--real DIR]      DIR: a real tokenizer, of which only expectations are kept

Needs tokenizers. The same versions write the same bytes. Files, all read by tests/test_text.c:

    snippets.bin        records "LENGTH\\nBYTES\\n"; random ones, put together, are the long texts
    versions.txt        ranges "LO HI" of code points that had no character in Unicode 14, or that `tokenizers`
                        normalises by an older Unicode: versions differ there, so they are compared apart
    names.txt           the names
    NAME/tokenizer.json, tokenizer_config.json
    NAME/expected.txt   "case LENGTH\\nBYTES\\nids N ID ...\\n"   a text in full
                        "piece HASH HASH HASH HASH"             of ids, decoded, decoded without special tokens,
                                                                ids when added tokens are text too
                        "block LO N HASH HASH"                  of ids of N texts around one code point each; the
                                                                second: of those in versions.txt

A vocabulary is bytes, then merges of one byte with a border byte of a neighbour (so that every cut between words
shows in the ids), then merges trained on the snippets.
"""
import argparse
import json
import pathlib
import unicodedata

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

OUT = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "tokenizers"
PIECE_BYTES, N_PIECES = 4096, 256
MASK = (1 << 64) - 1

# ---- Deterministic choices, the same in C ----------------------------------------------------------


class Random:
    """splitmix64."""

    def __init__(self, seed):
        self.state = seed

    def next(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % n


def fnv(data, h=0xCBF29CE484222325):
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & MASK
    return h


def fold(h):
    return f"{(h ^ (h >> 32)) & 0xFFFFFFFF:08x}"


def id_bytes(ids):
    return b"".join(i.to_bytes(4, "little") for i in ids)


# ---- Snippets --------------------------------------------------------------------------------------

WORDS = """the quick brown fox jumps over the lazy dog and then the other one; there is nothing that they cannot do
in this house: to be, or not to be, that is the question. Whether 'tis nobler in the mind to suffer the slings and
arrows of outrageous fortune, or to take arms against a sea of troubles and by opposing end them."""
# Ranges of letters, from which words are made.
LETTERS = {
    "cyrillic": "0410-044F 0451 0456", "greek": "0391-03A1 03A3-03C9 03AC-03AF",
    "arabic": "0621-063A 0641-064A 064B-0652", "hebrew": "05D0-05EA 05B0-05BC",
    "devanagari": "0905-0914 0915-0939 093E-094D", "thai": "0E01-0E30 0E31-0E3A 0E40-0E4E",
    "han": "4E00-4E60 6C34-6C50 9F8D", "kana": "3042-3093 30A2-30F3 30FC", "hangul": "AC00-AC80 D55C",
    "jamo": "1100-1112 1161-1175 11A8-11C2", "latin": "00C0-00D6 00D8-00F6 0100-017F 1EA0-1EF9",
    "composed": "0061-007A 0300-0304 0323", "marks": "0300-036F 0591-05AF 20D0-20DC",
    "mixed": "0041-005A 0061-007A 0410-044F 4E00-4E10 0030-0039", "georgian": "10D0-10F0 1C90-1CB0",
    "titlecase": "01C4-01CC 01F1-01F3 1F88-1F8F", "modifiers": "02B0-02C1 1D2C-1D3C 3005 303B",
    "math": "1D400-1D4FF 2200-2240", "emoji": "1F600-1F640 2600-2620",
    "digits": "0030-0039 0660-0669 0966-096F FF10-FF19",
    "numbers": "00B2 00B3 00B9 00BC-00BE 2150-2188 2460-2473 3007 3021-3029 1D7CE-1D7FF", "full": "FF01-FF5E",
    "compatibility": "FB00-FB06 2100-2120 32D0-32FE F900-F920 2F800-2F810",
    "space": "0009-000D 0020 0085 00A0 1680 2000-200A " "2028 2029 202F 205F 3000",
    "format": "00AD 200B-200F 202A-202E 2060-2064 FEFF FE0E FE0F", "control": "0000-001F 007F-009F",
    "private": "E000-E010 F0000-F0005 FFFFE",
    "punctuation": "0021-002F 003A-0040 005B-0060 007B-007E 2010-2027 3001-3003"}
FIXED = [
    "I'm", "you're", "we'VE", "THEY'LL", "it's", "IT'S", "don't", "DON'T", "he'd", "He'D", "can'\u017f",
    "it'\u017F ok", "o'clock", "'s", "'S", "''s", "'ll'll", "'re 're", "\u2019s", "'d3", "'t.", "x'sy",
    "l'\u00e9cole", "'\u212a", "'ve\n", " 'm", "'lL", "caf\u00e9", "cafe\u0301", "A\u030a\u00c5\u212b",
    "\u1e9b\u0323", "q\u0307\u0323", "\u0958", "\u0915\u093c", "\u1112\u1161\u11ab", "\ud55c\uad6d\uc5b4",
    "\u110b\u1165\u1100", "\u00bd cup", "\ufb01ne", "\u2460\u2461", "\u00b2\u00b3", "\u0390",
    "\u03b9\u0308\u0301", " Vi\u1ec7t", "Vi\u1ec7t Nam", "\u05e9\u05c1\u05dc\u05d5\u05dd", "e" + "\u0301" * 40,
    "\u0344\u0345\u0346", "a\u0315\u0300\u05ae\u0062", "\U0001F469\u200D\U0001F469\u200D\U0001F466",
    "\U0001F44D\U0001F3FD", "\U0001F1EB\U0001F1F7", "\u2764\ufe0f", "#\ufe0f\u20e3",
    "int main(void) { return 0; }\n", "for (size_t i = 0; i < n; i++) {\n    x[i] += y[i] * 0.5f;\n}\n",
    "def f(x):\n\treturn x**2\n", "SELECT * FROM t WHERE a >= 10;\r\n", "#include <stdio.h>\n",
    "    if (a && !b) {\n\n", "<div class=\"x\">\n  <p>\n", "a->b->c();", "$x = \"\\n\\t\";",
    "https://example.org/a/b?c=d&e=%20#f", "/usr/lib//x/../", "C:\\dir\\", "HTTPServerError",
    "camelCaseWord XMLHttp", "snake_case_name", "x86_64", "v1.2.3", "3.14159e-10", "1,234,567.89",
    "12345678901234567890", "1 22 333 4444", "2024-07-26", "0x1F", "\u0661\u0662\u0663\u0664",
    "\u0967\u0968\u0969\u096a", "1\u06f21", "9\u00be", "\u216b\u2167", "\u3007\u3021", "\U0001D7D8\U0001D7D9",
    " ", "  ", "   ", "    ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r\n\r\n", "\r", " \n", "\n ", " \n \n  ",
    "\t\n\t", "  \r\n  ", "\u00a0", "\u00a0\u00a0", " \u00a0x", "\u3000", "\u3000\u3000x", "\u2028",
    "\u2029\u2028 ", "\u0085", "\u1680 x", "\u2003\u2003y", "\u200b", "\x0b\x0c", "\x1c\x1d", "\x00", "a\x00b",
    "\x00\x00", "\x7f", "!!!", "...", "?!", " !", "--", "---\n", "==>", "\u2026", "\u00bf", "\u00ab \u00bb",
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\n", "<s>", "</s>", "<unk>", "<0x0A>",
    "<0xE2>", "<|eot_id|>", "<|begin_of_text|>", "<think>", "</think>", "<tool_call>", "[INST]", "[/INST]",
    "<|im_", "|>", "<|", "<|IM_START|>", " <mask> ", "<mask>", "<mask>\n x", "x<mask>y", "[word]", " [word] ",
    "a[word]", "[word]b", "x [word].", "MiXeD", "a MiXeD b", "caf\u00e9tok", "cafe\u0301tok", "<left>",
    "  <left>  ", "<right>", " <right> \n x", "\u00a0<both>\u3000", "<both>", "</s>\n", " </s> ", "\u2581",
    "\u2581\u2581a", "a\u2581b", "\u01c5\u01c8", "\u01f2a", "\u00df\u1e9e", "\u0130\u0131", "\u1d43\u1d47",
    "\u02b0X", "\u30fc\u30fc", "aA", "Aa", "AAa", "aAA", "A\u0301a", "\u00aa\u00ba", "path/to/file", "x/\n",
    "!/\r\n", "//", " a", " 1", " \u0301", "\u0301a", "1\u0301", "!\u0301", "\n\u0301", "\ufeffx", "\U000E0041",
    "\U0010FFFF", "a" * 300, " " * 200, "\n" * 100, "1" * 150, "!" * 120, "\u4e2d" * 120, "\u00e9" * 90,
    "ab" * 100, "'s" * 40, "\u0301" * 60, "\t " * 30]


def expand(ranges):
    out = []
    for r in ranges.split():
        lo, _, hi = r.partition("-")
        out += range(int(lo, 16), int(hi or lo, 16) + 1)
    return [chr(c) for c in out]


def make_snippets():
    rnd = Random(7)
    out = list(FIXED)
    words = WORDS.split()
    for _ in range(120):
        begin = rnd.next(len(words))
        out.append((" " if rnd.next(2) else "") + " ".join(words[begin:begin + 1 + rnd.next(6)]))
    for ranges in LETTERS.values():
        letters = expand(ranges)
        for _ in range(18):
            text = "".join(letters[rnd.next(len(letters))] for _ in range(1 + rnd.next(9)))
            before = [" ", "", "", "a", "1", ". "][rnd.next(6)]
            out.append(before + text + ["", "", " ", "b", "2", ","][rnd.next(6)])
    return [s.encode() for s in out]


def piece(snippets, index):
    rnd = Random(index + 1)
    out = b""
    while len(out) < PIECE_BYTES:
        out += snippets[rnd.next(len(snippets))]
    return out.decode()


# ---- Tokenizers ------------------------------------------------------------------------------------

HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2, LLAMA3 = HEAD + r"\p{N}" + TAIL, HEAD + r"\p{N}{1,3}" + TAIL
MARKS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
UPPER, LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX, CASED_TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = f"{UPPER}*{LOWER}+{SUFFIX}|{UPPER}+{LOWER}*{SUFFIX}|" + r"\p{N}{1,3}" + CASED_TAIL
TEKKEN = f"{UPPER}*{LOWER}+|{UPPER}+{LOWER}*|" + r"\p{N}" + CASED_TAIL

KEPT = [*range(33, 127), *range(161, 173), *range(174, 256)]
ALPHABET = {b: chr(b) for b in KEPT}
ALPHABET.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in ALPHABET)})


def byte_level(add_prefix_space=False, use_regex=False):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True,
            "use_regex": use_regex}


def split(pattern, behavior="Isolated"):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def sequence(*parts, key="pretokenizers"):
    return {"type": "Sequence", key: list(parts)}


def added(i, content, special=True, **flags):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special, **flags}


def bos_template(i, token):
    one = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": one, "pair": one + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}}}


def border_merges():
    return [(ALPHABET[a], ALPHABET[b]) for x in b" a1A!\n" for a, b in
            [(x, lead) for lead in range(0xC2, 0xF5)] + [(cont, x) for cont in range(0x80, 0xC0)]]


def trained_merges(snippets, n):
    """On words that are cut at spaces, in the byte alphabet."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(ALPHABET.values())
    t.train_from_iterator((s.decode() for s in snippets for _ in range(2)),
                          trainers.BpeTrainer(vocab_size=256 + n, initial_alphabet=alphabet, show_progress=False))
    return [tuple(m) for m in json.loads(t.to_str())["model"]["merges"]]


def byte_model(merges, as_strings=False, extra=(), **flags):
    vocab = {ALPHABET[b]: b for b in range(256)}
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    for token in extra:
        vocab.setdefault(token, len(vocab))
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab,
            "merges": [f"{a} {b}" if as_strings else [a, b] for a, b in merges], **flags}


def piece_model(snippets, n):
    """SentencePiece style: characters and U+2581, merges trained on words, 256 byte tokens for the rest."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    text = [s.decode() for s in snippets]
    seen = sorted({c for s in text for c in s if c < "\u0500" and c > " " and c not in "<"} | {"\u2581", "\u4e2d"})
    t.train_from_iterator(text, trainers.BpeTrainer(vocab_size=n, initial_alphabet=seen, limit_alphabet=len(seen),
                                                    show_progress=False))
    merges = [tuple(m) for m in json.loads(t.to_str())["model"]["merges"]]
    merges = [("\u2581", "\u2581"), ("\u2581\u2581", "\u2581\u2581"), *merges]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    for token in [a + b for a, b in merges] + seen + sorted({c for m in merges for p in m for c in p}):
        vocab.setdefault(token, len(vocab))
    merges = [m for m in merges if m[0] in vocab and m[1] in vocab]
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": [[a, b] for a, b in merges]}


def whole(model, pre, decoder, normalizer=None, post=None, tokens=()):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(tokens),
            "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model}


def make_tokenizers(snippets):
    border, trained = border_merges(), trained_merges(snippets, 150)
    merges = border + [m for m in trained if m not in set(border)]
    model = byte_model(merges)
    n = len(model["vocab"])
    chat = [added(n, "<|endoftext|>"), added(n + 1, "<|im_start|>"), added(n + 2, "<|im_end|>")]
    flagged = chat + [
        added(n + 3, "<think>", False), added(n + 4, "</think>", False), added(n + 5, "<mask>", lstrip=True),
        added(n + 6, "<left>", False, lstrip=True), added(n + 7, "<right>", False, rstrip=True),
        added(n + 8, "<both>", lstrip=True, rstrip=True), added(n + 9, "[word]", False, single_word=True),
        added(n + 10, "caf\u00e9tok", False, normalized=True), added(n + 11, "MiXeD", False, normalized=True),
        added(n + 12, "<|im_start|>user", False)]
    nfc, bytes_only, prefix = {"type": "NFC"}, byte_level(), byte_level(True, True)
    out = {"qwen2": whole(model, sequence(split(QWEN2), bytes_only), bytes_only, nfc, bytes_only, flagged)}
    viet = "".join(ALPHABET[b] for b in " Vi\u1ec7t".encode())
    tall = byte_model(merges, extra=[viet, "ItAll", "123"], ignore_merges=True)
    n_tall = len(tall["vocab"])
    out["llama3"] = whole(tall, sequence(split(LLAMA3), bytes_only), bytes_only, None,
                          sequence(bytes_only, bos_template(n_tall, "<|begin_of_text|>"), key="processors"),
                          [added(n_tall, "<|begin_of_text|>"), added(n_tall + 1, "<|eot_id|>")])
    strings = byte_model(merges, as_strings=True)
    out["gpt2"] = whole(strings, byte_level(use_regex=True), byte_level(True, True), None, byte_level(), chat)
    out["gpt2-prefix"] = whole(strings, prefix, prefix, None, byte_level(), chat)
    out["digits"] = whole(model, sequence({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)),
                          byte_level(), None, None, chat)
    out["digits3"] = whole(model, sequence(split(r"\p{N}{1,3}"), byte_level(use_regex=True)), byte_level(), None, None,
                           chat)
    out["nfkc"] = whole(model, sequence(split(QWEN2), bytes_only), bytes_only, {"type": "NFKC"}, None, chat)
    out["marks"] = whole(model, sequence(split(MARKS), bytes_only), bytes_only, nfc, None, chat)
    out["o200k"] = whole(model, sequence(split(O200K), bytes_only), bytes_only, None, None, chat)
    out["tekken"] = whole(model, sequence(split(TEKKEN), bytes_only), bytes_only, None, None, chat)
    pieces = piece_model(snippets, 500)
    three = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")]
    to_space = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    from_space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    tail = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    out["llama2"] = whole(pieces, None, sequence(to_space, *tail, strip, key="decoders"),
                          sequence({"type": "Prepend", "prepend": "\u2581"}, from_space, key="normalizers"),
                          bos_template(1, "<s>"), three)
    out["metaspace"] = whole(pieces, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first",
                                      "split": False}, sequence(to_space, *tail, strip, key="decoders"), None,
                             bos_template(1, "<s>"), three)
    out["gemma"] = whole(pieces, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                                  "invert": False}, sequence(to_space, *tail, key="decoders"), from_space,
                         bos_template(1, "<s>"), three + [added(len(pieces["vocab"]), "<start_of_turn>", False)])
    return out


# ---- Expectations ----------------------------------------------------------------------------------

CASES = [
    "", " ", "a", "Hello, world!", " Hello  world ", "I'm you'RE it'\u017f", "1234567", "caf\u00e9 cafe\u0301",
    "\u4e2d\u6587 \ud55c\uad6d\uc5b4", "\U0001F44D\U0001F3FD\U0001F469\u200D\U0001F466", "a\x00b",
    "\t\n \r\n\n  x", "\u00a0\u3000x", " Vi\u1ec7t", "ItAll ItAllx", "<|im_start|>user\nhi<|im_end|>\n",
    "x <mask> y<mask>", "  <left>  <right>  <both>  ", "[word] a[word] [word]b ([word])",
    "cafe\u0301tok caf\u00e9tok", "<think>\n\n</think>\n\n", "<s>a</s> b", "\u2581a\u2581\u2581b", "<0x41>",
    "\u0905\u0928 \u0301x", "  \n  \n", "HTTPServer's aBC'LL", "x/\n//", "\x7f\x80\U0010FFFF",
    "<|begin_of_text|>a<|eot_id|>"]


def context(c):
    """A code point beside all the borders that merges show."""
    return f" {c}a{c}1{c}A{c}!{c}\n{c} {c}"


def scalar_blocks():
    every = [c for c in range(0x32000) if not 0xD800 <= c < 0xE000] + list(range(0xE0000, 0xE0200))
    blocks = {}
    for c in every + list(range(0x32000, 0xE0000, 251)) + list(range(0xE0200, 0x110000, 251)):
        key = c >> 8 if c < 0x32000 or 0xE0000 <= c < 0xE0200 else 0x10000 + (c >> 16)
        blocks.setdefault(key, []).append(c)
    return blocks.values()


def encode(tokenizer, texts):
    return [e.ids for e in tokenizer.encode_batch(texts)]


def expectations(text, snippets, scalars, differ):
    tokenizer, out = Tokenizer.from_str(text), b""
    plain = Tokenizer.from_str(json.dumps({**json.loads(text), "added_tokens": []}))
    for text, ids in zip(CASES, encode(tokenizer, CASES)):
        data = text.encode()
        out += b"case %d\n" % len(data) + data + b"\n"
        out += (" ".join(["ids", str(len(ids)), *map(str, ids)]) + "\n").encode()
    for i in range(N_PIECES):
        ids = tokenizer.encode(piece(snippets, i)).ids
        full, short = (tokenizer.decode(ids, skip_special_tokens=s).encode() for s in (False, True))
        text = id_bytes(plain.encode(piece(snippets, i), add_special_tokens=False).ids)
        out += " ".join(["piece", *(fold(fnv(x)) for x in (id_bytes(ids), full, short, text))]).encode() + b"\n"
    for block in scalar_blocks() if scalars else []:
        ids = encode(tokenizer, [context(chr(c)) for c in block])
        parts = [b"", b""]
        for c, i in zip(block, ids):
            parts[c in differ] += id_bytes(i)
        hashes = [fold(fnv(p)) for p in parts]
        out += " ".join(["block", f"{block[0]:x}", str(len(block)), *hashes]).encode() + b"\n"
    return out


def versions_differ():
    nfkc = normalizers.NFKC()
    return {c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (
        unicodedata.category(chr(c)) == "Cn"
        or nfkc.normalize_str(chr(c)) != unicodedata.normalize("NFKC", chr(c)))}


def ranges(codes):
    out, codes = [], sorted(codes)
    for c in codes:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return "".join(f"{lo:x} {hi:x}\n" for lo, hi in out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--real", help="directory of the Qwen3 tokenizer; writes qwen3/expected.txt")
    ap.add_argument("--only", nargs="*", help="names")
    a = ap.parse_args()
    assert unicodedata.unidata_version == "14.0.0", "versions.txt is for Unicode 14"
    OUT.mkdir(parents=True, exist_ok=True)
    snippets = make_snippets()
    (OUT / "snippets.bin").write_bytes(b"".join(b"%d\n%b\n" % (len(s), s) for s in snippets))
    differ = versions_differ()
    (OUT / "versions.txt").write_text(ranges(differ))
    bare = {"digits", "digits3", "gpt2-prefix", "metaspace", "gemma"}
    tokenizers = make_tokenizers(snippets)
    (OUT / "names.txt").write_text("".join(f"{name}\n" for name in tokenizers))
    for name, t in tokenizers.items():
        if a.only and name not in a.only:
            continue
        folder = OUT / name
        folder.mkdir(exist_ok=True)
        text = json.dumps(t, ensure_ascii=False, separators=(",", ":"))
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        tokens = [x["content"] for x in t["added_tokens"]]
        bos = next((x for x in tokens if x in ("<s>", "<|begin_of_text|>")), None)
        eos = next((x for x in tokens if x in ("</s>", "<|eot_id|>", "<|im_end|>")), None)
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": eos}) + "\n")
        (folder / "expected.txt").write_bytes(expectations(text, snippets, name not in bare, differ))
        print(name, len(t["model"]["vocab"]), len(text), "bytes")
    if a.real:
        (OUT / "qwen3").mkdir(exist_ok=True)
        text = (pathlib.Path(a.real) / "tokenizer.json").read_text(encoding="utf-8")
        (OUT / "qwen3" / "expected.txt").write_bytes(expectations(text, snippets, True, differ))


if __name__ == "__main__":
    main()
