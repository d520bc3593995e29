"""Data sets encoded once by a tokenizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_vqdit as kv
from keras_vqdit import data

from .test_load import collect, numbered


class Tokenizer(keras.Model):
    """The tokenizer contract in small: means of 2x2 pixels as latents, their sign as codes."""

    def __init__(self):
        super().__init__()
        self.pool = keras.layers.AveragePooling2D(2)
        self.examples = 0

    def encode_latents(self, x):
        return ops.repeat(self.pool(x), 3, axis=-1)

    def encode(self, x):
        return ops.cast(self.pool(x)[..., 0] > -0.8, "int32")


def means(images):
    return images.reshape(-1, 2, 2, 2, 2).mean(axis=(2, 4))


@pytest.fixture
def train():
    return data.load(numbered(300, classes=5), batch_size=32, seed=3)[0]


def test_latents_are_those_of_the_images_with_their_labels(train):
    images = collect(train.in_order())
    latents = collect(data.encode_latents(train, Tokenizer()).in_order())
    assert set(latents) == {"latents", "label"}
    assert latents["latents"].dtype == np.float32 and latents["latents"].shape == (240, 2, 2, 3)
    np.testing.assert_allclose(latents["latents"][..., 0], means(images["image"]), atol=1e-6)
    np.testing.assert_array_equal(latents["label"], images["label"])


def test_codes_are_int32(train):
    codes = collect(data.encode_codes(train, Tokenizer()).in_order())
    images = collect(train.in_order())
    assert set(codes) == {"codes", "label"} and codes["codes"].dtype == np.int32
    np.testing.assert_array_equal(codes["codes"], means(images["image"]) > -0.8)
    assert 0 < codes["codes"].mean() < 1


def test_latents_are_served_as_the_images_were(train):
    encoded = data.encode_latents(train, Tokenizer())
    assert [len(batch["label"]) for batch in encoded] == [len(batch["label"]) for batch in train]
    info = data.describe(encoded)
    assert (info.size, info.batch_size, info.num_classes, info.shapes["latents"]) == (240, 32, 5, (2, 2, 3))
    assert encoded.element_spec["latents"].shape == (32, 2, 2, 3)


def test_latents_come_in_a_new_order_at_every_epoch_and_the_same_for_a_seed(train):
    first, again = (data.encode_latents(train, Tokenizer(), seed=7) for _ in range(2))
    orders = [collect(first)["latents"][:, 0, 0, 0] for _ in range(2)]
    assert not np.array_equal(*orders)
    np.testing.assert_array_equal(orders[0], collect(again)["latents"][:, 0, 0, 0])
    other = collect(data.encode_latents(train, Tokenizer(), seed=8))["latents"][:, 0, 0, 0]
    assert not np.array_equal(orders[0], other)


def test_the_test_set_keeps_its_order():
    _, test = data.load(numbered(300), batch_size=32)
    images = collect(test)["image"]
    encoded = data.encode_latents(test, Tokenizer())
    np.testing.assert_allclose(collect(encoded)["latents"][..., 0], means(images), atol=1e-6)


def test_nothing_is_encoded_twice(train):
    calls = []

    class Counting(Tokenizer):
        def encode_latents(self, x):
            tf.py_function(lambda n: calls.append(int(n)), [tf.shape(x)[0]], [])
            return super().encode_latents(x)

    encoded = data.encode_latents(train, Counting())
    for _ in range(2):
        collect(encoded)
    assert sum(calls) == 240, "each training example once, those of the dropped remainder too"


def test_other_data_sets_of_dicts_are_encoded_too():
    images, labels = numbered(10)
    other = tf.data.Dataset.from_tensor_slices(
        {"image": images.astype("float32"), "text": labels.astype("int32")}
    ).batch(4)
    encoded = data.encode_latents(other, Tokenizer(), shuffle=False)
    batch = collect(encoded)
    assert set(batch) == {"latents", "text"} and data.describe(encoded).size == 10
    np.testing.assert_allclose(batch["latents"][..., 0], means(images.astype("float32")), atol=1e-6)
    assert [len(b["text"]) for b in encoded] == [4, 4, 2]


def test_wrong_data_sets_are_refused(train):
    with pytest.raises(ValueError, match="must be finite"):
        data.encode_latents(train.repeat(), Tokenizer())
    with pytest.raises(ValueError, match="no feature `audio`"):
        data.encode_latents(train, Tokenizer(), key="audio")
    text = kv.TextTokenizer("bytes", 8)
    with pytest.raises(TypeError, match="`image` must be strings, or codes, integers of shape .*Received: float32"):
        data.encode_codes(train, {"image": text})
    with pytest.raises(ValueError, match="`tokenizers` must hold at least one"):
        data.encode_codes(train, {})
    with pytest.raises(TypeError, match="A tokenizer must have a method `encode`. Received: 5 for `image`"):
        data.encode_codes(train, {"image": 5})
    images = kv.VQVAE.from_size("digits", num_embeddings=16)
    with pytest.raises(
        ValueError, match=r"`image` must be of shape \(None, 28, 28, 1\) for its tokenizer. Received: \(32, 4"
    ):
        data.encode_codes(train, {"image": images})


def test_data_that_are_not_finite_have_no_codes():
    pixels = np.zeros((4, 4, 4, 1), "float32")
    pixels[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="`image` must be finite. Received: NaN or infinite"):
        data.encode_codes(tf.data.Dataset.from_tensor_slices({"image": pixels}).batch(2), Tokenizer())
