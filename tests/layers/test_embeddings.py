"""Embeddings of positions, times and labels against closed forms."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.layers.embeddings import LabelEmbedding, TimeEmbedding, sincos_position_embedding
from tests.contract import run_contract
from tests.layers.reference_transformer import randomize

FIXTURE = Path(__file__).parents[1] / "oracles" / "fixtures" / "dit.npz"


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


# === Positions ===


def waves(position, frequency_count):
    """[sin, cos] of one position along one axis. Attention Is All You Need (1706.03762), section 3.5"""
    angles = [position / 10000 ** (i / frequency_count) for i in range(frequency_count)]
    return [np.sin(a) for a in angles] + [np.cos(a) for a in angles]


@pytest.mark.parametrize("grid, dim", [((5,), 8), ((3, 4), 16), ((2, 3, 4), 24), ((2, 2, 2, 2), 8)], ids=str)
def test_positions_are_waves_with_the_last_axis_first(grid, dim):
    count = dim // (2 * len(grid))
    expected = [sum((waves(p, count) for p in reversed(place)), []) for place in np.ndindex(*grid)]
    embedding = sincos_position_embedding(grid, dim)
    assert embedding.dtype == "float64" and embedding.shape == (np.prod(grid), dim)
    np.testing.assert_allclose(embedding, expected, atol=1e-12)


def test_positions_are_those_of_the_official_dit():
    official = np.load(FIXTURE)["weights/pos_embed"]
    np.testing.assert_allclose(sincos_position_embedding((4, 4), 24)[None], official, atol=1e-6)


def test_channels_that_cannot_be_shared_out_are_zero():
    embedding = sincos_position_embedding((3, 3), 14)
    np.testing.assert_array_equal(embedding[:, 12:], 0)
    np.testing.assert_array_equal(embedding[:, :12], sincos_position_embedding((3, 3), 12))


def test_positions_cannot_be_spoiled():
    with pytest.raises(ValueError, match="read-only"):
        sincos_position_embedding((3, 3), 12)[0] = 0


@pytest.mark.parametrize("grid, dim", [((4, 4), 3), ((4,), 1), ((), 8)], ids=str)
def test_too_few_channels_for_the_positions(grid, dim):
    with pytest.raises(ValueError, match=f"`dim` must be at least 2 for each axis of the grid.*dim={dim}"):
        sincos_position_embedding(grid, dim)


# === Times ===


@pytest.mark.parametrize("options", [{}, {"frequency_dim": 32, "time_scale": 1.0}], ids=str)
def test_time_embedding_is_the_formula(options):
    layer = TimeEmbedding(12, **options)
    layer.build((None,))
    randomize(layer)
    t = np.array([0.0, 0.25, 0.999, 1.0])
    w1, b1, w2, b2 = (w.astype("float64") for w in layer.get_weights())
    half = options.get("frequency_dim", 256) // 2
    angle = t[:, None] * options.get("time_scale", 1000.0) / 10000.0 ** (np.arange(half) / half)
    hidden = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) @ w1 + b1
    expected = hidden / (1 + np.exp(-hidden)) @ w2 + b2
    # float32 leaves 6e-5 of an angle of up to 1000
    np.testing.assert_allclose(numpy(layer(t.astype("float32"))), expected, atol=2e-3 if not options else 1e-5)


def test_neighbouring_times_differ():
    """Without the factor 1000 the embeddings of 0.500 and 0.501 would be nearly the same."""
    layer = TimeEmbedding(12)
    layer.build((None,))
    randomize(layer)
    a, b = numpy(layer(np.array([0.5, 0.501], "float32")))
    assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_does_not_round_the_times(dtype):
    """bfloat16 knows no time between 0.7305 and 0.7344, which is 4 of 1000 steps."""
    layer, half = TimeEmbedding(12), TimeEmbedding(12, dtype=dtype)
    for each in (layer, half):
        each.build((None,))
    randomize(layer)
    half.set_weights(layer.get_weights())
    t = np.array([0.7311, 0.7329], "float32")
    expected = numpy(layer(t))
    assert np.abs(numpy(half(t)) - expected).max() < 0.1 < np.abs(expected[0] - expected[1]).max()


def test_time_network_starts_small():
    layer = TimeEmbedding(512)
    layer.build((None,))
    for dense in (layer.dense1, layer.dense2):
        assert np.std(numpy(dense.kernel)) == pytest.approx(0.02, rel=0.02)


def test_contract_of_the_time_embedding(tmp_path):
    run_contract(
        lambda **kwargs: TimeEmbedding(12, frequency_dim=32, time_scale=10.0, **kwargs),
        np.array([0.1, 0.7], "float32"),
        tmp_path=tmp_path,
    )


@pytest.mark.parametrize("options", [{"d_model": 0}, {"d_model": 4, "frequency_dim": 7}], ids=str)
def test_impossible_time_embeddings(options):
    name = list(options)[-1]
    with pytest.raises(ValueError, match=f"`{name}` must be a positive.* integer. Received: {name}={options[name]}"):
        TimeEmbedding(**options)


# === Labels ===


def test_labels_are_rows_and_the_null_label_is_the_last():
    layer = LabelEmbedding(10, 8)
    rows = numpy(layer(np.array([0, 3, 10])))
    assert layer.table.shape == (11, 8)
    np.testing.assert_array_equal(rows, numpy(layer.table)[[0, 3, 10]])


def test_label_table_starts_small():
    layer = LabelEmbedding(1000, 64)
    layer.build((None,))
    assert np.std(numpy(layer.table)) == pytest.approx(0.02, rel=0.02)


def test_repeated_labels_give_one_gradient_a_row():
    layer = LabelEmbedding(3, 4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(np.array([1, 1, 2])))
    gradient = tape.gradient(loss, layer.table.value)
    assert isinstance(gradient, tf.Tensor)  # and not slices, one for each example
    np.testing.assert_array_equal(numpy(gradient), np.array([0, 2, 1, 0])[:, None] * np.ones(4))


@pytest.mark.parametrize("label", [-1, 11])
def test_labels_out_of_range_are_an_error_where_they_are_known(label):
    layer = LabelEmbedding(10, 8)
    with pytest.raises(
        ValueError, match=f"Labels must be from 0 to 9, or 10 for no label, in whole numbers. Received: labels.*{label}"
    ):
        layer(np.array([3, label]))
    with pytest.raises(ValueError, match="Labels must be from 0 to 9"):
        layer(tf.constant([3, label]))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_labels_out_of_range_are_nan_where_they_are_not(jit_compile):
    layer = LabelEmbedding(10, 8)
    layer.build((None,))
    rows = tf.function(lambda labels: layer(labels), jit_compile=jit_compile)(tf.constant([3, -1, 11, 10]))
    np.testing.assert_array_equal(np.isnan(numpy(rows)).all(axis=1), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(numpy(rows)).any(axis=1), [False, True, True, False])


def test_contract_of_the_label_embedding(tmp_path):
    run_contract(lambda **kwargs: LabelEmbedding(10, 8, **kwargs), np.array([1, 10, 0], "int32"), tmp_path=tmp_path)


@pytest.mark.parametrize("options", [{"num_classes": 0, "d_model": 8}, {"num_classes": 3, "d_model": 1.5}], ids=str)
def test_impossible_label_embeddings(options):
    with pytest.raises(ValueError, match="must be a positive integer. Received: "):
        LabelEmbedding(**options)


def test_symbolic_labels():
    assert LabelEmbedding(10, 8)(keras.Input((), dtype="int32")).shape == (None, 8)
