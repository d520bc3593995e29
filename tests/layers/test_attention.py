"""Attention against float64 NumPy, and the meaning of its masks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.layers.attention import MultiHeadAttention
from tests.contract import run_contract
from tests.layers.reference_transformer import attention, normal, randomize, weights_of
from tests.saving.memory import bounded_memory

HEADS, WIDTH = 3, 12


def make(query=(2, 5, WIDTH), key=None, value=None, **options):
    layer = MultiHeadAttention(HEADS, WIDTH, **options)
    layer.build(query, key, value)
    return randomize(layer)


def numpy(x):
    return ops.convert_to_numpy(x)


# === Formula ===


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"query_key_norm": True}], ids=str)
def test_self_attention_is_the_formula(options):
    x = normal(2, 5, WIDTH, seed=1)
    layer = make(**options)
    output, scores = layer(x, return_attention_scores=True)
    expected, expected_scores = attention(weights_of(layer), HEADS, x.astype("float64"))
    np.testing.assert_allclose(numpy(output), expected, atol=1e-5)
    np.testing.assert_allclose(numpy(scores), expected_scores, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"query_key_norm": True}], ids=str)
@pytest.mark.parametrize(
    ("grids", "positions"),
    [([(6,)], [range(6)]), ([(2, 3)], [[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]), ([(4,), (2,)], [[0, 1, 2, 3, 0, 1]])],
    ids=str,
)
def test_rotary_attention_is_the_formula(grids, positions, options):
    layer = MultiHeadAttention(
        2, 20, rotary_grids=grids, **options
    )  # of two axes two frequencies each, and a pair left over
    layer.build((2, 6, 20))
    x = normal(2, 6, 20, seed=1)
    output, scores = randomize(layer)(x, return_attention_scores=True)
    expected, expected_scores = attention(weights_of(layer), 2, x.astype("float64"), positions=positions)
    np.testing.assert_allclose(numpy(output), expected, atol=1e-5)
    np.testing.assert_allclose(numpy(scores), expected_scores, atol=1e-6)


def test_rotary_attention_depends_on_how_far_apart_positions_are_not_on_where():
    layer = MultiHeadAttention(2, WIDTH, rotary_grids=[(9,)])
    layer.build((1, 9, WIDTH))
    x = np.repeat(normal(1, 1, WIDTH, seed=1), 9, axis=1)
    _, scores = randomize(layer)(x, return_attention_scores=True)
    logits = np.log(numpy(scores)[0, 0])
    logits = logits - np.diag(logits)[:, None]  # without what the softmax divides by
    for distance in (1, 3):
        np.testing.assert_allclose(np.diag(logits, distance), logits[0, distance], atol=1e-5)
        assert abs(logits[0, distance]) > 1e-3


@pytest.mark.parametrize("options", [{}, {"query_key_norm": True}], ids=str)
def test_cross_attention_is_the_formula_for_three_widths(options):
    query, key, value = normal(2, 5, 8, seed=1), normal(2, 7, 10, seed=2), normal(2, 7, 6, seed=3)
    layer = make(query.shape, key.shape, value.shape, **options)
    output, scores = layer(query, key, value, return_attention_scores=True)
    expected, expected_scores = attention(weights_of(layer), HEADS, *(x.astype("float64") for x in (query, key, value)))
    np.testing.assert_allclose(numpy(output), expected, atol=1e-5)
    np.testing.assert_allclose(numpy(scores), expected_scores, atol=1e-6)


def test_value_is_the_key_if_not_given():
    query, key = normal(2, 5, WIDTH, seed=1), normal(2, 7, 10, seed=2)
    layer = make(query.shape, key.shape)
    np.testing.assert_array_equal(numpy(layer(query, key)), numpy(layer(query, key, key)))


def test_takes_the_list_of_the_documents():
    query, key, value = (normal(2, 5, WIDTH, seed=i) for i in range(3))
    layer = MultiHeadAttention(HEADS, WIDTH)
    output = layer([query, key, value])
    np.testing.assert_array_equal(numpy(output), numpy(layer(query, key, value)))


def test_scores_come_on_request_and_are_probabilities():
    x = normal(2, 5, WIDTH)
    layer = make(dtype="mixed_float16")
    assert keras.ops.is_tensor(layer(x))
    _, scores = layer(x, return_attention_scores=True)
    assert scores.shape == (2, HEADS, 5, 5) and scores.dtype == "float32"
    np.testing.assert_allclose(numpy(scores).sum(axis=-1), 1, atol=1e-6)


def test_query_key_norm_makes_the_scale_of_queries_and_keys_irrelevant():
    x = normal(2, 5, WIDTH)
    for options, same in (({}, False), ({"query_key_norm": True}, True)):
        layer = make(use_bias=False, **options)
        before = numpy(layer(x))
        dense = layer.query_key_value_dense
        kernel = numpy(dense.kernel).copy()
        kernel[:, : 2 * WIDTH] *= 10
        dense.kernel.assign(kernel)
        assert np.allclose(numpy(layer(x)), before, atol=1e-5) == same


# === Masks ===


def random_mask(*shape):
    mask = np.random.default_rng(4).random(shape) > 0.4
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("shape", [(2, 7), (2, 5, 7), (2, 1, 5, 7), (2, HEADS, 5, 7)], ids=str)
def test_masks_of_every_shape(shape):
    query, key = normal(2, 5, WIDTH, seed=1), normal(2, 7, WIDTH, seed=2)
    mask = random_mask(*shape)
    broadcast = mask[:, None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    layer = make(query.shape, key.shape)
    output, scores = layer(query, key, mask=mask, return_attention_scores=True)
    expected, expected_scores = attention(
        weights_of(layer), HEADS, query.astype("float64"), key.astype("float64"), mask=broadcast
    )
    np.testing.assert_allclose(numpy(output), expected, atol=1e-5)
    np.testing.assert_allclose(numpy(scores), expected_scores, atol=1e-6)
    assert np.all(numpy(scores)[~np.broadcast_to(broadcast, scores.shape)] == 0)


def test_a_masked_key_has_no_influence():
    x, mask = normal(2, 5, WIDTH), np.array([[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]], "bool")
    layer = make()
    before = numpy(layer(x, mask=mask))
    x[0, 3:], x[1, 2] = 1e3, -1e3
    after = numpy(layer(x, mask=mask))
    np.testing.assert_array_equal(after[mask], before[mask])


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_query_that_may_see_no_key_gets_the_projection_of_zeros_and_no_nan(dtype):
    x, mask = tf.constant(normal(2, 5, WIDTH)), np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], "bool")
    layer = make(dtype=dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = layer(x, mask=mask)
        loss = tf.reduce_sum(tf.cast(output, "float32") ** 2)
    bias = numpy(layer.output_dense.bias)
    np.testing.assert_allclose(numpy(ops.cast(output, "float32"))[1], np.tile(bias, (5, 1)), rtol=1e-2)
    gradients = tape.gradient(loss, [x, *layer.trainable_variables])
    assert all(np.all(np.isfinite(numpy(ops.cast(g, "float32")))) for g in gradients)
    np.testing.assert_array_equal(numpy(ops.cast(gradients[0], "float32"))[1], 0)


def test_mask_of_padding_comes_by_itself_from_an_embedding():
    tokens = np.array([[3, 4, 5, 0, 0]])
    embedding = keras.layers.Embedding(10, WIDTH, mask_zero=True)
    layer = make()
    expected = layer(numpy(embedding(tokens)), mask=tokens != 0)
    np.testing.assert_allclose(numpy(layer(embedding(tokens))), numpy(expected), atol=1e-6)
    # Of a list of inputs it is the key's mask that counts.
    query, cross = normal(1, 3, WIDTH), make((1, 3, WIDTH), (1, 5, WIDTH), (1, 5, WIDTH))
    keys = embedding(tokens)
    expected = cross(query, numpy(keys), numpy(keys), mask=tokens != 0)
    np.testing.assert_allclose(numpy(cross([ops.convert_to_tensor(query), keys, keys])), numpy(expected), atol=1e-6)
    np.testing.assert_allclose(numpy(cross(ops.convert_to_tensor(query), keys)), numpy(expected), atol=1e-6)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_single_key_has_all_the_attention():
    query, key = normal(2, 5, WIDTH, seed=1), normal(2, 1, WIDTH, seed=2)
    layer = make(query.shape, key.shape)
    mask = np.array([[True], [False]])
    output, scores = layer(query, key, mask=mask, return_attention_scores=True)
    np.testing.assert_array_equal(numpy(scores), np.broadcast_to(mask[:, None, None], (2, HEADS, 5, 1)))
    expected, _ = attention(weights_of(layer), HEADS, query, key, mask=mask[:, None, None])
    np.testing.assert_allclose(numpy(output), expected, atol=1e-5)


# === Dropout ===


def test_a_dropout_rate_of_zero_costs_nothing():
    """No random operation, and no state of a random generator."""
    layer = make(dropout=0.0)
    graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(tf.TensorSpec((2, 5, WIDTH))).graph
    assert not any("Random" in op.type for op in graph.get_operations())
    assert len(layer.variables) == len(layer.trainable_variables)
    dropping = make(dropout=0.5)
    graph = tf.function(lambda x: dropping(x, training=True)).get_concrete_function(tf.TensorSpec((2, 5, WIDTH))).graph
    assert any("Random" in op.type for op in graph.get_operations())


def test_dropout_acts_in_training_alone():
    x = normal(2, 5, WIDTH)
    layer = make(dropout=0.5)
    inference = numpy(layer(x))
    np.testing.assert_array_equal(numpy(layer(x, training=False)), inference)
    assert np.abs(numpy(layer(x, training=True)) - inference).max() > 1e-2


# === Contract ===


@pytest.mark.parametrize(
    "options",
    [{}, {"query_key_norm": True, "use_bias": False}, {"dropout": 0.3, "output_initializer": "he_normal"}],
    ids=str,
)
def test_contract_of_self_attention(options, tmp_path):
    run_contract(
        lambda **kwargs: MultiHeadAttention(HEADS, WIDTH, **options, **kwargs), normal(2, 5, WIDTH), tmp_path=tmp_path
    )


def test_contract_of_rotary_attention(tmp_path):
    def make(**kwargs):
        return MultiHeadAttention(2, WIDTH, rotary_grids=[(2, 2), (3,)], **kwargs)

    run_contract(make, normal(2, 7, WIDTH), tmp_path=tmp_path)


def test_contract_of_cross_attention(tmp_path):
    inputs = [normal(2, 5, 8, seed=1), normal(2, 7, 10, seed=2), normal(2, 7, 6, seed=3)]
    layer = run_contract(lambda **kwargs: MultiHeadAttention(HEADS, WIDTH, **kwargs), inputs, tmp_path=tmp_path)
    spec = [keras.KerasTensor((None, *x.shape[1:])) for x in inputs]
    output, scores = layer(spec, return_attention_scores=True)
    assert output.shape == (None, 5, WIDTH) and scores.shape == (None, HEADS, 5, 7)


def test_a_sequence_of_unknown_length_is_welcome():
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, MultiHeadAttention(HEADS, WIDTH)(x))
    assert model.output_shape == (None, None, WIDTH)
    assert model(normal(2, 5, WIDTH)).shape == (2, 5, WIDTH) and model(normal(3, 9, WIDTH)).shape == (3, 9, WIDTH)


def test_a_layer_frozen_before_it_is_built_stays_frozen():
    layer = MultiHeadAttention(HEADS, WIDTH)
    layer.trainable = False
    layer(normal(2, 5, WIDTH))
    assert not layer.trainable_variables and not any(w.trainable for w in layer.weights)


# === Errors ===


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5, 12), "`num_heads` must divide `d_model`. Received: num_heads=5, d_model=12"),
        ((0, 12), "`num_heads` must be a positive integer. Received: num_heads=0"),
        ((2, 12.0), "`d_model` must be a positive integer. Received: d_model=12.0"),
    ],
)
def test_impossible_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*arguments)


def test_impossible_dropout():
    with pytest.raises(
        ValueError, match="`dropout` must be a finite number, at least 0 and less than 1. Received: dropout=1"
    ):
        MultiHeadAttention(2, 4, dropout=1)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (3, 5), (5,)], ids=str)
def test_a_mask_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"`mask` must be of shape \(B, S\)"):
        make()(normal(2, 5, WIDTH), mask=np.ones(shape, "bool"))


def test_self_and_cross_attention_are_not_one_layer():
    x = normal(2, 5, WIDTH)
    with pytest.raises(ValueError, match="built for self-attention, so its call takes the query alone"):
        make()(x, x)
    with pytest.raises(ValueError, match="built for cross-attention, so its call takes a key"):
        make((2, 5, WIDTH), (2, 5, WIDTH))(x)


def test_inputs_that_are_no_sequences():
    with pytest.raises(ValueError, match=r"`query` must be of shape \(B, length, channels\)"):
        MultiHeadAttention(HEADS, WIDTH)(normal(2, WIDTH))
    with pytest.raises(ValueError, match=r"must be \[query, key, value\]. Received: 2 inputs"):
        x = normal(2, 5, WIDTH)
        make((2, 5, WIDTH), (2, 5, WIDTH))([x, x])


def test_large_grids_take_no_memory_before_they_are_used():
    with bounded_memory(50 << 20):
        MultiHeadAttention(1, 1 << 22, rotary_grids=[(32768, 32768), (1 << 24,)])


@pytest.mark.parametrize(
    ("width", "grids", "shapes", "message"),
    [
        (6, [(5,)], [(2, 5, 6)], "must be even, and at least 2.*Received: width 3"),  # heads of 3
        (8, [(2, 2, 2)], [(2, 8, 8)], "at least 2 for each axis"),
        (8, [(5,)], [(2, 6, 8)], r"are 5\. Received: shape=\(2, 6, 8\)"),
        (8, [(5,)], [(2, 5, 8), (2, 5, 8)], "must be of the positions of self-attention.*Received: a key"),
    ],
    ids=str,
)
def test_rotary_grids_that_do_not_fit(width, grids, shapes, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(2, width, rotary_grids=grids).build(*shapes)
