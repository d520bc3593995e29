"""A step that is not finite changes nothing, is counted, and stops training at last."""

import logging

import keras
import numpy as np
import pytest
from keras import ops

import keras_vqdit as kv
from keras_vqdit.layers.latent_statistics import LatentStatistics
from keras_vqdit.training.guard import DATA, FINE, LOSS, find_cause

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IMAGES = np.tanh(np.random.default_rng(0).normal(size=(48, 8, 8, 1)).cumsum(1)).astype("float32")


def tokenizer(**options):
    return kv.VQVAE.from_size(
        "digits",
        input_shape=(8, 8, 1),
        filters=(4, 4),
        residual_filters=4,
        num_embeddings=8,
        **options,
    )


def values(model):
    return [np.asarray(variable) for variable in [*model.weights, *model.optimizer.variables]]


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"jit_compile": False}, {"run_eagerly": True}], ids=str)
def test_a_bad_batch_is_as_if_it_had_not_been(options, caplog):
    bad = IMAGES.copy()
    bad[20] = np.nan  # in the second batch of three
    trained = []
    for data in (bad, np.concatenate([IMAGES[:16], IMAGES[32:]])):
        keras.utils.set_random_seed(0)
        model = tokenizer(quantizer=kv.VectorQuantizer(8, 4, seed=0, kmeans_init=False, restart_threshold=None))
        model.compile("adam", **options)
        history = model.fit(data, batch_size=16, epochs=2, shuffle=False, verbose=0).history
        trained.append((values(model), history, model.skipped_steps))
    (weights, history, skipped), (expected, expected_history, none) = trained
    assert (skipped, none) == (2, 0)
    for value, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(value, other)
    assert history == expected_history
    warnings = [r.getMessage() for r in caplog.records if r.name == "keras_vqdit" and r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "A training step was skipped: the data were not finite" in warnings[0]


def test_training_stops_after_so_many_in_a_row():
    data = np.concatenate([IMAGES, IMAGES])
    data[16:] = np.inf
    model = tokenizer()
    model.compile("adam", jit_compile=False)
    model.max_skipped_steps = 3
    with pytest.raises(
        FloatingPointError, match="stopped after 3 steps in a row that were skipped.*the data were not finite"
    ):
        model.fit(data, batch_size=16, epochs=5, shuffle=False, verbose=0)
    assert all(np.all(np.isfinite(value)) for value in values(model))


class Root(keras.layers.Layer):
    """Its gradient at zero is infinite, its value is not."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="zeros", name="scale")

    def call(self, x):
        return x + ops.sqrt(self.scale)


class Chain(kv.training.DistributedModel):
    def __init__(self):
        super().__init__()
        self.first, self.root, self.last = keras.layers.Dense(3), Root(name="root"), keras.layers.Dense(2, name="last")

    def build(self, input_shape):
        for layer, width in ((self.first, 4), (self.root, 3), (self.last, 3)):
            layer.build((None, width))

    def call(self, x):
        return self.last(self.root(self.first(x)))


def test_the_error_names_the_layer_whose_gradient_was_first():
    model = Chain()
    model.compile("sgd", "mse", jit_compile=False)
    model.max_skipped_steps = 2
    with pytest.raises(FloatingPointError, match="the gradient of '.*root/scale' was not finite, of a finite loss"):
        model.fit(np.ones((40, 4), "float32"), np.ones((40, 2), "float32"), batch_size=4, verbose=0)


def test_a_loss_that_is_not_finite_is_named():
    model = Chain()
    model.compile("sgd", lambda y_true, y_pred: ops.log(-ops.abs(y_pred - y_true) - 1.0), jit_compile=False)
    model.max_skipped_steps = 2
    with pytest.raises(FloatingPointError, match="the loss was not finite, of finite data"):
        model.fit(np.ones((40, 4), "float32"), np.ones((40, 2), "float32"), batch_size=4, verbose=0)


def test_a_lucky_step_between_starts_the_count_anew():
    data = IMAGES.copy()
    data[::16] = np.nan
    data[16] = 0.0
    model = tokenizer()
    model.compile("adam", jit_compile=False)
    model.max_skipped_steps = 3  # two of three are bad, never three in a row but over the end of an epoch
    data = np.concatenate([data[16:32], data[:16], data[32:]])
    model.fit(data, batch_size=16, epochs=3, shuffle=False, verbose=0)
    assert model.skipped_steps == 6


def test_float16_lowers_its_scale_when_gradients_overflow(caplog):
    model = Chain()
    model.compile(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=1e38), "mse", jit_compile=False
    )
    model.build((None, 4))
    model.root.scale.assign(1.0)
    model.fit(10 * np.ones((40, 4), "float32"), np.ones((40, 2), "float32"), batch_size=4, verbose=0)
    assert 0 < model.skipped_steps < 10
    assert float(model.optimizer.dynamic_scale.value) < 1e38
    assert not [r for r in caplog.records if "skipped" in r.getMessage()]


@pytest.mark.parametrize(
    "data_finite, loss_finite, gradients, expected",
    [
        (True, True, [1.0, None, 2.0], FINE),
        (True, True, [np.inf, None, np.nan, 1.0], 2),  # the last, which is the first on the way back
        (True, False, [np.nan, np.nan], LOSS),
        (False, False, [np.nan, np.nan], DATA),
        (False, True, [1.0], FINE),  # such as under a mask
        (True, True, [], FINE),
    ],
)
def test_the_cause_of_a_bad_step(data_finite, loss_finite, gradients, expected):
    gradients = [None if g is None else ops.convert_to_tensor([1.0, g], "float32") for g in gradients]
    flags = (ops.convert_to_tensor(flag) for flag in (data_finite, loss_finite))
    assert int(find_cause(*flags, gradients)) == expected


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_vectors_that_are_not_finite_do_not_poison_a_codebook(codebook):
    z = np.random.default_rng(0).normal(size=(2, 20, 4)).astype("float32")
    z[0, 3, 1], z[1, 7, 0] = np.nan, np.inf
    layer = kv.VectorQuantizer(6, 4, codebook=codebook, seed=0)
    for _ in range(3):
        _, loss = layer(z, training=True)
    assert all(np.all(np.isfinite(np.asarray(weight))) for weight in layer.weights)
    assert not np.any(np.isfinite(np.asarray(loss)))  # which is not hidden


def test_data_that_are_not_finite_do_not_poison_the_latent_statistics():
    z = np.random.default_rng(0).normal(2.0, 3.0, size=(64, 5, 2)).astype("float32")
    layer, bad = LatentStatistics(), z.copy()
    bad[0, 0, 0] = np.nan
    layer(bad, training=True)
    np.testing.assert_array_equal(np.asarray(layer.mass), 0.0)
    layer(z, training=True)
    layer(bad, training=True)
    mean, deviation = layer.mean_and_deviation()
    np.testing.assert_allclose(mean, z.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(deviation, z.std((0, 1)), rtol=1e-5)


def test_auto_chooses_xla_and_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="keras_vqdit"):
        model = tokenizer()
        model.compile("adam")
    assert model.jit_compile is True
    assert any('jit_compile="auto" chose True' in record.getMessage() for record in caplog.records)


def test_auto_respects_layers_that_xla_can_not_compile():
    model = Chain()
    model.last.supports_jit = False
    model.compile("adam")
    assert model.jit_compile is False
