"""The transformer block against float64 NumPy: plain, adaLN-zero, with a context."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.layers.transformer_block import TransformerBlock
from tests.contract import run_contract
from tests.layers.reference_transformer import attention, block, layer_norm, normal, randomize, weights_of

WIDTH, HEADS, DFF = 12, 3, 20
X, CONDITION, CONTEXT = normal(2, 5, WIDTH, seed=1), normal(2, 8, seed=2), normal(2, 7, 6, seed=3)
CONTEXT_MASK = np.array([[1, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]], "bool")
PLAIN, ADALN = {}, {"conditioning": "adaln_zero"}
CROSS = {**ADALN, "cross_attention": True}


def make(**options):
    layer = TransformerBlock(WIDTH, HEADS, DFF, **options)
    condition = CONDITION.shape if options.get("conditioning") else None
    context = CONTEXT.shape if options.get("cross_attention") else None
    layer.build(X.shape, condition, context)
    return layer


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def inputs_of(options):
    inputs = {}
    if options.get("conditioning"):
        inputs["condition"] = CONDITION
    if options.get("cross_attention"):
        inputs |= {"context": CONTEXT, "context_mask": CONTEXT_MASK}
    return inputs


# === Formula ===


@pytest.mark.parametrize(
    "options",
    [PLAIN, {"cross_attention": True}, ADALN, CROSS, {**CROSS, "query_key_norm": True}],
    ids=["plain", "plain-cross", "adaln", "adaln-cross", "adaln-cross-norm"],
)
def test_block_is_the_formula(options):
    layer = randomize(make(**options))
    inputs = inputs_of(options)
    double = {k: v if v.dtype == bool else v.astype("float64") for k, v in inputs.items()}
    expected = block(weights_of(layer), HEADS, X.astype("float64"), **double)
    np.testing.assert_allclose(numpy(layer(X, **inputs)), expected, atol=1e-5)


def test_mask_is_that_of_the_self_attention():
    layer = randomize(make())
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], "bool")
    expected = block(weights_of(layer), HEADS, X.astype("float64"), mask=mask[:, None, None])
    np.testing.assert_allclose(numpy(layer(X, mask=mask)), expected, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_mask_of_the_attention_is_none_of_the_output(rank):
    """Keras would weight a loss by it."""
    mask = ops.ones((2, 5) if rank == 2 else (2, *(1,) * (rank - 3), 5, 5), "bool")
    kept = getattr(make()(X, mask=mask), "_keras_mask", None)
    assert (kept is not None) == (rank == 2)


def test_activation_can_be_chosen():
    gelu, relu = make(), make(activation="relu")
    randomize(gelu)
    relu.set_weights(gelu.get_weights())
    assert np.abs(numpy(gelu(X)) - numpy(relu(X))).max() > 1e-3
    assert TransformerBlock.from_config(relu.get_config()).activation is keras.activations.relu


# === What the zeros are for ===


@pytest.mark.parametrize("options", [ADALN, CROSS], ids=["adaln", "adaln-cross"])
def test_adaln_zero_starts_as_the_identity(options):
    np.testing.assert_array_equal(numpy(make(**options)(X, **inputs_of(options))), X)


def test_a_plain_block_does_not_start_as_the_identity():
    assert np.abs(numpy(make()(X)) - X).max() > 0.1


@pytest.mark.parametrize("options", [ADALN, CROSS], ids=["adaln", "adaln-cross"])
def test_every_weight_learns(options):
    layer = randomize(make(**options))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(X, **inputs_of(options)) ** 3)
    gradients = tape.gradient(loss, layer.trainable_variables)
    biases_of_keys = WIDTH  # softmax does not see what is added to all logits of a query
    for variable, gradient in zip(layer.trainable_variables, gradients):
        dead = np.abs(numpy(gradient)) < 1e-6
        expected = 0
        if variable.path.endswith(("query_key_value_dense/bias", "key_dense/bias")):
            expected = biases_of_keys
        assert dead.sum() <= expected, variable.path


def test_a_context_that_is_all_masked_is_no_context():
    layer = randomize(make(**CROSS))
    nothing = np.zeros_like(CONTEXT_MASK)
    before = numpy(layer(X, CONDITION, context=CONTEXT, context_mask=nothing))
    np.testing.assert_array_equal(numpy(layer(X, CONDITION, context=-3 * CONTEXT, context_mask=nothing)), before)
    assert np.abs(numpy(layer(X, CONDITION, context=CONTEXT)) - before).max() > 1e-2


# === Dropout ===


def random_operations(layer):
    function = tf.function(lambda x: layer(x, condition=CONDITION, training=True))
    operations = function.get_concrete_function(tf.TensorSpec(X.shape)).graph.get_operations()
    return [op.type for op in operations if "Random" in op.type]


def test_a_dropout_rate_of_zero_costs_nothing():
    layer = make(**ADALN, rate=0.0)
    assert not random_operations(layer)
    assert len(layer.variables) == len(layer.trainable_variables)
    assert len(random_operations(make(**ADALN, rate=0.1))) >= 3  # attention weights, and both branches


def test_dropout_acts_in_training_alone():
    layer = randomize(make(rate=0.5))
    without = randomize(make())
    np.testing.assert_array_equal(numpy(layer(X)), numpy(without(X)))
    assert np.abs(numpy(layer(X, training=True)) - numpy(layer(X))).max() > 1e-2


# === Contract ===


@keras.saving.register_keras_serializable("tests")
class Randomized(keras.Model):
    """A block with random weights and three inputs in a dict, as the contract wants them."""

    def __init__(self, options, **kwargs):
        super().__init__(**kwargs)
        self.options = dict(options)
        self.block = TransformerBlock(WIDTH, HEADS, DFF, dtype=self.dtype_policy, **self.options)

    def build(self, input_shape):
        shapes = {k: v for k, v in input_shape.items() if k in ("condition", "context")}
        self.block.build(input_shape["x"], *(shapes.get(k) for k in ("condition", "context")))
        randomize(self.block)
        self.built = True

    def call(self, inputs):
        return self.block(**inputs)

    def get_config(self):
        return {**super().get_config(), "options": self.options}


@pytest.mark.parametrize(
    "options",
    [PLAIN, {"cross_attention": True, "activation": "relu", "rate": 0.2}, CROSS],
    ids=["plain", "plain-cross", "adaln-cross"],
)
def test_contract(options, tmp_path):
    run_contract(lambda **kwargs: Randomized(options, **kwargs), {"x": X, **inputs_of(options)}, tmp_path=tmp_path)


def test_symbolic_shape_and_dtype():
    layer = TransformerBlock(WIDTH, HEADS, DFF, dtype="mixed_bfloat16", **ADALN)
    output = layer(keras.Input((None, WIDTH)), keras.Input((8,)))
    assert output.shape == (None, None, WIDTH) and output.dtype == "bfloat16"


def test_attention_scores_are_those_of_the_attention():
    layer = TransformerBlock(WIDTH, HEADS, DFF, dtype="mixed_bfloat16")
    output, scores = layer(keras.Input((5, WIDTH)), return_attention_scores=True)
    assert output.dtype == "bfloat16" and scores.shape == (None, HEADS, 5, 5) and scores.dtype == "float32"
    layer = randomize(TransformerBlock(WIDTH, HEADS, DFF))
    x, mask = normal(2, 5, WIDTH), np.array([[1, 1, 1, 0, 1], [1, 0, 0, 0, 1]], "bool")
    output, scores = layer(x, mask=mask, return_attention_scores=True)
    weights = weights_of(layer)
    hidden = layer_norm(x.astype("float64"), weights, "norm1")
    expected = attention(weights, HEADS, hidden, mask=mask[:, None, None], prefix="mha/")[1]
    np.testing.assert_allclose(ops.convert_to_numpy(scores), expected, atol=1e-4)
    np.testing.assert_array_equal(ops.convert_to_numpy(output), ops.convert_to_numpy(layer(x, mask=mask)))


# === Errors ===


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((12, 5, 8), {}, "`num_heads` must divide `d_model`. Received: num_heads=5, d_model=12"),
        ((12, 3, 0), {}, "`dff` must be a positive integer. Received: dff=0"),
        ((12, 3, 8, 1.0), {}, "`rate` must be a finite number, at least 0 and less than 1. Received: rate=1.0"),
        ((12, 3, 8), {"conditioning": "film"}, "`conditioning` must be one of None, 'adaln_zero'. Received: .*'film'"),
    ],
)
def test_impossible_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        TransformerBlock(*arguments, **options)


@pytest.mark.parametrize(
    "options, inputs, message",
    [
        (ADALN, {}, "`condition` must be given with conditioning='adaln_zero'. Received: condition=None"),
        (PLAIN, {"condition": CONDITION}, "`condition` must be None with conditioning=None. Received: .*a tensor"),
        (CROSS, {"condition": CONDITION}, "`context` must be given with cross_attention=True. Received: context=None"),
        (PLAIN, {"context": CONTEXT}, "`context` must be None with cross_attention=False. Received: .*a tensor"),
    ],
)
def test_conditions_that_are_missing_or_of_no_use(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        make(**options)(X, **inputs)
    with pytest.raises(ValueError, match=message):
        TransformerBlock(WIDTH, HEADS, DFF, **options)(X, **inputs)  # not built yet


def test_a_sequence_of_another_width():
    with pytest.raises(ValueError, match=r"`x` must be of shape \(B, T, d_model=12\). Received: shape=\(2, 5, 8\)"):
        TransformerBlock(WIDTH, HEADS, DFF)(normal(2, 5, 8))


@pytest.mark.parametrize("options", [PLAIN, ADALN])
def test_mask_of_padding_comes_by_itself_from_an_embedding(options):
    tokens = np.array([[3, 4, 5, 0, 0], [1, 2, 0, 0, 0]])
    x = keras.layers.Embedding(10, WIDTH, mask_zero=True)(tokens)
    layer = make(**options)
    randomize(layer)
    inputs = {key: ops.convert_to_tensor(value) for key, value in inputs_of(options).items()}
    expected = layer(numpy(x), mask=tokens != 0, **inputs)
    np.testing.assert_allclose(numpy(layer(x, **inputs)), numpy(expected), atol=1e-6)
    assert not np.allclose(numpy(layer(numpy(x), **inputs)), numpy(expected), atol=1e-3)
