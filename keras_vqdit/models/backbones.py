"""Convolutional encoders and decoders for sound, images and video, shared by `VAE` and `VQVAE`."""

import math
import numbers

import keras
from keras import layers

from keras_vqdit.layers.convolution import CONVOLUTIONS, Downsample, ResidualBlock, Upsample

# name -> arguments of `build_encoder` and `build_decoder`, and the size of the latent space.
SIZES = {
    # 28 x 28 x 1 -> 7 x 7. Most of the work is done at 7 x 7, where a channel is cheap: trains in minutes on a CPU.
    "digits": {
        "input_shape": (28, 28, 1),
        "filters": (64, 128),
        "kernel_sizes": (4, None),
        "num_residual_blocks": (0, 2),
        "residual_filters": (32, 32),
        "embedding_dim": 4,
        "num_embeddings": 512,
    },
}


def size(name, **overrides):
    """The configuration of a size by name, with `overrides` in place.

    Returns:
        Dict of the arguments of `build_encoder` and `build_decoder`, `embedding_dim` and `num_embeddings`.

    Raises:
        ValueError: if there is no such size.
    """
    if name not in SIZES:
        raise ValueError(f"`name` must be one of {sorted(SIZES)}. Received: name={name!r}")
    return {**SIZES[name], **overrides}


def build_encoder(
    input_shape,
    latent_channels,
    *,
    filters=(64, 128),
    factors=2,
    kernel_sizes=None,
    num_residual_blocks=2,
    residual_filters=None,
    activation="silu",
    groups=None,
    dtype=None,
    name="encoder",
):
    """Convolutional encoder: a stage for each number in `filters`, each a down-sampling and residual blocks.

    Arguments that take "one a stage" take one value for all of them, too.

    Args:
        input_shape: shape of one example, `(*spatial, channels)`, with 1 (sound), 2 (image) or 3 (video) spatial dimensions.
        latent_channels: number of output channels.
        filters: tuple of the number of channels of each stage. Defaults to `(64, 128)`.
        factors: one a stage, by what it divides the size: an integer, or a tuple of one a spatial dimension. Defaults to 2.
        kernel_sizes: one a stage, the size of the down-sampling window, `None` for windows that do not overlap. Defaults
            to `None`.
        num_residual_blocks: one a stage. Defaults to 2.
        residual_filters: one a stage, the inner channels of the residual blocks, `None` for as many as the stage has.
            Defaults to `None`.
        activation: name or function. Defaults to `"silu"`.
        groups: number of groups of the GroupNormalization in the residual blocks, or `None` (default) for none.
        dtype: dtype policy of the layers.
        name: name of the model.

    Returns:
        `keras.Model` from `(B, *spatial, channels)` to `(B, *(spatial / factor), latent_channels)`.

    Raises:
        ValueError: if the factors do not divide the spatial size, or an argument has not one value a stage.

    Example:
    >>> build_encoder((28, 28, 1), 8).output_shape
    (None, 7, 7, 8)
    """
    rank = spatial_rank("input_shape", input_shape)
    stages = stage_options(filters, factors, kernel_sizes, num_residual_blocks, residual_filters)
    shared = {"rank": rank, "dtype": dtype}
    x = inputs = keras.Input(input_shape, name="data")
    for stage in stages:
        x = Downsample(stage["filters"], factor=stage["factor"], kernel_size=stage["kernel_size"], **shared)(x)
        x = residual_blocks(x, stage, activation, groups, shared)
    x = layers.Dense(latent_channels, dtype=dtype, name="to_latents")(x)
    return keras.Model(inputs, x, name=name)


def build_decoder(
    output_shape,
    latent_channels,
    *,
    filters=(64, 128),
    factors=2,
    kernel_sizes=None,
    num_residual_blocks=2,
    residual_filters=None,
    activation="silu",
    groups=None,
    dtype=None,
    name="decoder",
):
    """Convolutional decoder: the mirror image of `build_encoder`, told the same arguments.

    Args:
        output_shape: shape of one example, `(*spatial, channels)`: the encoder's `input_shape`.
        latent_channels: number of input channels.
        filters, factors, kernel_sizes, num_residual_blocks, residual_filters, activation, groups, dtype: as in
            `build_encoder`, in its order: the decoder runs through the stages backwards.
        name: name of the model.

    Returns:
        `keras.Model` from `(B, *(spatial / factor), latent_channels)` to `(B, *spatial, channels)`, in float32 under every
        dtype policy, without an activation at the end.

    Raises:
        ValueError: if the factors do not divide the spatial size, or an argument has not one value a stage.

    Example:
    >>> build_decoder((28, 28, 1), 8).output_shape
    (None, 28, 28, 1)
    """
    rank = spatial_rank("output_shape", output_shape)
    stages = stage_options(filters, factors, kernel_sizes, num_residual_blocks, residual_filters)
    shared = {"rank": rank, "dtype": dtype}
    grid = latent_grid(output_shape, stages)
    x = inputs = keras.Input((*grid, latent_channels), name="latents")
    x = CONVOLUTIONS[rank](stages[-1]["filters"], 3, padding="same", dtype=dtype, name="from_latents")(x)
    outputs = [output_shape[-1], *(stage["filters"] for stage in stages[:-1])]
    for stage, channels in zip(reversed(stages), reversed(outputs), strict=True):
        x = residual_blocks(x, stage, activation, groups, shared)
        x = Upsample(channels, factor=stage["factor"], kernel_size=stage["kernel_size"], **shared)(x)
    x = layers.Activation("linear", dtype="float32", name="data")(x)
    return keras.Model(inputs, x, name=name)


def residual_blocks(x, stage, activation, groups, shared):
    """The residual blocks of a stage, and the activation that ends their stack."""
    for _ in range(stage["num_residual_blocks"]):
        x = ResidualBlock(
            stage["filters"],
            hidden_filters=stage["residual_filters"],
            activation=activation,
            groups=groups,
            **shared,
        )(x)
    return layers.Activation(activation, dtype=shared["dtype"])(x)


def stage_options(filters, factors, kernel_sizes, num_residual_blocks, residual_filters):
    """One dict of options a stage."""
    filters = tuple(filters) if isinstance(filters, (tuple, list)) else (filters,)
    if not filters:
        raise ValueError("`filters` must have one number of channels a stage. Received: filters=()")
    columns = {"filters": filters}
    for name, plural, value in [
        ("factor", "factors", factors),
        ("kernel_size", "kernel_sizes", kernel_sizes),
        ("num_residual_blocks", "num_residual_blocks", num_residual_blocks),
        ("residual_filters", "residual_filters", residual_filters),
    ]:
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * len(filters)
        if len(values) != len(filters):
            raise ValueError(
                f"`{plural}` must be one value, or one for each of the {len(filters)} stages in `filters`. "
                f"Received: {plural}={value}, filters={filters}"
            )
        columns[name] = values
    if not all(isinstance(n, numbers.Integral) and n >= 0 for n in columns["num_residual_blocks"]):
        raise ValueError(f"`num_residual_blocks` must not be negative. Received: {num_residual_blocks}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def latent_grid(data_shape, stages):
    """Spatial size of the latents: the data's, divided by the factors of all stages."""
    grid = []
    for axis, length in enumerate(data_shape[:-1]):
        factors = [s["factor"][axis] if isinstance(s["factor"], (tuple, list)) else s["factor"] for s in stages]
        if length is not None and length % math.prod(factors):
            raise ValueError(
                f"Every spatial dimension must be a multiple of the factors of all stages, {math.prod(factors)}. "
                f"Received: shape={tuple(data_shape)}"
            )
        grid.append(None if length is None else length // math.prod(factors))
    return tuple(grid)


def spatial_rank(name, shape):
    rank = len(shape) - 1
    if rank not in CONVOLUTIONS:
        raise ValueError(
            f"`{name}` must be (*spatial, channels) with 1, 2 or 3 spatial dimensions, without the batch. "
            f"Received: {name}={tuple(shape)}"
        )
    return rank
