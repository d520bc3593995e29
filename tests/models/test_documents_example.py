"""The Keras example of the documents (004, sections 5.2 to 5.4) runs with its names and arguments."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_vqdit.layers.attention import MultiHeadAttention
from keras_vqdit.layers.transformer_block import TransformerBlock
from keras_vqdit.layers.vector_quantizer import VectorQuantizer
from keras_vqdit.models.diffusion_transformer import DiffusionTransformer
from keras_vqdit.models.images import generate_images, transform_images
from keras_vqdit.models.vqvae import VQVAE


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential(
        [layers.Input((28, 28, 1)), layers.Conv2D(16, 4, 4, activation="relu"), layers.Conv2D(4, 1)]
    )
    decoder = keras.Sequential([layers.Input((7, 7, 4)), layers.Conv2DTranspose(1, 4, 4)])
    model = VQVAE(encoder, decoder, num_embeddings=32, embedding_dim=4)
    model.compile("adam", jit_compile=False)
    model.fit(np.random.default_rng(0).random((64, 28, 28, 1), "float32"), epochs=2, verbose=0)
    return model


@pytest.fixture
def x():
    return np.random.default_rng(1).random((10, 28, 28))


def test_vector_quantizer():
    vq = VectorQuantizer(num_embeddings=32, embedding_dim=4)
    quantized, error = vq(np.random.default_rng(0).normal(size=(2, 49, 4)).astype("float32"))
    assert quantized.shape == (2, 49, 4) and error.shape == (2,)


def test_vqvae(model):
    assert isinstance(model.vq, VectorQuantizer)
    assert (model.num_embeddings, model.embedding_dim) == (32, 4)
    x = np.random.default_rng(1).random((2, 28, 28, 1), "float32")
    z = model.encoder(x)
    quantized_z, _ = model.vq(z)
    x_rec, quantization_error = model(x)
    np.testing.assert_array_equal(np.asarray(model.decoder(quantized_z)), np.asarray(x_rec))
    assert x_rec.shape == x.shape and quantization_error.shape == (2,)


def test_attention_and_transformer_block():
    x = np.random.default_rng(0).normal(size=(2, 5, 64)).astype("float32")
    assert MultiHeadAttention(8, 64)([x, x, x]).shape == x.shape
    assert TransformerBlock(64, 8, 64, 0.1)(x, training=True).shape == x.shape
    assert TransformerBlock(d_model=64, num_heads=8, dff=64, rate=0.1)(x).shape == x.shape


def test_diffusion_transformer():
    x, y = np.random.rand(1, 28, 28), np.random.rand(1, 28, 28)
    model = DiffusionTransformer(64, 8, 64, 2)
    model.compile(optimizer="adam", loss="mse")
    x_t = model(x)
    y_t = model(y)
    assert x_t.shape == y_t.shape == (1, 28, 28)
    history = model.fit(x, y, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def restored(model, x):
    return np.asarray(model(x[..., None].astype("float32"))[0])


def test_generate_images(model, x):
    images = generate_images(model, x, num_samples=4)
    np.testing.assert_allclose(images, restored(model, x)[:4], atol=1e-6)
    one = generate_images(model, x[0])
    assert len(one) == 10
    np.testing.assert_allclose(one, np.repeat(restored(model, x)[:1], 10, axis=0), atol=1e-6)


def test_transform_images(model, x):
    images = transform_images(model, x[0], x[1], num_samples=5)
    assert [image.shape for image in images] == [(28, 28, 1)] * 5
    np.testing.assert_allclose(images[0], restored(model, x)[0], atol=1e-5)
    np.testing.assert_allclose(images[-1], restored(model, x)[1], atol=1e-5)
    # Every place on the way is an image of codes: the latents half-way, quantized.
    z = np.asarray(model.encoder(x[:2, ..., None].astype("float32")))
    halfway = model.decode(model.vq.encode(z.mean(axis=0, keepdims=True)))[0]
    np.testing.assert_allclose(images[2], np.asarray(halfway), atol=1e-5)


def test_a_batch_of_one_is_an_image_and_larger_ones_are_batches(model, x):
    assert transform_images(model, x[:1], x[1:2], num_samples=2)[0].shape == (28, 28, 1)
    assert transform_images(model, x[:3], x[3:6], num_samples=2)[0].shape == (3, 28, 28, 1)
    for form in (x[0], x[0, ..., None], x[:1], x[:1, ..., None]):
        np.testing.assert_allclose(generate_images(model, form, 1), restored(model, x)[:1], atol=1e-6)


def test_errors(model, x):
    with pytest.raises(TypeError, match="`model` must be a VQVAE"):
        generate_images(keras.Sequential(), x)
    with pytest.raises(ValueError, match="`num_samples` must be a positive integer.*num_samples=0"):
        generate_images(model, x, num_samples=0)
    with pytest.raises(ValueError, match=r"`y` must be images of shape \(28, 28, 1\).*\(1, 14, 14\)"):
        transform_images(model, x[0], np.zeros((1, 14, 14)))
    with pytest.raises(ValueError, match="equally many images. Received: 2 and 3"):
        transform_images(model, x[:2], x[:3])
