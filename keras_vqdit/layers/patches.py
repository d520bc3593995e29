"""Patches: between a grid of values and the sequence of its blocks."""

import math

from keras import ops

from keras_vqdit.checks import one_each


def patchify(x, patch_size):
    """Cut a grid into the sequence of its patches.

    Args:
        x: `(B, *spatial, C)` with 1, 2 or 3 spatial dimensions.
        patch_size: integer, or one a spatial dimension; each must divide its size.

    Returns:
        `(B, tokens, prod(patch_size) * C)`, row by row; within a patch the position comes first, then the channel.

    Raises:
        ValueError: if a spatial size is unknown or no multiple of the patch size.

    Example:
    >>> import numpy as np
    >>> tuple(patchify(np.ones((2, 8, 6, 3), "float32"), 2).shape)
    (2, 12, 12)
    """
    grid, patch = patch_grid(x.shape, patch_size)
    rank, channels = len(grid), x.shape[-1]
    if all(p == 1 for p in patch):
        return ops.reshape(x, (-1, math.prod(grid), channels))
    x = ops.reshape(x, (-1, *(n for pair in zip(grid, patch) for n in pair), channels))  # (B, h, p, w, q, C)
    blocks, inside = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    x = ops.transpose(x, (0, *blocks, *inside, 2 * rank + 1))  # (B, h, w, p, q, C)
    return ops.reshape(x, (-1, math.prod(grid), math.prod(patch) * channels))


def unpatchify(tokens, grid, patch_size, channels):
    """Put the patches of a sequence back into a grid: the inverse of `patchify`.

    Args:
        tokens: `(B, prod(grid), prod(patch_size) * channels)`; within a token (p, q, channel), as in the official DiT.
        grid: number of patches along each spatial dimension.
        patch_size: integer, or one a spatial dimension.
        channels: number of channels of the result.

    Returns:
        `(B, *(grid * patch_size), channels)`.

    Raises:
        ValueError: if the tokens do not fit.

    Example:
    >>> import numpy as np
    >>> tuple(unpatchify(np.ones((2, 12, 12), "float32"), (4, 3), 2, 3).shape)
    (2, 8, 6, 3)
    """
    grid = tuple(grid)
    rank = len(grid)
    patch = one_each("patch_size", patch_size, rank)
    if tuple(tokens.shape[1:]) != (math.prod(grid), math.prod(patch) * channels):
        raise ValueError(
            f"`tokens` must be of shape (B, {math.prod(grid)}, {math.prod(patch) * channels}). "
            f"Received: tokens.shape={tuple(tokens.shape)}"
        )
    sizes = tuple(n * p for n, p in zip(grid, patch))
    if all(p == 1 for p in patch):
        return ops.reshape(tokens, (-1, *sizes, channels))
    x = ops.reshape(tokens, (-1, *grid, *patch, channels))  # (B, h, w, p, q, C)
    interleaved = [axis for pair in zip(range(1, rank + 1), range(rank + 1, 2 * rank + 1)) for axis in pair]
    x = ops.transpose(x, (0, *interleaved, 2 * rank + 1))  # (B, h, p, w, q, C)
    return ops.reshape(x, (-1, *sizes, channels))


def patch_grid(shape, patch_size):
    """Number of patches and size of a patch along each spatial dimension of `shape`, `(B, *spatial, C)`."""
    spatial = tuple(shape[1:-1])
    if not 1 <= len(spatial) <= 3:
        raise ValueError(
            f"Inputs must be (B, *spatial, C) with 1, 2 or 3 spatial dimensions. Received: shape={tuple(shape)}"
        )
    patch = one_each("patch_size", patch_size, len(spatial))
    if any(size is None or size % p for size, p in zip(spatial, patch)):
        raise ValueError(
            f"Every spatial size must be a multiple of `patch_size`, {patch}. Received: shape={tuple(shape)}"
        )
    return tuple(size // p for size, p in zip(spatial, patch)), patch
