"""Figures of attention: where a position looks."""

import math

import numpy as np
from matplotlib.patches import Rectangle

from keras_vqdit.checks import integer, is_positive_integer
from keras_vqdit.plotting.drawing import (
    SEQUENTIAL,
    VERMILION,
    draw_array,
    finish,
    new_figure,
    plain,
    real,
    received,
    show_image,
    to_labels,
    to_pixels,
)


def attention_maps(scores, grid, *, query=None, image=None, row_labels=None, title="Where a position looks", path=None):
    """Draw where attention goes: a row a layer, a column a head, each a map over the grid of positions.

    Args:
        scores: of one example, `(layers, heads, T, S)`, or `(heads, T, S)` of one layer, as `attention_scores` of the
            transformers gives them for each example. They are in [0, 1], and sum to 1 over S.
        grid: the positions that are looked at, `(h, w)`, with `h * w = S`.
        query: the position that looks, from 0 to T − 1. Defaults to `None`, the mean of all.
        image: `(H, W[, C])`, what the positions are of, drawn on the left with the query marked. Defaults to `None`,
            none.
        row_labels: a label a layer. Default: "layer 1" and so on.
        title: title of the figure. Defaults to `"Where a position looks"`.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`. A row shares its colours: dark blue is nothing, and yellow its largest share.

    Raises:
        ValueError: if the scores are of another shape, or not in [0, 1]; if `query` is none of the positions; if there
            are not as many labels; or if `path` ends in no kind of figure.

    Example:
        ```python
        scores = model.network.attention_scores({"x": latents, "t": times, "label": labels})  # (layers, B, heads, 49,
        49) plotting.attention_maps(scores[:, 0], (7, 7), query=24, image=images[0])
        ```
    """
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(map(is_positive_integer, grid)):
        raise ValueError(f"`grid` must be two positive integers, (h, w). Received: grid={grid!r}")
    height, width = grid
    shares = real(scores)
    if shares is not None and shares.ndim == 3:
        shares = shares[None]
    if shares is None or shares.ndim != 4 or shares.shape[-1] != height * width or shares.size == 0:
        raise ValueError(
            f"`scores` must be (layers, heads, T, S) or (heads, T, S), with S = {height} x {width} of the grid. "
            f"Received: {received(scores)}"
        )
    shares = shares.astype("float64")
    if not np.all((shares >= -1e-3) & (shares <= 1 + 1e-3)):  # float16 rounds; NaN is in no range
        raise ValueError(f"`scores` must be in [0, 1]. Received: values from {shares.min():.3g} to {shares.max():.3g}")
    layers, heads, queries, _ = shares.shape
    if query is not None and not 0 <= integer("query", query) < queries:
        raise ValueError(f"`query` must be from 0 to {queries - 1}. Received: query={query}")
    labels = to_labels("row_labels", row_labels, layers) or [f"layer {i + 1}" for i in range(layers)]
    maps = (shares.mean(axis=2) if query is None else shares[:, :, query]).reshape(layers, heads, height, width)
    # The query is a place on the map only where it is one of the positions that are looked at.
    place = divmod(query, width) if query is not None and queries == height * width else None
    columns = heads + (image is not None)
    tile = float(np.clip(9.0 / columns, 0.6, 1.5))
    figure = new_figure(tile * columns + 2.2, tile * layers * height / width + 0.9, "compressed")
    figure.suptitle(plain(title))
    axes = figure.subplots(layers, columns, squeeze=False)
    if image is not None:
        pixels = real(image)
        if pixels is None or pixels.ndim not in (2, 3):
            raise ValueError(f"`image` must be one image (H, W) or (H, W, 1 or 3). Received: {received(image)}")
        pixels = to_pixels(pixels[None], "image")[0]
        scale = np.array(pixels.shape[:2]) / (height, width)
        show_image(axes[0, 0], pixels)
        axes[0, 0].set_title("image", fontsize="small")
        if place is not None:
            _mark(axes[0, 0], np.array(place) * scale - 0.5, scale)
        for axis in axes[1:, 0]:
            axis.set_axis_off()
    for i, row in enumerate(axes[:, columns - heads :]):
        largest = maps[i].max()
        top = max(largest, 1e-12)  # nowhere at all is a range, too
        for j, axis in enumerate(row):
            drawn = draw_array(axis, maps[i, j], cmap=SEQUENTIAL, vmin=0.0, vmax=top)
            if place is not None:
                _mark(axis, np.array(place) - 0.5, (1, 1))
            if i == 0:
                axis.set_title(f"head {j + 1}", fontsize="small")
        row[0].set_ylabel(labels[i], fontsize="small")
        ticks = {0.0: "0"} | ({top: _percent(top)} if largest > 0 else {})
        bar = figure.colorbar(drawn, ax=list(row), fraction=0.05, pad=0.02, ticks=list(ticks))
        bar.ax.set_yticklabels(ticks.values(), fontsize="small")
        if i == layers // 2:
            bar.set_label("share of the attention", fontsize="small")
    return finish(figure, path)


def _mark(axis, corner, size):
    box = Rectangle((corner[1], corner[0]), size[1], size[0], edgecolor=VERMILION, facecolor="none", linewidth=1.5)
    axis.add_patch(box)


def _percent(share):
    if share < 1e-5:
        return f"{100 * share:.0e} %"
    digits = max(0, 1 - math.floor(math.log10(100 * share)))
    return f"{100 * share:.{digits}f} %"
