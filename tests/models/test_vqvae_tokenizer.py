"""VQVAE: what it promises as a tokenizer, saving, sizes, errors, other backends."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_vqdit.layers.vector_quantizer import VectorQuantizer
from keras_vqdit.models.vqvae import VQVAE
from tests.contract import run_contract
from tests.models.small import array, decoder, encoder, images
from tests.models.small import small_vqvae as make
from tests.models.small import trained_vqvae as trained

LOGS = {"loss", "reconstruction_loss", "quantization_loss", "codebook_usage", "perplexity"}


# === Tokenizer ===


def test_decode_of_encode_is_the_call_bit_for_bit():
    for dtype in (None, "mixed_float16", "mixed_bfloat16"):
        model, x = trained(dtype=dtype), images()
        codes = model.encode(x)
        assert codes.dtype == "int32" and codes.shape == (8, 2, 2)
        np.testing.assert_array_equal(array(model.decode(codes)), array(model(x)[0]))
    # Parts with policies of their own: inputs must reach the encoder alike on both ways.
    model = VQVAE(encoder(3), decoder(3), 64, 3, dtype="mixed_bfloat16")
    model(x, training=True)
    np.testing.assert_array_equal(array(model.decode(model.encode(x))), array(model(x)[0]))


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
    model(x)  # inference does not learn them
    model.trainable = False
    model(x, training=True)  # nor does a frozen model
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
    with pytest.raises(ValueError, match="`num_embeddings` must be that of the quantizer, 2.*num_embeddings=3"):
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
    model = VQVAE.from_size("digits", num_embeddings=32, filters=(8, 16), num_residual_blocks=1, dtype="mixed_float16")
    assert model.latent_shape == (7, 7, 4) and model.num_embeddings == 32
    reconstruction, error = model(np.zeros((2, 28, 28, 1), "float32"))
    assert reconstruction.shape == (2, 28, 28, 1) and reconstruction.dtype == "float32" and error.shape == (2,)
    assert model.compute_latent_shape({"image": (None, 28, 28, 1)}) == (None, 7, 7, 4)
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
        keras.utils.set_random_seed(0)
        vae = VAE(small.encoder(6), small.decoder(3), 3, seed=0)
        vae.compile(keras.optimizers.Adam(0.01))
        history = vae.fit(x, batch_size=4, epochs=10, verbose=0).history
        assert history["loss"][-1] < history["loss"][0], history
        assert vae.generate(2, seed=1).shape == (2, 8, 8, 1)
    """
    env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env=env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(done.stdout.strip().splitlines()[-1])
    for name in LOGS:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, err_msg=name)


def test_the_tokenizer_builds_itself():
    def unbuilt():
        return VQVAE(
            keras.layers.Conv2D(3, 4, 4), keras.layers.Conv2DTranspose(1, 4, 4), num_embeddings=16, embedding_dim=3
        )

    x = images()
    model = unbuilt()
    latents = model.encode_latents(x)
    assert latents.shape == (8, 2, 2, 3) and model.built
    assert model.decode_latents(latents).shape == x.shape and model(x)[0].shape == x.shape
    assert unbuilt().encode(x).shape == (8, 2, 2)
    model = unbuilt()
    model.adapt(x)
    np.testing.assert_allclose(np.mean(array(model.encode_latents(x)), axis=(0, 1, 2)), 0, atol=1e-4)
