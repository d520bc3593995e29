"""Spoken digits at 2,000 bits a second: the audio tokenizer against a quantized spectrogram restored by Griffin-Lim.

Both are fitted to the training takes of spoken_digit and scored on its 250 test takes. The baseline keeps the levels of some mel
bands, averaged over some frames of the spectrogram, each rounded to the nearest of its band's own levels (Lloyd-Max), with
Griffin-Lim to come back. Bands, bits and frames are traded against each other, at no more bits than the tokenizer's.

Run: python -m benchmarks audio --data-dir FOLDER [--preset FOLDER | --epochs 10]
"""

import argparse

import numpy as np

from keras_vqdit import data
from keras_vqdit.layers.spectrogram import magnitude, stft
from keras_vqdit.metrics.audio import griffin_lim, log_spectral_distance, si_sdr, spectral_convergence
from keras_vqdit.metrics.speech_classifier import mel_filters
from keras_vqdit.models.audio_tokenizer import AudioTokenizer
from keras_vqdit.recipes import to_arrays
from keras_vqdit.recipes_audio import train_audio_tokenizer

WINDOW, HOP = 256, 64
LENGTH = 6144
FLOOR = 1e-6  # power, below which all is silence
# (bands, bits of each, frames that are averaged): 16 bits a frame of 8 ms.
BUDGETS = ((8, 2, 1), (16, 2, 2), (10, 3, 2), (8, 4, 2), (32, 2, 4), (21, 3, 4), (42, 3, 8), (32, 4, 8))


class QuantizedSpectrogram:
    """Levels of mel bands, each rounded to one of a few numbers, and Griffin-Lim to come back.

    Args:
        bands: number of mel bands.
        bits: of each band.
        fold: number of frames whose power is averaged.
        sample_rate: in Hz. Defaults to 8000.
    """

    def __init__(self, bands, bits, fold, *, sample_rate=8000):
        self.bands, self.bits, self.fold, self.sample_rate = bands, bits, fold, sample_rate
        self.filters = mel_filters(WINDOW // 2 + 1, sample_rate, bands).astype("float64")
        self.codebook = None  # (bands, 2 ** bits)

    @property
    def bits_per_second(self):
        """Bits that a second of sound takes."""
        return self.bands * self.bits * self.sample_rate / (HOP * self.fold)

    def levels(self, audio):
        """Logarithm of the mean power of each band, `(B, steps, bands)`."""
        power = np.asarray(magnitude(*stft(audio[..., 0], WINDOW, HOP)), "float64") ** 2
        power = power.reshape(len(audio), -1, self.fold, power.shape[-1]).mean(axis=2)
        return np.log(power @ (self.filters / self.filters.sum(axis=0)) + FLOOR)

    def fit(self, audio, rounds=30):
        """Place the numbers of each band where their mean squared error is least."""
        self.codebook = np.stack(
            [lloyd_max(band, 2**self.bits, rounds) for band in self.levels(audio).T.reshape(self.bands, -1)]
        )

    def encode(self, audio):
        """Integers `(B, steps, bands)`."""
        return np.abs(self.levels(audio)[..., None] - self.codebook).argmin(axis=-1)

    def decode(self, codes):
        """Sound `(B, T, 1)`: the power between the centres of bands is interpolated by their own filters."""
        levels = np.take_along_axis(self.codebook[None, None], codes[..., None], axis=-1)[..., 0]
        share = self.filters / np.maximum(self.filters.sum(axis=1, keepdims=True), 1e-9)  # (bins, bands)
        power = np.repeat(np.maximum(np.exp(levels) - FLOOR, 0.0), self.fold, axis=1) @ share.T
        return griffin_lim(np.sqrt(power), window_size=WINDOW, hop=HOP)


def lloyd_max(values, count, rounds):
    """`count` numbers that many values are rounded to with little squared error, in ascending order."""
    codes = np.quantile(values, (np.arange(count) + 0.5) / count) + 1e-6 * np.arange(count)
    for _ in range(rounds):
        nearest = np.searchsorted((codes[1:] + codes[:-1]) / 2, values)
        counts = np.bincount(nearest, minlength=count)
        codes = np.where(counts > 0, np.bincount(nearest, values, count) / np.maximum(counts, 1), codes)
        codes = np.sort(codes)
    return codes


def measure(codec, audio):
    """Mean spectral convergence, log-spectral distance and SI-SDR of restored sounds, in dB, and bits a second."""
    restored = np.asarray(codec.decode(codec.encode(audio)))
    scores = [float(score(audio, restored).mean()) for score in (spectral_convergence, log_spectral_distance, si_sdr)]
    return [*scores, codec.bits_per_second]


def run(data_dir=None, *, preset=None, epochs=10, verbose=2):
    """Compare both.

    Args:
        data_dir: folder of the TFDS data sets.
        preset: folder or name of a trained `AudioTokenizer`; `None` trains one.
        epochs: of that training, each of eight copies of every take. Defaults to 10.
        verbose: as in `fit`.

    Returns:
        Dict of names and what `measure` says.
    """
    load = {"data_dir": data_dir, "audio_length": LENGTH, "batch_size": 32}
    train, test = data.load("spoken_digit", **load)
    takes, audio = to_arrays(train, "audio"), to_arrays(test, "audio")
    results = {}
    for bands, bits, fold in BUDGETS:
        codec = QuantizedSpectrogram(bands, bits, fold)
        codec.fit(takes)
        results[f"{bands} x {bits} bits / {8 * fold} ms"] = measure(codec, audio)
    if preset is None:
        copies, _ = data.load("spoken_digit", audio_copies=8, **load)
        tokenizer, _ = train_audio_tokenizer(copies, epochs=epochs, verbose=verbose)
    else:
        tokenizer = AudioTokenizer.from_preset(preset)
    results["AudioTokenizer"] = measure(tokenizer, audio)
    return results


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks audio", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", help="folder of the TFDS data sets (default: TFDS's own)")
    parser.add_argument("--preset", help="a trained tokenizer (default: train one)")
    parser.add_argument("--epochs", type=int, default=10, help="of that training")
    arguments = parser.parse_args(argv)
    results = run(arguments.data_dir, preset=arguments.preset, epochs=arguments.epochs)
    print(f"{'':22}{'convergence':>13}{'distance':>11}{'SI-SDR':>10}{'bits/s':>9}")
    for name, (convergence, distance, ratio, bits) in results.items():
        print(f"{name:22}{convergence:>10.2f} dB{distance:>8.2f} dB{ratio:>7.1f} dB{bits:>9.0f}")


if __name__ == "__main__":
    main()
