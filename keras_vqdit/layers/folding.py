"""Fold neighbours into channels and back, at any spatial size: a patch is a matrix product afterwards."""

import math

from keras import ops


def space_to_depth(x, factor):
    """Fold each block of `factor` neighbours into the channels.

    Args:
        x: tensor `(B, *spatial, C)` with 1, 2 or 3 spatial dimensions, each a multiple of its factor.
        factor: tuple of integers, one a spatial dimension.

    Returns:
        Tensor `(B, *(spatial / factor), prod(factor) * C)`; within the channels, the position in the block comes first.

    Example:
    >>> import numpy as np
    >>> tuple(space_to_depth(np.ones((1, 28, 28, 1)), (2, 2)).shape)
    (1, 14, 14, 4)
    """
    rank, shape = len(factor), ops.shape(x)
    split = [n for size, f in zip(shape[1:-1], factor, strict=True) for n in (size // f, f)]
    x = ops.reshape(x, (-1, *split, shape[-1]))  # (B, H/f, f, W/f, f, C)
    blocks, inside = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    x = ops.transpose(x, (0, *blocks, *inside, 2 * rank + 1))  # (B, H/f, W/f, f, f, C)
    return ops.reshape(x, (-1, *split[::2], math.prod(factor) * shape[-1]))


def depth_to_space(x, factor):
    """Unfold channels into blocks of `factor` neighbours: the inverse of `space_to_depth`.

    Args:
        x: tensor `(B, *spatial, prod(factor) * C)` with 1, 2 or 3 spatial dimensions.
        factor: tuple of integers, one a spatial dimension.

    Returns:
        Tensor `(B, *(spatial * factor), C)`.

    Example:
    >>> import numpy as np
    >>> tuple(depth_to_space(np.ones((1, 14, 14, 4)), (2, 2)).shape)
    (1, 28, 28, 1)
    """
    rank, shape = len(factor), ops.shape(x)
    channels = shape[-1] // math.prod(factor)
    x = ops.reshape(x, (-1, *shape[1:-1], *factor, channels))  # (B, H, W, f, f, C)
    interleaved = [axis for pair in zip(range(1, rank + 1), range(rank + 1, 2 * rank + 1)) for axis in pair]
    x = ops.transpose(x, (0, *interleaved, 2 * rank + 1))  # (B, H, f, W, f, C)
    return ops.reshape(x, (-1, *(size * f for size, f in zip(shape[1:-1], factor, strict=True)), channels))
