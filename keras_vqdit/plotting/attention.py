"""Figures of attention: where a position looks."""

import math

import numpy as np
from matplotlib.patches import Rectangle

from keras_vqdit.checks import integer
from keras_vqdit.plotting.drawing import SEQUENTIAL, VERMILION, finish, new_figure, show_image, to_numpy, to_pixels


def attention_maps(scores, grid, *, query=None, image=None, row_labels=None, title="Where a position looks", path=None):
    """Draw where attention goes: a row a layer, a column a head, each a map over the grid of positions.

    Args:
        scores: of one example, `(layers, heads, T, S)`, or `(heads, T, S)` of one layer, as `attention_scores` of the
            transformers gives them for each example. They sum to 1 over S.
        grid: the positions that are looked at, `(h, w)`, with `h * w = S`.
        query: the position that looks, from 0 to T − 1; or None for the mean of all.
        image: `(H, W[, C])`, what the positions are of, drawn on the left with the query marked; or None.
        row_labels: a label a layer. Default: "layer 1" and so on.
        title: title of the figure.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`. A row shares its colours: black is nothing, and the brightest its largest share.

    Example:
        ```python
        scores = model.network.attention_scores({"x": latents, "t": times, "label": labels})  # (layers, B, heads, 49, 49)
        plotting.attention_maps(scores[:, 0], (7, 7), query=24, image=images[0])
        ```
    """
    scores = np.asarray(to_numpy(scores), "float64")
    if scores.ndim == 3:
        scores = scores[None]
    height, width = grid
    if scores.ndim != 4 or scores.shape[-1] != height * width or scores.size == 0:
        raise ValueError(
            f"`scores` must be (layers, heads, T, S) or (heads, T, S), with S = {height} x {width} of the grid. "
            f"Received: shape {scores.shape}"
        )
    layers, heads, queries, _ = scores.shape
    if query is not None and not 0 <= integer("query", query) < queries:
        raise ValueError(f"`query` must be from 0 to {queries - 1}. Received: query={query}")
    labels = [f"layer {i + 1}" for i in range(layers)] if row_labels is None else list(row_labels)
    if len(labels) != layers:
        raise ValueError(f"`row_labels` must have {layers} entries. Received: {len(labels)}")
    maps = (scores.mean(axis=2) if query is None else scores[:, :, query]).reshape(layers, heads, height, width)
    # The query is a place on the map only where it is one of the positions that are looked at.
    place = divmod(query, width) if query is not None and queries == height * width else None
    columns = heads + (image is not None)
    tile = float(np.clip(9.0 / columns, 0.6, 1.5))
    figure = new_figure(tile * columns + 2.2, tile * layers * height / width + 0.9, "compressed")
    figure.suptitle(title)
    axes = figure.subplots(layers, columns, squeeze=False)
    if image is not None:
        pixels = to_pixels(np.asarray(to_numpy(image))[None], "image")[0]
        scale = np.array(pixels.shape[:2]) / (height, width)
        for i, axis in enumerate(axes[:, 0]):
            if i:
                axis.set_axis_off()
                continue
            show_image(axis, pixels)
            axis.set_title("image", fontsize="small")
            if place is not None:
                corner = np.array(place) * scale - 0.5
                _mark(axis, corner, scale)
    for i, row in enumerate(axes[:, columns - heads :]):
        for j, axis in enumerate(row):
            drawn = axis.imshow(maps[i, j], cmap=SEQUENTIAL, vmin=0.0, vmax=maps[i].max(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if place is not None:
                _mark(axis, np.array(place) - 0.5, (1, 1))
            if i == 0:
                axis.set_title(f"head {j + 1}", fontsize="small")
        row[0].set_ylabel(labels[i], fontsize="small")
        bar = figure.colorbar(drawn, ax=list(row), fraction=0.05, pad=0.02, ticks=[0.0, maps[i].max()])
        bar.ax.set_yticklabels(["0", _percent(maps[i].max())], fontsize="small")
        if i == layers // 2:
            bar.set_label("share of the attention", fontsize="small")
    return finish(figure, path)


def _mark(axis, corner, size):
    box = Rectangle((corner[1], corner[0]), size[1], size[0], edgecolor=VERMILION, facecolor="none", linewidth=1.5)
    axis.add_patch(box)


def _percent(share):
    digits = max(0, 1 - math.floor(math.log10(100 * share))) if share > 0 else 0
    return f"{100 * share:.{digits}f} %"
