"""`fit` on several replicas is exact: the same losses, weights, codebooks and metrics as on one device."""

import os
import subprocess
import sys

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
from tests.training.replicas_program import CASES, Penalised  # noqa: E402

ON_FOUR = ("uneven last batch, sample weights",)
REPLICAS = {1: (), 2: (), 4: ON_FOUR}  # and the cases of each, all if none is named
NOT_FINITE = "a batch that is not finite, gradient codebook"
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Number of replicas -> what `replicas_program` writes down; each in a process of its own, for its logical devices."""
    folder = tmp_path_factory.mktemp("replicas")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    for replicas, names in REPLICAS.items():
        program = [sys.executable, "-m", "tests.training.replicas_program", str(replicas), f"{folder}/{replicas}.npz"]
        run = subprocess.run([*program, *names], capture_output=True, text=True, timeout=1100, env=environment)
        assert run.returncode == 0, f"{replicas} replicas: {run.stderr[-3000:]}"
    return {replicas: dict(np.load(folder / f"{replicas}.npz")) for replicas in REPLICAS}


MANY = [(case, 2) for case in CASES] + [(case, 4) for case in ON_FOUR]


@pytest.mark.parametrize("case, replicas", MANY)
def test_replicas_train_as_one(results, case, replicas):
    one, many = ({k: v for k, v in results[n].items() if k.startswith(case + "/")} for n in (1, replicas))
    assert one.keys() == many.keys() and len(one) > 10
    for key, expected in one.items():
        if not key.endswith("/drift"):
            np.testing.assert_allclose(many[key], expected, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("case, replicas", MANY)
def test_replicas_do_not_drift(results, case, replicas):
    # The matrix products of Muon are rounded in another order at times.
    assert results[replicas][f"{case}/drift"] <= (1e-6 if "muon" in case else 0)


def test_a_batch_that_is_not_finite_is_skipped_on_all_replicas(results):
    for result in (results[1], results[2]):
        assert result[f"{NOT_FINITE}/skipped steps"] == result[f"{ON_FOUR[0]}/skipped steps"] == 4  # one an epoch
        assert np.all(np.isfinite(result[f"{NOT_FINITE}/fit loss"]))
        assert all(np.all(np.isfinite(v)) for k, v in result.items() if k.startswith(f"{NOT_FINITE}/weight"))


def test_losses_fall_and_codes_are_used(results):
    for case in CASES:
        losses = results[2][f"{case}/fit loss"]
        assert losses[-1] < losses[0]
    assert results[2]["ema codebook/fit codebook_usage"][-1] > 0.9


def test_every_replica_draws_its_own(results):
    one, two = results[1], results[2]
    assert one["drawn"] != two["drawn"] and two["drawn drift"] == 0
    np.testing.assert_array_equal(one["seed"], two["seed"])
    assert two["seed drift"] == 0


def test_every_replica_has_times_and_masks_of_its_own(results):
    assert results[2]["times differ"] and results[2]["times drift"] == 0


def test_what_was_trained_on_replicas_draws_and_is_saved(results):
    np.testing.assert_allclose(results[2]["drawn images after loading"], results[2]["drawn images"], atol=1e-6)


def test_what_is_made_outside_of_the_scope_is_told(results):
    assert results[1]["error of the optimizer"] == results[1]["error of the model"] == ""
    expected = "must be made, and the model compiled, within `strategy.scope()`. Received: "
    assert expected in str(results[2]["error of the optimizer"])
    expected = "must be made within `strategy.scope()`, as its optimizer and `compile`. Received: "
    assert expected in str(results[2]["error of the model"])


def test_what_does_not_work_under_a_strategy_is_told():
    x = np.ones((8, 3), "float32")
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        model = Penalised()
        model.compile("sgd", "mse", jit_compile=False)
    for method, instead in (("train_on_batch", "fit"), ("test_on_batch", "evaluate"), ("predict_on_batch", "predict")):
        with pytest.raises(ValueError, match=f"`{method}` does not divide a batch .* use `{instead}`"):
            getattr(model, method)(x)
    model.fit(x, x, verbose=0)
    model.dense.trainable = False
    with model.distribute_strategy.scope():
        model.compile(model.optimizer, "mse", jit_compile=False)
    with pytest.raises(ValueError, match="compile the model with a new one after layers were frozen"):
        model.fit(x, x, verbose=0)
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        model = Penalised()
        with pytest.raises(ValueError, match="must be a `MirroredStrategy` or .*Received: OneDeviceStrategy"):
            model.compile("sgd", "mse")


def test_penalties_of_layers_count(results):
    np.testing.assert_allclose(results[2]["penalised loss"], results[1]["penalised loss"], rtol=1e-6)


def test_batch_statistics_do_not_drift(results):
    assert results[2]["normalization drift"] == 0


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(results, dtype):
    losses = results[2][f"{dtype}/fit loss"]
    assert 0 < losses[-1] < losses[0]
    assert results[2][f"{dtype}/scaled"] == (dtype == "mixed_float16")
