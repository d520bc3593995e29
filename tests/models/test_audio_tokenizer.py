"""AudioTokenizer: it trains on waveforms, its codes come back bit for bit, and silence does no harm."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_vqdit as kv
from keras_vqdit.layers import ResidualQuantizer, VectorQuantizer
from keras_vqdit.models.spectral_loss import SpectralLoss
from keras_vqdit.recipes_audio import measure_audio_tokenizer, train_audio_tokenizer
from tests.layers.test_spectrogram import reference

LENGTH = 128
TINY = {
    "input_shape": (LENGTH, 1),
    "num_levels": 2,
    "num_embeddings": 8,
    "embedding_dim": 4,
    "window_size": 32,
    "hop": 8,
    "filters": (8, 12),
    "num_residual_blocks": 1,
    "residual_filters": 4,
    "num_iterations": 1,
}
LOSS = SpectralLoss((16, 32))


def tones(count=8, seed=0):
    """Tones of several frequencies; the second half of each is silence."""
    random = np.random.default_rng(seed)
    x = 0.8 * np.sin(np.arange(LENGTH) * random.uniform(0.2, 2.0, (count, 1)) + random.uniform(0, 6, (count, 1)))
    x[:, LENGTH // 2 :] = 0.0
    return x[..., None].astype("float32")


def tiny(**options):
    # K-means takes long to compile; its own tests are the quantizer's.
    quantizer = ResidualQuantizer(2, 8, 4, kmeans_init=False, seed=0, dtype=options.get("dtype"))
    return kv.AudioTokenizer.from_size("speech", **{"quantizer": quantizer, **TINY, **options})


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = tiny()
    model.compile(keras.optimizers.Adam(1e-2), loss=LOSS, jit_compile=False)
    dataset = tf.data.Dataset.from_tensor_slices({"audio": tones()}).batch(4)
    history = model.fit(dataset, epochs=40, shuffle=False, verbose=0).history
    return model, history


# === Training ===


def test_it_learns(trained):
    _, history = trained
    assert {"loss", "reconstruction_loss", "quantization_loss", "codebook_usage", "perplexity"} <= set(history)
    assert history["reconstruction_loss"][-1] < 0.8 * history["reconstruction_loss"][0]


def test_replicas_train_as_one_device():
    losses = []
    for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0"])):
        keras.utils.set_random_seed(1)
        with kv.training.scope(strategy):
            model = tiny()
            model.compile("sgd", loss=LOSS, jit_compile=False)
        losses.append(model.fit(tones(), batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_sample_weights_weigh_examples(trained):
    model, x, weight = trained[0], tones(), np.array([0, 1, 2, 0.5] * 2, "float32")
    values = np.asarray(LOSS.call(x, model(x)[0]))
    logs = model.evaluate(x, sample_weight=weight, batch_size=4, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["reconstruction_loss"], np.mean(weight * values), rtol=1e-4)


def test_the_default_loss_is_spectral():
    model = tiny()
    model.compile("adam")
    assert isinstance(model.loss.loss, SpectralLoss)
    assert model.loss.loss.window_sizes == (64, 128, 256, 512)


# === The loss ===


def test_the_loss_is_that_of_numpy():
    x, y = tones(3), tones(3, seed=1)
    expected = 0.5 * np.abs(x.astype("float64") - y).mean((1, 2))
    for size in (16, 32):
        norm = np.sqrt(3 * size / 8)
        s, t = (np.sqrt(np.abs(reference(z[..., 0], size, size // 4) / norm) ** 2 + 1e-6) for z in (x, y))
        convergence = np.sqrt(((s - t) ** 2).sum((1, 2)) / (s**2).sum((1, 2)))
        expected += (convergence + np.abs(np.log(s / t)).mean((1, 2))) / 2
    np.testing.assert_allclose(SpectralLoss((16, 32), waveform_weight=0.5).call(x, y), expected, rtol=1e-4)


@pytest.mark.parametrize("jit", [True, False])
def test_silence_has_finite_losses_and_gradients(jit):
    model = tiny()

    @tf.function(jit_compile=jit)
    def step(x, y):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(LOSS.call(x, model(x)[0]) + LOSS.call(y, x))
        return loss, tape.gradient(loss, [x, *model.trainable_variables])

    silence = tf.zeros((2, LENGTH, 1))
    loss, gradients = step(silence, silence)
    assert np.isfinite(loss) and all(np.all(np.isfinite(g)) for g in gradients if g is not None)
    np.testing.assert_allclose(LOSS.call(silence, silence), 0.0, atol=1e-4)


# === Tokenizer ===


def test_codes_come_back_bit_for_bit(trained):
    model, x = trained[0], tones(5, seed=2)
    codes = np.asarray(model.encode({"audio": x}))
    assert codes.dtype == "int32" and codes.shape == (5, *model.code_shape) == (5, 8, 2)
    assert codes.min() >= 0 and codes.max() < model.num_embeddings
    np.testing.assert_array_equal(model.decode(codes), model(x)[0])
    assert model.decode(codes[..., :1]).shape == x.shape  # the coarse level alone
    assert len(np.unique(codes[..., 0])) > 1


def test_the_size_of_speech():
    model = kv.AudioTokenizer.from_size("speech")
    assert model.code_shape == (48, 4) and model.modality == "audio" and model.sample_rate == 8000
    assert model.bits_per_second == 2000.0
    assert model.count_params() <= 700_000


def test_other_quantizers_have_one_code_a_frame():
    model = tiny(quantizer=VectorQuantizer(8, 4))
    assert model.code_shape == (8,) and model.bits_per_second == 3 * 8000 / 16


# === Files ===


def test_files_and_presets_give_the_same_model(trained, tmp_path):
    model, x = trained[0], tones()
    codes = np.asarray(model.encode(x))
    model.save(tmp_path / "tokenizer.keras")
    model.save_to_preset(tmp_path / "preset", {"description": "tones"})
    loaded = keras.saving.load_model(tmp_path / "tokenizer.keras")
    for other in (loaded, kv.AudioTokenizer.from_preset(tmp_path / "preset")):
        np.testing.assert_array_equal(other.encode(x), codes)
        np.testing.assert_array_equal(other.decode(codes), model.decode(codes))
        assert other.sample_rate == 8000 and other.modality == "audio"
    assert loaded.loss.loss.get_config() == LOSS.get_config()
    clone = kv.AudioTokenizer.from_config(model.get_config())
    assert clone.get_config() == model.get_config()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_low_precision_gives_sound_in_float32(policy):
    model = tiny(dtype=policy)
    y = model(tones())[0]
    assert y.dtype == "float32" and np.all(np.isfinite(y))


# === Recipes ===


def test_recipes_train_and_measure():
    x, labels = tones(16), np.arange(16, dtype="int32") % 2
    dataset = tf.data.Dataset.from_tensor_slices({"audio": x, "label": labels}).batch(8)
    quantizer = ResidualQuantizer(2, 8, 4, kmeans_init=False, seed=0)
    options = {**TINY, "sample_rate": 4000, "quantizer": quantizer}
    model, history = train_audio_tokenizer(dataset, epochs=1, verbose=0, **options)
    assert model.sample_rate == 4000 and len(history["loss"]) == 1
    found = measure_audio_tokenizer(model, dataset, batch_size=10)
    assert len(found["codes_used"]) == len(found["perplexity"]) == 2
    assert found["bits_per_second"] == 2 * 3 * 4000 / 16
    codes = np.asarray(model.encode(x))
    assert found["codes_used"][1] == len(np.unique(codes[..., 1])) / 8
    judge = keras.Sequential([keras.Input((LENGTH, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    found = measure_audio_tokenizer(model, dataset, judge=judge)
    right = np.argmax(judge.predict(x, verbose=0), -1) == labels
    assert found["accuracy_of_originals"] == np.mean(right) and 0 <= found["accuracy"] <= 1
    with pytest.raises(ValueError, match='The data must have "audio". Received: features'):
        train_audio_tokenizer(dataset.map(lambda batch: {"image": batch["audio"]}), epochs=1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: kv.AudioTokenizer.from_size("song"), r"`name` must be one of \['speech'\]. Received: name='song'"),
        (lambda: tiny(filter=3), r"The overrides of a size are .* Received: \['filter'\]"),
        (lambda: tiny(filters=(1, 2, 3)), "`filters` must be one value, or a pair"),
        (lambda: tiny(sample_rate=0), "`sample_rate` must be a positive integer"),
        (lambda: tiny(input_shape=(130, 1)), "multiple of 16 samples"),
        (lambda: SpectralLoss(()), "`window_sizes` must be multiples of 8"),
        (lambda: SpectralLoss((12,)), "`window_sizes` must be multiples of 8"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
