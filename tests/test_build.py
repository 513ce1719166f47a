#!/usr/bin/env python3
"""The host audit: what folollm.c asks of a program that contains it, and what it leaves alone.

    python3 tests/test_build.py [WORD...]     only the groups whose names contain one of the words

Each check prints one line; what this machine has no tool for is printed as skipped and counted by nobody. The last line
is "N passed, N failed". The groups run side by side, as many processes as there are processors, and print in order.
"""
import concurrent.futures
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = "examples/models/tiny-shakespeare"
LIBS = ["-lutf8proc", "-lm", "-lpthread"]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
PEDANTIC = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
X86 = os.uname().machine in ("x86_64", "AMD64")
NATIVE = ["-march=native"] if X86 else []
C_COMPILERS = [c for c in ("gcc", "clang") if shutil.which(c)]
CXX_COMPILERS = [c for c in ("g++", "clang++") if shutil.which(c)]
# What hosts compile with; the bits of all are compared with those of the first. -fno-pic, because without it a constant
# table of addresses looks like writable data.
BUILDS = [["-std=gnu17", "-O2"], ["-std=c99", "-O0", "-fno-pic"], ["-std=c99", "-O3", *NATIVE],
          ["-std=gnu17", "-O3", "-ffast-math", *NATIVE]]
IMPORTS = set("""
    bcmp memchr memcmp memcpy memmove memset strchr strcmp strcspn strlen realloc free fma fmaf rintf sqrtf
    open pread close fstat mmap munmap madvise open64 pread64 fstat64 mmap64 sysconf __errno_location
    pthread_create pthread_join pthread_mutex_init pthread_mutex_destroy pthread_mutex_lock pthread_mutex_unlock
    pthread_cond_init pthread_cond_destroy pthread_cond_wait pthread_cond_signal pthread_cond_broadcast sched_yield getauxval
    __stack_chk_fail _GLOBAL_OFFSET_TABLE_
""".split())
TOP_LEVEL = r"folollm\.[ch]|folollm_kernels\.cu|amalgamate\.py|src|tests|examples|README\.md|LICENSE|\..*"

pool = concurrent.futures.ThreadPoolExecutor(32)
slots = threading.Semaphore(os.cpu_count())
group = threading.local()  # .reports of the group that runs in this thread: pairs of kind and line


def report(kind, what, detail=""):
    group.reports.append((kind, f"{kind}: {what}" + (f": {detail.strip()[:2000]}" if detail else "")))


def check(ok, what, detail=""):
    report("passed" if ok else "failed", what, "" if ok else detail)
    return ok


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    return path


def run(*command, cwd=ROOT, timeout=300):
    """Exit status, and everything printed; a missing program or one that runs out of time counts as failed."""
    try:
        with slots:
            p = subprocess.run(command, cwd=cwd, timeout=timeout, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as e:
        return 127, str(e)
    return p.returncode, p.stdout


def silent(what, commands):
    """One check: all commands succeed and print nothing."""
    if not commands:
        return report("skipped", what, "no compiler for it")
    results = pool.map(lambda command: run(*command), commands)
    bad = [f"{shlex.join(c)}\n{out}" for c, (status, out) in zip(commands, results) if status != 0 or out]
    check(not bad, what, "\n".join(bad))


def copy_tree(to):
    for name in ("folollm.h", "folollm.c", "folollm_kernels.cu", "amalgamate.py", "LICENSE"):
        shutil.copy(os.path.join(ROOT, name), to)
    shutil.copytree(os.path.join(ROOT, "src"), os.path.join(to, "src"))


# ---- The generated files ---------------------------------------------------------------------------


def group_amalgamation(work):
    status, out = run(sys.executable, "amalgamate.py", "--check")
    check(status == 0, "amalgamate.py --check: what ships is what src/ gives", out)

    def refused(what, says, damage):
        with tempfile.TemporaryDirectory(dir=work) as tree:
            copy_tree(tree)
            run(sys.executable, "amalgamate.py", cwd=tree)
            damage(tree)
            status, out = run(sys.executable, "amalgamate.py", "--check", cwd=tree)
            check(status != 0 and re.fullmatch(f"amalgamate.py: {says}.*\n", out), f"amalgamate.py refuses {what}", out)

    def edit(name, old, new):
        def damage(tree):
            path = os.path.join(tree, name)
            text = read(path)
            assert old in text
            write(path, text.replace(old, new, 1))
        return damage

    refused("a changed byte in folollm.c", "folollm.c is not what", edit("folollm.c", "static", "Static"))
    refused("a changed byte in folollm_kernels.cu", "folollm_kernels.cu is not what",
            edit("folollm_kernels.cu", "folollm", "Folollm"))
    refused("a file that is gone", "folollm.c is not what", lambda tree: os.remove(f"{tree}/folollm.c"))
    refused("an include that points down", "src/formats/json.h includes api/engine.h",
            edit("src/formats/json.h", "#include", '#include "api/engine.h"\n#include'))
    refused("a file that FLOORS does not name", "src/base/extra.c is", lambda tree: write(f"{tree}/src/base/extra.c", ""))
    refused("a name in FLOORS without a file", "src/base/math.c is", lambda tree: os.remove(f"{tree}/src/base/math.c"))
    refused("a version and a number that disagree", "FOLOLLM_VERSION and FOLOLLM_VERSION_NUMBER",
            edit("folollm.h", "#define FOLOLLM_VERSION_NUMBER ", "#define FOLOLLM_VERSION_NUMBER 9"))


# ---- Any build -------------------------------------------------------------------------------------


def group_headers(work):
    silent("folollm.h alone is C99", [[c, "-std=c99", *PEDANTIC, "-fsyntax-only", "-x", "c", "folollm.h"]
                                      for c in C_COMPILERS])
    silent("folollm.h alone is C++11", [[c, "-std=c++11", *PEDANTIC, "-fsyntax-only", "-x", "c++", "folollm.h"]
                                        for c in CXX_COMPILERS])
    examples = sorted(glob.glob("examples/*.c", root_dir=ROOT))
    silent("the examples are C99", [[c, "-std=c99", *PEDANTIC, "-O2", "-I.", "-c", "-o", f"{work}/{c}.o", f]
                                    for c in C_COMPILERS for f in examples])
    files = sorted(glob.glob("src/*/*.[ch]", root_dir=ROOT))
    silent("each file of src/ compiles alone", [["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function",
                                                 "-Isrc", "-I.", "-DFL_LOCAL=", "-fsyntax-only", "-x", "c", f]
                                                for f in files])


def group_cplusplus(work):
    if not CXX_COMPILERS:
        return report("skipped", "a C++11 program linked with folollm.c", "no C++ compiler")
    cxx, program = CXX_COMPILERS[0], f"{work}/test_header_cpp"
    silent("test_header.cpp compiles and links with folollm.c as C", [
        ["sh", "-c", f"cc -c folollm.c -o {program}.o && {cxx} -std=c++11 {' '.join(PEDANTIC)} tests/test_header.cpp "
                     f"{program}.o -o {program} {' '.join(LIBS)}"]])
    status, out = run(program)
    check(status == 0 and re.search(r"\d+ passed, 0 failed$", out.strip()), "the C++11 program runs", out)


# ---- One object, many flags ------------------------------------------------------------------------


def models(work):
    """The shipped model, and the same weights with RoPE kinds whose tables take more arithmetic."""
    paths = [MODEL]
    config = json.loads(read(f"{MODEL}/config.json"))
    scalings = [{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 64},
                {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}]
    for scaling in scalings:
        path = f"{work}/{scaling['rope_type']}"
        shutil.copytree(os.path.join(ROOT, MODEL), path)
        write(f"{path}/config.json", json.dumps({**config, "rope_scaling": scaling}))
        paths.append(path)
    return paths


def group_flags(work):
    """Compiles under every set of flags in silence, leaves only allowed symbols, and gives the same bits."""
    builds = [(c, flags, f"{work}/{c}{i}.o") for i, flags in enumerate(BUILDS) for c in C_COMPILERS]
    results = list(pool.map(lambda b: run(b[0], *b[1], *WARNINGS, "-c", "folollm.c", "-o", b[2]), builds))
    for (c, flags, _), (status, out) in zip(builds, results):
        check(status == 0 and not out, f"{c} {' '.join(flags)}: warns about nothing", out)
    for (c, flags, o), (status, out) in zip(builds, results):
        if status != 0:  # the checks below are about what the object holds, not about warnings
            run(c, *flags, "-w", "-c", "folollm.c", "-o", o)
    audit_symbols([o for _, _, o in builds])
    for c, flags, o in builds:
        if "-fno-pic" in flags:
            audit_data(f"{c} {' '.join(flags)}", o)
    compare_bits(work, builds)


def audit_symbols(objects):
    header = read("folollm.h")
    declared = set(re.findall(r"^FOLOLLM_API\b[^;(]*?\b(folollm_\w+)\(", header, re.M))
    renamed = set(re.findall(r"^#define (folollm_\w+) FOLOLLM_JOIN\(FOLOLLM_PREFIX, \1\)$", header, re.M))
    check(declared and declared == renamed, "FOLOLLM_PREFIX renames every function", str(sorted(declared ^ renamed)))
    defined, imported = [], set()
    for o in objects:
        defined.append({line.split()[-1] for line in run("nm", "-g", "--defined-only", o)[1].splitlines()})
        imported |= {line.split()[-1] for line in run("nm", "-u", o)[1].splitlines()}
    wrong = sorted(set().union(*(d ^ declared for d in defined)))
    check(not wrong, "each object exports the functions of folollm.h, and nothing else", str(wrong))
    unexpected = sorted(i for i in imported if i not in IMPORTS and not i.startswith("utf8proc_"))
    check(not unexpected, "imports: memory, strings, files, threads, arithmetic, utf8proc", str(unexpected))


def audit_data(build, o):
    symbols = [line for line in run("nm", o)[1].splitlines() if re.search(r" [bBdDcCsSgG] ", line)]
    size = run("size", o)[1].splitlines()[-1].split()
    check(not symbols and size[1:3] == ["0", "0"], f"{build}: no writable data", "\n".join(symbols + size))


def compare_bits(work, builds):
    """logits_hash.c linked with each object: kernels and threads agree in the first, and all others agree with it. What is
    not optimised is slow, and runs one model."""
    run("cc", "-O1", "-c", "tests/logits_hash.c", "-o", f"{work}/logits_hash.o")
    paths = models(work)

    def lines(build):
        c, flags, o = build
        pie = ["-no-pie"] if "-fno-pic" in flags else []
        fast = ["-ffast-math"] if "-ffast-math" in flags else []  # the linker then sets flush-to-zero at start
        status, out = run(c, *pie, *fast, f"{work}/logits_hash.o", o, "-o", o + ".bin", *LIBS)
        return (status, out) if status != 0 else run(o + ".bin", *(paths[:1] if "-O0" in flags else paths))

    results = list(pool.map(lines, builds))
    reference = results[0][1].splitlines()
    kinds = {}
    for line in reference:
        model, weights, kv, _isa, _threads, digest = line.split()
        kinds.setdefault((model, weights, kv), set()).add(digest)
    check(results[0][0] == 0 and len(kinds) == 11 * len(paths) and all(len(k) == 1 for k in kinds.values()),
          "logits are the same bits for every table of kernels and number of threads", results[0][1])
    for (c, flags, _), (status, out) in zip(builds[1:], results[1:]):
        differing = [line for line in out.splitlines() if line not in reference]
        check(status == 0 and out and not differing,
              f"{c} {' '.join(flags)}: the logits of {builds[0][0]} {' '.join(builds[0][1])}",
              f"{len(differing)} of {len(out.splitlines())} lines differ:\n" + "\n".join(differing[:5]))


# ---- Ways in ---------------------------------------------------------------------------------------


def group_include(work):
    """Header-only style in a fast-math host, folollm.c inside a file that has included what hosts include; and two
    copies with prefixes in one program. All print the same."""
    host = write(f"{work}/host.c", "#include <math.h>\n#include <stdio.h>\n#include <string.h>\n" +
                 ("#include <immintrin.h>\n" if X86 else "") +
                 f'#include "{ROOT}/folollm.c"\n#include "{ROOT}/tests/logits_hash.c"\n')

    def build(c):
        warnings = run(c, "-O1", "-ffast-math", *NATIVE, *WARNINGS[:-1], host, "-o", f"{work}/host_{c}", *LIBS)
        return warnings, run(f"{work}/host_{c}", MODEL)

    builds = pool.map(build, C_COMPILERS)
    reference = two_copies(work)
    for c, ((status, warnings), (_, out)) in zip(C_COMPILERS, builds):
        check(status == 0 and not warnings, f'{c}: #include "folollm.c" warns about nothing', warnings)
        check(out and out == reference, f'{c} -ffast-math: #include "folollm.c" gives the same bits', out)


def two_copies(work):
    """What each of them prints."""
    run("cc", "-O1", "-c", "tests/two_copies.c", "-o", f"{work}/two.o")
    commands = [["cc", "-O1", "-w", f"-DFOLOLLM_PREFIX={p}_", f"-Dmain={p}_main", "-c", source, "-o", f"{work}/{p}{i}.o"]
                for p in "ab" for i, source in enumerate(("folollm.c", "tests/logits_hash.c"))]
    silent("folollm.c compiles with FOLOLLM_PREFIX", commands)
    status, out = run("cc", *(c[-1] for c in commands), f"{work}/two.o", "-o", f"{work}/two", *LIBS)
    if status == 0:
        status, out = run(f"{work}/two", MODEL)
    half = len(out) // 2
    check(status == 0 and half > 0 and out[:half] == out[half:], "two copies in one program, equal logits", out)
    return out[:half]


def group_integrator(work):
    """The line of folollm.h, in a folder with nothing but the three files; then the same with utf8proc inside."""
    for name in ("folollm.h", "folollm.c"):
        shutil.copy(os.path.join(ROOT, name), work)
    shutil.copy(os.path.join(ROOT, "examples/hello.c"), f"{work}/app.c")
    line = "cc app.c folollm.c -lutf8proc -lm -lpthread"
    check(line in read("folollm.h"), "folollm.h says how to build")
    status, out = run(*line.split(), cwd=work)
    check(status == 0 and not out, line, out)
    status, text = run(f"{work}/a.out")
    check(status == 0 and len(text) > 100, "hello.c prints text", text)
    bundled(work, text)
    quiet(work)


def bundled(work, text):
    source = f"{ROOT}/tests/build/utf8proc"
    if not os.path.exists(f"{source}/utf8proc.c"):
        status, out = run("tests/get_utf8proc.sh", source, timeout=120)
        if status != 0:
            return report("skipped", "amalgamate.py --bundle", f"no source of utf8proc: {out}")
    os.mkdir(f"{work}/bundle")
    shutil.copy(f"{work}/folollm.h", f"{work}/bundle")
    write(f"{work}/bundle/folollm.c", run(sys.executable, "amalgamate.py", "--bundle", source)[1])
    for c in C_COMPILERS:
        status, out = run(c, *WARNINGS, "-c", "folollm.c", cwd=f"{work}/bundle")
        check(status == 0 and not out, f"{c}: the bundled folollm.c warns about nothing", out)
    status, out = run("cc", "-Ibundle", "app.c", "bundle/folollm.o", "-o", "bundled", "-lm", "-lpthread", cwd=work)
    check(status == 0 and not out, "the bundled folollm.c links with libc alone", out)
    check(run(f"{work}/bundled")[1] == text, "the bundled hello.c prints the same text")


def quiet(work):
    """What hello.c with one thread asks of the kernel, beyond what an empty program asks."""
    if run("strace", "-o", "/dev/null", "true")[0] != 0:
        return report("skipped", "strace audit", "no strace, or it may not trace here")
    options = "&(folollm_options){.n_threads = 1}, &llm"
    write(f"{work}/app.c", read("examples/hello.c").replace("NULL, &llm", options))
    assert options in read(f"{work}/app.c")
    run("cc", "app.c", "folollm.c", *LIBS, "-o", "quiet", cwd=work)
    trace = f"{work}/trace"
    status, out = run("strace", "-f", "-o", trace, f"{work}/quiet")
    calls = re.findall(r"^\d+ +(\w+)\((.*)", read(trace), re.M)
    calls = calls[[i for i, c in enumerate(calls) if MODEL in c[1]][0]:]  # libc and the loader have started
    allowed = set("openat fstat newfstatat pread64 close mmap munmap mremap brk madvise exit_group".split())
    odd = [f"{name}({rest}" for name, rest in calls
           if not (name in allowed or name == "write" and rest.startswith("1,"))
           or name == "openat" and not (MODEL in rest and "O_RDONLY" in rest)]
    check(status == 0 and calls and not odd, "one thread: files of the model read, stdout written, nothing else",
          "\n".join(odd))


# ---- The rest of the repository --------------------------------------------------------------------


def group_kernels(work):
    hashes = [re.search(r'#define FOLOLLM_SOURCE_HASH "(\w{64})"', read(f)) for f in ("folollm.c", "folollm_kernels.cu")]
    check(all(hashes) and hashes[0][1] == hashes[1][1], "folollm.c and folollm_kernels.cu carry the same hash")
    status, out = run("cc", *WARNINGS, "-DFOLOLLM_CUDA", "-fsyntax-only", "folollm.c")
    check(status == 0, "folollm.c compiles with FOLOLLM_CUDA", out)
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return report("skipped", "folollm_kernels.cu compiles", "no nvcc")
    status, out = run(nvcc, "-Xptxas", "-v", "-arch=sm_90", "-c", "folollm_kernels.cu", "-o", f"{work}/kernels.o")
    spills = re.findall(r"(\d+) bytes spill", out)
    check(status == 0 and "warning" not in out, "folollm_kernels.cu compiles", out)
    check(len(spills) > 100 and set(spills) == {"0"}, "its kernels keep everything in registers", out)
    status, out = run("nm", "-g", "--defined-only", f"{work}/kernels.o")
    check(re.findall(r" T ([a-z]\w+)", out) == ["folollm_kernels"], "it exports one function", out)
    status, out = run(nvcc, "-Xcompiler", "-Wall,-Wextra,-Werror", "-arch=sm_90", "-c", "tests/bench/limits.cu", "-o",
                      f"{work}/limits.o")
    check(status == 0 and "warning" not in out, "tests/bench/limits.cu compiles", out)


def group_readme(work):
    """The README's first sh block runs in a fresh copy; its first c block is the example that the tests run."""
    if not os.path.exists(f"{ROOT}/README.md"):
        return report("skipped", "README.md", "it is not there")
    readme = read("README.md")
    blocks = {language: re.search(rf"^```{language}\n(.*?)^```", readme, re.M | re.S) for language in ("sh", "c")}
    check("make -C tests" in readme, "README.md says how to run the tests")
    check(blocks["c"] and blocks["c"][1] == read("examples/hello.c"), "the README's program is examples/hello.c")
    fresh = f"{work}/fresh"
    shutil.copytree(ROOT, fresh, ignore=shutil.ignore_patterns(".git", "build", "*.o", "hello", "__pycache__"))
    if os.path.exists(f"{fresh}/examples/folollm"):
        os.remove(f"{fresh}/examples/folollm")
    for line in blocks["sh"][1].splitlines() if blocks["sh"] else ["false"]:
        line = " && ".join(step for step in line.split(" && ") if not step.startswith("apt-get "))
        status, out = run("sh", "-c", line, cwd=fresh)
        check(status == 0 and out, f"README.md: {line}", out)


def repository_files():
    status, out = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    if status == 0:
        return [f for f in out.splitlines() if os.path.isfile(os.path.join(ROOT, f))]
    return [os.path.relpath(os.path.join(folder, name), ROOT) for folder, _, names in os.walk(ROOT) for name in names
            if "/build" not in folder and "/.git" not in folder and "__pycache__" not in folder]


def group_hygiene(work):
    left_over = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|(?<![\w.])/(work|farm|home|root|Users)/\w")
    files, found = repository_files(), []
    for name in files:
        if re.search(r"\.(c|h|inc|cpp|cu|py|sh|md|gitignore)$|Makefile$|^\.ci/", name):
            found += [f"{name}:{i}: {line}" for i, line in enumerate(read(name).splitlines(), 1) if left_over.search(line)]
    check(not found, "nothing left over, and no path of one machine", "\n".join(found))
    odd = sorted({f.split("/")[0] for f in files if not re.fullmatch(TOP_LEVEL, f.split("/")[0])})
    check(not odd, "the top level holds what it should", str(odd))


def run_group(f):
    group.reports = []
    with tempfile.TemporaryDirectory() as work:
        f(work)
    return group.reports


def main():
    groups = [f for name, f in globals().items() if name.startswith("group_")
              and (len(sys.argv) == 1 or any(word in name[6:] for word in sys.argv[1:]))]
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    threads = concurrent.futures.ThreadPoolExecutor(len(groups) or 1)  # apart from the pool, which they wait for
    for reports in threads.map(run_group, groups):
        for kind, line in reports:
            counts[kind] += 1
            print(line, flush=True)
    if counts["skipped"]:
        print(counts["skipped"], "skipped: see above")
    print(f"{counts['passed']} passed, {counts['failed']} failed")
    sys.exit(counts["failed"] != 0)


main()
