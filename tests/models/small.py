"""Tiny encoders and decoders for the tests of the auto-encoders."""

import keras
import numpy as np
from keras import layers


def images(count=8, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 8, 8, 1)).astype("float32")


def encoder(channels, dtype=None):
    return keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(channels, 4, 4, dtype=dtype)], name="small_encoder"
    )


def decoder(channels, dtype=None):
    return keras.Sequential(
        [layers.Input((2, 2, channels)), layers.Conv2DTranspose(1, 4, 4, dtype=dtype)], name="small_decoder"
    )


def array(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float64")
