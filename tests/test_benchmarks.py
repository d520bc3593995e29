"""The benchmarks' command line, and how they take turns. What they measure is run by hand."""

import sys

import numpy as np
import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.dropout import without_dropout
from benchmarks.text import CausalTransformer
from benchmarks.turns import Side, report, take_turns
from keras_vqdit.models.diffusion_transformer import DiffusionTransformer


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0 and f"python -m benchmarks {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, code", [([], 0), (["--help"], 0), (["speed"], 2)], ids=str)
def test_the_list_of_benchmarks(arguments, code, capsys):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert all(f"  {name} " in out for name in BENCHMARKS)
    assert ("There is no benchmark 'speed'" in err) == (code == 2)


def test_sides_take_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    seconds = take_turns(runs, repetitions=2)
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}  # the first round is not counted


def test_speed_is_relative_to_the_reference(capsys):
    assert report({"ours": [0.1, 0.2, 0.9], "theirs": [0.4, 0.4, 0.4]}, "theirs") == {"ours": 0.2, "theirs": 0.4}
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["ours", "200.0", "ms", "100.0", "ms", "2.00x"]
    assert lines[2].endswith("1.00x")


def test_a_side_is_a_process_that_answers_by_seconds():
    program = "import time; from benchmarks.turns import serve; print('noise'); serve('me', {'nap': lambda: time.sleep(0.02)})"
    side = Side([sys.executable, "-c", program])
    assert side.about == "me"
    assert 0.02 <= side.run("nap") < 1
    side.close()
    broken = [sys.executable, "-c", "raise SystemExit(1)"]
    with pytest.raises(RuntimeError, match="the process ended"):
        Side(broken)


def test_the_network_without_dropout_is_the_same_network():
    network = DiffusionTransformer(12, 6, 48, 1)
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 16)).astype("float32")
    network.build(x.shape)
    network.set_weights([np.random.default_rng(1).normal(0, 0.2, w.shape) for w in network.get_weights()])
    expected = network(x)
    without_dropout(network)
    np.testing.assert_allclose(network(x, training=True), expected, atol=1e-5)


def test_the_autoregressive_network_sees_no_later_code():
    network = CausalTransformer(5, 6, 8, 2, 16, 1)
    codes = np.array([[1, 2, 3, 4, 0, 1]])
    network(codes)
    network.set_weights([np.random.default_rng(1).normal(0, 0.5, w.shape) for w in network.get_weights()])
    expected, changed = np.asarray(network(codes)), np.asarray(network(np.where(np.arange(6) == 3, 2, codes)))
    np.testing.assert_allclose(changed[:, :4], expected[:, :4], atol=1e-6)
    assert np.abs(changed[:, 4:] - expected[:, 4:]).max(axis=-1).min() > 1e-3
