"""`MultiWorkerMirroredStrategy`: two workers on the loopback train as one device does, and stop when one is gone."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("tensorflow")
from tests.training.workers_program import IN_HALF_PRECISION  # noqa: E402

STARTED = []
PROGRAM = [sys.executable, "-m", "tests.training.workers_program"]


@pytest.fixture(autouse=True)
def started():
    """The processes that a test starts, none of which outlives it."""
    yield STARTED
    for process in STARTED:
        process.kill()
    STARTED.clear()


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(arguments, workers, program=PROGRAM):
    """Start a program on so many workers; 0 is one process without a cluster."""
    environments = [os.environ]
    if workers:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(workers)]}
        tasks = ({"type": "worker", "index": i} for i in range(workers))
        environments = [{**os.environ, "TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} for task in tasks]
    processes = [
        subprocess.Popen(
            [*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for environment in environments
    ]
    STARTED.extend(processes)
    return processes


def finish(processes):
    outputs = []
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]
        outputs.append(output)
    return outputs


@pytest.mark.timeout(1200)
def test_workers_train_as_one_and_go_on_after_one_was_killed(tmp_path):
    alone = start([str(tmp_path / "one")], 0)
    checkpoints = tmp_path / "checkpoints"
    survivor, victim = start([str(tmp_path / "two"), str(checkpoints), "0.3"], 2)
    begin = time.monotonic()
    while not list(checkpoints.glob("diffusion/epoch-*")) and time.monotonic() - begin < 500:
        assert survivor.poll() is None and victim.poll() is None, survivor.communicate()[0][-3000:]
        time.sleep(0.01)
    victim.kill()
    output, _ = survivor.communicate(timeout=120)
    assert survivor.returncode == 1
    assert "ConnectionError: Another worker stopped, or can not be reached any more" in output
    assert "Start all workers again: with `training.Checkpoint` they go on where they were" in output

    finish([*alone, *start([str(tmp_path / "two"), str(checkpoints)], 2)])
    expected = dict(np.load(tmp_path / "one-0.npz"))
    results = [dict(np.load(tmp_path / f"two-{worker}.npz")) for worker in range(2)]
    for result in results:
        assert result.keys() == expected.keys() and len(expected) > 100
        for key, value in expected.items():
            case = key.split("/")[0]
            if case not in IN_HALF_PRECISION:
                np.testing.assert_allclose(result[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
            elif "evaluate" not in key:  # which draws its own noise on each worker
                np.testing.assert_array_equal(result[key], results[0][key], err_msg=key)
        for case in IN_HALF_PRECISION:
            losses = result[f"{case}/fit loss"]
            np.testing.assert_allclose(losses, expected[f"{case}/fit loss"], rtol=0.02)
            assert losses[-1] < losses[0]
        assert result["diffusion/skipped steps"] == 3  # one an epoch, in which an image is not a number


def test_workers_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles in a third of the time
    rng, data, out = np.random.default_rng(0), tmp_path / "pictures.npz", tmp_path / "tokenizer.keras"
    images = rng.integers(0, 255, (64, 28, 28)).astype("uint8")
    np.savez(data, x_train=images, y_train=np.arange(64) % 2, x_test=images[:32], y_test=np.arange(32) % 2)
    arguments = ["train", "tokenizer", "--strategy", "multiworker", "--dataset", str(data), "--num-embeddings", "8"]
    arguments += ["--epochs", "1", "--verbose", "2", "--out", str(out)]
    first, second = finish(start(arguments, 2, [sys.executable, "-m", "keras_vqdit"]))
    assert f"wrote {out}" in first and "wrote" not in second  # the first worker alone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures.npz", "tokenizer.keras"]
