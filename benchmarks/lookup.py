"""Nearest-code lookup: `nearest_codes` against the lookup of vector-quantize-pytorch, on two threads of the same CPU.

The other side is what its `Codebook` does to look up, Euclidean distances and argmax, without the one-hot matrix that
its layer then makes (`--layer` times that too: it needs some 10 GiB). Each side lives in a process of its own, and they
take turns.

Run: python -m benchmarks lookup --oracle-python PYTHON, an interpreter that has PyTorch and vector-quantize-pytorch.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

THREADS = 2


# === Sides: each returns functions by name, from NumPy arrays to indices ===


def keras_side(z, codebook):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    import keras

    from keras_vqdit.layers.nearest_code import nearest_codes

    z, codebook = tf.constant(z), tf.constant(codebook)
    compiled = tf.function(nearest_codes, jit_compile=True)
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    return versions, {
        "compiled": lambda: compiled(z, codebook).numpy(),
        "eager": lambda: nearest_codes(z, codebook).numpy(),
    }


def torch_side(z, codebook):
    import torch
    from vector_quantize_pytorch import VectorQuantize
    from vector_quantize_pytorch.vector_quantize_pytorch import cdist

    torch.set_num_threads(THREADS)
    z, codebook = torch.from_numpy(z)[None], torch.from_numpy(codebook)[None]
    vq = VectorQuantize(z.shape[-1], codebook.shape[1]).eval()
    vq._codebook.embed.copy_(codebook)

    def lookup():
        return (-cdist(z, codebook)).argmax(dim=-1)[0].numpy()

    def layer():
        with torch.no_grad():
            return vq(z)[1][0].numpy()

    return f"PyTorch {torch.__version__}", {"lookup": lookup, "layer": layer}


# === The process of one side ===


def memory(key):
    """MiB of this process, `VmRSS` now or `VmHWM` at its peak."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) / 1024


def worker(side, num_vectors, num_codes, dim, folder):
    """Answer each line `NAME` on the standard input by `SECONDS EXTRA_MIB`; the indices go to `folder/NAME.npy`."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(num_vectors, dim)).astype("float32")
    codebook = rng.normal(size=(num_codes, dim)).astype("float32")
    versions, functions = {"keras": keras_side, "torch": torch_side}[side](z, codebook)
    print(versions, flush=True)
    for name in map(str.strip, sys.stdin):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before, start = memory("VmRSS"), time.perf_counter()
        indices = functions[name]()
        seconds = time.perf_counter() - start
        np.save(Path(folder) / f"{name}.npy", indices)
        print(seconds, memory("VmHWM") - before, flush=True)


class Side:
    """A process that times one side's lookups on request."""

    def __init__(self, side, python, arguments):
        command = [python, __file__, "--worker", side, *map(str, arguments)]
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
        self.versions = self._answer()

    def run(self, name):
        print(name, file=self.process.stdin, flush=True)
        seconds, extra = map(float, self._answer().split())
        return seconds, extra

    def _answer(self):
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"the process ended: {' '.join(self.process.args[:4])}")
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# === Comparison ===


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks lookup", description=__doc__.split("\n")[0])
    parser.add_argument("--vectors", type=int, default=65_536, help="number of vectors (default: %(default)s)")
    parser.add_argument("--codes", type=int, default=8_192, help="number of codes (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=64, help="length of a vector (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="timed runs of each (default: %(default)s)")
    parser.add_argument(
        "--oracle-python", default=None, help="interpreter with vector-quantize-pytorch (default: this one)"
    )
    parser.add_argument("--layer", action="store_true", help="also time the whole layer of vector-quantize-pytorch")
    options = parser.parse_args(argv)
    if options.oracle_python is None and importlib.util.find_spec("vector_quantize_pytorch") is None:
        parser.error("vector-quantize-pytorch is not installed here: pass --oracle-python, an interpreter that has it")

    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.vectors, options.codes, options.dim, folder)
        sides = {
            "keras": Side("keras", sys.executable, arguments),
            "torch": Side("torch", options.oracle_python or sys.executable, arguments),
        }
        runs = [("keras", "compiled"), ("torch", "lookup"), ("keras", "eager")]
        runs += [("torch", "layer")] if options.layer else []
        results = {name: [] for _, name in runs}
        for _ in range(options.repetitions + 1):  # the first is the compilation and the first touch of memory
            for side, name in runs:
                results[name].append(sides[side].run(name))
        for side in sides.values():
            side.close()
        indices = {name: np.load(Path(folder) / f"{name}.npy") for name in results}

    titles = {
        "compiled": "nearest_codes, compiled by XLA",
        "eager": "nearest_codes, eager",
        "lookup": "vector-quantize-pytorch, lookup",
        "layer": "vector-quantize-pytorch, layer",
    }
    reference = statistics.median(seconds for seconds, _ in results["lookup"][1:])
    print(f"{options.vectors:,} vectors of {options.dim} in {options.codes:,} codes, {THREADS} threads")
    print(f"{processor()}, {'; '.join(side.versions for side in sides.values())}")
    print(f"{'':34}{'median':>10}{'best':>10}{'speed':>8}{'extra memory':>15}{'same index':>12}")
    for name, values in results.items():
        seconds = [s for s, _ in values[1:]]
        median, extra = statistics.median(seconds), max(m for _, m in values)
        same = np.mean(indices[name] == indices["lookup"])
        times = f"{median:9.3f}s{min(seconds):9.3f}s{reference / median:7.2f}x"
        print(f"{titles[name]:34}{times}{extra:11,.0f} MiB{same:11.3%}")
    return reference / statistics.median(seconds for seconds, _ in results["compiled"][1:])


def processor():
    """The name of the processor and the number of its cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        return f"{name}, {len(os.sched_getaffinity(0))} cores"
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        worker(sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6])
    else:
        main()
