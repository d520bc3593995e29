"""The Gaussian VAE, and what it shares with every auto-encoder: loss, latent statistics, saving."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vqdit.layers.latent_statistics import LatentStatistics
from keras_vqdit.models.vae import VAE, gaussian_kl
from tests.contract import run_contract
from tests.models.small import array, decoder, encoder, images


def make(latent_dim=3, dtype=None, **kwargs):
    return VAE(encoder(2 * latent_dim, dtype), decoder(latent_dim, dtype), latent_dim, dtype=dtype, **kwargs)


def moments(model, x):
    encoded = array(model.encoder(x))
    return encoded[..., :3], encoded[..., 3:]


# === Closed forms ===


def test_kl_is_the_integral():
    mean, log_variance = 0.7, -0.9
    z = np.linspace(-12, 12, 200_001)
    log_q = -0.5 * (z - mean) ** 2 / np.exp(log_variance) - 0.5 * (log_variance + np.log(2 * np.pi))
    log_p = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    expected = np.sum(np.exp(log_q) * (log_q - log_p)) * (z[1] - z[0])
    kl = gaussian_kl(np.full((2, 4, 3), mean), np.full((2, 4, 3), log_variance))
    np.testing.assert_allclose(array(kl), [12 * expected] * 2, rtol=1e-5)


def test_inference_decodes_the_mean_and_training_a_draw_around_it():
    enc = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Dense(6)])
    model = VAE(enc, keras.layers.Identity(), 3, seed=1)  # its reconstruction is the latents
    x = np.repeat(np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype("float32"), 4000, axis=0)
    mean, log_variance = moments(model, x[:1])
    z, kl = model(x)
    np.testing.assert_allclose(array(z)[:1], mean, atol=1e-5)
    np.testing.assert_allclose(array(kl)[0], array(gaussian_kl(mean, log_variance))[0], rtol=1e-5)
    z, kl = map(array, model(x, training=True))
    np.testing.assert_allclose(kl[0], array(gaussian_kl(mean, log_variance))[0], rtol=1e-5)
    deviation = np.exp(log_variance[0] / 2)
    # 4,000 draws: the standard error of a mean is σ/63, of a deviation σ/89; 5 standard errors.
    np.testing.assert_allclose((z.mean(axis=0) - mean[0]) / deviation, 0, atol=5 / 63)
    np.testing.assert_allclose(z.std(axis=0) / deviation, 1, atol=5 / 89)
    assert np.abs(array(model(x, training=True)[0]) - z).max() > 0.1


def test_loss_is_reconstruction_plus_weighted_kl():
    model, x = make(kl_weight=0.2), images()
    model.compile("sgd")
    logs = model.evaluate(x, batch_size=4, return_dict=True, verbose=0)
    mean, log_variance = moments(model, x)
    reconstruction = np.mean((array(model.decoder(mean)) - x) ** 2)
    kl = np.mean(0.5 * np.sum(mean**2 + np.exp(log_variance) - 1 - log_variance, axis=(1, 2, 3)))
    np.testing.assert_allclose(logs["reconstruction_loss"], reconstruction, rtol=1e-4)
    np.testing.assert_allclose(logs["kl_loss"], kl, rtol=1e-4)
    np.testing.assert_allclose(logs["loss"], reconstruction + 0.2 * kl, rtol=1e-4)


# === Latent statistics ===


def test_latent_statistics_are_the_bias_corrected_moving_averages():
    rng = np.random.default_rng(3)
    batches = rng.normal([3.0, -1.0], [2.0, 0.1], (5, 16, 4, 2)).astype("float32")
    layer, decay = LatentStatistics(decay=0.8), 0.8
    np.testing.assert_array_equal(array(layer(batches[0])), batches[0])  # the identity, before any data
    np.testing.assert_array_equal(array(layer.denormalize(batches[0])), batches[0])
    for n in range(1, 6):
        layer(batches[n - 1], training=True)
        weights = decay ** np.arange(n)[::-1]
        powers = (batches[:n].astype("float64") ** p for p in (1, 2))
        average = [np.average(power.mean((1, 2)), axis=0, weights=weights) for power in powers]
        mean, deviation = average[0], np.sqrt(average[1] - average[0] ** 2)
        for got, expected in zip(layer.mean_and_deviation(), (mean, deviation), strict=True):
            np.testing.assert_allclose(array(got), expected, rtol=2e-4)
    z = batches[0]
    np.testing.assert_allclose(array(layer(z)), (z - mean) / deviation, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(array(layer.denormalize(layer(z))), z, atol=1e-5)


def test_a_constant_channel_is_not_blown_up():
    layer = LatentStatistics()
    z = np.stack([np.full(64, 0.5), np.random.default_rng(0).normal(size=64)], axis=-1)[None]
    layer(z, training=True)
    np.testing.assert_allclose(array(layer(z + 0.001))[..., 0], 1.0, rtol=1e-3)  # √epsilon is 0.001


def test_latent_statistics_contract(tmp_path):
    run_contract(LatentStatistics, np.ones((2, 3, 4), "float32"), tmp_path=tmp_path)
    for arguments in [{"decay": 1.0}, {"epsilon": 0.0}]:
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`.*Received"):
            LatentStatistics(**arguments)


@pytest.mark.parametrize("form", ["array", "dict", "dataset"])
def test_adapt_measures_the_whole_data_set(form):
    import tensorflow as tf

    model, x = make(), images(11)
    data = {
        "array": x,
        "dict": {"image": x, "label": np.zeros(11)},
        "dataset": tf.data.Dataset.from_tensor_slices({"image": x, "label": np.zeros(11)}).batch(3),
    }[form]
    model.adapt(data, batch_size=4)
    mean, _ = moments(model, x)
    z = array(model.encode_latents(x))
    np.testing.assert_allclose(z, (mean - mean.mean((0, 1, 2))) / mean.std((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(array(model.decode_latents(z)), array(model(x)[0]), atol=1e-5)


def test_training_learns_the_statistics_and_inference_does_not():
    model, x = make(), images()
    model.compile("sgd")
    model.evaluate(x, verbose=0)
    assert float(model.statistics.mass) == 0
    model.fit(x, batch_size=4, epochs=3, verbose=0)
    np.testing.assert_allclose(float(model.statistics.mass), 1 - 0.99**6, rtol=1e-5)
    model.trainable = False
    model(x, training=True)
    np.testing.assert_allclose(float(model.statistics.mass), 1 - 0.99**6, rtol=1e-5)


# === Tokenizer and generation ===


def test_decode_of_encode_is_the_call():
    model, x = make(), images()
    np.testing.assert_array_equal(array(model.decode(model.encode(x))), array(model(x)[0]))
    assert model.embedding_dim == 3 and model.latent_shape == (2, 2, 3)


def test_generate_decodes_standard_normal_latents():
    model = make()
    drawn = array(model.generate(5, seed=7))
    assert drawn.shape == (5, 8, 8, 1)
    z = keras.random.normal((5, 2, 2, 3), seed=7)
    np.testing.assert_allclose(drawn, array(model.decoder(z)), atol=1e-6)
    model.generate(3)
    np.testing.assert_array_equal(array(model.generate(5, seed=7)), drawn)
    assert np.abs(array(model.generate(5, seed=8)) - drawn).max() > 0.01


# === Contract ===


def test_contract(tmp_path):
    run_contract(make, images(), tmp_path=tmp_path)
    run_contract(make, {"image": images(), "label": np.zeros(8, "int32")}, tmp_path=tmp_path, policies=())


def test_from_size():
    model = VAE.from_size("digits", latent_dim=4, filters=(8, 16), num_residual_blocks=1, kl_weight=0.5)
    reconstruction, kl = model(np.zeros((2, 28, 28, 1), "float32"))
    assert reconstruction.shape == (2, 28, 28, 1) and kl.shape == (2,)
    assert model.latent_shape == (7, 7, 4) and model.kl_weight == 0.5
    with pytest.raises(ValueError, match="`name` must be one of.*digits.*Received: name='huge'"):
        VAE.from_size("huge")


def test_a_vector_latent_space_as_in_the_documents():
    # document 000, section 5.2: 784 -> 256 -> latents -> 256 -> 784
    dense, sizes = keras.layers.Dense, (100, 256, 784)
    enc = keras.Sequential([keras.Input((784,)), dense(sizes[1], "relu"), dense(2 * sizes[0])])
    dec = keras.Sequential([keras.Input((100,)), dense(sizes[1], "relu"), dense(784, "sigmoid")])
    model = VAE(enc, dec, 100)
    model.compile("adam", loss="mse")
    x = np.random.default_rng(0).uniform(0, 1, (16, 784)).astype("float32")
    history = model.fit(x, x, batch_size=8, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    assert model.generate(3, seed=0).shape == (3, 784)


def test_same_seed_same_training():
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        model = make(seed=3)
        model.compile("adam")
        runs.append(model.fit(images(), batch_size=4, epochs=2, verbose=0).history["loss"])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: VAE(encoder(5), decoder(3), 3),
            "2 \\* `latent_dim` channels, 6.*latent_dim=3.*with 5 channels",
        ),
        (lambda: VAE(encoder(6), decoder(3), 0), "`latent_dim` must be a positive integer.*latent_dim=0"),
        (lambda: make(kl_weight=-1), "`kl_weight` must be a finite number, at least 0.*kl_weight=-1"),
        (lambda: VAE(encoder(6), keras.layers.Dense(1), 3), "`decoder` must give back the shape of the data"),
        (lambda: make()(np.zeros((1, 8, 8, 1), "uint8")), "must be floats.*dtype=uint8"),
        (lambda: make()({"picture": images()}), 'must have a key "image".*picture'),
        (lambda: make().adapt([]), "`data` must have at least one example"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_generate_before_build_says_so():
    unbuilt = VAE(keras.layers.Dense(6), keras.layers.Dense(1), 3)
    with pytest.raises(ValueError, match="before the model is built"):
        unbuilt.generate(1)


def test_an_encoder_that_is_no_layer_is_told():
    with pytest.raises(TypeError, match="`encoder` must be a Keras layer"):
        VAE(lambda x: x, decoder(3), 3)


def test_mixed_precision_keeps_latents_in_float32():
    model = make(dtype="mixed_float16")
    assert model.encode_latents(images()).dtype == "float32"
    assert model(images())[1].dtype == "float32"
    assert ops.is_tensor(model(images())[0])
