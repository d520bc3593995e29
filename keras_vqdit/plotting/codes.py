"""Figures of codes and codebooks."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from keras_vqdit.checks import positive_integer
from keras_vqdit.plotting.drawing import (
    BLUE,
    GRAY,
    SEQUENTIAL,
    VERMILION,
    finish,
    log_scale,
    new_figure,
    plain_numbers,
    show_image,
    to_numpy,
    to_pixels,
)


def codebook_usage(counts, *, title="Codebook usage", path=None):
    """Draw how often each code was chosen, the most frequent first, on a logarithmic scale.

    Args:
        counts: `(K,)`, how many vectors chose each code, over a whole data set.
        title: begins the title; usage and perplexity follow.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.
    """
    counts = np.asarray(to_numpy(counts), "float64")
    if counts.ndim != 1 or counts.size == 0 or np.any(counts < 0) or not counts.sum() > 0:
        raise ValueError(
            f"`counts` must be (K,), not negative, and not all 0. Received: shape {counts.shape}, sum {counts.sum()}"
        )
    ranked = np.sort(counts)[::-1]
    size, used = len(counts), int(np.sum(counts > 0))
    share = ranked[:used] / counts.sum()
    perplexity = np.exp(-np.sum(share * np.log(share)))
    bottom = min(ranked[used - 1], counts.mean()) / 2
    figure = new_figure(6.4, 3.4)
    axis = figure.subplots()
    log_scale(axis)
    axis.stairs(ranked[:used], np.arange(used + 1) + 0.5, fill=True, color=BLUE, baseline=bottom, label="vectors")
    axis.axhline(counts.mean(), color="black", linestyle="--", linewidth=1.2, label="if all were equally frequent")
    if used < size:
        unused = dict(facecolor="none", edgecolor=GRAY, hatch="///", linewidth=0)
        axis.axvspan(used + 0.5, size + 0.5, label=f"{size - used} never chosen", **unused)
    axis.set_title(f"{title}: {used} of {size} codes ({100 * used / size:.1f} %), perplexity {perplexity:.1f}")
    axis.set(xlabel="code, by rank of its frequency", ylabel="vectors (count, log scale)")
    axis.set(xlim=(0.5, size + 0.5), ylim=(bottom, ranked[0] * 1.6))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.legend(fontsize="small", framealpha=0.95)
    return finish(figure, path)


def code_maps(codes, *, images=None, num_embeddings=None, columns=8, title="Codes", path=None):
    """Draw grids of codes, with their numbers where there is room, below the images that they stand for.

    Args:
        codes: integers: maps `(N, h, w)`, or sequences `(N, T)`, drawn below one another. −1, a masked position,
            stays blank.
        images: the N images of N maps, or None.
        num_embeddings: size of the codebook, for the colours. Default: the largest code + 1.
        columns: number of maps drawn, the first ones.
        title: title of the figure.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.
    """
    codes = np.asarray(to_numpy(codes))
    if codes.ndim not in (2, 3) or codes.size == 0 or codes.dtype.kind not in "iu":
        raise ValueError(f"`codes` must be integers (N, h, w) or (N, T). Received: {codes.dtype}, shape {codes.shape}")
    columns, largest = positive_integer("columns", columns), int(codes.max())
    if num_embeddings is not None and largest >= positive_integer("num_embeddings", num_embeddings):
        raise ValueError(
            f"`codes` must be less than `num_embeddings`, {num_embeddings}. Received: codes up to {largest}"
        )
    size = max(largest + 1 if num_embeddings is None else num_embeddings, 2)
    maps = codes[:columns] if codes.ndim == 3 else codes[None]
    pixels = None if images is None else to_pixels(images, "images")[:columns]
    if pixels is not None and len(pixels) != len(maps):
        raise ValueError(f"`images` must be as many as the maps. Received: {len(pixels)} images, {len(maps)} maps")
    count, height, width = maps.shape
    numbered = width <= 16
    tile = max(1.3, 0.21 * width) if numbered else min(0.08 * width, 9.0 / count)
    ratios = [height / width] if pixels is None else [pixels.shape[1] / pixels.shape[2], height / width]
    figure = new_figure(tile * count + 1.2, max(tile * sum(ratios), 0.9) + 0.7, "compressed")
    figure.suptitle(title)
    axes = figure.subplots(len(ratios), count, squeeze=False, height_ratios=ratios)
    if pixels is not None:
        for axis, image in zip(axes[0], pixels, strict=True):
            show_image(axis, image)
    for axis, grid in zip(axes[-1], maps, strict=True):
        shown = np.ma.masked_less(grid, 0)
        drawn = axis.imshow(shown, cmap=SEQUENTIAL, vmin=0, vmax=size - 1, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        for (row, column), code in np.ndenumerate(grid):
            if numbered and code >= 0:
                color = "white" if code < 0.5 * size else "black"
                axis.text(column, row, str(code), color=color, fontsize=5, ha="center", va="center")
    if codes.ndim == 2:
        axes[-1, 0].set(xlabel="position", ylabel="example")
    figure.colorbar(drawn, ax=list(axes.ravel()), label="code", fraction=0.04, pad=0.01 + 0.02 / count)
    return finish(figure, path)


def codebook_projection(codebook, *, counts=None, vectors=None, title="Codebook", path=None):
    """Draw the codes in the plane of their two largest principal components.

    Args:
        codebook: vectors of the codes `(K, D)`, D at least 2.
        counts: `(K,)`, how often each was chosen: codes that never were are crosses; or None.
        vectors: what is quantized, such as latents `(N, D)`, drawn as dots below; or None. Their components are then those
            of the vectors.
        title: begins the title; the share of the variance that the plane shows follows.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.

    Example:
        ```python
        plotting.codebook_projection(tokenizer.vq.codebook, counts=counts)
        ```
    """
    codebook = _vectors(codebook, "codebook")
    cloud = codebook if vectors is None else _vectors(vectors, "vectors")
    if cloud.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"`vectors` must be as long as the codes, {codebook.shape[1]}. Received: vectors of length {cloud.shape[1]}"
        )
    used = np.ones(len(codebook), bool)
    if counts is not None:
        counts = np.asarray(to_numpy(counts), "float64")
        if counts.shape != (len(codebook),) or np.any(counts < 0) or not counts.sum() > 0:
            raise ValueError(
                f"`counts` must be ({len(codebook)},), not negative, and not all 0. Received: shape {counts.shape}"
            )
        used = counts > 0
    centre = cloud.mean(axis=0)
    _, sizes, axes = np.linalg.svd(cloud - centre, full_matrices=False)
    share = sizes**2 / max(np.sum(sizes**2), 1e-30)
    codes = (codebook - centre) @ axes[:2].T
    figure = new_figure(6.4, 4.8)
    axis = figure.subplots()
    if vectors is not None:
        points = (cloud - centre) @ axes[:2].T
        name = f"{len(points):,} vectors"
        axis.scatter(*points.T, s=3, color="#BBBBBB", linewidths=0, label=name, rasterized=True)
    weight = None if counts is None else counts[used] / counts.sum()
    area = 16 if counts is None else 16 + 90 * weight / weight.max()
    style = {"color": BLUE} if counts is None else {"c": 100 * weight, "cmap": SEQUENTIAL, "norm": "log"}
    drawn = axis.scatter(
        *codes[used].T, s=area, edgecolors="black", linewidths=0.4, label=f"{used.sum()} codes", **style
    )
    if not used.all():
        axis.scatter(*codes[~used].T, s=28, marker="x", color=VERMILION, label=f"{np.sum(~used)} never chosen")
    if counts is not None:
        bar = figure.colorbar(drawn, label="share of the vectors (%)", pad=0.02)
        plain_numbers(bar.ax.yaxis)
    axis.set_title(f"{title}: a plane with {100 * share[:2].sum():.0f} % of the variance")
    axis.set_xlabel(f"principal component 1 ({100 * share[0]:.0f} % of the variance)")
    axis.set_ylabel(f"principal component 2 ({100 * share[1]:.0f} %)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", framealpha=0.9)
    return finish(figure, path)


def _vectors(values, name):
    values = np.asarray(to_numpy(values), "float64")
    if values.ndim != 2 or values.shape[1] < 2 or not len(values) or not np.all(np.isfinite(values)):
        raise ValueError(f"`{name}` must be finite vectors (N, D), D at least 2. Received: shape {values.shape}")
    return values
