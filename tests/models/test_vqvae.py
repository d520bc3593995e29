"""VQVAE: training in every form that `fit` knows, and logs that are those of the whole epoch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_vqdit.layers.vector_quantizer import VectorQuantizer
from keras_vqdit.models.vqvae import VQVAE
from tests.models.small import array, decoder, images
from tests.models.small import small_vqvae as make
from tests.models.small import trained_vqvae as trained

LOGS = {"loss", "reconstruction_loss", "quantization_loss", "codebook_usage", "perplexity"}


# === Training ===


def datasets(x):
    labels = np.arange(len(x), dtype="int32")
    return {
        "x": lambda m: m.fit(x, batch_size=4, epochs=3, verbose=0),
        "x, x": lambda m: m.fit(x, x, batch_size=4, epochs=3, verbose=0),
        "dict": lambda m: m.fit({"image": x, "label": labels}, batch_size=4, epochs=3, verbose=0),
        "dataset": lambda m: m.fit(
            tf.data.Dataset.from_tensor_slices({"image": x, "label": labels}).batch(4), epochs=3, verbose=0
        ),
        "dataset of images": lambda m: m.fit(tf.data.Dataset.from_tensor_slices(x).batch(4), epochs=3, verbose=0),
    }


def test_every_form_of_data_trains_alike():
    x, histories = images(), {}
    for form, fit in datasets(x).items():
        keras.utils.set_random_seed(1)
        model = make()
        model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
        shuffled = "dataset" not in form
        histories[form] = (shuffled, fit(model).history)
        assert set(histories[form][1]) == LOGS, form
        assert histories[form][1]["loss"][-1] < histories[form][1]["loss"][0], form
    for shuffled in (True, False):
        losses = [h["loss"] for s, h in histories.values() if s == shuffled]
        for other in losses[1:]:
            np.testing.assert_allclose(other, losses[0], rtol=1e-4)


def test_eager_graph_and_xla_train_alike():
    results = []
    for options in [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}]:
        keras.utils.set_random_seed(1)
        model = make(quantizer=VectorQuantizer(16, 3, seed=2))  # k-means included
        model.compile("sgd", **options)
        logs = model.fit(images(), batch_size=4, epochs=2, shuffle=False, verbose=0).history
        results.append(np.array([logs[name] for name in sorted(LOGS)]))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-3)


@pytest.mark.parametrize("jit", [True, False])
def test_logs_are_those_of_the_whole_epoch(jit):
    x = images(12, seed=3)
    model = trained(x)
    model.compile("adam", jit_compile=jit)
    logs = model.evaluate(x, batch_size=4, return_dict=True, verbose=0)
    assert set(logs) == LOGS

    z, codebook = array(model.encoder(x)), array(model.vq.codebook)
    distances = ((z[..., None, :] - codebook) ** 2).sum(-1)  # (B, 2, 2, K)
    codes = distances.argmin(-1)
    counts = np.bincount(codes.ravel(), minlength=16)
    p = counts[counts > 0] / counts.sum()
    np.testing.assert_allclose(logs["codebook_usage"], np.mean(counts > 0), rtol=1e-6)
    np.testing.assert_allclose(logs["perplexity"], np.exp(-np.sum(p * np.log(p))), rtol=1e-5)
    # One batch of the three uses fewer codes, or this test could not tell an epoch from a batch.
    assert all(len(np.unique(codes[i : i + 4])) < np.sum(counts > 0) for i in (0, 4, 8))

    quantized = codebook[codes]
    reconstruction = np.mean((array(model.decoder(quantized)) - x) ** 2)
    quantization = 0.25 * np.mean((z - quantized) ** 2)
    np.testing.assert_allclose(logs["reconstruction_loss"], reconstruction, rtol=1e-4)
    np.testing.assert_allclose(logs["quantization_loss"], quantization, rtol=1e-4)
    np.testing.assert_allclose(logs["loss"], reconstruction + quantization, rtol=1e-4)


def test_training_logs_count_every_batch_of_the_epoch():
    # With all learning off, training logs must be those of the evaluation.
    x = images(12, seed=3)
    model = trained(x)
    model.vq.trainable = False
    model.compile(keras.optimizers.SGD(0.0))
    expected = model.evaluate(x, batch_size=4, return_dict=True, verbose=0)
    got = model.fit(x, batch_size=4, verbose=0).history
    for name in LOGS:
        np.testing.assert_allclose(got[name][0], expected[name], rtol=1e-4, err_msg=name)


def test_sample_weight_weighs_both_parts_of_the_loss():
    x, weight = images(), np.array([0, 1, 2, 0.5] * 2, "float32")
    model = trained(x)
    quantized, error = array(model.decode(model.encode(x))), array(model(x)[1])
    squared = ((quantized - x) ** 2).mean((1, 2, 3))
    for shape in [(8,), (8, 1)]:
        logs = model.evaluate(x, sample_weight=weight.reshape(shape), batch_size=4, return_dict=True, verbose=0)
        np.testing.assert_allclose(logs["reconstruction_loss"], np.mean(weight * squared), rtol=1e-4)
        np.testing.assert_allclose(logs["quantization_loss"], np.mean(weight * error), rtol=1e-4)
        np.testing.assert_allclose(logs["loss"], np.mean(weight * (squared + error)), rtol=1e-4)


@pytest.mark.parametrize(
    "loss", ["mae", lambda a, b: ops.abs(a - b), keras.losses.MeanAbsoluteError()], ids=["name", "f", "Loss"]
)
def test_the_reconstruction_loss_is_the_one_of_compile(loss):
    model, x = trained(), images()
    model.compile("adam", loss=loss, jit_compile=False)
    logs = model.evaluate(x, batch_size=4, return_dict=True, verbose=0)
    expected = np.mean(np.abs(array(model.decode(model.encode(x))) - x))
    np.testing.assert_allclose(logs["reconstruction_loss"], expected, rtol=1e-4)


def test_y_is_the_target_and_metrics_see_the_reconstruction():
    model, x = trained(), images()
    clean = images(seed=9)
    model.compile("adam", metrics=["mae"], jit_compile=False)
    logs = model.evaluate(x, clean, batch_size=4, return_dict=True, verbose=0)
    restored = array(model.decode(model.encode(x)))
    np.testing.assert_allclose(logs["reconstruction_loss"], np.mean((restored - clean) ** 2), rtol=1e-4)
    np.testing.assert_allclose(logs["mae"], np.mean(np.abs(restored - clean)), rtol=1e-4)
    logs = model.evaluate(x, batch_size=4, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["mae"], np.mean(np.abs(restored - x)), rtol=1e-4)
    history = model.fit(x, validation_data=(x,), batch_size=4, verbose=0).history
    assert set(history) == LOGS | {"mae"} | {f"val_{name}" for name in LOGS | {"mae"}}


def test_losses_of_the_encoder_are_added():
    regularised = keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(3, 4, 4, kernel_regularizer=keras.regularizers.L2(0.1))]
    )
    model = VQVAE(regularised, decoder(3), 16, 3)
    model.compile("adam")
    logs = model.evaluate(images(), batch_size=4, return_dict=True, verbose=0)
    kernel = array(regularised.layers[0].kernel)
    x = images()
    expected = np.mean((array(model(x)[0]) - x) ** 2 + array(model(x)[1])[:, None, None, None])
    np.testing.assert_allclose(logs["loss"], expected + 0.1 * np.sum(kernel**2), rtol=1e-4)


def test_predict_returns_the_tuple_of_call():
    model, x = trained(), images()
    reconstruction, error = model.predict(x, batch_size=4, verbose=0)
    np.testing.assert_allclose(reconstruction, array(model(x)[0]), atol=1e-5)
    np.testing.assert_allclose(error, array(model(x)[1]), atol=1e-5)
    assert error.shape == (8,)
