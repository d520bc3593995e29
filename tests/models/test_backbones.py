"""Encoders and decoders: what they compute, and at which sizes."""

import numpy as np
import pytest

from keras_vqdit.models.backbones import SIZES, build_decoder, build_encoder, size
from tests.models.small import array


def kernels(model):
    return [array(w) for w in model.weights if w.name == "kernel"]


def blocks(x, factor=2):
    """(B, T, C) to (B, T / factor, factor * C)."""
    return x.reshape(len(x), -1, factor * x.shape[-1])


def test_encoder_is_its_stages():
    x = np.random.default_rng(0).normal(size=(3, 8, 2)).astype("float32")
    encoder = build_encoder((8, 2), 4, filters=(5, 6), num_residual_blocks=(0, 1), activation="relu")
    first, second, inner, outer, last = kernels(encoder)
    h = np.maximum(blocks(x) @ first, 0)  # an activation between every two linear maps
    h = blocks(h) @ second
    r = np.pad(np.maximum(h, 0), [(0, 0), (1, 1), (0, 0)])
    h = h + np.maximum(sum(r[:, i : i + 2] @ inner[i] for i in range(3)), 0) @ outer[0]
    np.testing.assert_allclose(array(encoder(x)), np.maximum(h, 0) @ last, atol=1e-5)


def test_decoder_is_the_mirror_image():
    z = np.random.default_rng(0).normal(size=(3, 2, 4)).astype("float32")
    decoder = build_decoder((8, 2), 4, filters=(5, 6), num_residual_blocks=(0, 1), activation="relu")
    first, inner, outer, second, last = kernels(decoder)
    r = np.pad(z, [(0, 0), (1, 1), (0, 0)])
    h = sum(r[:, i : i + 2] @ first[i] for i in range(3))
    r = np.pad(np.maximum(h, 0), [(0, 0), (1, 1), (0, 0)])
    h = h + np.maximum(sum(r[:, i : i + 2] @ inner[i] for i in range(3)), 0) @ outer[0]
    h = np.maximum((np.maximum(h, 0) @ second).reshape(3, 4, 5), 0)
    np.testing.assert_allclose(array(decoder(z)), (h @ last).reshape(3, 8, 2), atol=1e-5)


@pytest.mark.parametrize("kernel_sizes", [None, 4, (4, None)])
@pytest.mark.parametrize(
    ("shape", "factors", "grid"),
    [((24, 1), (3, 2), (4,)), ((8, 12, 3), 2, (2, 3)), ((2, 8, 8, 1), ((1, 2, 2), 2), (1, 2, 2))],
)
def test_sizes(shape, factors, grid, kernel_sizes):
    options = {"filters": (4, 6), "factors": factors, "kernel_sizes": kernel_sizes, "num_residual_blocks": 1}
    encoder, decoder = build_encoder(shape, 5, **options), build_decoder(shape, 5, **options)
    x = np.zeros((2, *shape), "float32")
    assert encoder(x).shape == (2, *grid, 5) and encoder.output_shape == (None, *grid, 5)
    assert decoder(encoder(x)).shape == x.shape


def test_overrides_of_a_size():
    assert size("digits", num_embeddings=7) == {**SIZES["digits"], "num_embeddings": 7}


def test_decoder_ends_in_float32():
    decoder = build_decoder((8, 8, 1), 3, filters=4, num_residual_blocks=0, dtype="mixed_float16")
    assert decoder(np.zeros((1, 4, 4, 3))).dtype == "float32"
    assert decoder.layers[1].compute_dtype == "float16"
