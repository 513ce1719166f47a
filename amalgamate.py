#!/usr/bin/env python3
"""Join src/ into the two files that ship: folollm.c and folollm_kernels.cu.

    python3 amalgamate.py                 write both
    python3 amalgamate.py --check         write nothing; fail if either differs by a byte from what would be written
    python3 amalgamate.py --bundle DIR    write to standard output a folollm.c with utf8proc inside, taken from
                                          utf8proc.c, utf8proc.h and utf8proc_data.c in DIR: it needs libc alone

FLOORS is the architecture: files are emitted in this order, and a file may include only what stands above it. Both
outputs carry the version and one hash of all inputs, so that a mismatched pair is found at load.
"""
import argparse
import hashlib
import os
import re
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))

FLOORS = [
    ("base", "base.h error.h error.c memory.h memory.c map.h map.c utf8.h utf8.c math.h math.c os.h os.c pool.h pool.c"),
    ("formats", "json.h json.c dtype.h dtype.c blocks.h blocks.c safetensors.h safetensors.c "
                "safetensors_write.h safetensors_write.c gguf.h gguf.c gguf_write.h gguf_write.c"),
    ("text", "unicode.h unicode.c pretokenize.h pretokenize.c vocab.h vocab.c bpe.h bpe.c added.h added.c normalize.h "
             "normalize.c tokenizer.h tokenizer_impl.h tokenizer_build.h tokenizer_build.c tokenizer_parts.c "
             "tokenizer_load.c tokenizer.c detokenize.c chat.h chat_template.c chat.c tokenizer_gguf.h "
             "tokenizer_gguf.c tokenizer_gguf_write.h tokenizer_gguf_write.c"),
    ("ops", "ops.h packed.h packed.c kernels.h vec_scalar.h vec_avx2.h vec_avx512.h vec_neon.h packed.inc dots.inc "
            "kernels.inc kernels.c cpu.h cpu.c device.h cuda.h cuda.c"),
    ("model", "config_quantised.h config_quantised.c config.h config.c config_gguf.h config_gguf.c adapter.h adapter.c "
              "rope.h rope.c config_gguf_write.h config_gguf_write.c quantised.h quantised.c convert.h convert.c "
              "weights.h weights.c upload.h upload.c generation.h generation.c runner.h runner.c"),
    ("engine", "pages.h pages.c sampler.h sampler.c stream.h stream.c worker.h worker.c adapters.h adapters.c "
               "sequences.h sequences.c "
               "executor.h executor.c scheduler.h scheduler.c ahead.h ahead.c driver.h driver.c snapshot.h snapshot.c"),
    ("api", "engine.h load.c quantize.c api.c"),
]
KERNELS = ["ops/device.h", "ops/cuda_base.cuh", "ops/cuda_weights.cuh", "ops/cuda_rows.cuh", "ops/cuda_products.cuh",
           "ops/cuda_tensor.cuh", "ops/cuda_attention.cuh", "ops/cuda_flash.cuh", "ops/cuda_sampling.cuh",
           "ops/cuda.cu"]
# A host's -ffast-math must not move bits, and its -O1 must not leave out the vzeroupper without which the code that is
# not vectorised, ours and the host's, runs many times slower: these lines stand around folollm.c.
STRICT = """#if defined(__clang__) && (defined(__x86_64__) || defined(__i386__))
#pragma float_control(push)
#pragma float_control(precise, on)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-fast-math", "fp-contract=off", "expensive-optimizations")
#endif
"""
RELAX = """
#if defined(__clang__) && (defined(__x86_64__) || defined(__i386__))
#pragma float_control(pop)
#elif defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
"""
INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.M)


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8", newline="") as f:
        text = f.read()
    if "\r" in text:
        sys.exit(f"amalgamate.py: {path} has carriage returns; lines end with \\n here")
    return text


def ordered_files():
    files = [f"{floor}/{name}" for floor, names in FLOORS for name in names.split()]
    on_disk = {f"{floor}/{name}" for floor in os.listdir(os.path.join(ROOT, "src"))
               for name in os.listdir(os.path.join(ROOT, "src", floor))}
    for path in sorted(on_disk ^ set(files + KERNELS)):
        sys.exit(f"amalgamate.py: src/{path} is on disk or in FLOORS, but not in both")
    return files


def check_includes(files):
    rank = {path: i for i, path in enumerate(files)}
    for path in files:
        for target in INCLUDE.findall(read("src/" + path)):
            if target != "folollm.h" and rank.get(target, len(files)) >= rank[path]:
                sys.exit(f"amalgamate.py: src/{path} includes {target}, which does not stand above it")


def version(header):
    text = re.search(r'#define FOLOLLM_VERSION "(\d+)\.(\d+)\.(\d+)"', header)
    number = re.search(r"#define FOLOLLM_VERSION_NUMBER (\d+)", header)
    major, minor, patch = map(int, text.groups())
    if int(number.group(1)) != major * 10000 + minor * 100 + patch:
        sys.exit("amalgamate.py: FOLOLLM_VERSION and FOLOLLM_VERSION_NUMBER disagree")
    return ".".join(text.groups())


def body(path):
    """A file with its own includes taken out; a .inc, which is a body with parameters, is put in at each include."""
    def replace(match):
        target = match.group(1)
        if target.endswith(".inc"):
            return f"/* begin {target} */\n{body(target)}/* end {target} */\n"
        return ""
    text = INCLUDE.sub(replace, read("src/" + path))
    return re.sub(r"\n{3,}", "\n\n", text)


def stamp(what, number, digest):
    return (f"/* {what} {number}, generated by amalgamate.py from the files of src/: edit those, not this one.\n"
            f" * sources: {digest}\n"
            " * MIT licence, see the end of the file. How to use it stands in folollm.h. */\n")


def licence():
    return "\n/*\n" + "".join(f" * {line}".rstrip() + "\n" for line in read("LICENSE").splitlines()) + " */\n"


def generate():
    files = ordered_files()
    check_includes(files)
    check_includes(KERNELS)
    header = read("folollm.h")
    inputs = "".join(f"{p}\n{read('src/' + p)}" for p in dict.fromkeys(files + KERNELS)) + header
    digest, number = hashlib.sha256(inputs.encode()).hexdigest(), version(header)
    define = f'#define FOLOLLM_SOURCE_HASH "{digest}"\n'
    parts = [stamp("folollm.c", number, digest), "\n", define, '#ifndef _GNU_SOURCE\n#define _GNU_SOURCE\n#endif\n',
             '#include "folollm.h"\n', STRICT]
    parts += [f"\n/* ==== src/{p} ==== */\n\n{body(p)}" for p in files if not p.endswith(".inc")]
    kernels = [stamp("folollm_kernels.cu", number, digest), "\n", define] + [
        f"\n/* ==== src/{p} ==== */\n\n{body(p)}" for p in KERNELS]
    return {"folollm.c": "".join(parts) + RELAX + licence(), "folollm_kernels.cu": "".join(kernels) + licence()}


def bundle(directory):
    """folollm.c with utf8proc's two files in place of its include, everything of it static."""
    def load(name):
        with open(os.path.join(directory, name), encoding="utf-8") as f:
            return f.read()
    source = load("utf8proc.c")
    source = source.replace('#include "utf8proc.h"\n', load("utf8proc.h"))
    source = source.replace('#include "utf8proc_data.c"\n', load("utf8proc_data.c"))
    source = re.sub(r"^( *# *define +UTF8PROC_DLLEXPORT).*$", r"\1 static", source, flags=re.M)
    source = source.replace("UTF8PROC_DLLEXPORT extern ", "UTF8PROC_DLLEXPORT ")
    quiet = ('#ifdef __GNUC__\n#pragma GCC diagnostic push\n#pragma GCC diagnostic ignored "-Wunused-function"\n'
             '#pragma GCC diagnostic ignored "-Wunused-const-variable"\n'
             '#pragma GCC diagnostic ignored "-Wconversion"\n#pragma GCC diagnostic ignored "-Wsign-conversion"\n'
             '#pragma GCC diagnostic ignored "-Wextra"\n#endif\n')
    loud = "#ifdef __GNUC__\n#pragma GCC diagnostic pop\n#endif\n"
    text = generate()["folollm.c"]
    return text.replace("#include <utf8proc.h>\n", quiet + source + loud, 1).replace("#include <utf8proc.h>\n", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--bundle", metavar="DIR")
    args = parser.parse_args()
    if args.bundle:
        sys.stdout.write(bundle(args.bundle))
        return
    for name, text in generate().items():
        path = os.path.join(ROOT, name)
        if not args.check:
            with open(path, "w", encoding="utf-8", newline="\n") as f:
                f.write(text)
        elif not os.path.exists(path) or read(name) != text:
            sys.exit(f"amalgamate.py: {name} is not what src/ gives: run python3 amalgamate.py")


if __name__ == "__main__":
    main()
