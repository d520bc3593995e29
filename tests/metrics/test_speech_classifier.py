"""The judge of speech: its spectrogram, its augmentation, and that it learns."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vqdit import saving
from keras_vqdit.metrics import features
from keras_vqdit.metrics.speech_classifier import (
    LogMelSpectrogram,
    RandomMask,
    RandomSpeech,
    build_speech_classifier,
    mel_filters,
    train_speech_classifier,
)
from tests.contract import run_contract

SPEECH = np.random.default_rng(0).uniform(-1, 1, (3, 1024, 1)).astype("float32")


def tones(labels, length=1024, rate=8000):
    """Tones of 300 Hz and 1,200 Hz in a little noise."""
    frequency = np.where(labels, 1200.0, 300.0)[:, None]
    noise = np.random.default_rng(0).normal(0.0, 0.01, (len(labels), length))
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(length) / rate) + noise)[..., None].astype("float32")


# === Spectrogram ===


def test_mel_filters_are_triangles_that_add_up_to_one():
    filters = mel_filters(129, 8000, 40)
    assert filters.shape == (129, 40) and (filters.sum(axis=0) > 0).all()
    peaks = filters.argmax(axis=0) * 4000 / 128
    mel = 2595 * np.log10(1 + 4000 / 700) * np.arange(1, 41) / 41
    np.testing.assert_allclose(peaks, 700 * (10 ** (mel / 2595) - 1), atol=4000 / 128)
    inside = filters[2:-8].sum(axis=1)  # from the middle of the first triangle to that of the last
    np.testing.assert_allclose(inside, 1.0, atol=1e-6)


def test_a_tone_is_loudest_at_its_pitch_and_its_volume_does_not_matter():
    layer = LogMelSpectrogram(20)
    wave = np.sin(2 * np.pi * 1000 * np.arange(2048) / 8000).astype("float32")[None, :, None]
    loud, quiet = np.asarray(layer(wave)), np.asarray(layer(0.01 * wave))
    assert loud.shape == (1, 32, 20, 1) and loud.min() == -1.0 and loud.max() == 1.0
    expected = mel_filters(129, 8000, 20)[32].argmax()  # 1,000 Hz is the 32nd of 128 steps to 4,000 Hz
    assert (loud[0, 2:-2, :, 0].argmax(axis=1) == expected).all()
    np.testing.assert_allclose(quiet, loud, atol=5e-3)  # a little power that keeps silence finite
    assert np.isfinite(np.asarray(layer(np.zeros_like(wave)))).all()


def test_decibels_are_a_closed_form():
    # Twice as loud is 20·log10(2) dB, of 60 from -1 to 1.
    wave = np.sin(2 * np.pi * 1000 * np.arange(4096) / 8000)
    wave[2048:] *= 0.5
    spectrogram = np.asarray(LogMelSpectrogram()(wave.astype("float32")[None, :, None]))[0, :, :, 0].max(axis=1)
    np.testing.assert_allclose(spectrogram[10] - spectrogram[50], 2 * 20 * np.log10(2) / 60, atol=1e-4)


# === Augmentation ===


def test_speech_is_shifted_by_whole_samples_within_its_limits():
    ramp = np.arange(1.0, 501.0, dtype="float32")[None, :, None] / 500
    layer = RandomSpeech(early=50, late=100, speed=0.0, gain=0.0, noise=0.0, seed=0)
    moved = np.asarray(layer(np.repeat(ramp, 64, axis=0), training=True))[:, :, 0]
    shifts = 250 - 500 * moved[:, 249]
    assert -50 <= shifts.min() < -30 and 80 < shifts.max() <= 100
    for row, shift in zip(moved, shifts):
        source = np.arange(500) - shift
        inside = (source >= 0) & (source <= 499)
        np.testing.assert_allclose(row[inside], (source[inside] + 1) / 500, atol=1e-3)
        assert not row[(source <= -1) | (source >= 500)].any()


def test_speed_gain_and_noise_stay_within_their_limits():
    ones = np.ones((256, 400, 1), "float32")
    still = {"early": 0, "late": 0, "speed": 0.0, "gain": 0.0, "noise": 0.0, "seed": 1}
    np.testing.assert_allclose(np.asarray(RandomSpeech(**still)(ones, training=True)), ones)
    gain = np.asarray(RandomSpeech(**{**still, "gain": 6.0})(ones, training=True))
    assert 0.5 < gain.min() < 0.55 and 1.9 < gain.max() < 2.0
    ramp = np.tile(np.arange(400, dtype="float32")[None, :, None], (256, 1, 1))
    speed = np.asarray(RandomSpeech(**{**still, "speed": 0.1})(ramp, training=True))[:, 200, 0] / 200
    assert 0.9 <= speed.min() < 0.91 and 1.09 < speed.max() <= 1.1
    noise = (np.asarray(RandomSpeech(**{**still, "noise": 0.1})(ones, training=True)) - 1.0).std(axis=(1, 2))
    assert 0.08 < noise.max() < 0.11 and noise.min() < 0.1 * 10**-2.4


def test_masks_hide_a_stretch_and_a_band():
    ones = np.ones((64, 40, 20, 1), "float32")
    time = np.asarray(RandomMask(time=0.5, pitch=0.0, seed=0)(ones, training=True))[..., 0]
    hidden = (time == -1.0).all(axis=2)
    assert ((time == -1.0).any(axis=2) == hidden).all()  # whole frames
    assert 15 < hidden.sum(axis=1).max() <= 21
    assert (np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int)) == 1).sum(axis=1).max() == 1  # in one stretch
    pitch = np.asarray(RandomMask(time=0.0, pitch=0.5, seed=0)(ones, training=True))[..., 0]
    assert (pitch == -1.0).any() and (pitch == pitch[:, :1]).all()


@pytest.mark.parametrize("layer", [RandomSpeech(seed=0), RandomMask(seed=0)])
def test_augmentation_leaves_what_is_judged_as_it_is(layer):
    inputs = SPEECH if isinstance(layer, RandomSpeech) else SPEECH[:, :800].reshape(3, 40, 20, 1)
    np.testing.assert_array_equal(np.asarray(layer(inputs)), inputs)
    assert not np.allclose(np.asarray(layer(inputs, training=True)), inputs)


@pytest.mark.parametrize(
    "build, shape", [(LogMelSpectrogram, (2, 512, 1)), (RandomSpeech, (2, 512, 1)), (RandomMask, (2, 16, 8, 1))]
)
def test_layers_keep_the_contract(build, shape, tmp_path):
    inputs = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
    run_contract(lambda **kwargs: build(**kwargs), inputs, tmp_path=tmp_path)


# === The network ===


def test_the_judge_loads_with_the_safe_reader(tmp_path):
    model = build_speech_classifier((1024, 1), 10, width=4, seed=0)
    saving.save_model(model, tmp_path / "judge.keras")
    loaded = saving.load_model(tmp_path / "judge.keras")
    np.testing.assert_allclose(np.asarray(loaded(SPEECH)), np.asarray(model(SPEECH)), atol=1e-6)
    assert np.asarray(features(loaded)(SPEECH)).shape == (3, 16)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: build_speech_classifier((1024,), 10), "`input_shape` must be"),
        (lambda: build_speech_classifier((None, 1), 10), "`input_shape` must be"),
        (lambda: build_speech_classifier((1024, 2), 10), "`input_shape` must be"),
        (lambda: build_speech_classifier((1024, 1), 0), "`num_classes` must be a positive integer"),
        (lambda: LogMelSpectrogram(window_size=100, hop=64), "even multiple of `hop`"),
        (lambda: LogMelSpectrogram()(keras.KerasTensor((None, 512, 2))), "T known"),
        (lambda: RandomSpeech(noise=-1.0), "`noise` must be a finite number"),
        (lambda: RandomSpeech()(keras.KerasTensor((None, None, 1))), "T known"),
        (lambda: RandomMask(time=1.5), "`time` must be a finite number"),
        (lambda: RandomMask()(keras.KerasTensor((None, None, 20, 1))), "time and pitch known"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# === Training ===


def test_the_judge_tells_tones_apart():
    labels = np.arange(96) % 2
    batches = tf.data.Dataset.from_tensor_slices({"audio": tones(labels), "label": labels.astype("int32")}).batch(16)
    judge, accuracy = train_speech_classifier(batches, batches, num_classes=2, epochs=8, width=4, jit_compile=False)
    assert accuracy > 0.95
    late = np.pad(tones(labels), ((0, 0), (300, 0), (0, 0)))[:, :1024]
    assert np.mean(np.argmax(judge(late), axis=-1) == labels) > 0.95
    with pytest.raises(ValueError, match='dicts with "audio" and "label"'):
        train_speech_classifier(batches.map(lambda batch: batch["audio"]), batches, num_classes=2)


@pytest.mark.slow
def test_the_judge_of_spoken_digits(shared_data):
    from keras_vqdit import data

    if not (shared_data / "tfds" / "spoken_digit").is_dir():
        pytest.skip(f"no spoken digits in {shared_data / 'tfds'}")
    train, test = data.load("spoken_digit", data_dir=shared_data / "tfds", audio_length=6144, batch_size=64)
    _, accuracy = train_speech_classifier(train, test)
    assert accuracy >= 0.97
