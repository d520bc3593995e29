"""Embeddings: of positions on a grid, of time, and of class labels."""

import functools
import math

import keras
import numpy as np
from keras import layers, ops

from keras_vqdit.checks import is_positive_integer, known_values, number, positive_integer


@functools.lru_cache(maxsize=32)
def sincos_position_embedding(grid, dim):
    """Fixed sine-cosine embedding of the positions of a grid, computed in float64.

    The channels are shared out evenly between the axes, the last axis (of images the width) first; within an axis come
    the sines of `position * 10000^(-i / n)`, then the cosines, as in the official DiT and MAE.

    Args:
        grid: tuple, the size along each axis: `(T,)`, `(H, W)`, `(F, H, W)` or more.
        dim: number of channels. Those left over after an even number for each axis are zero.

    Returns:
        Read-only float64 NumPy array `(prod(grid), dim)`, row by row.

    Raises:
        ValueError: if there are fewer than two channels an axis.

    Example:
    >>> sincos_position_embedding((7, 7), 64).shape
    (49, 64)

    References:
        - [Masked Autoencoders Are Scalable Vision Learners](https://arxiv.org/abs/2111.06377)
    """
    frequency_count = dim // (2 * len(grid)) if grid else 0
    if frequency_count < 1:
        raise ValueError(f"`dim` must be at least 2 for each axis of the grid. Received: grid={grid}, dim={dim}")
    frequencies = 10000.0 ** (-np.arange(frequency_count, dtype="float64") / frequency_count)
    positions = np.indices(grid, dtype="float64").reshape(len(grid), -1)  # (axes, N)
    embedding = np.zeros((positions.shape[1], dim))
    for i, position in enumerate(positions[::-1]):
        angle = position[:, None] * frequencies
        first = 2 * frequency_count * i
        embedding[:, first : first + frequency_count] = np.sin(angle)
        embedding[:, first + frequency_count : first + 2 * frequency_count] = np.cos(angle)
    embedding.flags.writeable = False  # the cache hands out this very array
    return embedding


@functools.lru_cache(maxsize=32)
def rotary_angles(grids, dim):
    """The angles by which rotary position embedding turns pairs of channels, computed in float64.

    Args:
        grids: tuple of grids, each a tuple, the size along each axis: their positions follow one another, row by row. The
            pairs are shared out evenly between the axes of a grid, the first axis first; pair i of n of an axis turns by
            `position * 10000^(-i / n)`.
        dim: even number of channels, those of one head. Pairs left over stay as they are.

    Returns:
        Read-only float64 NumPy array `(number of positions, dim / 2)`.

    Raises:
        ValueError: if `dim` is odd, or there are fewer than two channels an axis.

    Example:
    >>> rotary_angles(((7, 7), (48,)), 32).shape
    (97, 16)

    References:
        - [RoFormer: Enhanced Transformer with Rotary Position Embedding](https://arxiv.org/abs/2104.09864)
        - [Rotary Position Embedding for Vision Transformer](https://arxiv.org/abs/2403.13298), of axes
    """
    check_rotary(grids, dim)
    parts = []
    for grid in grids:
        count = dim // (2 * len(grid))
        frequencies = 10000.0 ** (-np.arange(count, dtype="float64") / count)
        positions = np.indices(grid, dtype="float64").reshape(len(grid), -1)  # (axes, N)
        angles = np.zeros((positions.shape[1], dim // 2))
        for i, position in enumerate(positions):
            angles[:, i * count : (i + 1) * count] = position[:, None] * frequencies
        parts.append(angles)
    angles = np.concatenate(parts)
    angles.flags.writeable = False  # the cache hands out this very array
    return angles


def check_rotary(grids, dim):
    """Raise a ValueError where `dim` channels are too few for the axes of a grid, or odd. No angle is computed."""
    for grid in grids:
        if not grid or dim % 2 or dim < 2 * len(grid):
            raise ValueError(
                "The width of a head, `d_model / num_heads`, must be even, and at least 2 for each axis of a grid. "
                f"Received: width {dim}, grid {grid}"
            )


def rotate(x, angles):
    """Turn pairs of channels, i and i + D / 2, each by its angle.

    The product of two vectors that are turned by their positions depends on how far apart the positions are, not on where.

    Args:
        x: `(B, T, heads, D)`.
        angles: NumPy array `(T, D / 2)`.

    Returns:
        `(B, T, heads, D)`.
    """
    cos, sin = (ops.cast(wave(angles)[:, None], x.dtype) for wave in (np.cos, np.sin))
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@keras.saving.register_keras_serializable("keras_vqdit")
class TimeEmbedding(layers.Layer):
    """Embed times in [0, 1]: cosines and sines of many frequencies, then a network of two layers.

    Args:
        d_model: width of the embedding.
        frequency_dim: number of cosines and sines together, an even number. Defaults to 256.
        time_scale: what the times are multiplied by first. The periods run from 2π to 20,000π; a time in [0, 1] itself
            would hardly move most of them. Defaults to 1000.

    Call arguments:
        t: float `(B,)`.

    Returns:
        `(B, d_model)`.

    Raises:
        ValueError: if an argument has an impossible value.

    Example:
    >>> import numpy as np
    >>> tuple(TimeEmbedding(32)(np.array([0.0, 0.5], "float32")).shape)
    (2, 32)

    References:
        - [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748)
    """

    def __init__(self, d_model, *, frequency_dim=256, time_scale=1000.0, **kwargs):
        super().__init__(autocast=False, **kwargs)  # half precision would round the times
        self.d_model, self.time_scale = positive_integer("d_model", d_model), time_scale
        number("time_scale", time_scale, above=0)
        if not is_positive_integer(frequency_dim) or frequency_dim % 2:
            raise ValueError(
                f"`frequency_dim` must be a positive even integer. Received: frequency_dim={frequency_dim!r}"
            )
        self.frequency_dim = int(frequency_dim)
        self.dense1, self.dense2 = (
            layers.Dense(
                d_model,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
                dtype=self.dtype_policy,
                name=name,
            )
            for name in ("dense1", "dense2")
        )

    def build(self, input_shape):
        self.dense1.build((None, self.frequency_dim))
        self.dense2.build((None, self.d_model))
        self.built = True

    def call(self, t):
        half = self.frequency_dim // 2
        frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half)
        # Scaled first, so that t = k / 1000 gives the very angles of the official integer times.
        angle = (ops.cast(t, "float32") * self.time_scale)[:, None] * ops.cast(frequencies, "float32")
        waves = ops.concatenate([ops.cos(angle), ops.sin(angle)], axis=-1)  # (B, frequency_dim)
        return self.dense2(ops.silu(self.dense1(ops.cast(waves, self.compute_dtype))))

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.d_model)

    def get_config(self):
        return {
            **super().get_config(),
            "d_model": self.d_model,
            "frequency_dim": self.frequency_dim,
            "time_scale": self.time_scale,
        }


@keras.saving.register_keras_serializable("keras_vqdit")
class LabelEmbedding(layers.Layer):
    """Embed class labels. Row `num_classes` is the null label, which stands for no label at all.

    Args:
        num_classes: number of classes.
        d_model: width of the embedding.

    Call arguments:
        labels: integers `(B,)` from 0 to `num_classes`. No other value has a meaning, -1 neither: where the values are
            known (outside of a compiled function) it is an error, and else its row becomes NaN, which no training
            survives unnoticed.

    Returns:
        `(B, d_model)`.

    Raises:
        ValueError: if an argument has an impossible value, or a label whose value is known is out of range.

    Example:
    >>> import numpy as np
    >>> tuple(LabelEmbedding(10, 32)(np.array([3, 10])).shape)  # a three, and none
    (2, 32)

    References:
        - [Classifier-Free Diffusion Guidance](https://arxiv.org/abs/2207.12598)
    """

    def __init__(self, num_classes, d_model, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.num_classes = positive_integer("num_classes", num_classes)
        self.d_model = positive_integer("d_model", d_model)

    def build(self, input_shape):
        self.table = self.add_weight(
            shape=(self.num_classes + 1, self.d_model),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="table",
        )
        self.built = True

    def call(self, labels):
        self._check_values(labels)
        labels = ops.cast(labels, "int32")
        known = ops.logical_and(labels >= 0, labels <= self.num_classes)
        # Times one, for TensorFlow's gradient of a bare `take` has a row for every label of the batch, and Keras's optimizers
        # square, and clip by, the rows of a repeated label one by one instead of their sum.
        rows = ops.take(self.table * 1.0, ops.where(known, labels, 0), axis=0)
        return ops.cast(ops.where(known[..., None], rows, float("nan")), self.compute_dtype)

    def _check_values(self, labels):
        values = known_values(labels)
        if values is None or not values.size:
            return
        if not np.all((values >= 0) & (values <= self.num_classes) & (values == np.floor(values))):
            raise ValueError(
                f"Labels must be from 0 to {self.num_classes - 1}, or {self.num_classes} for no label, in whole numbers. "
                f"Received: labels from {values.min()} to {values.max()}"
            )

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.d_model)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "d_model": self.d_model}
