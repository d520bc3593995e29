"""Training that was ended goes on as if nothing had happened."""

import os
import random
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import keras_vqdit as kv  # noqa: E402
from keras_vqdit.training.checkpoint import _read, _write  # noqa: E402
from keras_vqdit.training.memory import remembered  # noqa: E402
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


def train_line(folder, epochs=1, dtype=None, x=None, shuffle=False, optimizer=None, callbacks=(), **options):
    keras.utils.set_random_seed(0)
    model = Line(dtype)
    model.compile(optimizer or keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    model.max_skipped_steps = 2
    x = np.linspace(-1, 1, 16, dtype="float32")[:, None] if x is None else x
    callbacks = [kv.training.Checkpoint(folder, **options), *callbacks]
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


class Counter(keras.callbacks.Callback):
    remembered = ("epochs", "losses")

    def __init__(self):
        super().__init__()
        self.epochs, self.losses = 0, np.zeros(8)

    def on_epoch_end(self, epoch, logs=None):
        self.losses[self.epochs] = logs["loss"]
        self.epochs += 1


def callbacks_that_remember(folder):
    stop = keras.callbacks.EarlyStopping("loss", min_delta=0.05, patience=2, restore_best_weights=True)
    slow = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=0.2, cooldown=1)
    rate = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.95 * rate)
    best = keras.callbacks.ModelCheckpoint(folder / "best.weights.h5", "loss", save_best_only=True, save_freq="epoch",
                                           save_weights_only=True)  # fmt: skip
    return [Counter(), stop, slow, best, rate]


@pytest.mark.parametrize("first", [True, False])
def test_callbacks_remember(first, tmp_path):
    def fit(folder, *more):
        keras.utils.set_random_seed(0)
        model, own = Line(), callbacks_that_remember(tmp_path)
        model.compile(keras.optimizers.Adam(0.2), "mse", jit_compile=False)
        x = np.linspace(-1, 1, 16, dtype="float32")[:, None]
        checkpoint = kv.training.Checkpoint(tmp_path / folder, every=3)
        callbacks = [checkpoint, *own, *more] if first else [*own, *more, checkpoint]
        history = model.fit(x, x, batch_size=4, epochs=8, shuffle=False, verbose=0, callbacks=callbacks)
        return model, own, history

    expected, whole, history = fit("whole")
    ended, rates = len(history.epoch), history.history["learning_rate"]
    assert 3 < ended < 8 and rates[-1] < 0.6 * rates[0]  # each of them had something to do
    for moment in ((1, 3), (ended - 1, 1)):
        with pytest.raises(Stop):
            fit("parts", StopAt(*moment))
    for _ in range(2):  # the second time nothing is left to train
        model, parts, resumed = fit("parts")
        assert_equal(model, expected)
        assert (resumed.history, resumed.epoch) == (history.history, history.epoch)
        for one, other in zip(whole, parts, strict=True):
            for name in remembered(one):
                np.testing.assert_equal(getattr(other, name), getattr(one, name), err_msg=name)


def test_a_training_that_was_stopped_stays_stopped(tmp_path, caplog):
    def fit(patience=0):
        model = Line()
        model.compile("sgd", "mse", jit_compile=False)
        stop = keras.callbacks.EarlyStopping("loss", min_delta=9.0, patience=patience)
        callbacks = [kv.training.Checkpoint(tmp_path), stop]
        return model.fit(np.ones((4, 1)), np.ones((4, 1)), epochs=5, verbose=0, callbacks=callbacks)

    losses = fit().history["loss"]
    assert len(losses) == 2
    assert fit().history["loss"] == losses
    assert "Nothing is left to train" in caplog.text and "(EarlyStopping stopped it)" in caplog.text
    assert len(fit(patience=4).history["loss"]) == 5  # with more patience it goes on


class Polite(keras.callbacks.Callback):
    """Asks to stop in the middle of an epoch, as when a machine is about to be taken away."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.step:
            self.model.stop_training = True


def test_a_callback_that_stops_in_an_epoch_loses_nothing(tmp_path):
    expected, history = train_line(tmp_path / "whole", 2)
    train_line(tmp_path / "parts", 2, callbacks=[Polite(3)])
    assert files(tmp_path / "parts") == ["epoch-000000-step-000000003.npz"]
    model, resumed = train_line(tmp_path / "parts", 2)
    assert_equal(model, expected)
    assert (resumed.history, resumed.epoch) == (history.history, history.epoch)


class StopInValidation(keras.callbacks.Callback):
    def on_test_begin(self, logs=None):
        raise Stop


def test_an_uneven_number_of_steps_a_call(tmp_path):
    def fit(folder, *callbacks, **compiling):
        keras.utils.set_random_seed(0)
        model = Line()
        model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False, **{"steps_per_execution": 2, **compiling})
        x = np.linspace(-1, 1, 20, dtype="float32")[:, None]
        callbacks = [kv.training.Checkpoint(tmp_path / folder, every=2), *callbacks]
        options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, "validation_data": (x, x)}
        model.fit(x, x, callbacks=callbacks, **options)
        return model

    expected = fit("whole")
    with pytest.raises(Stop):
        fit("parts", StopInValidation())
    assert files(tmp_path / "parts")[-1] == "epoch-000000-step-000000004.npz"
    assert_equal(fit("parts"), expected)
    with pytest.raises(Stop):
        fit("others", StopInValidation())
    with pytest.raises(ValueError, match="after step 4 of an epoch: `steps_per_execution` must divide.*Received: .*=3"):
        fit("others", steps_per_execution=3)


def test_an_average_of_weights_is_not_what_training_goes_on_from(tmp_path):
    average = lambda: keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9)  # noqa: E731
    expected, _ = train_line(tmp_path / "whole", 4, optimizer=average())
    train_line(tmp_path / "parts", 2, optimizer=average())
    model, _ = train_line(tmp_path / "parts", 4, optimizer=average())
    assert_equal(model, expected)


class Ruin(keras.callbacks.Callback):
    """What a step too large does to the weights."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 5:
            self.model.dense.kernel.assign([[np.inf]])


def test_a_model_that_training_ruins_is_not_saved(tmp_path, caplog):
    with pytest.raises(FloatingPointError, match="the loss was not finite, of finite data"):
        train_line(tmp_path, 3, callbacks=[Ruin()], every=1)
    assert "No checkpoint was written: " in caplog.text
    assert files(tmp_path)[-1] == "epoch-000001-step-000000000.npz"
    model, _ = train_line(tmp_path, 1)  # nothing is left to train
    assert all(np.all(np.isfinite(value)) for value in state(model))


def test_whole_files_do_not_make_way_for_a_damaged_one(tmp_path):
    train_line(tmp_path, 1, keep=1)
    damaged = tmp_path / "epoch-000009-step-000000000.npz"
    damaged.write_bytes(b"half")
    train_line(tmp_path, 2, keep=1)
    assert files(tmp_path) == [f"damaged-{damaged.name}", "epoch-000002-step-000000000.npz"]


def test_data_that_can_not_go_on_are_warned_of(tmp_path, caplog):
    model = Line()
    model.compile("sgd", "mse", jit_compile=False)
    data = tf.data.Dataset.from_tensors((np.ones((4, 1)), np.ones((4, 1)))).repeat(5)
    model.fit(data, steps_per_epoch=2, verbose=0, callbacks=[kv.training.Checkpoint(tmp_path)])
    assert "With steps_per_epoch=2 of 5 batches an epoch reads on where the one before ended" in caplog.text


def test_what_cannot_be_remembered_is_told_before_training(tmp_path):
    counter = Counter()
    counter.losses = {1, 2}
    with pytest.raises(TypeError, match=r"What Counter remembers must be numbers.*Received: losses=\{1, 2\}"):
        train(CASES["tokenizer"][0], tmp_path, counter)
    assert not files(tmp_path)


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


def test_another_tokenizer_or_process_is_told_and_stays(tmp_path):
    """Shapes alone do not tell these apart."""
    train_data = {"latents": np.zeros((20, 2, 2, 4), "float32"), "label": np.zeros(20, "int32")}
    tokenizers = [tokenizer(), tokenizer()]

    def fit(which, process):
        network = kv.DiffusionTransformer(16, 2, 32, 1, num_classes=3)
        model = kv.LatentDiffusion(tokenizers[which], network, process)
        model.compile("adam", jit_compile=False)
        model.fit(train_data, verbose=0, callbacks=[kv.training.Checkpoint(tmp_path)], shuffle=False, epochs=2)

    fit(0, kv.RectifiedFlow())
    with pytest.raises(ValueError, match="are of another model. Expected: process.class_name=RectifiedFlow"):
        fit(0, kv.GaussianDiffusion())
    with pytest.raises(ValueError, match="are of another model. Expected: process.config.shift=1.0. Received: 3.0"):
        fit(0, kv.RectifiedFlow(shift=3.0))
    before = [np.array(weight) for weight in tokenizers[1].weights]
    with pytest.raises(ValueError, match="are of a model with another tokenizer"):
        fit(1, kv.RectifiedFlow())
    for weight, value in zip(tokenizers[1].weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_another_optimizer_is_warned_of(tmp_path, caplog):
    train_line(tmp_path, 1, optimizer=keras.optimizers.Adam(0.1))
    train_line(tmp_path, 2, optimizer=keras.optimizers.Adam(0.1))
    assert "The optimizer was changed" not in caplog.text
    train_line(tmp_path, 3, optimizer=keras.optimizers.AdamW(0.2))
    assert "class: Adam to AdamW; learning_rate: " in caplog.text


def test_one_bad_batch_at_the_end_does_not_keep_the_epoch_from_being_saved(tmp_path):
    x = np.linspace(-1, 1, 16, dtype="float32")[:, None]
    x[-1] = np.nan
    train_line(tmp_path, 2, x=x)
    assert files(tmp_path) == ["epoch-000001-step-000000000.npz", "epoch-000002-step-000000000.npz"]


def test_a_generator_that_could_not_go_on_is_told_at_once(tmp_path):
    def generator():
        while True:
            yield np.ones((4, 1), "float32"), np.ones((4, 1), "float32")

    def fit(model, epochs, **compiling):
        model.compile("sgd", "mse", **compiling)
        options = {"steps_per_epoch": 2, "epochs": epochs, "verbose": 0}
        return model.fit(generator(), callbacks=[kv.training.Checkpoint(tmp_path)], **options).epoch

    with pytest.raises(
        ValueError, match="the data must tell their shapes.*the model is not built and it is compiled with"
    ):
        fit(Line(), 1, metrics=["mae"])
    for epochs in (1, 2):
        model = Line()
        model(np.ones((4, 1), "float32"))
        assert fit(model, epochs) == list(range(epochs))


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
        content[content.index(b'"version"') + 1] ^= 255
    newest.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "flipped": content}[how])
    model, _ = train_line(tmp_path / "parts", 3)  # from the end of the first epoch on
    assert_equal(model, expected)
    assert "is damaged, and left out" in caplog.text


def test_a_loss_that_was_not_a_number_is_remembered(tmp_path):
    train_line(tmp_path, 1)
    newest = max(tmp_path.glob("epoch-*.npz"))
    meta, arrays, memory = _read(newest)
    meta["history"]["val_loss"] = [float("nan")]
    meta["callbacks"] = [["Other", {"best": float("inf")}]]
    _write(newest, meta, arrays, memory)
    assert np.isnan(_read(newest)[0]["history"]["val_loss"][0])


@pytest.mark.parametrize(
    "key, value", [("history", [1]), ("callbacks", 5), ("model", 5), ("epoch", 10**30), ("history", {"loss": 1})]
)
def test_wrong_types_are_told(key, value, tmp_path):
    train_line(tmp_path, 1)
    newest = max(tmp_path.glob("epoch-*.npz"))
    meta, arrays, memory = _read(newest)
    _write(newest, {**meta, key: value}, arrays, memory)
    with pytest.raises(ValueError, match=f"{newest.name} is damaged, or no checkpoint: received"):
        _read(newest)


def test_flipped_bits_never_stop_a_restart(tmp_path):
    """Whichever bit of the newest file is wrong, training goes on from the one before, or from the same numbers."""
    expected, _ = train_line(tmp_path, 2)
    newest = tmp_path / "epoch-000002-step-000000000.npz"
    good, rng = newest.read_bytes(), np.random.default_rng(0)
    for place in [*rng.integers(0, len(good), 60), *range(len(good) - 400, len(good) - 300)]:  # and the zip's directory
        content = bytearray(good)
        content[place] ^= 1 << rng.integers(8)
        newest.write_bytes(content)
        try:
            meta, arrays, _ = _read(newest)
        except ValueError as error:
            assert str(newest) in str(error)
        else:
            assert meta["epoch"] == 2 and all(np.all(np.isfinite(array)) for array in arrays)


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


def test_folders_that_are_none(tmp_path):
    for folder in (None, 3, ""):
        with pytest.raises(TypeError, match="`folder` must be a path. Received: folder="):
            kv.training.Checkpoint(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="`folder` must be a folder. Received: folder=.*a file"):
        train_line(tmp_path / "file")


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


SLOW = [pytest.mark.slow, pytest.mark.timeout(3000)]


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
