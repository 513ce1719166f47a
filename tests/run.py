#!/usr/bin/env python3
"""run.py [-j N] COMMAND...   runs each in the repository's root, N of them at once, until one fails. What they print
comes in the order of the commands; the last line is the sum of their last lines."""
import argparse
import concurrent.futures
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
lock = threading.Lock()
running = set()  # processes; None: nothing begins any more


class Command:
    def __init__(self, command):
        self.command, self.lines, self.status, self.seconds = command, queue.Queue(), None, 0

    def run(self):
        """In a thread of its own: lines as they come, None behind the last."""
        begin = time.monotonic()
        try:
            with lock:
                if running is None:
                    return
                process = subprocess.Popen(shlex.split(self.command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                           text=True, errors="replace")
                running.add(process)
            for line in process.stdout:
                self.lines.put(line)
            self.status = process.wait()
            self.seconds = time.monotonic() - begin
        except OSError as e:
            self.lines.put(f"{e}\n")
        finally:
            self.lines.put(None)


def end_all():
    global running
    with lock:
        for process in running:
            process.terminate()
        running = None


def show(command):
    """Prints what the command prints, until it is over; how many checks passed and failed, and whether all is well."""
    print("==", command.command, flush=True)
    last = ""
    for line in iter(command.lines.get, None):
        print(line, end="", flush=True)
        last = last if line.startswith("make: Leaving") else line
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed\n", last)
    passed, failed = (int(counts[1]), int(counts[2])) if counts else (0, 0)
    if command.status == 0 and counts:
        print(f"== {command.seconds:.0f} s", flush=True)
        return passed, failed, True
    print(f"== {command.command}: exit status {command.status}" + ("" if counts else ", no closing line"), flush=True)
    return passed, max(failed, 1), False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-j", type=int, default=1, metavar="N")
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    commands = [Command(c) for c in options.commands]
    passed = failed = 0
    with concurrent.futures.ThreadPoolExecutor(options.j) as pool:
        for command in commands:
            pool.submit(command.run)
        try:
            for command in commands:
                more_passed, more_failed, good = show(command)
                passed, failed = passed + more_passed, failed + more_failed
                if not good:
                    break
        finally:
            end_all()
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed != 0)


main()
