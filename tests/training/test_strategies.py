"""Strategies by name, and the command line on two devices."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tensorflow")
import keras_vqdit as kv  # noqa: E402
from keras_vqdit import cli  # noqa: E402
from keras_vqdit.training import make_strategy, scope  # noqa: E402


def test_no_strategy():
    assert make_strategy("none") is None
    with scope(None):
        pass


def test_a_strategy_of_one_device():
    assert make_strategy("mirrored", ["CPU:0"]).num_replicas_in_sync == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("sharded",), "`name` must be 'none', 'mirrored' or 'multiworker'. Received: name='sharded'"),
        (("none", ["cpu:0"]), "`devices` are for the strategy 'mirrored'. Received: name='none'"),
        (("mirrored", ["tpu:0"]), "`devices` must look like cpu:0 or gpu:1. Received: devices=\\['tpu:0'\\]"),
        (("mirrored", ["cpu:0", "cpu:0"]), "`devices` must be different ones"),
        (("mirrored", ["gpu:31"]), "`devices` must be among .*cpu:0.*Received: gpu:31"),
    ],
)
def test_impossible_strategies_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(*arguments)


@pytest.mark.parametrize(
    "config", [None, "", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'], ids=str
)
def test_a_cluster_must_be_listed(config, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match="TF_CONFIG must list the workers, as .*Received: TF_CONFIG="):
        make_strategy("multiworker")


# === The command line ===


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (96, 28, 28)).astype("uint8")
    np.savez(path, x_train=images, y_train=np.arange(96) % 2, x_test=images[:32], y_test=np.arange(32) % 2)
    return path


def train(pictures, out, *more):
    common = ["--dataset", str(pictures), "--batch-size", "32", "--verbose", "2", "--num-embeddings", "8"]
    return ["train", "tokenizer", *common, "--out", str(out), *more]


def test_a_training_that_ended_early_goes_on_from_the_command_line(pictures, tmp_path, capsys):
    out, checkpoints = tmp_path / "tokenizer.keras", tmp_path / "tokenizer-checkpoints"
    assert cli.main(train(pictures, out, "--epochs", "2", "--learning-rate", "1e38")) == 2  # it breaks at once
    assert "Training stopped after 30 steps in a row" in capsys.readouterr().err or not out.exists()
    for path in checkpoints.glob("*"):
        path.unlink()
    assert cli.main(train(pictures, out, "--epochs", "1")) == 0
    assert out.is_file() and not checkpoints.exists()


def test_unfinished_checkpoints_are_not_run_over(pictures, tmp_path, capsys):
    checkpoints = tmp_path / "tokenizer-checkpoints"
    checkpoints.mkdir()
    left = checkpoints / "epoch-000001-step-000000000.npz"
    left.write_bytes(b"")
    assert cli.main(train(pictures, tmp_path / "tokenizer.keras", "--epochs", "1")) == 2
    assert "--resume goes on from them; delete the folder to start anew" in capsys.readouterr().err
    assert left.exists()


PROGRAM = """
import sys
import keras_vqdit.cli as cli
from keras_vqdit import saving
if sys.argv[1] == "broken":  # after training and before saving
    def broken(*arguments):
        raise OSError("the power went")
    saving.save_model = broken
sys.exit(cli.main(sys.argv[2:]))
"""


def test_two_devices_half_precision_and_resuming_from_the_command_line(pictures, tmp_path):
    kv.VQVAE.from_size("digits", filters=(8, 8), residual_filters=4, num_embeddings=8).save(
        tmp_path / "tokenizer.keras"
    )
    out, checkpoints = tmp_path / "diffusion.keras", tmp_path / "diffusion-checkpoints"
    size = ["--d-model", "16", "--num-heads", "2", "--num-layers", "1", "--batch-size", "32", "--verbose", "2"]
    command = [
        "train",
        "diffusion",
        "--dataset",
        str(pictures),
        "--tokenizer",
        str(tmp_path / "tokenizer.keras"),
        *size,
    ]
    command += [
        "--strategy",
        "mirrored",
        "--devices",
        "cpu:0,cpu:1",
        "--mixed-precision",
        "bfloat16",
        "--out",
        str(out),
    ]

    def run(how, *more):
        program = [sys.executable, "-c", PROGRAM, how, *command, *more]
        return subprocess.run(program, capture_output=True, text=True, timeout=300)

    broken = run("broken", "--epochs", "1")
    assert broken.returncode == 2 and "the power went" in broken.stderr
    assert (checkpoints / "epoch-000001-step-000000000.npz").is_file()
    resumed = run("whole", "--epochs", "2", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert 'jit_compile="auto" chose True' in resumed.stderr and "Training goes on from epoch-000001" in resumed.stderr
    assert "Epoch 2/2" in resumed.stdout and "Epoch 1/2" not in resumed.stdout
    assert out.is_file() and not checkpoints.exists()
