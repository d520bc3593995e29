"""WAV files, and sounds of one length, loudness, and copies of them."""

import struct
import wave

import numpy as np
import pytest

from keras_vqdit import data
from keras_vqdit.data.audio import augment, fit_length, normalize_peak
from keras_vqdit.tokenizers import TextTokenizer

from .test_load import collect

TONE = np.sin(np.arange(400) * 0.3).astype("float32")


def write_pcm(path, content, *, width, channels=1, rate=8000):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content)
    return path


# === WAV files ===


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "tone.wav"
    for audio in (TONE, TONE[:, None]):
        data.write_wav(path, audio, 8000)
        read, rate = data.read_wav(path)
        assert rate == 8000 and read.dtype == np.float32 and read.shape == (400,)
        np.testing.assert_allclose(
            read, TONE, atol=1.01 / 32768
        )  # half a step, and a whole one at +1, which 16 bits lack
    data.write_wav(path, read, 8000)
    np.testing.assert_array_equal(data.read_wav(path)[0], read)


def test_loud_samples_are_clipped(tmp_path):
    data.write_wav(tmp_path / "a.wav", np.array([-2.0, 2.0]), 8000)
    np.testing.assert_allclose(data.read_wav(tmp_path / "a.wav")[0], [-1.0, 1.0], atol=1 / 32768)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_is_read(tmp_path, width):
    full = 1 << (8 * width - 1)
    values = [-full, -full // 2, 0, full // 4, full - 1]
    content = b"".join(
        struct.pack("B", v + 128) if width == 1 else v.to_bytes(width, "little", signed=True) for v in values
    )
    audio, _ = data.read_wav(write_pcm(tmp_path / "a.wav", content, width=width))
    np.testing.assert_allclose(audio, np.array(values) / full, atol=1e-7)


def test_channels_are_mixed(tmp_path):
    path = write_pcm(tmp_path / "a.wav", struct.pack("<4h", 16384, 0, -32768, 16384), width=2, channels=2)
    np.testing.assert_allclose(data.read_wav(path)[0], [0.25, -0.25])


def test_files_that_are_no_sound_are_named(tmp_path):
    whole = write_pcm(tmp_path / "whole.wav", b"\0" * 800, width=2).read_bytes()
    for name, content in {"text": b"no sound", "nothing": b"", "header": whole[:30], "cut": whole[:-300]}.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.wav must "):
            data.read_wav(tmp_path / f"{name}.wav")
    (tmp_path / "float.wav").write_bytes(whole.replace(b"fmt \x10\0\0\0\x01", b"fmt \x10\0\0\0\x03"))
    with pytest.raises(ValueError, match="PCM samples. Received: unknown format: 3"):
        data.read_wav(tmp_path / "float.wav")
    with pytest.raises(ValueError, match="must hold whole samples"):
        data.read_wav(write_pcm(tmp_path / "empty.wav", b"", width=2))
    with pytest.raises(ValueError, match="No such file"):
        data.read_wav(tmp_path / "missing.wav")


@pytest.mark.parametrize(
    "audio, rate, message",
    [
        (np.zeros((4, 2)), 8000, r"floats \(T,\) or \(T, 1\)"),
        (np.zeros(4, "int16"), 8000, "int16"),
        (np.zeros(0), 8000, r"shape=\(0,\)"),
        (np.array([0.0, np.nan]), 8000, "must be finite"),
        (TONE, 0, "`sample_rate` must be a positive integer"),
    ],
)
def test_what_is_no_sound_is_not_written(tmp_path, audio, rate, message):
    with pytest.raises(ValueError, match=message):
        data.write_wav(tmp_path / "a.wav", audio, rate)
    assert not list(tmp_path.iterdir())


# === Arrays ===


def test_short_sounds_get_silence_and_long_ones_keep_what_is_loud():
    np.testing.assert_array_equal(fit_length(np.ones(2), 5), [0, 1, 1, 0, 0])
    sound = np.array([0.0, 0.1, -1.0, 0.9, 0.0, 0.2])
    np.testing.assert_array_equal(fit_length(sound, 2), [-1.0, 0.9])
    np.testing.assert_array_equal(fit_length(sound, 6), sound)


def test_the_peak_becomes_one_and_silence_stays():
    np.testing.assert_allclose(normalize_peak(np.array([0.1, -0.5])), [0.2, -1.0])
    np.testing.assert_array_equal(normalize_peak(np.zeros(3)), np.zeros(3))


def test_copies_are_takes_of_another_speed_place_and_loudness():
    take = fit_length(TONE, 1000)[None, :, None]
    copies = augment(take, 50, seed=3)
    assert copies.shape == (50, 1000, 1) and copies.dtype == np.float32
    np.testing.assert_array_equal(copies[0], take[0])
    lengths, starts, peaks, pitches = [], [], [], []
    for copy in copies[1:, :, 0]:
        loud = np.flatnonzero(copy)
        lengths.append(loud[-1] - loud[0] + 1)
        starts.append(loud[0])
        peaks.append(np.abs(copy).max())
        pitches.append(np.argmax(np.abs(np.fft.rfft(copy, 1 << 14))) / (1 << 14) * 2 * np.pi)
    assert 360 <= min(lengths) < 380 and 420 < max(lengths) <= 445  # 399 samples at 1.1 and 0.9 of the speed
    assert min(starts) < 100 and max(starts) > 450
    assert 0.5 <= min(peaks) < 0.6 and 0.9 < max(peaks) <= 1.0
    # A tone of 0.3 radians a sample is as much higher as it is shorter; within the width of a spectral line.
    np.testing.assert_allclose(np.array(pitches) * lengths, 0.3 * 399, rtol=0.02)


def test_copies_depend_on_the_seed_alone():
    takes = np.stack([fit_length(TONE, 500), np.zeros(500, "float32")])[..., None]
    first, again, other = augment(takes, 3, seed=0), augment(takes, 3, seed=0), augment(takes, 3, seed=1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first[3:], 0.0)  # silence stays


# === Folders of WAV files ===


def test_folders_of_wav_files_are_classes(tmp_path):
    for i in range(20):
        data.write_wav(tmp_path / ("yes" if i % 2 else "no") / f"{i:02d}.wav", TONE[: 50 + i] * 0.5, 4000)
    train, test = data.load(tmp_path, test_fraction=0.2, audio_length=64, audio_copies=2)
    assert train.info.class_names == ("no", "yes") and train.info.sample_rate == 4000
    assert (train.info.size, test.info.size) == (32, 4) and train.info.shapes["audio"] == (64, 1)
    batch = collect(test)
    np.testing.assert_allclose(np.abs(batch["audio"]).max(axis=1), 1.0)
    assert sorted(batch["label"]) == [0, 0, 1, 1]
    quiet, _ = data.load(tmp_path, normalize=False)
    assert np.abs(collect(quiet.in_order())["audio"]).max() <= 0.5 and 66 <= quiet.info.shapes["audio"][0] <= 69


def test_splits_and_sample_rates_of_folders(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            data.write_wav(tmp_path / part / name / "1.wav", TONE, 8000)
    train, test = data.load(tmp_path)
    assert (train.info.size, test.info.size) == (2, 2)
    data.write_wav(tmp_path / "test" / "b" / "1.wav", TONE, 4000)
    with pytest.raises(ValueError, match=r"one sample rate. Received: \[4000, 8000\]"):
        data.load(tmp_path)


def test_options_of_what_the_set_has_not_are_refused():
    images = np.zeros((10, 4, 4), "uint8")
    for option, message in (("audio_length", "of sound"), ("audio_copies", "of sound")):
        with pytest.raises(ValueError, match=message):
            data.load(images, **{option: 3})
        with pytest.raises(ValueError, match=f"`{option}` must be a positive integer"):
            data.load(images, **{option: 0})
    with pytest.raises(ValueError, match="of text"):
        data.load(images, text_tokenizer=TextTokenizer())
    with pytest.raises(TypeError, match="`text_tokenizer` must be a TextTokenizer"):
        data.load(images, text_tokenizer=object())


# === spoken_digit ===


@pytest.fixture(scope="module")
def spoken(shared_data):
    if not (shared_data / "tfds" / "spoken_digit").is_dir():
        pytest.skip("spoken_digit is not prepared")
    return data.load("spoken_digit", data_dir=shared_data / "tfds", audio_length=2000)


def test_takes_0_to_4_of_every_speaker_and_digit_are_held_out(spoken):
    train, test = spoken
    assert (train.info.size, test.info.size, train.info.sample_rate, train.info.num_classes) == (2250, 250, 8000, 10)
    parts = [collect(train.in_order()), collect(test)]
    for part, count in zip(parts, (225, 25), strict=True):
        np.testing.assert_array_equal(np.bincount(part["label"]), [count] * 10)
        assert part["audio"].dtype == np.float32 and part["audio"].shape[1:] == (2000, 1)
        np.testing.assert_allclose(np.abs(part["audio"]).max(axis=1), 1.0, atol=1e-6)
    sounds = [{sound.tobytes() for sound in part["audio"]} for part in parts]
    assert not sounds[0] & sounds[1]


def test_held_out_takes_are_those_with_the_numbers(spoken, shared_data):
    import tensorflow_datasets as tfds

    _, test = spoken
    found = {sound.tobytes() for sound in collect(test)["audio"]}
    source = tfds.load("spoken_digit", split="train[:100]", data_dir=shared_data / "tfds", download=False)
    for example in source.as_numpy_iterator():
        sound = normalize_peak(fit_length((example["audio"] / 32768.0).astype("float32"), 2000))
        take = int(example["audio/filename"].decode().removesuffix(".wav").split("_")[-1])
        assert (sound.tobytes() in found) == (take < 5)
