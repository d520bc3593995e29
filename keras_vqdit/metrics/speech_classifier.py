"""The judge of speech: a small classifier of real recordings, which says what generated ones tell."""

import itertools
from functools import partial

import keras
import numpy as np
from keras import layers, ops

from keras_vqdit.checks import number, positive_integer
from keras_vqdit.layers.spectrogram import check_window, stft
from keras_vqdit.metrics.classifier import FEATURES, fit_judge

# (filters in multiples of the width, stride in time and pitch) of each convolution.
CONVOLUTIONS = ((1, (2, 2)), (2, (2, 2)), (2, (1, 1)), (4, (2, 2)), (4, (1, 1)))


def mel_filters(num_bins, sample_rate, num_mels):
    """Triangles of equal width on the mel scale, 2595·log₁₀(1 + f/700), from 0 Hz to half the sample rate.

    Args:
        num_bins: number of frequencies of the spectrum, from 0 to half the sample rate.
        sample_rate: in Hz.
        num_mels: number of triangles.

    Returns:
        float32 `(num_bins, num_mels)`, each triangle of height 1.
    """
    top = 2595.0 * np.log10(1.0 + sample_rate / 2 / 700.0)
    corners = 700.0 * (10.0 ** (np.linspace(0.0, top, num_mels + 2) / 2595.0) - 1.0)
    frequency = np.linspace(0.0, sample_rate / 2, num_bins)[:, None]
    rising = (frequency - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequency) / (corners[2:] - corners[1:-1])
    return np.maximum(np.minimum(rising, falling), 0.0).astype("float32")


@keras.saving.register_keras_serializable("keras_vqdit")
class LogMelSpectrogram(layers.Layer):
    """Loudness over time and pitch, as the ear hears it: decibels below the loudest place, from -1 to 1.

    As each recording is measured against its own loudest place, its volume does not matter.

    Args:
        num_mels: number of bands of pitch, default 40.
        sample_rate: in Hz, default 8,000.
        window_size: samples of a window, default 256; an even multiple of `hop`.
        hop: samples from one window to the next, default 64.
        range_db: what lies so far below the loudest place, in decibels, is silence; default 60.

    Call arguments:
        inputs: recordings `(B, T, 1)`, T known.

    Returns:
        `(B, ceil(T / hop), num_mels, 1)`.

    Example:
        >>> tuple(LogMelSpectrogram()(np.zeros((2, 6144, 1), "float32")).shape)
        (2, 96, 40, 1)
    """

    def __init__(self, num_mels=40, *, sample_rate=8000, window_size=256, hop=64, range_db=60.0, **kwargs):
        super().__init__(autocast=False, **kwargs)  # decibels need all digits of float32
        self.num_mels = positive_integer("num_mels", num_mels)
        self.sample_rate = positive_integer("sample_rate", sample_rate)
        check_window(window_size, hop)
        self.window_size, self.hop = window_size, hop
        self.range_db = number("range_db", range_db, above=0)

    def build(self, input_shape):
        self.compute_output_shape(input_shape)
        self.filters = mel_filters(self.window_size // 2 + 1, self.sample_rate, self.num_mels)
        self.built = True

    def call(self, inputs):
        real, imaginary = stft(inputs[:, :, 0], self.window_size, self.hop)  # (B, frames, window_size // 2 + 1)
        power = ops.matmul(real**2 + imaginary**2, self.filters)
        decibels = (10.0 / np.log(10.0)) * ops.log(power + 1e-8)
        below = decibels - ops.max(decibels, axis=(1, 2), keepdims=True)
        return ops.cast(1.0 + 2.0 * ops.maximum(below / self.range_db, -1.0), self.compute_dtype)[..., None]

    def compute_output_shape(self, input_shape):
        if len(input_shape) != 3 or input_shape[-1] != 1 or input_shape[1] is None:
            raise ValueError(f"Recordings must be (B, T, 1), T known. Received: input_shape={tuple(input_shape)}")
        return (input_shape[0], -(-input_shape[1] // self.hop), self.num_mels, 1)

    def get_config(self):
        names = ("num_mels", "sample_rate", "window_size", "hop", "range_db")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("keras_vqdit")
class RandomSpeech(layers.Layer):
    """Shifts every recording, changes its speed and volume and adds noise, each its own way, in training only.

    Args:
        early: largest shift to the front, in samples, default 400.
        late: largest shift to the back, in samples, default 2,000. What was before or after is silence.
        speed: largest relative change of speed (and pitch), default 0.12.
        gain: largest change of volume, in decibels, default 6.
        noise: largest standard deviation of the noise, default 0.02; it is drawn evenly in decibels, over 50 of them.
        seed: integer or None.

    Call arguments:
        inputs: recordings `(B, T, 1)`, T known.

    Returns:
        The recordings, disturbed in training, in the shape of `inputs`.

    Example:
        >>> recordings = np.zeros((2, 6144, 1), "float32")
        >>> RandomSpeech(noise=0.01, seed=0)(recordings, training=True).shape == recordings.shape
        True
    """

    def __init__(self, *, early=400, late=2000, speed=0.12, gain=6.0, noise=0.02, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.limits = {"early": early, "late": late, "speed": speed, "gain": gain, "noise": noise}
        for name, value in self.limits.items():
            number(name, value, 0)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        if len(input_shape) != 3 or None in tuple(input_shape)[1:] or input_shape[2] != 1:
            raise ValueError(f"Recordings must be (B, T, 1), T known. Received: input_shape={tuple(input_shape)}")
        self.built = True

    def call(self, inputs, training=None):
        if not training:
            return inputs
        limits, length = self.limits, inputs.shape[1]
        shape = (ops.shape(inputs)[0], length)
        uniform = keras.random.uniform((shape[0], 4), dtype="float32", seed=self.generator)
        shift = uniform[:, :1] * (limits["early"] + limits["late"]) - limits["early"]
        speed = 1.0 + limits["speed"] * (2.0 * uniform[:, 1:2] - 1.0)
        gain = 10.0 ** (limits["gain"] / 20.0 * (2.0 * uniform[:, 2:3] - 1.0))
        noise = limits["noise"] * 10.0 ** (-50.0 / 20.0 * uniform[:, 3:])

        source = (ops.arange(length, dtype="float32") - shift) * speed  # (B, T), where each sample comes from
        before = ops.floor(source)
        # One silent sample at either end stands for all that lies outside.
        padded = ops.pad(ops.cast(inputs, "float32")[:, :, 0], ((0, 0), (1, 1)))

        def at(place):
            return ops.take_along_axis(padded, ops.cast(ops.clip(place + 1.0, 0.0, length + 1.0), "int32"), axis=1)

        moved = at(before) + (source - before) * (at(before + 1.0) - at(before))
        noise = noise * keras.random.normal(shape, dtype="float32", seed=self.generator)
        return ops.cast(gain * moved + noise, inputs.dtype)[:, :, None]

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), **self.limits, "seed": self.seed}


@keras.saving.register_keras_serializable("keras_vqdit")
class RandomMask(layers.Layer):
    """Hides a stretch of time and a band of pitch of every spectrogram, in training only.

    Args:
        time: longest stretch, as a fraction of the spectrogram, default 0.15.
        pitch: widest band, likewise, default 0.15.
        value: what hidden places hold, default -1, silence.
        seed: integer or None.

    Call arguments:
        inputs: spectrograms `(B, time, pitch, 1)`.

    Returns:
        The spectrograms, hidden in part in training, in the shape of `inputs`.

    Example:
        >>> RandomMask(time=0.5, pitch=0.0, seed=0)(np.ones((2, 64, 40, 1), "float32"), training=True).shape[1]
        64

    References:
        - [SpecAugment](https://arxiv.org/abs/1904.08779)
    """

    def __init__(self, *, time=0.15, pitch=0.15, value=-1.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.time, self.pitch = number("time", time, 0, 1), number("pitch", pitch, 0, 1)
        self.value = number("value", value)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        if len(input_shape) != 4 or None in tuple(input_shape)[1:]:
            raise ValueError(
                f"Spectrograms must be (B, time, pitch, 1), time and pitch known. Received: input_shape={tuple(input_shape)}"
            )
        self.built = True

    def call(self, inputs, training=None):
        if not training:
            return inputs
        uniform = keras.random.uniform((ops.shape(inputs)[0], 4), dtype="float32", seed=self.generator)
        hidden = False
        for axis, limit in ((1, self.time), (2, self.pitch)):
            size = inputs.shape[axis]
            width = limit * size * uniform[:, axis - 1 : axis]
            start = (size - width) * uniform[:, axis + 1 : axis + 2]
            place = ops.arange(size, dtype="float32") + 0.5
            here = ops.logical_and(place >= start, place < start + width)  # (B, size)
            hidden = ops.logical_or(hidden, ops.expand_dims(here, 3 - axis))
        return ops.where(hidden[..., None], ops.cast(self.value, inputs.dtype), inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = {"time": self.time, "pitch": self.pitch, "value": self.value, "seed": self.seed}
        return {**super().get_config(), **own}


def build_speech_classifier(input_shape, num_classes, *, width=24, augment=True, seed=None, name="speech_judge"):
    """Build the judge of speech: a functional model from recordings to the logits of their classes.

    Args:
        input_shape: `(T, 1)` of the recordings, which are float32 in [-1, 1], 8,000 samples a second.
        num_classes: number of classes.
        width: channels of the first convolution, default 24; there are four times as many features.
        augment: shift, disturb and hide a little in training.
        seed: integer for weights and augmentation, or None.
        name: name of the model.

    Returns:
        `keras.Model`, `(B, T, 1)` → `(B, num_classes)`. Its layer "features" holds `(B, 4 * width)` features, as
        `features` takes them.

    Example:
        >>> build_speech_classifier((6144, 1), 10).output_shape
        (None, 10)
    """
    if len(input_shape) != 2 or not input_shape[0] or input_shape[1] != 1:
        raise ValueError(f"`input_shape` must be (T, 1), T known. Received: input_shape={input_shape}")
    num_classes, width = positive_integer("num_classes", num_classes), positive_integer("width", width)
    seeds = iter(range(seed, seed + 100)) if seed is not None else itertools.repeat(None)

    def normalized(layer, x, **names):
        return layers.ReLU(**names)(layers.BatchNormalization(momentum=0.9)(layer(x)))

    def options():
        return {"use_bias": False, "kernel_initializer": keras.initializers.HeNormal(next(seeds))}

    x = inputs = keras.Input(input_shape, name="audio")
    if augment:
        x = RandomSpeech(seed=next(seeds), name="augment")(x)
    x = LogMelSpectrogram(name="spectrogram")(x)
    if augment:
        x = RandomMask(seed=next(seeds), name="hide")(x)
    for multiple, strides in CONVOLUTIONS:
        x = normalized(layers.Conv2D(multiple * width, 3, strides, padding="same", **options()), x)
    # The mean over time lets a word begin anywhere; pitch tells one vowel from another, so its places stay.
    x = layers.Flatten()(layers.AveragePooling2D((x.shape[1], 1))(x))
    x = normalized(layers.Dense(4 * width, **options()), x, name=FEATURES)
    initializer = keras.initializers.HeNormal(next(seeds))
    outputs = layers.Dense(num_classes, kernel_initializer=initializer, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=name)


def train_speech_classifier(
    train,
    test,
    *,
    num_classes=None,
    epochs=None,
    learning_rate=3e-3,
    width=24,
    augment=True,
    seed=0,
    jit_compile="auto",
    verbose=0,
):
    """Train the judge of speech, as `train_classifier` trains that of images.

    On the spoken digits the default gets all of the 250 test takes right, of speakers that it knows, wherever they begin.

    Args:
        train: finite `tf.data.Dataset` of dicts `{"audio", "label"}`, as of `data.load("spoken_digit")`; batches of
            32 to 128.
        test: likewise, for the accuracy that stands beside every judgement.
        num_classes: number of classes. Default: as `train.info` says.
        epochs: rounds over `train`. Default: as many as show 80,000 recordings, and at least 9.
        learning_rate: highest learning rate, default 3e-3.
        width: channels of the first convolution, default 24.
        augment: shift, disturb and hide a little in training.
        seed: integer for weights and augmentation. The order of the examples is that of `train`.
        jit_compile: as in `compile`.
        verbose: as in `fit`.

    Returns:
        `(classifier, accuracy)`: the trained `keras.Model`, and the fraction of the test recordings that it gets right.

    Example:
        ```python
        train, test = data.load("spoken_digit", audio_length=6144, batch_size=64)
        judge, accuracy = train_speech_classifier(train, test)
        right = np.mean(np.argmax(judge.predict(recordings), axis=-1) == labels)
        ```
    """
    return fit_judge(
        partial(build_speech_classifier, width=width, augment=augment, seed=seed),
        train,
        test,
        key="audio",
        num_classes=num_classes,
        epochs=epochs,
        examples=80_000,
        learning_rate=learning_rate,
        jit_compile=jit_compile,
        verbose=verbose,
    )
