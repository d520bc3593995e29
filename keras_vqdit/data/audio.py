"""Sound as arrays: WAV files, one length, one loudness, and copies that sound a little different."""

import wave

import numpy as np

from keras_vqdit.checks import integer, positive_integer
from keras_vqdit.saving import atomic_path

SPEED = 0.1  # a copy is up to this much faster or slower
QUIETEST = 0.5  # a copy's peak, as a part of that of its take


def read_wav(path):
    """Read a WAV file of PCM samples of 8, 16, 24 or 32 bits.

    Args:
        path: the file.

    Returns:
        `(audio, sample_rate)`: float32 `(T,)` in [-1, 1], the mean of the channels, and samples a second.

    Raises:
        ValueError: if there is no such file, or it is no WAV file of PCM samples, cut short or empty.

    Example:
        ```python
        audio, sample_rate = data.read_wav("seven.wav")
        ```
    """
    try:
        with open(path, "rb") as opened, wave.open(opened) as file:
            channels, width, sample_rate, frames = file.getparams()[:4]
            content = file.readframes(frames)
    except FileNotFoundError:
        raise ValueError(f"No such file: {path}") from None
    except (wave.Error, EOFError, OSError) as error:
        raise ValueError(
            f"{path} must be a WAV file of PCM samples. Received: {str(error) or 'a file cut short'}"
        ) from None
    if frames == 0 or len(content) != frames * channels * width or width > 4 or sample_rate < 1:
        raise ValueError(
            f"{path} must hold whole samples of 8, 16, 24 or 32 bits. Received: {len(content)} bytes of {frames} samples, "
            f"{channels} channels of {8 * width} bits, {sample_rate} samples a second"
        )
    samples = np.frombuffer(content, "uint8").reshape(frames, channels, width)
    if width == 1:  # the one width without a sign
        samples = samples ^ 0x80
    padded = np.zeros((frames, channels, 4), "uint8")
    padded[..., 4 - width :] = samples  # little-endian: the bytes that are missing are the lowest
    audio = padded.view("<i4")[..., 0].mean(axis=-1, dtype="float64") / 2.0**31
    return audio.astype("float32"), sample_rate


def write_wav(path, audio, sample_rate):
    """Write a WAV file of 16 bits and one channel. An older file stays whole until the new one is.

    Args:
        path: where to. Folders are made.
        audio: floats `(T,)` or `(T, 1)`; what is outside of [-1, 1] is clipped.
        sample_rate: samples a second, a positive integer.

    Raises:
        ValueError: if the sound is not one of floats, has several channels, is empty or not finite.

    Example:
        ```python
        data.write_wav("seven.wav", audio, sample_rate=8000)
        ```
    """
    audio = np.asarray(audio)
    if audio.ndim == 2 and audio.shape[1] == 1:
        audio = audio[:, 0]
    if audio.ndim != 1 or audio.size == 0 or audio.dtype.kind != "f":
        raise ValueError(f"`audio` must be floats (T,) or (T, 1). Received: {audio.dtype}, shape={audio.shape}")
    if not np.all(np.isfinite(audio)):
        raise ValueError("`audio` must be finite. Received: NaN or infinite values")
    samples = np.clip(np.round(audio.astype("float64") * 32768.0), -32768, 32767).astype("<i2")
    sample_rate = positive_integer("sample_rate", sample_rate)
    with atomic_path(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.tobytes())


def fit_length(audio, length):
    """Bring a sound `(T,)` to a length: silence on both sides, or its loudest part."""
    extra = length - len(audio)
    if extra >= 0:
        return np.pad(audio, (extra // 2, extra - extra // 2))
    energy = np.concatenate([[0.0], np.cumsum(audio.astype("float64") ** 2)])
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return audio[start : start + length]


def normalize_peak(audio):
    """Scale a sound so that its largest sample is 1 or -1. Silence stays."""
    peak = np.max(np.abs(audio), initial=0.0)
    return audio if peak == 0.0 else (audio / peak).astype(audio.dtype)


def augment(audio, copies, seed):
    """Copies of takes that are a little faster or slower, earlier or later, and quieter.

    Args:
        audio: floats `(N, T, 1)`, takes with silence around them.
        copies: of each take, a positive integer. The first is the take itself.
        seed: integer, on which alone the copies depend.

    Returns:
        float32 `(N * copies, T, 1)`, the copies of a take one after another.

    Example:
        >>> takes = np.zeros((2, 100, 1), "float32")
        >>> takes[:, 30:60] = 0.5
        >>> augment(takes, copies=3, seed=0).shape
        (6, 100, 1)
    """
    copies, random = positive_integer("copies", copies), np.random.RandomState(integer("seed", seed) % 2**32)
    result = np.zeros((len(audio), copies, audio.shape[1]), "float32")
    for take, row in zip(audio[..., 0], result, strict=True):
        row[0] = take
        for copy in row[1:]:
            copy[:] = _vary(take, *random.uniform(size=3))
    return result.reshape(-1, audio.shape[1], 1)


def _vary(take, speed, place, gain):
    """One copy of a take `(T,)`, from three numbers in [0, 1)."""
    loud = np.flatnonzero(take)
    if not len(loud):
        return take
    content = take[loud[0] : loud[-1] + 1].astype("float64")
    peak = np.max(np.abs(content))
    content = _resample(content, max(1, round(len(content) / (1.0 - SPEED + 2.0 * SPEED * speed))))
    # Band-limited sound may swing a little higher between the samples than at them.
    content = normalize_peak(fit_length(content, min(len(content), len(take)))) * peak
    start = int(place * (len(take) - len(content) + 1))
    copy = np.zeros(len(take))
    copy[start : start + len(content)] = content * QUIETEST ** (1.0 - gain)
    return copy


def _resample(sound, length):
    """Band-limited: the spectrum cut, or filled up with zeros."""
    return np.fft.irfft(np.fft.rfft(sound)[: length // 2 + 1], length) * (length / len(sound))
