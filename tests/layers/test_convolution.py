"""Residual, down- and up-sampling blocks: what they compute, on 1, 2 and 3 spatial dimensions."""

import keras
import numpy as np
import pytest

from keras_vqdit.layers.convolution import Downsample, ResidualBlock, Upsample
from keras_vqdit.layers.folding import depth_to_space, space_to_depth
from tests.contract import run_contract

SPATIAL = {1: (8,), 2: (8, 12), 3: (4, 8, 6)}


def data(rank, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(2, *SPATIAL[rank], channels)).astype("float32")


def numpy_of(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float64")


# === Folding ===


def test_space_to_depth_puts_the_position_before_the_channel():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    folded = numpy_of(space_to_depth(x, (2, 3)))
    assert folded.shape == (2, 2, 2, 18)
    for i, j, p, q, c in np.ndindex(2, 2, 2, 3, 3):
        assert folded[1, i, j, (p * 3 + q) * 3 + c] == x[1, 2 * i + p, 3 * j + q, c]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_depth_to_space_undoes_space_to_depth(rank):
    x, factor = data(rank), (2, 1, 3)[:rank] if rank < 3 else (2, 4, 3)
    np.testing.assert_array_equal(numpy_of(depth_to_space(space_to_depth(x, factor), factor)), x)


# === Closed forms ===


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_downsample_is_the_strided_convolution(rank):
    x = data(rank)
    layer = Downsample(5, rank=rank)
    layer.build(x.shape)
    kernel = np.random.default_rng(1).normal(size=(2,) * rank + (3, 5)).astype("float32")
    bias = np.arange(5, dtype="float32")
    layer.projection.set_weights([kernel.reshape(-1, 5), bias])
    expected = numpy_of(keras.ops.conv(x, kernel, strides=2, padding="valid")) + bias
    np.testing.assert_allclose(numpy_of(layer(x)), expected, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_upsample_is_the_transposed_convolution(rank):
    x = data(rank)
    layer = Upsample(5, rank=rank)
    layer.build(x.shape)
    kernel = np.random.default_rng(1).normal(size=(2,) * rank + (5, 3)).astype("float32")
    matrix = np.moveaxis(kernel, -1, 0).reshape(3, -1)
    layer.projection.set_weights([matrix, np.zeros(matrix.shape[1], "float32")])
    expected = numpy_of(keras.ops.conv_transpose(x, kernel, strides=2, padding="valid"))
    np.testing.assert_allclose(numpy_of(layer(x)), expected, atol=1e-4)


@pytest.mark.parametrize("groups", [None, 2])
def test_residual_block_is_its_formula(groups):
    x = data(1, channels=4)
    block = ResidualBlock(4, rank=1, hidden_filters=6, groups=groups, activation="relu")
    block.build(x.shape)
    rng = np.random.default_rng(2)
    (k, b), (m, c) = [(rng.normal(size=s), rng.normal(size=s[-1])) for s in [(3, 4, 6), (1, 6, 4)]]
    block.inner.set_weights([k, b])
    block.outer.set_weights([m, c])

    def normalise(z):
        if groups is None:
            return z
        g = z.reshape(2, 8, groups, -1)
        mean, variance = g.mean(axis=(1, 3), keepdims=True), g.var(axis=(1, 3), keepdims=True)
        return ((g - mean) / np.sqrt(variance + 1e-6)).reshape(z.shape)

    h = np.pad(np.maximum(normalise(x.astype("float64")), 0), [(0, 0), (1, 1), (0, 0)])
    h = sum(h[:, i : i + 8] @ k[i] for i in range(3)) + b
    expected = x + np.maximum(normalise(h), 0) @ m[0] + c
    np.testing.assert_allclose(numpy_of(block(x)), expected, atol=1e-4)


def test_residual_block_projects_the_shortcut_where_channels_change():
    x = data(2)
    block = ResidualBlock(5)
    block.build(x.shape)
    block.outer.set_weights([np.zeros((1, 1, 5, 5)), np.zeros(5)])
    np.testing.assert_allclose(numpy_of(block(x)), x @ numpy_of(block.shortcut.kernel)[0, 0], atol=1e-5)


# === Contract ===


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda rank, **kw: ResidualBlock(4, rank=rank, hidden_filters=2, **kw),
        lambda rank, **kw: ResidualBlock(6, rank=rank, groups=3, activation="relu", **kw),
        lambda rank, **kw: Downsample(4, rank=rank, **kw),
        lambda rank, **kw: Downsample(4, rank=rank, kernel_size=4, **kw),
        lambda rank, **kw: Upsample(4, rank=rank, **kw),
        lambda rank, **kw: Upsample(4, rank=rank, factor=(2, 1, 3)[:rank], kernel_size=4, **kw),
    ],
    ids=["residual", "residual-groups", "down", "down-overlapping", "up", "up-overlapping"],
)
def test_contract(make, rank, tmp_path):
    layer = run_contract(lambda **kw: make(rank, **kw), data(rank), tmp_path=tmp_path)
    x = data(rank)
    assert layer.compute_output_shape(x.shape) == tuple(layer(x).shape)


def test_group_statistics_are_float32_under_half_precision():
    # In half precision the squares of these values overflow.
    x = 300 * data(2, channels=4)
    block = ResidualBlock(4, groups=2, dtype="mixed_float16")
    assert np.all(np.isfinite(numpy_of(block(x))))
    assert block(x).dtype == "float16"


def test_downsample_then_upsample_restore_the_shape_of_an_unknown_size():
    x = keras.KerasTensor((None, None, None, 3))
    assert tuple(Upsample(3)(Downsample(4)(x)).shape) == (None, None, None, 3)


# === Errors ===


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualBlock(4, rank=4), "`rank` must be 1, 2 or 3.*rank=4"),
        (lambda: ResidualBlock(0), "`filters` must be a positive integer.*filters=0"),
        (lambda: ResidualBlock(4, hidden_filters=-1), "`hidden_filters` must be.*hidden_filters=-1"),
        (lambda: ResidualBlock(4, groups=3), "`groups` must divide the hidden filters.*groups=3"),
        (lambda: ResidualBlock(4, groups=4)(np.ones((1, 8, 8, 3))), "divide the input's channels.*groups=4"),
        (lambda: Downsample(4, factor=0), "`factor` must be.*factor=0"),
        (lambda: Downsample(4, factor=(2, 2, 2)), "or 2 of them.*factor=\\(2, 2, 2\\)"),
        (lambda: Downsample(4)(np.ones((1, 7, 8, 3))), "multiple of `factor`.*\\(1, 7, 8, 3\\)"),
        (lambda: Upsample(4)(np.ones((1, 8, 3))), "expects inputs of 4 dimensions.*\\(1, 8, 3\\)"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
