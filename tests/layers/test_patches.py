"""Patches: nothing lost, and the order of the official DiT."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vqdit.layers.patches import patchify, unpatchify

SHAPES = pytest.mark.parametrize(
    "shape, patch, grid",
    [
        ((2, 12, 3), 1, (12,)),
        ((2, 12, 3), 4, (3,)),
        ((2, 8, 6, 3), 1, (8, 6)),
        ((2, 8, 6, 3), 2, (4, 3)),
        ((2, 8, 6, 3), (4, 3), (2, 2)),
        ((2, 4, 8, 6, 3), 2, (2, 4, 3)),
        ((2, 4, 8, 6, 3), (1, 2, 3), (4, 4, 2)),
    ],
    ids=str,
)


def numbers(shape):
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


@SHAPES
def test_round_trip(shape, patch, grid):
    x = numbers(shape)
    tokens = patchify(x, patch)
    back = unpatchify(tokens, grid, patch, shape[-1])
    np.testing.assert_array_equal(ops.convert_to_numpy(back), x)


@SHAPES
def test_tokens_are_the_blocks_row_by_row_with_channels_last(shape, patch, grid):
    x = numbers(shape)
    sizes = [n // g for n, g in zip(shape[1:-1], grid)]
    expected = []
    for corner in np.ndindex(*grid):
        block = tuple(slice(c * s, (c + 1) * s) for c, s in zip(corner, sizes))
        expected.append(x[(slice(None), *block)].reshape(shape[0], -1))
    np.testing.assert_array_equal(ops.convert_to_numpy(patchify(x, patch)), np.stack(expected, axis=1))


def test_output_order_is_that_of_the_official_dit():
    """The official network's `unpatchify`: nhwpqc -> nchpwq, here with the channels last."""
    h, w, p, c = 3, 2, 2, 4
    tokens = numbers((2, h * w, p * p * c))
    official = np.einsum("nhwpqc->nchpwq", tokens.reshape(2, h, w, p, p, c)).reshape(2, c, h * p, w * p)
    ours = ops.convert_to_numpy(unpatchify(tokens, (h, w), p, c))
    np.testing.assert_array_equal(ours, official.transpose(0, 2, 3, 1))


def test_symbolic_shapes():
    x = keras.KerasTensor((None, 8, 6, 3))
    tokens = patchify(x, 2)
    assert tokens.shape == (None, 12, 12)
    assert unpatchify(tokens, (4, 3), 2, 3).shape == x.shape


@pytest.mark.parametrize(
    "shape, patch, message",
    [
        ((2, 9, 8, 3), 2, r"must be a multiple of `patch_size`, \(2, 2\). Received: shape=\(2, 9, 8, 3\)"),
        ((2, 8, 8, 3), (2, 3), r"must be a multiple of `patch_size`, \(2, 3\)"),
        (
            (2, 8, 8, 3),
            (2, 2, 2),
            r"`patch_size` must be a positive integer or 2 of them, one a spatial dimension. Received: .*\(2, 2, 2\)",
        ),
        (
            (2, 8, 8, 3),
            0,
            "`patch_size` must be a positive integer or 2 of them, one a spatial dimension. Received: patch_size=0",
        ),
        (
            (2, 8, 8, 3),
            2.0,
            "`patch_size` must be a positive integer or 2 of them, one a spatial dimension. Received: patch_size=2.0",
        ),
        ((2, 3), 1, r"with 1, 2 or 3 spatial dimensions. Received: shape=\(2, 3\)"),
        ((2, 2, 2, 2, 2, 3), 1, "with 1, 2 or 3 spatial dimensions"),
        ((None, None, 8, 3), 2, "must be a multiple of `patch_size`"),
    ],
)
def test_shapes_that_cannot_be_cut(shape, patch, message):
    with pytest.raises(ValueError, match=message):
        patchify(keras.KerasTensor(shape), patch)


def test_tokens_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`tokens` must be of shape \(B, 12, 12\). Received: .*\(2, 12, 16\)"):
        unpatchify(numbers((2, 12, 16)), (4, 3), 2, 3)
