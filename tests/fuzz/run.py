#!/usr/bin/env python3
"""run.py [--seconds N] [--runs N] [--seed N] [--merge] NAME...   runs build/fuzz/NAME for each harness in turn.

An input that a harness finds something with stays in build/fuzz/findings, and its report is printed. What is new to a
harness is kept in build/fuzz/kept/NAME for the next time; with a seed it begins with the committed corpus alone, so
that the same seed and number of runs are the same executions. --merge: write the committed corpus anew, of what
seeds.py makes and build/fuzz/kept has, without what adds nothing. The last line is how many harnesses passed and
failed."""
import argparse
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(os.path.dirname(HERE), "build", "fuzz")

# Most bytes of an input, and KiB of stack under the sanitizers; those that compute need more for their kernels.
LIMITS = {"json": (256, 128), "safetensors": (1024, 128), "config": (1024, 128), "tokenizer": (2048, 256),
          "chat": (4096, 256), "adapter": (1024, 128), "checkpoint": (8192, 1024), "gguf": (8192, 1024),
          "gguf_tokenizer": (2048, 256), "snapshot": (1024, 1024)}

# What runs without counting how often a place is reached: of a model's loops that keeps ever larger inputs.
UNCOUNTED = ("gguf",)


def path(*parts):
    os.makedirs(os.path.join(BUILD, *parts[:-1]), exist_ok=True)
    return os.path.join(BUILD, *parts)


def empty(*parts):
    shutil.rmtree(path(*parts), ignore_errors=True)
    os.makedirs(path(*parts))
    return path(*parts)


def command(name, *arguments):
    size, _ = LIMITS[name]
    words = [path(name), *arguments, f"-max_len={size}", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1",
             f"-artifact_prefix={path('findings', name)}-", f"-use_counters={int(name not in UNCOUNTED)}"]
    dictionary = os.path.join(HERE, "dict", f"{name}.dict")
    return words + ([f"-dict={dictionary}"] if os.path.exists(dictionary) else [])


def execute(name, words):
    stack = LIMITS[name][1] * 1024
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (stack, -1)))


def corpus(name):
    """The committed inputs, unpacked."""
    to = empty("corpus", name)
    packed = os.path.join(HERE, "corpus", f"{name}.zip")
    if os.path.exists(packed):
        with zipfile.ZipFile(packed) as z:
            z.extractall(to)
    return to


def fuzz(name, options):
    os.makedirs(path("findings"), exist_ok=True)
    work = empty("once", name) if options.seed else path("kept", name)
    os.makedirs(work, exist_ok=True)
    words = command(name, work, corpus(name))
    words += [f"-seed={options.seed}"] if options.seed else []
    words += [f"-runs={options.runs}"] if options.runs else [f"-max_total_time={options.seconds}"]
    done = execute(name, words)
    stats = dict(re.findall(r"^stat::(\w+): +(\d+)", done.stdout, re.M))
    executions = int(stats.get("number_of_executed_units", 0))
    took = re.findall(r"Done \d+ runs in (\d+) second", done.stdout)
    good = done.returncode == 0 and executions >= max(options.runs, 1) and bool(took)
    if not good:
        print("\n".join(done.stdout.splitlines()[-60:]))
    print(f"{name}: {executions} executions" + (f" in {took[0]} s" if took else "") +
          f", {len(os.listdir(work))} new inputs" + ("" if good else ": FAILED"), flush=True)
    return good


def merge(name, seeds):
    """Write the corpus anew: the smallest inputs that together reach what all do."""
    to, sources = empty("merged", name), [corpus(name)]
    sources += [d for d in (os.path.join(seeds, name), path("kept", name)) if os.path.isdir(d)]
    done = execute(name, command(name, "-runs=0", *sources))  # merging alone would pass over what ends a harness
    if done.returncode == 0:
        done = execute(name, command(name, "-set_cover_merge=1", "-use_counters=0", to, *sources))
    if done.returncode != 0:
        print("\n".join(done.stdout.splitlines()[-60:]))
        return False
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        for i, file in enumerate(sorted(os.listdir(to))):
            with open(os.path.join(to, file), "rb") as f:
                z.writestr(zipfile.ZipInfo(f"{i:04}"), f.read(), zipfile.ZIP_DEFLATED)
    with open(os.path.join(HERE, "corpus", f"{name}.zip"), "wb") as f:
        f.write(packed.getvalue())
    print(f"{name}: {len(os.listdir(to))} inputs, {len(packed.getvalue())} bytes packed", flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("names", nargs="+", choices=sorted(LIMITS))
    options = parser.parse_args()
    if options.merge:
        seeds = empty("seeds")
        subprocess.run([sys.executable, os.path.join(HERE, "seeds.py"), seeds], check=True)
    good = [merge(n, seeds) if options.merge else fuzz(n, options) for n in options.names]
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed")
    sys.exit(not all(good))


main()
