"""`keras.distribution.DataParallel` on the JAX backend: two devices train as one does."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("jax")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data_parallel")
    results = {}
    for devices in (1, 2):
        program = [
            sys.executable,
            "-m",
            "tests.training.data_parallel_program",
            str(devices),
            str(folder / f"{devices}.npz"),
        ]
        run = subprocess.run(
            program, capture_output=True, text=True, timeout=300, env={**os.environ, "KERAS_BACKEND": "jax"}
        )
        assert run.returncode == 0, run.stderr[-3000:]
        results[devices] = dict(np.load(folder / f"{devices}.npz"))
    return results


@pytest.mark.parametrize("case", ["tokenizer", "diffusion", "muon"])
def test_two_devices_train_as_one(results, case):
    one, two = ({k: v for k, v in r.items() if k.startswith(f"{case}/")} for r in results.values())
    assert one.keys() == two.keys() and len(one) > 10
    assert (one.pop(f"{case}/devices"), two[f"{case}/devices"]) == (1, 2)
    for key, expected in one.items():
        np.testing.assert_allclose(two[key], expected, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("case", ["float16", "bfloat16"])
def test_half_precision_trains(results, case):
    one, two = (result[f"{case}/fit loss"] for result in results.values())
    np.testing.assert_allclose(two, one, rtol=0.02)
    assert two[-1] < two[0]


def test_a_batch_that_is_not_finite_is_skipped(results):
    for result in results.values():
        assert result["tokenizer/skipped steps"] == 5  # one an epoch
        assert result["diffusion/skipped steps"] == 0
        assert all(np.all(np.isfinite(value)) for value in result.values())


def test_training_goes_on_from_checkpoints(results):
    for result in results.values():
        np.testing.assert_array_equal(result["resumed"], result["whole"])
