#!/usr/bin/env python3
"""Writes tests/vectors/gguf_tokenizers/: tokenizers as the metadata of GGUF files, and what others make of texts.

    venv/bin/python make_gguf_tokenizers.py

Needs gguf, tokenizers, transformers and llama_cpp_python (0.3.36 with the llama.cpp that it vendors). The same versions
write the same bytes. Files, all read by tests/test_gguf_text.c:

    gpt2.gguf, llama3.gguf    the tokenizers of tests/vectors/tokenizers with these names
    llama2.gguf, gemma.gguf   their pieces with scores instead of merges, as SentencePiece has them
    llama2.json, gemma.json   the same as tokenizer.json, with the merges that transformers makes of scores
    ids.txt     "case LENGTH\\nBYTES\\n" for every text, then "tokenizer NAME", and for every text
                "hf ID ..." of tokenizers, "llama ID ..." or "llama =" of llama.cpp, special tokens recognised

Tokenizers that differ from gpt2.gguf in "tokenizer.ggml.pre" only are not written: the test makes them of that file.

Where llama.cpp gives other ids than tokenizers, found with 14333 texts for each (the snippets, random texts of them,
and code points beside what merges with them); folollm takes tokenizers' side everywhere:

    qwen2, qwen35     llama.cpp does not normalise to NFC
    gpt-4o, tekken    it tells upper from lower case in ASCII only, and letters from marks otherwise
    all but llama     its tables of letters and numbers are of an older Unicode (U+1C89, U+13460)
    any               an ordinary token that is spelled like one that ends a text ("</s>" in Qwen's vocabulary) is made
                      a control token
    llama             none otherwise, on the two models here and on two that sentencepiece trained on 1.5 MB
"""
import json
import pathlib
import tempfile

import gguf
from llama_cpp import Llama
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import generate_merges

from make_tokenizers import CASES, OUT as TOKENIZERS

OUT = TOKENIZERS.parent / "gguf_tokenizers"
EXTRA = ["a  ", "x \n ", "the the house", "\u2581\u2581\u2581\u2581 \u2581", "<start_of_turn>the", "     x   y"]
# Name of a tokenizer, "pre" that stands for it; those that gpt2.gguf becomes.
BYTE_LEVEL = {"gpt2": "gpt-2", "qwen2": "qwen2", "digits": "smollm", "marks": "qwen35", "o200k": "gpt-4o",
              "tekken": "tekken", "llama3": "llama-bpe"}
WRITTEN = {"gpt2", "llama3"}


def read(name):
    """A tokenizer.json of the other vectors. qwen2 is there with tokens that GGUF cannot express; nfkc has the same
    pattern."""
    text = (TOKENIZERS / ("nfkc" if name == "qwen2" else name) / "tokenizer.json").read_text(encoding="utf-8")
    return json.loads(text.replace('"NFKC"', '"NFC"') if name == "qwen2" else text)


def writer(path, model, pre, tokens, types):
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model(model)
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    return w


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def tokens_of(t):
    """Spellings by id, and types."""
    ids = {i: s for s, i in t["model"]["vocab"].items()} | {a["id"]: a["content"] for a in t["added_tokens"]}
    types = [gguf.TokenType.NORMAL] * len(ids)
    for a in t["added_tokens"]:
        types[a["id"]] = gguf.TokenType.CONTROL if a["special"] else gguf.TokenType.USER_DEFINED
    return [ids[i] for i in range(len(ids))], types


def write_byte_level(path, t, pre):
    tokens, types = tokens_of(t)
    w = writer(path, "gpt2", pre, tokens, types)
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]])
    for name, add in (("<|begin_of_text|>", w.add_bos_token_id), ("<|im_end|>", w.add_eos_token_id),
                      ("<|eot_id|>", w.add_eos_token_id)):
        if name in tokens:
            add(tokens.index(name))
    w.add_add_bos_token("<|begin_of_text|>" in tokens)
    finish(w)


def scores_of(t):
    """Pieces that a merge makes by their rank, then single characters, as SentencePiece numbers them."""
    made = {}
    for a, b in t["model"]["merges"]:
        made.setdefault(a + b, -1.0 - len(made))
    scores, n = [], len(made)
    for token in t["model"]["vocab"]:
        plain = len(token) == 1
        n += plain
        scores.append(made.get(token, -float(n) if plain else 0.0))
    return scores


def write_pieces(path, t, prefix):
    scores = scores_of(t)
    vocab = dict(t["model"]["vocab"])
    t["model"]["merges"] = [list(m) for m in generate_merges(vocab, dict(zip(vocab, scores)))]
    tokens, types = tokens_of(t)
    for i, token in enumerate(tokens):
        types[i] = gguf.TokenType.BYTE if token.startswith("<0x") else types[i]
    types[0] = gguf.TokenType.UNKNOWN
    w = writer(path, "llama", "default", tokens, types)
    w.add_token_scores(scores + [-1000.0] * (len(tokens) - len(scores)))
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(prefix)
    finish(w)


def lines(name, path, t):
    tokenizer = Tokenizer.from_str(json.dumps(t))
    llama = Llama(str(path), vocab_only=True, verbose=False)
    out = f"tokenizer {name}\n"
    for text in CASES + EXTRA:
        ids = tokenizer.encode(text).ids
        other = llama.tokenize(text.encode(), add_bos=True, special=True)
        out += " ".join(["hf", *map(str, ids)]) + "\n"
        out += ("llama =" if other == ids else " ".join(["llama", *map(str, other)])) + "\n"
    return out


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    out = b"".join(b"case %d\n%b\n" % (len(c.encode()), c.encode()) for c in CASES + EXTRA)
    with tempfile.TemporaryDirectory() as scratch:
        for name, pre in BYTE_LEVEL.items():
            path = (OUT if name in WRITTEN else pathlib.Path(scratch)) / f"{name}.gguf"
            t = read(name)
            write_byte_level(path, t, pre)
            out += lines(name, path, t).encode()
    for name in ("llama2", "gemma"):
        path, t = OUT / f"{name}.gguf", read(name)
        write_pieces(path, t, name == "llama2")
        text = json.dumps(t, ensure_ascii=False, separators=(",", ":"))
        (OUT / f"{name}.json").write_text(text, encoding="utf-8")
        out += lines(name, path, t).encode()
    (OUT / "ids.txt").write_bytes(out)


if __name__ == "__main__":
    main()
