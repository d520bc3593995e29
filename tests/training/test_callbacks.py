"""`Throughput` against known rates, and what `TensorBoard` writes, read back from its files."""

import importlib.util
import io
import os
import subprocess
import sys
import textwrap
import time

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorboard")
from matplotlib.image import imread  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from tensorboard.util import tensor_util  # noqa: E402

import keras_vqdit as kv  # noqa: E402
from tests.training.replicas_program import IMAGES, LABELS  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EXAMPLES = {"image": IMAGES[:2], "label": LABELS[:2]}


def autoencoder(cls=kv.VQVAE, shape=(8, 8, 1), **options):
    """The smallest: two by two latents, or four in a row, of two channels."""
    rank, channels = len(shape) - 1, 2 if cls is kv.VQVAE else 4
    down, up = (getattr(keras.layers, f"Conv{rank}D{kind}") for kind in ("", "Transpose"))
    encoder = keras.Sequential([keras.Input(shape), down(channels, 4, 4)])
    latent = (*(size // 4 for size in shape[:-1]), 2)
    decoder = keras.Sequential([keras.Input(latent), up(1, 4, 4)])
    if cls is kv.VQVAE:
        quantizer = kv.VectorQuantizer(8, 2, kmeans_init=False, restart_threshold=0.2, seed=1)
        return cls(encoder, decoder, 8, 2, quantizer=quantizer, **options)
    return cls(encoder, decoder, 2, seed=1, **options)


def diffusion():
    return kv.LatentDiffusion(None, kv.DiffusionTransformer(16, 2, 32, 1, patch_size=2, num_classes=3), seed=1)


def compiled(model, optimizer="adam", **options):
    jit_compile = False if keras.backend.backend() == "tensorflow" else "auto"
    model.compile(optimizer, jit_compile=jit_compile, **options)
    return model


class Line(kv.training.DistributedModel):
    """Hardly any work, so that the data make the rate."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)


def line(**options):
    return compiled(Line(), "sgd", loss="mse", **options)


# === Throughput ===

SECONDS, BATCH = 0.05, 10
X = np.ones((60, 1), "float32")


class SlowSteps(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        time.sleep(SECONDS)


class Clock(keras.callbacks.Callback):
    """When each step began and ended, lists an epoch: machines that are busy are slower than their data."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(([], []))

    def on_train_batch_begin(self, batch, logs=None):
        self.epochs[-1][0].append(time.perf_counter())

    def on_train_batch_end(self, batch, logs=None):
        self.epochs[-1][1].append(time.perf_counter())

    def check(self, rates, examples, first=0, limit=BATCH / SECONDS):
        """Compare rates with those of so many examples after the first step of an epoch, which has this number."""
        assert len(rates) == len(self.epochs)
        for rate, (begins, ends) in zip(rates, self.epochs, strict=True):
            expected = examples / (ends[-1] - begins[first + 1])  # a checkpoint after the first step does not count
            assert 0.75 * expected < rate < 1.25 * expected, (rate, expected)
            assert rate < 1.02 * limit


class Stop(Exception):
    pass


class StopAfter(keras.callbacks.Callback):
    comes_last = True  # behind `Checkpoint`, which stands before it

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        self.steps -= 1
        if not self.steps:
            raise Stop


def slow_dataset(sleeps=True, size=60):
    """Batches of ten, each after 0.05 s: 200 examples a second, less the work. Their number is not known before the end."""

    def batches():
        for begin in range(0, size, BATCH):
            if sleeps:
                time.sleep(SECONDS)
            yield X[begin : begin + BATCH], X[begin : begin + BATCH]

    spec, options = tf.TensorSpec((None, 1), tf.float32), tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # what was prefetched while a step compiled takes no time
    return tf.data.Dataset.from_generator(batches, output_signature=(spec, spec)).with_options(options)


KINDS = {
    "arrays": lambda: ({"x": X, "y": X, "batch_size": BATCH}, [SlowSteps()]),
    "data set of unknown size": lambda: ({"x": slow_dataset()}, []),
}


@pytest.mark.parametrize(
    "kind, steps_per_execution",
    [("arrays", 1), ("arrays", 2), ("data set of unknown size", 1), ("data set of unknown size", 2)],
)
def test_rate_of_slow_data(kind, steps_per_execution):
    fed, callbacks = KINDS[kind]()
    clock = Clock()
    model = line(steps_per_execution=steps_per_execution)
    history = model.fit(**fed, epochs=2, verbose=0, callbacks=[kv.training.Throughput(), clock, *callbacks]).history
    limit = BATCH / SECONDS * (steps_per_execution if callbacks else 1)  # that callback sleeps once a call
    clock.check(history["samples_per_second"], 60 - BATCH * steps_per_execution, limit=limit)


def test_validation_and_other_callbacks_do_not_count():
    class SlowEnd(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            time.sleep(0.3)

    clock = Clock()
    callbacks = [clock, SlowEnd(), kv.training.Throughput(), SlowSteps()]
    options = {"batch_size": BATCH, "epochs": 2, "validation_data": slow_dataset(), "validation_freq": 2, "verbose": 0}
    rates = line().fit(X, X, callbacks=callbacks, **options).history["samples_per_second"]
    clock.check(rates, 50)


def test_an_epoch_of_one_step_counts_as_a_whole():
    throughput = kv.training.Throughput()
    for data, options in ((slow_dataset(size=10), {}), (slow_dataset(), {"steps_per_epoch": 1})):
        begin = time.perf_counter()
        history = line().fit(data, verbose=0, callbacks=[throughput], **options).history
        (rate,) = history["samples_per_second"]
        assert 10 / (time.perf_counter() - begin) < rate < BATCH / SECONDS


def test_uneven_batches_and_skipped_steps_are_counted_as_they_are():
    x = X[:45].copy()
    x[25] = np.nan  # the third batch
    clock = Clock()
    callbacks = [clock, kv.training.Throughput(), SlowSteps()]
    history = line().fit(x, x, batch_size=10, shuffle=False, verbose=0, callbacks=callbacks).history
    clock.check(history["samples_per_second"], 10 + 10 + 5)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_what_a_restart_passes_over_does_not_count(steps_per_execution, tmp_path):
    callbacks = lambda: [kv.training.Throughput(), kv.training.Checkpoint(tmp_path, every=2)]  # noqa: E731
    options = {"epochs": 2, "verbose": 0}
    with pytest.raises(Stop):
        model = line(steps_per_execution=steps_per_execution)
        stop = StopAfter(2 // steps_per_execution)
        model.fit(slow_dataset(sleeps=False), callbacks=[*callbacks(), stop], **options)
    resumed = line(steps_per_execution=steps_per_execution)
    clock = Clock()
    rates = resumed.fit(slow_dataset(), callbacks=[*callbacks(), clock], **options).history["samples_per_second"]
    assert int(resumed.optimizer.iterations) == 12
    calls, first = list(clock.epochs), 2 // steps_per_execution
    for epoch, examples, start in (
        (0, 40 - BATCH * steps_per_execution, first),
        (1, 60 - BATCH * steps_per_execution, 0),
    ):
        clock.epochs = calls[epoch : epoch + 1]
        clock.check(rates[epoch : epoch + 1], examples, first=start)


def test_an_epoch_that_was_trained_before_has_no_rate(tmp_path):
    with pytest.raises(Stop):
        line().fit(X, X, batch_size=10, verbose=0, callbacks=[kv.training.Checkpoint(tmp_path, every=6), StopAfter(6)])
    callbacks = [kv.training.Throughput(), kv.training.Checkpoint(tmp_path)]
    logs = line().fit(slow_dataset(sleeps=False), verbose=0, validation_data=(X, X), callbacks=callbacks).history
    assert np.isnan(logs["samples_per_second"][0])


def test_the_counter_is_read_twice_an_epoch(monkeypatch):
    throughput = kv.training.Throughput()
    look, looked = throughput._look, []
    monkeypatch.setattr(throughput, "_look", lambda: looked.append(1) or look())
    line().fit(X, X, batch_size=5, epochs=3, verbose=0, validation_data=(X, X), callbacks=[throughput])
    assert len(looked) == 2 * 3


def test_the_rate_is_shown_by_the_progress_bar_and_is_for_any_model(capsys):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, X, batch_size=10, verbose=2, callbacks=[kv.training.Throughput()])
    assert "samples_per_second: " in capsys.readouterr().out
    model.evaluate(X, X, verbose=0, callbacks=[kv.training.Throughput()])


# === TensorBoard ===


def read(folder):
    """The events of a folder: `(tags, scalars, histograms, images)`, the latter three tag -> [(step, value)]."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    found = {"scalars": {}, "histograms": {}, "images": {}}
    for tag in events.Tags()["tensors"]:
        kind = events.SummaryMetadata(tag).plugin_data.plugin_name
        found[kind][tag] = [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
    return found


def decode(image):
    """The pixels of an image summary: its width, its height and a PNG."""
    width, height, png = image
    pixels = imread(io.BytesIO(png), format="png")
    assert pixels.shape == (int(height), int(width), 3)
    return pixels


def steps(events):
    return [step for step, _ in events]


def variables(model):
    return [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]  # seeds, too


class Trained:
    """A model that is trained twice from the same start, the second time with `TensorBoard`, and what came of it."""

    def __init__(self, model, folder, **options):
        self.model = compiled(model)
        self.fit()  # builds the optimizer
        start = self.state = self.values()
        self.fit()
        self.without = self.values()
        self.restore(start)
        self.board = kv.training.TensorBoard(folder, **options)
        self.history = self.fit(kv.training.Throughput(), self.board)
        self.state = self.values()
        self.events, self.validation = read(folder / "train"), read(folder / "validation")

    def fit(self, *callbacks, epochs=2):
        data = {"image": IMAGES[:100], "label": LABELS[:100]}
        options = {"batch_size": 25, "epochs": epochs, "shuffle": False, "verbose": 0}
        return self.model.fit(data, validation_data=(EXAMPLES,), callbacks=list(callbacks), **options).history

    def values(self):
        return [np.array(variable) for variable in variables(self.model)]

    def restore(self, values):
        for variable, value in zip(variables(self.model), values, strict=True):
            variable.assign(value)


MODELS = {
    "tokenizer": (autoencoder, {"examples": EXAMPLES}),
    "VAE": (lambda: autoencoder(kv.VAE), {"examples": IMAGES[:1]}),
    "diffusion": (
        diffusion,
        {"labels": np.repeat([0, 1, 2], 2), "num_steps": 2, "sampling": {"guidance_scale": 1.5}},
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Name -> `Trained`, each made once."""
    made = {}

    def get(name):
        if name not in made:
            keras.utils.set_random_seed(3)
            make, options = MODELS[name]
            made[name] = Trained(make(), tmp_path_factory.mktemp("logs"), **options)
        made[name].restore(made[name].state)
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_pictures_do_not_change_training(name, trained):
    result = trained(name)
    assert len(result.without) > 10
    for before, after in zip(result.without, result.state, strict=True):
        # Convolutions on several threads are not rounded alike in every run.
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7)
    (pictures,) = result.events["images"].values()
    assert steps(pictures) == [0, 1]


@pytest.mark.parametrize("name", MODELS)
def test_scalars_are_those_of_the_history(name, trained):
    result = trained(name)
    history, train, validation = result.history, result.events["scalars"], result.validation["scalars"]
    learned = {f"epoch_{key}" for key in history if not key.startswith("val_")}
    assert {"epoch_loss", "epoch_samples_per_second"} <= learned
    assert set(train) == learned | {"epoch_skipped_steps", "epoch_learning_rate"}
    validated = {f"epoch_{key[4:]}" for key in history if key.startswith("val_")}
    assert "epoch_loss" in validated and validated <= set(validation)
    for tags, scalars, prefix in ((learned, train, ""), (validated, validation, "val_")):
        for tag in tags:
            assert steps(scalars[tag]) == [0, 1]
            np.testing.assert_allclose(
                [value for _, value in scalars[tag]], history[prefix + tag.removeprefix("epoch_")], rtol=1e-6
            )
    assert [(step, float(value)) for step, value in train["epoch_skipped_steps"]] == [(0, 0), (1, 0)]
    rate = float(result.model.optimizer.learning_rate)
    np.testing.assert_allclose([value for _, value in train["epoch_learning_rate"]], rate, rtol=1e-6)


def test_histograms_of_the_codebook(trained):
    result = trained("tokenizer")
    codes, histograms = np.array(result.model.encode(EXAMPLES)), result.events["histograms"]
    assert set(histograms) == {"codebook/usage", "codebook/norms"}
    usage, norms = histograms["codebook/usage"], histograms["codebook/norms"]
    assert steps(usage) == steps(norms) == [0, 1]
    for _, buckets in usage:  # one a code
        assert buckets.shape == (8, 3)
        assert buckets[:, 2].sum() == codes.size
        np.testing.assert_array_equal(buckets[:, :2].mean(axis=1), np.arange(8))
    np.testing.assert_array_equal(usage[-1][1][:, 2], np.bincount(codes.ravel(), minlength=8))
    expected = np.linalg.norm(np.array(result.model.vq.codebook), axis=1)
    assert norms[-1][1][:, 2].sum() == 8
    np.testing.assert_allclose([norms[-1][1][0, 0], norms[-1][1][-1, 1]], [expected.min(), expected.max()], rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_pictures_are_those_of_plotting(name, trained, tmp_path):
    result, file = trained(name), tmp_path / "expected.png"
    model, ((tag, pictures),) = result.model, result.events["images"].items()
    if name == "diffusion":
        drawn = model.generate(np.repeat([0, 1, 2], 2), num_steps=2, guidance_scale=1.5, seed=0, verbose=0)
        kv.plotting.image_grid(drawn, columns=2, row_labels=[0, 1, 2], title="Samples, epoch 2", path=file)
    else:
        images = IMAGES[:2] if name == "tokenizer" else IMAGES[:1]
        restored = np.array(model(images)[0])
        kv.plotting.reconstructions(images, restored, title="Reconstructions, epoch 2", path=file)
    assert tag == ("samples" if name == "diffusion" else "reconstructions")
    np.testing.assert_array_equal(decode(pictures[-1][1]), imread(file)[..., :3])


def test_figures_every_so_many_epochs_of_the_first_examples(trained, tmp_path, monkeypatch):
    result = trained("tokenizer")  # draws both
    monkeypatch.setattr(kv.training.callbacks, "NUM_DRAWN", 1)
    result.fit(kv.training.TensorBoard(tmp_path, examples=EXAMPLES, figures_every=2), epochs=5)
    events = read(tmp_path / "train")
    assert steps(events["scalars"]["epoch_loss"]) == [0, 1, 2, 3, 4]
    assert steps(events["images"]["reconstructions"]) == steps(events["histograms"]["codebook/norms"]) == [1, 3]
    assert events["histograms"]["codebook/usage"][0][1][:, 2].sum() == 2 * 4
    of_both = decode(result.events["images"]["reconstructions"][0][1]).shape
    assert decode(events["images"]["reconstructions"][0][1]).shape[1] < of_both[1]


def test_a_model_gone_astray(trained, tmp_path):
    model = trained("tokenizer").model
    before = model.skipped_steps
    model.decoder.weights[-1].assign([np.nan])
    board = kv.training.TensorBoard(tmp_path, examples=IMAGES[:1])
    model.fit({"image": IMAGES[:100], "label": LABELS[:100]}, batch_size=25, verbose=0, callbacks=[board])
    events = read(tmp_path / "train")
    assert len(events["images"]["reconstructions"]) == 1
    assert events["scalars"]["epoch_skipped_steps"][0][1] == before + 4


def test_data_that_are_no_images(tmp_path, caplog):
    sound = np.zeros((20, 16, 1), "float32")
    model = compiled(autoencoder(kv.VAE, shape=(16, 1), modality="audio"))
    board = kv.training.TensorBoard(tmp_path, examples={"audio": sound})
    model.fit({"audio": sound}, epochs=2, verbose=0, callbacks=[board])
    assert not read(tmp_path / "train")["images"]
    assert caplog.text.count("draws images with 1 or 3 channels. Received: data of shape (8, 16, 1)") == 1


def test_losses_of_steps_leave_no_epoch_out(trained, tmp_path):
    board = kv.training.TensorBoard(tmp_path, examples=IMAGES[:1], update_freq=3)
    trained("tokenizer").fit(board)
    events = read(tmp_path / "train")
    assert steps(events["scalars"]["epoch_loss"]) == steps(events["images"]["reconstructions"]) == [0, 1]
    assert steps(events["scalars"]["batch_loss"]) == [3, 6]


def test_another_model_gets_its_curves(tmp_path):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0, callbacks=[kv.training.TensorBoard(tmp_path, write_graph=False)])
    assert set(read(tmp_path / "train")["scalars"]) == {"epoch_loss", "epoch_learning_rate"}


def test_only_the_first_worker_logs(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(kv.training.TensorBoard, "is_writer", False)
    trained("tokenizer").fit(kv.training.TensorBoard(tmp_path, examples=EXAMPLES))
    assert not list(tmp_path.rglob("*"))


LAYOUTS = [
    (None, 5, {}),
    ([0, 0, 1, 1], 4, {"columns": 2, "row_labels": [0, 1]}),
    ([2, 0, 1], 3, {"columns": 3, "column_labels": [2, 0, 1]}),
    (1, 3, {"columns": 3, "row_labels": [1]}),
    ([0, 0, 1], 3, {"columns": 3, "column_labels": [0, 0, 1]}),
    (np.arange(20), 20, {}),
]


@pytest.mark.parametrize("labels, count, expected", LAYOUTS, ids=str)
def test_layout(labels, count, expected):
    found = kv.training.callbacks._layout(labels, count)
    assert {key: value if key == "columns" else list(value) for key, value in found.items()} == expected


# === Errors ===


@pytest.mark.parametrize("name", ["num_samples", "num_steps", "figures_every"])
@pytest.mark.parametrize("value", [0, 1.5])
def test_bad_numbers(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer. Received: {name}={value}"):
        kv.training.TensorBoard(**{name: value})


def test_bad_examples(trained, tmp_path):
    with pytest.raises(TypeError, match="`examples` must be a batch: .* Received: examples of type .*Dataset"):
        kv.training.TensorBoard(examples=slow_dataset())
    with pytest.raises(TypeError, match="`sampling` must be a dict of arguments of `generate`. Received: sampling=3"):
        kv.training.TensorBoard(sampling=3)
    for examples, message in [
        ({"label": LABELS}, '`examples` must have a key "image", the `modality` of the model. Received: keys.*label'),
        (np.zeros((2, 8, 8, 1), "uint8"), "The data must be floats .* Received: dtype=uint8"),
    ]:
        result = trained("tokenizer")
        with pytest.raises(ValueError, match=message):
            result.fit(kv.training.TensorBoard(tmp_path, examples=examples))
        np.testing.assert_array_equal(result.values()[0], result.state[0])  # not one step was taken


def test_the_package_is_asked_for(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(ImportError, match=r'pip install "keras_vqdit\[tensorboard\]"'):
        kv.training.TensorBoard()


# === In processes of their own ===

REPLICAS = """
    import sys

    import keras
    import numpy as np
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import keras_vqdit as kv
    from tests.training.test_callbacks import EXAMPLES, IMAGES, Clock, SlowSteps, autoencoder, compiled, read

    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        model = compiled(autoencoder())
    board = kv.training.TensorBoard(sys.argv[1], examples=EXAMPLES, figures_every=2)
    clock = Clock()
    callbacks = [kv.training.Throughput(), board, clock, SlowSteps()]
    logs = model.fit(IMAGES[:160], batch_size=40, epochs=2, verbose=0, callbacks=callbacks).history
    clock.check(logs["samples_per_second"], 120, limit=40 / 0.05)
    events = read(sys.argv[1] + "/train")
    assert len(events["images"]["reconstructions"]) == len(events["histograms"]["codebook/norms"]) == 1
    assert events["histograms"]["codebook/usage"][0][1][:, 2].sum() == 2 * 4
    values = [float(v) for _, v in events["scalars"]["epoch_samples_per_second"]]
    np.testing.assert_allclose(values, logs["samples_per_second"], rtol=1e-6)
    print("done")
"""

JAX = """
    import sys
    from pathlib import Path

    import keras
    import numpy as np

    import keras_vqdit as kv
    from tests.training.test_callbacks import EXAMPLES, Clock, SlowSteps, Trained, X, autoencoder, line

    model = line()
    clock = Clock()
    callbacks = [kv.training.Throughput(), SlowSteps(), clock]
    logs = model.fit(X, X, batch_size=10, epochs=2, validation_data=(X, X), verbose=0, callbacks=callbacks).history
    clock.check(logs["samples_per_second"], 50)
    assert keras.callbacks.CallbackList([kv.training.Throughput()])._async_train  # Keras need not wait for each step
    result = Trained(autoencoder(kv.VAE), Path(sys.argv[1]), examples=EXAMPLES)
    for one, other in zip(result.without, result.state, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(result.events["images"]["reconstructions"]) == 2
    print("done")
"""


PROGRAMS = {"replicas": ("tensorflow", REPLICAS), "jax": ("jax", JAX)}


@pytest.fixture(scope="module", autouse=True)
def processes(request, tmp_path_factory):
    """Name -> process; they begin with the first test and are asked by the last ones, for they take a while."""
    started, chosen = {}, {item.name for item in request.session.items}
    for name, (backend, program) in PROGRAMS.items():
        if f"test_elsewhere[{name}]" in chosen and importlib.util.find_spec(backend) is not None:
            environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
            command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path_factory.mktemp(name))]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started[name] = subprocess.Popen(command, env=environment, **pipes)
    yield started
    for process in started.values():
        process.kill()


@pytest.mark.parametrize("name", PROGRAMS)
def test_elsewhere(name, processes):
    pytest.importorskip(PROGRAMS[name][0])
    output, _ = processes[name].communicate(timeout=300)
    assert processes[name].returncode == 0 and "done" in output, output[-3000:]
