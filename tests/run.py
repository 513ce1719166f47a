#!/usr/bin/env python3
"""run.py COMMAND...   runs each in the repository's root until one fails; the last line is the sum of their last lines."""
import os
import re
import shlex
import subprocess
import sys
import time

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
passed = failed = 0
for command in sys.argv[1:]:
    print("==", command, flush=True)
    begin, last = time.monotonic(), ""
    process = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               errors="replace")
    for line in process.stdout:
        print(line, end="", flush=True)
        last = last if line.startswith("make: Leaving") else line
    status = process.wait()
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed\n", last)
    passed += int(counts[1]) if counts else 0
    failed += int(counts[2]) if counts else 0
    if status != 0 or counts is None:
        failed += counts is None or int(counts[2]) == 0
        print(f"== {command}: exit status {status}" + ("" if counts else ", no closing line"))
        break
    print(f"== {time.monotonic() - begin:.0f} s")
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
