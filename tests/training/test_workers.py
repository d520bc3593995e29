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
PROGRAM = [sys.executable, "-m", "tests.training.workers_program"]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(arguments, workers):
    """Start the program on so many workers; 0 is one process without a cluster."""
    environments = [os.environ]
    if workers:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(workers)]}
        tasks = ({"type": "worker", "index": i} for i in range(workers))
        environments = [{**os.environ, "TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} for task in tasks]
    return [
        subprocess.Popen(
            [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for environment in environments
    ]


def finish(processes):
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]


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
    for worker in range(2):
        results = dict(np.load(tmp_path / f"two-{worker}.npz"))
        assert results.keys() == expected.keys() and len(expected) > 50
        for key, value in expected.items():
            np.testing.assert_allclose(results[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
