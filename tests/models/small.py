"""Tiny auto-encoders for the tests."""

import keras
import numpy as np
from keras import layers

from keras_vqdit.layers.vector_quantizer import VectorQuantizer
from keras_vqdit.models.vqvae import VQVAE


def images(count=8, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 8, 8, 1)).astype("float32")


def encoder(channels, dtype=None):
    return keras.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(channels, 4, 4, dtype=dtype)], name="small_encoder")


def decoder(channels, dtype=None):
    return keras.Sequential(
        [layers.Input((2, 2, channels)), layers.Conv2DTranspose(1, 4, 4, dtype=dtype)], name="small_decoder"
    )


def array(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float64")


def small_vqvae(num_embeddings=16, embedding_dim=3, dtype=None, quantizer=None, **kwargs):
    if quantizer is None:  # k-means takes long to compile; its own tests are the quantizer's
        quantizer = VectorQuantizer(num_embeddings, embedding_dim, kmeans_init=False, seed=2, dtype=dtype)
    return VQVAE(
        encoder(embedding_dim, dtype),
        decoder(embedding_dim, dtype),
        num_embeddings,
        embedding_dim,
        quantizer=quantizer,
        dtype=dtype,
        **kwargs,
    )


def trained_vqvae(x=None, **kwargs):
    """A model with codes that are spread over the latents of `x`, and moving statistics that are not trivial."""
    x = images() if x is None else x
    model = small_vqvae(**kwargs)
    for begin in range(0, len(x), 4):
        model(x[begin : begin + 4], training=True)
    model.compile("adam", jit_compile=False)
    return model
