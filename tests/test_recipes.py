"""The measures that the command line prints, against NumPy; the learning-rate schedule."""

import keras
import numpy as np
import pytest

from keras_vqdit import data, recipes


class Rounder:
    """A tokenizer of four grey levels."""

    modality, num_embeddings = "image", 5
    levels = np.array([-1.0, -0.4, 0.3, 1.0], "float32")

    def encode(self, x):
        return np.abs(np.asarray(x) - self.levels).argmin(axis=-1).astype("int32")

    def decode(self, codes):
        return self.levels[np.asarray(codes)][..., None]


def test_tokenizer_measures_over_the_whole_set():
    images = np.random.default_rng(0).uniform(-1, 1, (50, 6, 6, 1)).astype("float32")
    _, test = data.load(({"image": images}, {"image": images}), batch_size=7)  # the last batch is smaller
    measured = recipes.measure_tokenizer(Rounder(), test)
    codes = Rounder().encode(images)
    errors = Rounder().decode(codes) - images.astype("float64")
    share = np.bincount(codes.ravel(), minlength=5) / codes.size
    assert measured["mse"] == pytest.approx(np.mean(errors**2), rel=1e-6)
    assert measured["psnr"] == pytest.approx(10 * np.log10(4 / np.mean(errors**2)), rel=1e-6)
    assert measured["l1"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-6)
    assert measured["mse_over_variance"] == pytest.approx(np.mean(errors**2) / images.astype("float64").var(), rel=1e-5)
    assert measured["codes_used"] == 0.8
    assert measured["perplexity"] == pytest.approx(np.exp(-np.sum(share[:4] * np.log(share[:4]))), rel=1e-6)
    assert measured["counts"].sum() == codes.size


def test_learning_rate_warms_up_and_falls():
    steps = data.load(np.zeros((400, 4, 4, 1), "uint8"), batch_size=10, test_fraction=0.5)[0]
    assert int(steps.cardinality()) == 20
    rate = recipes.learning_rate_schedule(steps, 100, 1e-3)
    values = np.array([float(rate(step)) for step in (0, 100, 200, 1100, 2000)])
    np.testing.assert_allclose(values, [1e-5, 5.05e-4, 1e-3, 5.05e-4, 1e-5], rtol=1e-2)


def test_to_arrays_keeps_the_order_and_the_limit():
    images = np.arange(30, dtype="uint8")[:, None, None, None] * np.ones((1, 4, 4, 1), "uint8")
    train, _ = data.load(({"image": images}, {"image": images}), batch_size=8)
    arrays = recipes.to_arrays(train)
    assert arrays.shape == (30, 4, 4, 1)
    np.testing.assert_allclose(arrays[:, 0, 0, 0], np.arange(30) / 127.5 - 1, atol=1e-6)
    assert len(recipes.to_arrays(train, limit=5)) == 5


class Painter:
    """A model that draws a flat image as bright as its label."""

    num_classes = 3

    def generate(self, labels, batch_size, **_):
        return np.asarray(labels)[:, None, None, None] * np.ones((1, 4, 4, 1), "float32") / 2


def test_a_model_of_other_classes_is_told_before_it_draws():
    images, labels = np.zeros((40, 4, 4, 1), "uint8"), np.arange(40) % 4
    _, test = data.load(({"image": images, "label": labels}, {"image": images, "label": labels}), batch_size=16)
    with pytest.raises(ValueError, match="must draw the classes of the test data, 4. Received: a model of 3 classes"):
        recipes.measure_generation(Painter(), None, test)


def test_labels_of_unknown_number_do_not_train_without_labels():
    images, labels = np.zeros((40, 4, 4, 1), "uint8"), np.arange(40) % 4
    train, _ = data.load(({"image": images, "label": labels}, {"image": images, "label": labels}), batch_size=16)
    with pytest.raises(ValueError, match="number of classes must be known"):
        recipes.train_diffusion(train.map(lambda batch: batch), None, epochs=1)


def test_generation_is_judged():
    x = inputs = keras.Input((4, 4, 1))
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    outputs = keras.layers.Dense(3)(x)
    judge = keras.Model(inputs, outputs)
    # Logits that are highest at 0, 0.5 and 1, but for the third class, which it never recognises.
    judge.layers[-1].set_weights([np.array([[-4.0, 0.0, -9.0]]), np.array([1.0, 0.0, -9.0])])
    images = np.linspace(0, 1, 40)[:, None, None, None] * np.ones((1, 4, 4, 1))
    _, test = data.load(({"image": images}, {"image": images}), batch_size=16)
    measured = recipes.measure_generation(Painter(), judge, test, num_samples=9)
    assert measured["accuracy"] == pytest.approx(2 / 3)
    np.testing.assert_array_equal(measured["labels"], [0, 1, 2] * 3)
    drawn, real = np.repeat([0.0, 0.5, 1.0], 3), np.linspace(0, 1, 40) * 2 - 1  # images are scaled to [-1, 1]
    expected = (drawn.mean() - real.mean()) ** 2 + (drawn.std(ddof=1) - real.std(ddof=1)) ** 2
    assert measured["frechet_distance"] == pytest.approx(expected, rel=1e-4)
