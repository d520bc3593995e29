"""Training that was ended goes on as if nothing had happened."""

import os
import random
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

pytest.importorskip("tensorflow")
import keras_vqdit as kv  # noqa: E402
from tests.training.replicas_program import IMAGES, LABELS, diffusion, tokenizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    """Ends training from outside, in the middle of an epoch."""

    def __init__(self, epoch, step):
        super().__init__()
        self.epoch, self.step = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.step):
            raise Stop


def data(batch_size=20):
    examples = {"image": IMAGES[:80], "label": LABELS[:80]}, {"image": IMAGES[80:100], "label": LABELS[80:100]}
    return kv.data.load(examples, batch_size=batch_size)


def train(make, folder, *callbacks, epochs=3, batch_size=20, every=None, keep=2, optimizer="adam", seed=0, **options):
    """A run of the same program: from the last checkpoint on, where there is one."""
    keras.utils.set_random_seed(seed)
    train, test = data(batch_size)
    model = make()
    model.compile(keras.optimizers.get(optimizer), jit_compile=False, **options)
    checkpoint = kv.training.Checkpoint(folder, every=every, keep=keep)
    history = model.fit(train, epochs=epochs, validation_data=test, verbose=0, callbacks=[checkpoint, *callbacks])
    return model, history


def state(model):
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def assert_equal(one, other):
    for a, b in zip(state(one), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


AVERAGE = keras.optimizers.Adam(1e-3, use_ema=True, gradient_accumulation_steps=3)
CASES = {  # name -> (model, options, epoch and step after which it ends)
    "tokenizer": (lambda: tokenizer(restart_threshold=0.2), {}, (1, 1)),
    "diffusion": (lambda: diffusion(3), {}, (0, 3)),
    "gradient codebook, several steps a call": (
        lambda: tokenizer(codebook="gradient"), {"steps_per_execution": 2}, (2, 3)
    ),
    "accumulation, average": (
        lambda: diffusion(3), {"optimizer": keras.optimizers.serialize(AVERAGE)}, (1, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in ("tokenizer", "accumulation, average") else pytest.mark.slow)
        for case in CASES
    ],
)
def test_training_goes_on_bit_for_bit(case, tmp_path):
    make, options, moment = CASES[case]
    expected, history = train(make, tmp_path / "whole", every=2, **options)
    with pytest.raises(Stop):
        train(make, tmp_path / "parts", StopAt(*moment), every=2, **options)
    model, resumed = train(make, tmp_path / "parts", every=2, **options)
    assert_equal(model, expected)
    assert resumed.history == history.history
    assert resumed.epoch == history.epoch == [0, 1, 2]
    assert model.skipped_steps == 0


class Line(kv.training.DistributedModel):
    """As small as a model can be."""

    def __init__(self, dtype=None):
        super().__init__()
        self.dense = keras.layers.Dense(1, dtype=dtype)

    def call(self, x):
        return self.dense(x)


def train_line(folder, epochs=1, dtype=None, x=None, shuffle=False, **options):
    keras.utils.set_random_seed(0)
    model = Line(dtype)
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    model.max_skipped_steps = 2
    x = np.linspace(-1, 1, 16, dtype="float32")[:, None] if x is None else x
    callbacks = [kv.training.Checkpoint(folder, **options)]
    return model, model.fit(x, x, batch_size=4, epochs=epochs, shuffle=shuffle, verbose=0, callbacks=callbacks)


def test_more_epochs_go_on_and_as_many_do_nothing(tmp_path):
    expected, _ = train_line(tmp_path / "whole", 4)
    train_line(tmp_path / "parts", 2)
    model, _ = train_line(tmp_path / "parts", 4)
    assert_equal(model, expected)
    again, history = train_line(tmp_path / "parts", 4)
    assert_equal(again, expected)
    assert len(history.history["loss"]) == 4
    again.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0)  # without the callback it begins at the first epoch
    assert again.history.epoch == [0]


def test_so_many_are_kept(tmp_path):
    train_line(tmp_path, 2, every=1, keep=3)
    assert files(tmp_path) == [
        "epoch-000001-step-000000003.npz",
        "epoch-000001-step-000000004.npz",
        "epoch-000002-step-000000000.npz",
    ]


def test_another_model_or_other_data_are_told_and_harm_nothing(tmp_path):
    make, *_ = CASES["tokenizer"]
    train(make, tmp_path, epochs=1)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="are of another model"):
        train(CASES["diffusion"][0], tmp_path)
    with pytest.raises(
        ValueError, match="are of a training on other data.*'batch_size': 20.*Received:.*'batch_size': 16"
    ):
        train(make, tmp_path, batch_size=16)
    assert files(tmp_path) == before


def test_a_model_of_another_kind_is_told(tmp_path):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`Checkpoint` needs a model of this package.*Received: Sequential"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[kv.training.Checkpoint(tmp_path)])


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped"])
def test_a_damaged_file_is_left_out(how, tmp_path, caplog):
    expected, _ = train_line(tmp_path / "whole", 3)
    train_line(tmp_path / "parts", 2)
    newest = tmp_path / "parts" / "epoch-000002-step-000000000.npz"
    content = bytearray(newest.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 255
    newest.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "flipped": content}[how])
    model, _ = train_line(tmp_path / "parts", 3)  # from the end of the first epoch on
    assert_equal(model, expected)
    assert "is damaged, and left out" in caplog.text


def test_damaged_files_alone_are_an_error(tmp_path):
    (tmp_path / "epoch-000002-step-000000000.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="None of the 1 checkpoints in .* is whole"):
        train_line(tmp_path)


def test_a_failed_write_keeps_the_older_file(tmp_path, monkeypatch):
    train_line(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(np, "savez", full)
        train_line(tmp_path, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".epoch-000001-step-000000000-abcd.npz").write_bytes(b"half")
    train_line(tmp_path)
    assert files(tmp_path) == ["epoch-000001-step-000000000.npz"]


def test_training_that_fails_leaves_a_good_checkpoint(tmp_path):
    x = np.linspace(-1, 1, 40, dtype="float32")[:, None]
    x[12:] = np.nan
    with pytest.raises(FloatingPointError):
        train_line(tmp_path, x=x, every=1)
    model, _ = train_line(tmp_path, x=np.linspace(-1, 1, 40, dtype="float32")[:, None])
    assert all(np.all(np.isfinite(value)) for value in state(model))


def test_bfloat16_weights_are_kept(tmp_path):
    expected, _ = train_line(tmp_path / "whole", 4, "bfloat16")
    train_line(tmp_path / "parts", 2, "bfloat16")
    model, _ = train_line(tmp_path / "parts", 4, "bfloat16")
    assert_equal(model, expected)


def test_fewer_batches_than_before_are_told(tmp_path):
    def fit(count):
        model = tokenizer()
        model.compile("adam", jit_compile=False)
        callbacks = [kv.training.Checkpoint(tmp_path, every=3)]
        model.fit(
            IMAGES[:count], batch_size=20, epochs=2, shuffle=False, verbose=0, callbacks=[*callbacks, StopAt(0, 3)]
        )

    with pytest.raises(Stop):
        fit(80)
    with pytest.raises(ValueError, match="The data must have as many batches as when.*Received: 1 batches less"):
        fit(40)


def test_shuffled_arrays_are_warned_of(tmp_path, caplog):
    for shuffle in (False, True):
        train_line(tmp_path / str(shuffle), shuffle=shuffle)
        assert ("Keras shuffles arrays anew" in caplog.text) == shuffle


@pytest.mark.parametrize("arguments", [{"every": 0}, {"every": 1.5}, {"keep": 0}], ids=str)
def test_bad_arguments(arguments, tmp_path):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer. Received: {name}={value}"):
        kv.training.Checkpoint(tmp_path, **arguments)


# === Killed ===


def run(kind, replicas, folder, file, kills=0):
    """Run `resume_program`, killed so many times at a random moment, then to its end."""
    moments = random.Random(0)
    command = [sys.executable, "-m", "tests.training.resume_program", kind, str(replicas), str(folder), str(file)]
    written = lambda: sorted(folder.glob("epoch-*")) if folder.is_dir() else []  # noqa: E731
    while True:
        before, begin = written(), time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
        if kills:
            while process.poll() is None and written() == before and time.monotonic() - begin < 120:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.2))
        if kills and process.poll() is None:
            process.kill()  # SIGKILL
            process.communicate()
            kills -= 1
            continue
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]
        return dict(np.load(file))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind, replicas, kills",
    [
        ("tokenizer", 1, 1),
        pytest.param("tokenizer", 1, 10, marks=SLOW),
        pytest.param("diffusion", 1, 10, marks=SLOW),
        pytest.param("tokenizer", 2, 10, marks=SLOW),
        pytest.param("diffusion", 2, 10, marks=SLOW),
    ],
)
def test_killed_at_random_moments(kind, replicas, kills, tmp_path):
    expected = run(kind, replicas, tmp_path / "whole", tmp_path / "whole.npz")
    results = run(kind, replicas, tmp_path / "parts", tmp_path / "parts.npz", kills)
    assert results.keys() == expected.keys()
    for key, value in expected.items():
        if replicas == 1:
            np.testing.assert_array_equal(results[key], value, err_msg=key)
        else:
            np.testing.assert_allclose(results[key], value, rtol=1e-6, atol=1e-6, err_msg=key)
