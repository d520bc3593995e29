"""The same numbers on JAX, in a process that has no TensorFlow; and the examples of the documentation."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_vqdit.diffusion import flow, gaussian, guidance, masked, samplers, unmasking

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
import numpy as np
if sys.argv[1] == "jax":
    sys.modules["tensorflow"] = None  # importing it is an error from here on
import keras
from keras import ops
from keras_vqdit.diffusion import (GaussianDiffusion, MaskedDiffusion, RectifiedFlow, fill_in, guide,
                                   interval_scale, sample, standard_normal)
from keras_vqdit.diffusion.samplers import start
assert keras.backend.backend() == sys.argv[1]
results = {}
x0 = np.random.default_rng(0).normal(size=(4, 5, 2)).astype("float32")
noise = standard_normal((4, 5, 2), (3, 4))
t = np.array([0.001, 0.3, 0.7, 1.0], "float32")
results["noise"] = noise
processes = {
    "learned": GaussianDiffusion("linear", "noise", learn_variance=True, min_snr_gamma=5.0, seed=1),
    "flow": RectifiedFlow(shift=2.0, seed=1),
}
for name, process in processes.items():
    x_t, drawn, times = process(x0)
    assert drawn.shape == x_t.shape == x0.shape and times.shape == (4,)
    x_t, _, _ = process(x0, t=t, noise=noise)
    output = ops.concatenate([x_t, 0.3 * noise], -1) if name == "learned" else x_t
    results[f"{name}/loss"] = process.loss(output, x0, noise, t)
    results[f"{name}/x_t"] = x_t
    results[f"{name}/guided"] = guide(process, output, 0.5 * output, interval_scale(3.0, 0.4, (0.1, 0.5)), phi=0.5)[0]
    for sampler in ["ddpm", "heun"] if name == "learned" else ["ddim", "dpmpp_2m", "euler"]:
        def run(x, times, first, last, memory, seed):
            def denoise(x, t):
                v = ops.sin(2 * x + process.network_time(t))
                return process.denoised(x, ops.concatenate([v, 0.3 * v], -1) if name == "learned" else v, t)
            return sample(sampler, denoise, process, x, times, first=first, last=last, memory=memory, seed=seed)
        if sys.argv[1] == "jax":
            import jax
            run = jax.jit(run)
        steps = np.zeros(16, "float32")
        steps[:9] = process.times(8)
        whole, _, _ = run(noise, steps, 0, 8, start(noise), 7)
        part, _, memory = run(noise, steps, 0, 3, start(noise), 7)
        part, clean, _ = run(part, steps, 3, 8, memory, 7)
        np.testing.assert_array_equal(part, whole)
        np.testing.assert_array_equal(part, clean)
        results[f"{name}/{sampler}"] = whole

process = MaskedDiffusion("cosine", seed=1)
codes = np.arange(24).reshape(4, 6) % 5
masked_codes, masked, _ = process(codes, t, standard_normal((4, 6), 2) * 0 + 0.5, mask_code=5)
results["masked/loss"] = process.loss(standard_normal((4, 6, 5), 3), codes, masked, t)
logits = 3 * standard_normal((4, 6, 5), 4)
for sampler in ("ancestral", "confidence"):
    def run(codes, num_steps):
        network = lambda codes: {"x": logits}
        return fill_in(sampler, network, process, {"x": codes}, {"x": 5}, num_steps, seed=7, top_p=0.9)["x"]
    if sys.argv[1] == "jax":
        run = jax.jit(run)
    results[f"masked/{sampler}"] = run(ops.full((4, 6), 5, "int32"), 3)

class Model(keras.Model):
    def __init__(self):
        super().__init__()
        self.process, self.dense = RectifiedFlow(seed=1), keras.layers.Dense(2)
    def build(self, shape):
        self.dense.build(shape)
    def call(self, x):
        x_t, noise, t = self.process(x)
        return self.process.loss(self.dense(x_t), x, noise, t)
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(y_pred)

model = Model()
model.compile("sgd")
history = model.fit(np.repeat(x0, 8, 0), batch_size=8, epochs=2, verbose=0)
assert np.isfinite(history.history["loss"]).all()
np.savez(sys.argv[2], **{key: ops.convert_to_numpy(value) for key, value in results.items()})
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_jax_without_tensorflow_gives_the_same_numbers(tmp_path):
    results = {}
    for backend in ("tensorflow", "jax"):
        path = tmp_path / f"{backend}.npz"
        environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, backend, str(path)], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-3000:]
        results[backend] = np.load(path)
    assert len(results["jax"].files) == 1 + (3 + 2) + (3 + 3) + 3
    for key in results["jax"].files:
        theirs = results["tensorflow"][key]
        np.testing.assert_allclose(
            results["jax"][key], theirs, atol=2e-5 * max(1, np.abs(theirs).max()), rtol=1e-4, err_msg=key
        )


def examples():
    for module in (gaussian, flow, guidance, masked, samplers, unmasking):
        for i, code in enumerate(re.findall(r"```python\n(.*?)```", Path(module.__file__).read_text(), re.DOTALL)):
            yield pytest.param(code, id=f"{module.__name__.split('.')[-1]}-{i}")


@pytest.mark.parametrize("code", list(examples()))
def test_examples_run(code):
    lines = code.splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    exec("\n".join(line[indent:] for line in lines), {})


def test_every_example_is_found():
    assert len(list(examples())) == 6
