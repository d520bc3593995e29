"""The diffusion transformer: its formula, counts, inputs and shapes, training, saving, errors."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.layers.embeddings import sincos_position_embedding
from keras_vqdit.models.diffusion_transformer import DiffusionTransformer
from tests.contract import run_contract
from tests.layers.reference_transformer import attention, block, dense, layer_norm, normal, randomize, weights_of

ROOT = Path(__file__).parents[2]
X = normal(4, 8, 6, 3)
INPUTS = {
    "x": X,
    "t": np.array([0.0, 0.3, 0.7, 1.0], "float32"),
    "label": np.array([0, 9, 10, 3], "int32"),
    "context": normal(4, 5, 12, seed=2),
    "context_mask": np.array([[1, 1, 1, 1, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]], "bool"),
}


def make(shape=X.shape, *, d_model=24, num_heads=3, dff=40, num_layers=2, seed=0, **options):
    """A small model with random weights, for an untrained one puts out zeros."""
    model = DiffusionTransformer(d_model, num_heads, dff, num_layers, **options)
    model.build(shape)
    return randomize(model, seed=seed)


def full(**options):
    return make(patch_size=2, num_classes=10, context_dim=12, **options)


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


# === Formula and counts ===


def test_whole_model_is_the_formula():
    """With a context and patches that are not square, which the official network does not know."""
    model = make(patch_size=(4, 2), num_classes=10, context_dim=12)
    w = weights_of(model)
    patches = X.reshape(4, 2, 4, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(4, 6, 24).astype("float64")
    x = dense(patches, w, "patch_embedding") + sincos_position_embedding((2, 3), 24)
    angle = INPUTS["t"][:, None] * 1000.0 / 10000.0 ** (np.arange(128) / 128)
    hidden = dense(np.concatenate([np.cos(angle), np.sin(angle)], axis=1), w, "time_embedding/dense1")
    condition = dense(hidden / (1 + np.exp(-hidden)), w, "time_embedding/dense2")
    condition = condition + w["label_embedding/table"][INPUTS["label"]]
    scores = []
    for i in range(2):
        mine = {k.removeprefix(f"block_{i}/"): v for k, v in w.items() if k.startswith(f"block_{i}/")}
        six = dense(condition / (1 + np.exp(-condition)), mine, "modulation")[:, None]
        hidden = layer_norm(x) * (1 + six[..., 24:48]) + six[..., :24]
        scores.append(attention(mine, 3, hidden, prefix="mha/")[1])
        x = block(mine, 3, x, condition, INPUTS["context"].astype("float64"), INPUTS["context_mask"])
    modulation = dense(condition / (1 + np.exp(-condition)), w, "final_modulation")[:, None]
    shift, scale = np.split(modulation, 2, axis=-1)
    tokens = dense(layer_norm(x) * (1 + scale) + shift, w, "final_dense")
    expected = tokens.reshape(4, 2, 3, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(X.shape)
    # float32 leaves 6e-5 of the angle, which goes up to 1000.
    np.testing.assert_allclose(numpy(model(INPUTS)), expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(numpy(model.attention_scores(INPUTS)), scores, atol=2e-3)
    listed = {key: np.asarray(value).tolist() for key, value in INPUTS.items()}
    np.testing.assert_allclose(numpy(model.attention_scores(listed)), numpy(model.attention_scores(INPUTS)), atol=1e-6)
    alone = model.attention_scores({"x": INPUTS["x"], "label": None})
    np.testing.assert_array_equal(numpy(alone), numpy(model.attention_scores(INPUTS["x"])))


@pytest.mark.parametrize(
    "name, giga",
    [("S/2", 6.06), ("B/2", 23.01), ("L/2", 80.71), ("XL/2", 118.64), ("S/4", 1.41), ("XL/4", 29.05), ("XL/8", 7.39)],
)
def test_counts_are_those_of_the_paper(name, giga):
    """DiT (2212.09748), table 4, which counts some of the element-wise operations too."""
    model = DiffusionTransformer.from_size(name, num_classes=1000, learn_variance=True)
    assert model.count_macs((None, 32, 32, 4)) / 1e9 == pytest.approx(giga, rel=1e-3, abs=5e-3)


def test_counts_are_the_closed_form():
    def count(num_layers):
        return DiffusionTransformer(32, 4, 128, num_layers, patch_size=2).count_macs((None, 8, 6, 3))

    d, n = 32, 12
    assert count(3) - count(2) == 12 * d**2 * n + 2 * n**2 * d + 6 * d**2


@pytest.mark.parametrize("context_dim, length", [(None, 0), (12, 5)])
def test_counts_are_those_of_the_graph(context_dim, length):
    """The matrix products that TensorFlow sees, which counts two operations for each multiply-accumulate."""
    model = make(patch_size=2, num_classes=10, context_dim=context_dim, learn_variance=True)
    inputs = {k: v[:1] for k, v in INPUTS.items() if context_dim or not k.startswith("context")}
    graph = tf.function(lambda x: model(x)).get_concrete_function(inputs).graph
    products = ("MatMul", "BatchMatMulV2")
    flops = 0
    for operation in graph.get_operations():
        if operation.type in products:
            a = operation.inputs[0].shape
            inner = a[-2] if operation.type == "MatMul" and operation.get_attr("transpose_a") else a[-1]
            flops += operation.outputs[0].shape.num_elements() * inner
    assert model.count_macs((None, 8, 6, 3), length) == flops


@pytest.mark.parametrize("name", ["M/2", "S", "S/0", "S/x", "s/2", ""])
def test_sizes_that_do_not_exist(name):
    with pytest.raises(ValueError, match="`name` must be one of S, B, L, XL with a patch size, as 'S/2'"):
        DiffusionTransformer.from_size(name)


def test_sizes_by_name():
    model = DiffusionTransformer.from_size("XL/4", num_classes=7)
    assert (model.d_model, model.num_heads, model.dff, model.num_layers) == (1152, 16, 4608, 28)
    assert (model.patch_size, model.num_classes) == (4, 7)


# === Start ===


def test_an_untrained_model_puts_out_zeros():
    model = DiffusionTransformer(24, 3, 40, 2, num_classes=10)
    np.testing.assert_array_equal(numpy(model({"x": X, "label": INPUTS["label"]})), 0)


def test_initial_weights():
    model = DiffusionTransformer(96, 4, 384, 2, patch_size=4, num_classes=300, context_dim=64)
    model.build((None, 8, 8, 4))
    w = weights_of(model)
    zero = {"modulation/kernel", "final_modulation/kernel", "final_dense/kernel", "mha_cross/output_dense/kernel"}
    for name, value in w.items():
        last = name.split("/", 1)[-1] if name.startswith("block_") else name
        if last in zero or name.endswith(("/bias", "/beta")):
            assert not value.any(), name
        elif name.endswith("/gamma"):
            assert np.all(value == 1), name
        elif name.startswith(("time_embedding", "label_embedding")):
            assert value.std() == pytest.approx(0.02, rel=0.05), name
        else:  # Xavier's uniform distribution, of the patch convolution as of a matrix
            limit = np.sqrt(6 / sum(value.shape))
            assert np.abs(value).max() == pytest.approx(limit, rel=0.01), name
            assert value.std() == pytest.approx(limit / np.sqrt(3), rel=0.05), name


# === Inputs ===


def test_the_documents_example():
    x, y = np.random.default_rng(0).random((2, 1, 28, 28))
    model = DiffusionTransformer(64, 8, 64, 2)
    model.compile(optimizer="adam", loss="mse")
    assert model(x).shape == model(y).shape == (1, 28, 28)
    losses = model.fit(x, x, epochs=8, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(np.mean(x**2), rel=1e-3) and losses[-1] < 0.8 * losses[0]


def test_a_tensor_alone_means_data_without_a_label():
    model = make(num_classes=10)
    zeros, null = np.zeros(4, "float32"), np.full(4, 10)
    np.testing.assert_array_equal(numpy(model(X)), numpy(model({"x": X, "t": zeros, "label": null})))
    assert np.abs(numpy(model(X)) - numpy(model({"x": X, "t": zeros + 0.5}))).max() > 1e-2
    assert np.abs(numpy(model(X)) - numpy(model({"x": X, "label": np.zeros(4, int)}))).max() > 1e-2


def test_time_may_be_a_scalar():
    model = make()
    np.testing.assert_array_equal(
        numpy(model({"x": X, "t": np.float32(0.25)})), numpy(model({"x": X, "t": np.full(4, 0.25)}))
    )


def test_no_context_is_a_context_that_is_all_masked():
    model = full()
    inputs = {k: v for k, v in INPUTS.items() if not k.startswith("context")}
    masked = {**INPUTS, "context_mask": np.zeros((4, 5), "bool")}
    np.testing.assert_allclose(numpy(model(inputs)), numpy(model(masked)), atol=1e-5)
    assert np.abs(numpy(model(INPUTS)) - numpy(model(masked)))[0].max() > 1e-2
    everywhere = {k: v for k, v in INPUTS.items() if k != "context_mask"}
    np.testing.assert_array_equal(
        numpy(model(everywhere)), numpy(model({**everywhere, "context_mask": np.ones((4, 5), "bool")}))
    )


@pytest.mark.parametrize(
    "shape, patch",
    [((2, 12, 5), 1), ((2, 12, 5), 3), ((2, 6, 10, 3), 2), ((2, 6, 10, 3), (3, 5)), ((2, 4, 6, 8, 3), 2)],
    ids=str,
)
@pytest.mark.parametrize("learn_variance", [False, True])
def test_output_has_the_shape_of_the_input(shape, patch, learn_variance):
    model = make(shape, num_layers=1, patch_size=patch, learn_variance=learn_variance)
    expected = (*shape[:-1], shape[-1] * (2 if learn_variance else 1))
    assert model(normal(*shape)).shape == expected
    assert model(keras.KerasTensor((None, *shape[1:]))).shape == (None, *expected[1:])


def test_patches_are_told_apart_by_their_positions():
    model = make(patch_size=2)
    output = numpy(model(np.ones_like(X)))
    assert np.abs(output[:, :2, :2] - output[:, 2:4, :2]).max() > 1e-2
    assert np.abs(output[:, :2, :2] - output[:, :2, 2:4]).max() > 1e-2


def test_another_size_than_it_was_built_for():
    small, large = make((None, 8, 6, 3), patch_size=2), make((None, 12, 10, 3), patch_size=2)
    x = normal(2, 12, 10, 3)
    np.testing.assert_array_equal(numpy(small(x)), numpy(large(x)))


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_rounds_neither_times_nor_predictions(dtype):
    """bfloat16 knows no time between 0.7305 and 0.7344."""
    model = full(dtype=dtype)
    output = model({**INPUTS, "t": np.array([0.7311] * 4, "float32")})
    assert output.dtype == "float32"
    other = model({**INPUTS, "t": np.array([0.7329] * 4, "float32")})
    assert np.abs(numpy(output) - numpy(other)).max() > 1e-2
    assert model(keras.KerasTensor((None, 8, 6, 3))).dtype == "float32"


# === Training ===


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_learns(jit_compile):
    model = full(num_layers=1)
    model.compile(keras.optimizers.AdamW(3e-3), "mse", jit_compile=jit_compile)
    losses = model.fit(INPUTS, X, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_every_weight_learns():
    """All but the bias of the keys, which adds the same to all logits of a query: softmax does not see it."""
    model = full()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(INPUTS) ** 3)
    for variable, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables)):
        largest = np.abs(numpy(tf.convert_to_tensor(gradient))).max()
        assert (largest > 1e-2) != variable.path.endswith("key_dense/bias"), variable.path


def test_zeros_do_not_keep_each_other_from_learning():
    model = DiffusionTransformer(24, 3, 40, 1, patch_size=2, num_classes=10, context_dim=12)
    model.build({key: value.shape for key, value in INPUTS.items()})
    before = model.get_weights()
    optimizer = keras.optimizers.Adam(1e-3)
    for _ in range(4):  # the last layer first, then what feeds it
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(INPUTS) - X) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    for weight, old, new in zip(model.weights, before, model.get_weights()):
        assert np.any(old != new), weight.path


def test_labels_out_of_range_are_not_trained_on_unnoticed():
    model = make(num_classes=10)
    with pytest.raises(ValueError, match="Labels must be from 0 to 9, or 10 for no label"):
        model({"x": X, "label": np.array([1, 2, 3, 11])})
    compiled = tf.function(lambda inputs: model(inputs))
    output = numpy(compiled({"x": X, "label": tf.constant([1, 2, 3, 11])}))
    np.testing.assert_array_equal(np.isnan(output).all(axis=(1, 2, 3)), [False, False, False, True])


def test_a_dropout_rate_of_zero_costs_nothing():
    def random_operations(model):
        function = tf.function(lambda x: model(x, training=True))
        operations = function.get_concrete_function(tf.TensorSpec(X.shape)).graph.get_operations()
        return [op.type for op in operations if "Random" in op.type]

    model = make(patch_size=2)
    assert not random_operations(model) and len(model.variables) == len(model.trainable_variables)
    assert random_operations(make(patch_size=2, rate=0.1))


# === Contract ===


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 2, "num_classes": 10, "context_dim": 12, "learn_variance": True, "query_key_norm": True},
        {"patch_size": (4, 2), "rate": 0.1},
    ],
    ids=["all", "little"],
)
def test_contract(options, tmp_path):
    keys = INPUTS if options.get("num_classes") else ("x", "t")
    inputs = {key: INPUTS[key] for key in keys}
    model = run_contract(lambda **kwargs: make(**options, **kwargs), inputs, tmp_path=tmp_path)
    for name, value in options.items():
        assert model.get_config()[name] == value


def test_weights_saved_alone_come_back(tmp_path):
    model, other = full(), full(seed=1)
    model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(numpy(model(INPUTS)), numpy(other(INPUTS)))


def test_same_on_jax_without_tensorflow(tmp_path):
    pytest.importorskip("jax")
    model = full(query_key_norm=True, num_layers=1)
    np.savez(tmp_path / "inputs.npz", **INPUTS, output=numpy(model(INPUTS)))
    model.save(tmp_path / "model.keras")
    program = f"""
import sys
sys.modules["tensorflow"] = None  # importing it is an error
import jax, keras, numpy as np
from keras_vqdit.models.diffusion_transformer import DiffusionTransformer
arrays = dict(np.load({str(tmp_path / "inputs.npz")!r}))
expected = arrays.pop("output")
model = keras.saving.load_model({str(tmp_path / "model.keras")!r})
np.testing.assert_allclose(np.asarray(model(arrays)), expected, atol=2e-4 * np.abs(expected).max())
model.compile("adam", "mse")
losses = model.fit(arrays, arrays["x"], epochs=3, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
label = np.array([0, 1, 2, -1])
try:
    model({{**arrays, "label": label}})
except ValueError as error:
    assert "Labels must be from 0 to 9" in str(error)
else:
    raise AssertionError("no error")
assert np.isnan(jax.jit(lambda label: model.label_embedding(label))(label)[3]).all()
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr


# === Errors ===


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((24, 5, 40, 2), {}, "`num_heads` must divide `d_model`. Received: num_heads=5, d_model=24"),
        ((24, 3, 40, 0), {}, "`num_layers` must be a positive integer. Received: num_layers=0"),
        ((24, 3, 40, 2), {"patch_size": 0}, "`patch_size` must be a positive integer. Received: .*=0"),
        ((24, 3, 40, 2), {"patch_size": (2, 1.5)}, "`patch_size` must be a positive integer or 2 of them"),
        ((24, 3, 40, 2), {"num_classes": 0}, "`num_classes` must be a positive integer. Received: num_classes=0"),
        ((24, 3, 40, 2), {"context_dim": 0}, "`context_dim` must be a positive integer. Received: context_dim=0"),
        ((24, 3, 40, 2, 1.0), {}, "`rate` must be a finite number, at least 0 and less than 1. Received: rate=1.0"),
    ],
)
def test_impossible_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionTransformer(*arguments, **options)


@pytest.mark.parametrize(
    "options, inputs, message",
    [
        ({"patch_size": 4}, X, r"must be a multiple of `patch_size`, \(4, 4\). Received: shape=\(4, 8, 6, 3\)"),
        (
            {},
            {"x": X, "image": X},
            r"a dict with \"x\" and keys among \('x', 't', .*\). Received: keys \['image', 'x'\]",
        ),
        ({}, {"t": np.zeros(4)}, r"a dict with \"x\" and keys .* Received: keys \['t'\]"),
        ({}, {"x": X, "label": np.zeros(4, int)}, 'num_classes=None takes no "label". Received: keys'),
        ({}, {"x": X, "context": X[:, 0]}, 'context_dim=None takes no "context". Received: keys'),
        ({"context_dim": 3}, {"x": X, "context_mask": X[:, 0, 0] > 0}, '"context_mask" must come with a "context"'),
        ({"num_classes": 10}, {"x": X, "label": np.ones((4, 1), int)}, r'"label" must be of shape \(B,\). .*\(4, 1\)'),
        ({}, {"x": X, "t": np.zeros((4, 1))}, r'"t" must be of shape \(B,\). Received: shape=\(4, 1\)'),
        ({"num_classes": 10}, {"x": X, "label": np.full(4, -1)}, "Labels must be from 0 to 9, or 10 for no label"),
    ],
)
def test_inputs_that_do_not_fit(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        DiffusionTransformer(24, 3, 40, 1, **options)(inputs)


@pytest.mark.parametrize("shape", [(4, 8, 6, 4), (4, 48, 3), (4, 7, 6, 3)], ids=str)
def test_inputs_that_do_not_fit_what_it_was_built_for(shape):
    model = make(patch_size=2)
    message = "must be a multiple" if shape[1] == 7 else "built for inputs of 2 spatial dimensions and 3 channels"
    for x in (normal(*shape), keras.KerasTensor(shape)):
        with pytest.raises(ValueError, match=message):
            model(x)
