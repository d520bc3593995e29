"""VQVAE: training in every form that `fit` knows, whole-epoch usage, the tokenizer's promises, saving."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_vqdit.layers.vector_quantizer import VectorQuantizer
from keras_vqdit.models.vqvae import VQVAE
from tests.contract import run_contract
from tests.models.small import array, decoder, encoder, images

LOGS = {"loss", "reconstruction_loss", "quantization_loss", "codebook_usage", "perplexity"}


def make(num_embeddings=16, embedding_dim=3, dtype=None, quantizer=None, **kwargs):
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


def trained(x=None, **kwargs):
    """A model with codes that are spread over the latents of `x`, and moving statistics that are not trivial."""
    x = images() if x is None else x
    model = make(**kwargs)
    for begin in range(0, len(x), 4):
        model(x[begin : begin + 4], training=True)
    model.compile("adam", jit_compile=False)
    return model


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
        "dataset of images": lambda m: m.fit(
            tf.data.Dataset.from_tensor_slices(x).batch(4), epochs=3, verbose=0
        ),
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
        logs = model.evaluate(
            x, sample_weight=weight.reshape(shape), batch_size=4, return_dict=True, verbose=0
        )
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


# === Tokenizer ===


def test_decode_of_encode_is_the_call_bit_for_bit():
    for dtype in (None, "mixed_float16", "mixed_bfloat16"):
        model, x = trained(dtype=dtype), images()
        codes = model.encode(x)
        assert codes.dtype == "int32" and codes.shape == (8, 2, 2)
        np.testing.assert_array_equal(array(model.decode(codes)), array(model(x)[0]))


@pytest.mark.parametrize("jit", [True, False])
def test_decode_of_encode_is_the_call_bit_for_bit_when_compiled(jit):
    model, x = trained(), images()
    both = tf.function(lambda x: (model.decode(model.encode(x)), model(x)[0]), jit_compile=jit)
    a, b = both(x)
    np.testing.assert_array_equal(array(a), array(b))


def test_codes_are_the_nearest():
    model, x = trained(), images()
    z, codebook = array(model.encoder(x)), array(model.vq.codebook)
    nearest = ((z[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(array(model.encode(x)), nearest)
    np.testing.assert_array_equal(array(model.encode({"image": x, "label": np.zeros(8)})), nearest)


def test_latents_are_normalised_and_before_quantisation():
    model, x = trained(), images()
    model.adapt(x)
    z = array(model.encoder(x))
    expected = (z - z.mean((0, 1, 2))) / z.std((0, 1, 2))
    latents = model.encode_latents(x)
    np.testing.assert_allclose(array(latents), expected, atol=1e-4)
    # Quantised they give the codes' reconstruction, unquantised that of the latents themselves.
    np.testing.assert_allclose(array(model.decode_latents(latents)), array(model(x)[0]), atol=1e-5)
    unquantized = model.decode_latents(latents, quantize=False)
    np.testing.assert_allclose(array(unquantized), array(model.decoder(z)), atol=1e-5)
    assert np.abs(array(unquantized) - array(model(x)[0])).max() > 1e-3


def test_latents_without_statistics_are_the_encoders():
    model, x = make(), images()
    np.testing.assert_array_equal(array(model.encode_latents(x)), array(model.encoder(x)))


def test_moving_statistics_are_about_those_of_the_data():
    model, x = make(), images(64)
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(x, batch_size=32, epochs=2, verbose=0)
    z = array(model.encode_latents(x))
    # The average of every batch once is the whole data set; the moving one weighs batches by 0.99 a step.
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=0.02)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=0.02)


def test_any_quantizer_with_the_contract_will_do():
    @keras.saving.register_keras_serializable("tests")
    class Signs(layers.Layer):
        """Two codes, -1 and 1, for latents of one channel."""

        num_embeddings, embedding_dim = 2, 1

        def build(self, shape):
            self.batch_counts = self.add_weight(shape=(2,), initializer="zeros", trainable=False)

        def call(self, z, mask=None, training=None):
            self.batch_counts.assign(ops.sum(ops.one_hot(ops.reshape(self.encode(z), (-1,)), 2), 0))
            q = self.decode(self.encode(z))
            return z + ops.stop_gradient(q - z), ops.mean((z - q) ** 2, (1, 2, 3))

        def encode(self, z):
            return ops.cast(z[..., 0] > 0, "int32")

        def decode(self, codes):
            return ops.cast(codes, "float32")[..., None] * 2 - 1

    model = make(2, 1, quantizer=Signs())
    model.compile("adam", jit_compile=False)
    logs = model.fit(images(), batch_size=4, verbose=0).history
    assert logs["codebook_usage"] == [1.0] and 1 < logs["perplexity"][0] <= 2
    with pytest.raises(
        ValueError, match="`num_embeddings` must be that of the quantizer, 2.*num_embeddings=3"
    ):
        make(3, 1, quantizer=Signs())


# === Saving ===


def test_contract(tmp_path):
    run_contract(make, images(), tmp_path=tmp_path)
    run_contract(make, {"image": images(), "label": np.zeros(8, "int32")}, tmp_path=tmp_path, policies=())


@keras.saving.register_keras_serializable("tests")
class SubclassedEncoder(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(3, 4, 4)

    def call(self, x):
        return ops.tanh(self.convolution(x))


def functional_encoder():
    x = layers.Input((8, 8, 1))
    return keras.Model(x, layers.Conv2D(3, 4, 4)(x))


@pytest.mark.parametrize("make_encoder", [functional_encoder, lambda: encoder(3), SubclassedEncoder])
def test_saved_models_go_on_as_they_were(make_encoder, tmp_path):
    x = images()
    model = VQVAE(make_encoder(), decoder(3), 16, 3, quantizer=VectorQuantizer(16, 3, decay=0.9, seed=1))
    model.compile(keras.optimizers.Adam(1e-2), loss="mae", metrics=["mse"], jit_compile=False)
    model.fit(x, batch_size=4, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")

    for name in ("encode", "encode_latents"):
        np.testing.assert_array_equal(array(getattr(loaded, name)(x)), array(getattr(model, name)(x)))
    assert loaded.vq.decay == 0.9
    expected, got = (m.evaluate(x, batch_size=4, return_dict=True, verbose=0) for m in (model, loaded))
    assert expected.keys() == got.keys() == LOGS | {"mse"}
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-5, err_msg=key)
    # The optimizer's state is saved too: the next steps are the same.
    runs = [m.fit(x, batch_size=4, shuffle=False, verbose=0).history["loss"] for m in (model, loaded)]
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5)


def test_an_unbuilt_encoder_is_built_by_fit():
    model = VQVAE(SubclassedEncoder(), decoder(3), 16, 3)
    model.compile("adam", jit_compile=False)
    model.fit(images(), batch_size=4, verbose=0)
    assert model.latent_shape == (2, 2, 3)


# === Sizes ===


def test_from_size():
    model = VQVAE.from_size(
        "digits", num_embeddings=32, filters=(8, 16), num_residual_blocks=1, dtype="mixed_float16"
    )
    assert model.latent_shape == (7, 7, 8) and model.num_embeddings == 32
    reconstruction, error = model(np.zeros((2, 28, 28, 1), "float32"))
    assert (
        reconstruction.shape == (2, 28, 28, 1) and reconstruction.dtype == "float32" and error.shape == (2,)
    )
    assert model.compute_latent_shape({"image": (None, 28, 28, 1)}) == (None, 7, 7, 8)
    with pytest.raises(ValueError, match="`name` must be one of.*digits.*Received: name='huge'"):
        VQVAE.from_size("huge")


@pytest.mark.parametrize(
    ("shape", "grid", "options"),
    [
        ((64, 1), (8,), {"factors": (4, 2), "modality": "audio"}),
        ((16, 24, 3), (4, 6), {"groups": 2, "residual_filters": (None, 4), "kernel_sizes": (4, None)}),
        ((4, 8, 8, 1), (2, 2, 2), {"factors": ((1, 2, 2), 2), "modality": "video"}),
    ],
)
def test_sound_images_and_video_share_one_backbone(shape, grid, options):
    model = VQVAE.from_size(
        "digits",
        input_shape=shape,
        embedding_dim=2,
        num_embeddings=8,
        quantizer=VectorQuantizer(8, 2, kmeans_init=False),
        **{
            "filters": (4, 6),
            "num_residual_blocks": 1,
            "kernel_sizes": None,
            "residual_filters": None,
            **options,
        },
    )
    x = np.random.default_rng(0).uniform(-1, 1, (4, *shape)).astype("float32")
    assert model.encode(x).shape == (4, *grid)
    model.compile("adam", jit_compile=False)
    history = model.fit({options.get("modality", "image"): x}, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model(x)[0].shape == x.shape


# === Errors ===


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VQVAE(encoder(5), decoder(3), 16, 3), "`embedding_dim` channels, 3.*with 5 channels"),
        (lambda: make(quantizer=VectorQuantizer(16, 4)), "`embedding_dim` must be that of the quantizer, 4"),
        (lambda: make()(np.zeros((1, 8, 8, 1), "uint8")), "must be floats.*dtype=uint8"),
        (lambda: make().encode({"picture": images()}), 'must have a key "image".*picture'),
        (lambda: make(modality="video").encode({"image": images()}), 'must have a key "video".*image'),
        (lambda: VQVAE.from_size("digits", input_shape=(30, 28, 1)), "multiple of"),
        (
            lambda: VQVAE.from_size("digits", kernel_sizes=(4, 4, 4)),
            "`kernel_sizes` must be one value.*2 stages",
        ),
        (lambda: VQVAE.from_size("digits", input_shape=(28,)), "1, 2 or 3 spatial dimensions"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_fit_tells_what_is_wrong_with_the_data():
    model, x = make(), images()
    model.compile("adam")
    with pytest.raises(ValueError, match="must be floats.*dtype=uint8"):
        model.fit((x > 0).astype("uint8"), verbose=0)
    with pytest.raises(ValueError, match="needs no labels"):
        model.fit(x, np.arange(8), verbose=0)


# === Other backends ===


def test_on_jax_the_logs_are_the_same(tmp_path):
    pytest.importorskip("jax")
    x = images(12, seed=3)
    model = trained(x)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    expected = model.evaluate(x, batch_size=4, return_dict=True, verbose=0)
    script = """
        import sys, json
        sys.modules["tensorflow"] = None  # not installed
        import keras, numpy as np
        from keras_vqdit.models.vqvae import VQVAE
        from keras_vqdit.models.vae import VAE
        from tests.models import small

        assert keras.backend.backend() == "jax"
        folder = sys.argv[1]
        x = np.load(folder + "/x.npy")
        model = keras.saving.load_model(folder + "/model.keras")
        print(json.dumps(model.evaluate(x, batch_size=4, return_dict=True, verbose=0)))
        np.testing.assert_array_equal(np.asarray(model.decode(model.encode(x))), np.asarray(model(x)[0]))
        before = float(model.statistics.mass)
        history = model.fit({"image": x}, batch_size=4, epochs=3, verbose=0).history
        assert history["loss"][-1] < history["loss"][0] and history["codebook_usage"][-1] > 0, history
        assert float(model.statistics.mass) > before
        vae = VAE(small.encoder(6), small.decoder(3), 3)
        vae.compile("adam")
        history = vae.fit(x, batch_size=4, epochs=3, verbose=0).history
        assert history["loss"][-1] < history["loss"][0], history
        assert vae.generate(2, seed=1).shape == (2, 8, 8, 1)
    """
    env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    import json

    got = json.loads(done.stdout.strip().splitlines()[-1])
    for name in LOGS:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, err_msg=name)
