"""Two or more processes that take turns: each times its own functions on request, so that none competes with another."""

import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Side:
    """A process that answers each request, the name of one of its functions, by the seconds that a call of it takes.

    Args:
        command: list, the command of the process, which calls `serve`.
        environment: dict of further environment variables.
    """

    def __init__(self, command, environment=None):
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **(environment or {})},
        )
        self.about = self._answer()

    def run(self, name):
        print(name, file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("> "):  # other lines are what libraries say
                return line[2:].strip()
        raise RuntimeError(f"the process ended: {' '.join(self.process.args[:3])}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(about, functions):
    """Be a side: say what it is, then time the function named on each line of the standard input.

    Args:
        about: str, one line.
        functions: dict from names to functions, which return only when their work is done.
    """
    print(">", about, flush=True)
    for name in map(str.strip, sys.stdin):
        print(">", seconds_of(functions[name]), flush=True)


def seconds_of(function, calls=3):
    """The mean time of a few calls in a row, after one to wake the threads and the caches that others had meanwhile."""
    function()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def take_turns(runs, *, repetitions):
    """Time every run once, then again from the first, so that a slow moment of the machine hits all alike.

    Args:
        runs: dict from titles to functions that make one run and return its seconds.
        repetitions: how often each is timed, after one run that is not counted.

    Returns:
        Dict from titles to lists of seconds.
    """
    for run in runs.values():
        run()  # compiles
    seconds = {title: [] for title in runs}
    for _ in range(repetitions):
        for title, run in runs.items():
            seconds[title].append(run())
    return seconds


def report(seconds, reference):
    """Print median, best and speed of each run against the run `reference`; return the medians."""
    medians = {title: statistics.median(values) for title, values in seconds.items()}
    width = max(map(len, medians)) + 2
    print(f"{'':{width}}{'median':>10}{'best':>10}{'speed':>9}")
    for title, median in medians.items():
        ratio = medians[reference] / median
        print(f"{title:{width}}{1e3 * median:7.1f} ms{1e3 * min(seconds[title]):7.1f} ms{ratio:8.2f}x")
    return medians


def processor():
    """The name of the processor and the number of its cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        return f"{name}, {len(os.sched_getaffinity(0))} cores"
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
