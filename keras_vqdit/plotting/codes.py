"""Figures of codes and codebooks."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from keras_vqdit.checks import positive_integer
from keras_vqdit.plotting.drawing import (
    BLUE,
    GRAY,
    SEQUENTIAL,
    VERMILION,
    draw_array,
    finish,
    log_numbers,
    log_scale,
    new_figure,
    numbers,
    plain,
    real,
    received,
    show_image,
    to_pixels,
)


def codebook_usage(counts, *, title="Codebook usage", path=None):
    """Draw how often each code was chosen, the most frequent first, on a logarithmic scale.

    Args:
        counts: `(K,)`, how many vectors chose each code, over a whole data set.
        title: begins the title; usage and perplexity follow. Defaults to `"Codebook usage"`.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if `counts` are not finite numbers, some are negative, or all are 0; or if `path` ends in no kind of
            figure.

    Example:
        ```python
        counts = np.bincount(np.ravel(tokenizer.encode(images)), minlength=tokenizer.num_embeddings)
        plotting.codebook_usage(counts, path="usage.png")
        ```
    """
    counts = _counts(counts)
    ranked = np.sort(counts)[::-1]
    size, used = len(counts), int(np.sum(counts > 0))
    share = ranked[:used] / counts.sum()
    perplexity = np.exp(-np.sum(share * np.log(share)))
    bottom = min(ranked[used - 1], counts.mean()) / 2
    figure = new_figure(6.4, 3.4)
    axis = figure.subplots()
    axis.stairs(ranked[:used], np.arange(used + 1) + 0.5, fill=True, color=BLUE, baseline=bottom, label="vectors")
    axis.axhline(counts.mean(), color="black", linestyle="--", linewidth=1.2, label="if all were equally frequent")
    if used < size:
        unused = dict(facecolor="none", edgecolor=GRAY, hatch="///", linewidth=0)
        axis.axvspan(used + 0.5, size + 0.5, label=f"{size - used} never chosen", **unused)
    usage = f"{used} of {size} codes ({100 * used / size:.1f} %), perplexity {perplexity:.1f}"
    axis.set_title(f"{plain(title)}: {usage}")
    axis.set(xlabel="code, by rank of its frequency", ylabel="vectors (count, log scale)")
    axis.set(xlim=(0.5, size + 0.5), ylim=(bottom, ranked[0] * 1.6))
    log_scale(axis)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.legend(fontsize="small", framealpha=0.95)
    return finish(figure, path)


def code_maps(codes, *, images=None, num_embeddings=None, columns=8, title="Codes", path=None):
    """Draw grids of codes, with their numbers where there is room, below the images that they stand for.

    Args:
        codes: integers: maps `(N, h, w)`, or sequences `(N, T)`, drawn below one another. −1, a masked position,
            stays blank.
        images: the N images `(N, H, W[, C])` of N maps. Defaults to `None`, none.
        num_embeddings: size of the codebook, for the colours. Default: the largest code + 1.
        columns: at most so many maps are drawn, the first ones, a column each; of sequences all are. Defaults to 8.
        title: title of the figure. Defaults to `"Codes"`.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the codes are no integers from −1 to `num_embeddings` − 1, or of another shape; if there are not
            as many images; or if `path` ends in no kind of figure.

    Example:
        ```python
        plotting.code_maps(tokenizer.encode(images), images=images, num_embeddings=tokenizer.num_embeddings)
        ```
    """
    grids = real(codes)
    if grids is None or grids.ndim not in (2, 3) or grids.size == 0 or grids.dtype.kind not in "iu":
        raise ValueError(f"`codes` must be integers (N, h, w) or (N, T). Received: {received(codes)}")
    columns, largest = positive_integer("columns", columns), int(grids.max())
    if num_embeddings is not None and largest >= positive_integer("num_embeddings", num_embeddings):
        raise ValueError(
            f"`codes` must be less than `num_embeddings`, {num_embeddings}. Received: codes up to {largest}"
        )
    if grids.min() < -1:
        raise ValueError(f"`codes` must be at least 0, or −1 where masked. Received: codes down to {grids.min()}")
    if images is not None and grids.ndim == 2:
        raise ValueError(
            f"`images` must be `None` for sequences (N, T), which stand in one map. Received: codes {grids.shape}"
        )
    size = max(largest + 1 if num_embeddings is None else num_embeddings, 2)
    maps = grids[:columns] if grids.ndim == 3 else grids[None]
    pixels = None if images is None else to_pixels(images, "images")[:columns]
    if pixels is not None and len(pixels) != len(maps):
        raise ValueError(f"`images` must be as many as the maps. Received: {len(pixels)} images, {len(maps)} maps")
    count, height, width = maps.shape
    ratios = [height / width] if pixels is None else [pixels.shape[1] / pixels.shape[2], height / width]
    tile = max(1.3, 0.21 * width) if width <= 16 else min(0.08 * width, 9.0 / count)
    tile = min(tile, 12.0 / sum(ratios))  # a column is not higher than a page
    numbered = width <= 16 and tile >= 0.15 * width
    figure = new_figure(max(tile * count, 1.3) + 1.2, max(tile * sum(ratios), 0.9) + 0.7, "compressed")
    figure.suptitle(plain(title))
    axes = figure.subplots(len(ratios), count, squeeze=False, height_ratios=ratios)
    if pixels is not None:
        for axis, image in zip(axes[0], pixels, strict=True):
            show_image(axis, image)
    for axis, grid in zip(axes[-1], maps, strict=True):
        drawn = draw_code_map(axis, grid, size, fontsize=5 if numbered else None)
    if grids.ndim == 2:
        axes[-1, 0].set(xlabel="position", ylabel="example")
    figure.colorbar(drawn, ax=list(axes.ravel()), label="code", fraction=0.04, pad=0.01 + 0.02 / count)
    return finish(figure, path)


def draw_code_map(axis, codes, num_embeddings, *, fontsize=5):
    """Draw a grid of codes on an axis.

    Args:
        axis: Matplotlib's axes.
        codes: integers `(h, w)`; −1 stays blank.
        num_embeddings: size of the codebook, for the colours.
        fontsize: of the codes' numbers in points, or `None` for no numbers. Defaults to 5.

    Returns:
        The image, for a bar of colours.
    """
    shown = np.ma.masked_less(codes, 0)
    drawn = draw_array(axis, shown, cmap=SEQUENTIAL, vmin=0, vmax=num_embeddings - 1)
    for (row, column), code in np.ndenumerate(codes):
        if fontsize is not None and code >= 0:
            color = "white" if code < 0.5 * num_embeddings else "black"
            axis.text(column, row, str(code), color=color, fontsize=fontsize, ha="center", va="center")
    return drawn


def codebook_projection(codebook, *, counts=None, vectors=None, title="Codebook", path=None):
    """Draw the codes in the plane of their two largest principal components.

    Args:
        codebook: vectors of the codes `(K, D)`, D at least 2.
        counts: `(K,)`, how often each was chosen: codes that never were are crosses. Defaults to `None`, not known.
        vectors: what is quantized, such as latents `(N, D)`, drawn as dots below; the components are then theirs.
            Defaults to `None`: those of the codes.
        title: begins the title; the share of the variance that the plane shows follows. Defaults to `"Codebook"`.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the vectors are not finite, of different lengths, or fewer than two; if `counts` are not finite,
            negative, not as many, or all 0; or if `path` ends in no kind of figure.

    Example:
        ```python
        plotting.codebook_projection(tokenizer.vq.codebook, counts=counts)
        ```
    """
    codebook = _vectors(codebook, "codebook", 1 if vectors is not None else 2)
    cloud = codebook if vectors is None else _vectors(vectors, "vectors", 2)
    if cloud.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"`vectors` must be as long as the codes, {codebook.shape[1]}. Received: vectors of length {cloud.shape[1]}"
        )
    counts = None if counts is None else _counts(counts, len(codebook))
    used = np.ones(len(codebook), bool) if counts is None else counts > 0
    centre = cloud.mean(axis=0)
    _, sizes, axes = np.linalg.svd(cloud - centre, full_matrices=False)
    sizes = sizes / max(sizes[0], 1e-300)  # of large vectors, the squares would overflow
    share = sizes**2 / max(np.sum(sizes**2), 1e-300)
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
        log_numbers(bar.ax.yaxis)
    axis.set_title(f"{plain(title)}: a plane with {100 * share[:2].sum():.0f} % of the variance")
    axis.set_xlabel(f"principal component 1 ({100 * share[0]:.0f} % of the variance)")
    axis.set_ylabel(f"principal component 2 ({100 * share[1]:.0f} %)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", framealpha=0.9)
    return finish(figure, path)


def _counts(values, size=None):
    wanted = f"({'K' if size is None else size},), finite, not negative, and not all 0"
    counts = numbers("counts", values, 1, wanted)
    if size not in (None, len(counts)) or np.any(counts < 0) or not 0 < counts.sum() < np.inf:
        raise ValueError(f"`counts` must be {wanted}. Received: shape {counts.shape}, sum {counts.sum()}")
    return counts


def _vectors(values, name, least):
    wanted = f"at least {least} finite vectors (N, D), D at least 2"
    vectors = numbers(name, values, 2, wanted)
    if vectors.shape[1] < 2 or len(vectors) < least or not np.all(np.isfinite(vectors)):
        raise ValueError(f"`{name}` must be {wanted}. Received: {received(values)}")
    return vectors
