"""Figures of images: reconstructions, grids, and how images arise."""

import numpy as np

from keras_vqdit.checks import positive_integer
from keras_vqdit.plotting.drawing import (
    SEQUENTIAL,
    finish,
    new_figure,
    numbers,
    plain,
    real,
    show_image,
    to_labels,
    to_pixels,
    to_steps,
)


def reconstructions(originals, reconstructions, *, columns=8, title="Reconstructions", path=None):
    """Draw originals, their reconstructions and the absolute errors below one another, with the PSNR of each.

    Args:
        originals: images `(N, H, W[, C])`.
        reconstructions: images of the same shape.
        columns: at most so many images are drawn, the first ones, a column each. Defaults to 8.
        title: title of the figure. Defaults to `"Reconstructions"`.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if these are no images, or of different shapes; or if `path` ends in no kind of figure.

    Example:
        ```python
        plotting.reconstructions(images, tokenizer(images)[0], path="reconstructions.png")
        ```
    """
    first, second = to_pixels(originals, "originals"), to_pixels(reconstructions, "reconstructions")
    if first.shape != second.shape:
        raise ValueError(
            f"The images must be of one shape. Received: originals {first.shape}, reconstructions {second.shape}"
        )
    columns = positive_integer("columns", columns)
    first, second = first[:columns], second[:columns]
    errors = np.abs(first - second)
    mse = np.mean((first - second) ** 2, axis=(1, 2, 3))
    psnr = -10.0 * np.log10(np.maximum(mse, 1e-10))
    height, width = first.shape[1:3]
    tile = 0.95
    figure = new_figure(tile * len(first) + 2.0, 3 * tile * height / width + 1.0, "compressed")
    figure.suptitle(plain(title))
    axes = figure.subplots(3, len(first), squeeze=False)
    limit = max(float(errors.max()), 1e-3)
    rows = {
        "original": first,
        "reconstruction": second,
        "absolute\nerror": errors.mean(axis=-1, keepdims=True),
    }
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            drawn = show_image(axis, image)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    for axis in axes[2]:
        axis.images[0].set(cmap=SEQUENTIAL, clim=(0.0, limit))
    for axis, value in zip(axes[2], psnr, strict=True):
        axis.set_xlabel(f"{value:.1f} dB", fontsize="small")
    place = dict(xycoords="axes fraction", textcoords="offset points", ha="right", va="top")
    axes[2, 0].annotate("PSNR", (0, 0), (-8, -4), fontsize="small", **place)
    figure.colorbar(
        drawn,
        ax=list(axes[2]),
        label="fraction of\nthe range",
        fraction=0.06,
        pad=0.02 + 0.06 / len(first),
        aspect=10,
    )
    return finish(figure, path)


def image_grid(
    images,
    *,
    rows=None,
    columns=None,
    row_labels=None,
    column_labels=None,
    title="Images",
    xlabel=None,
    ylabel=None,
    path=None,
):
    """Draw images in rows, such as a row a class.

    Args:
        images: `(N, H, W[, C])`, row after row; or `(rows, columns, H, W, C)`; or a dict name → `(columns, H, W[, C])`,
            a row each.
        rows: number of rows. Default: as many as `row_labels`, else about a square; of a dict, or an array that has
            rows, those.
        columns: number of columns. Default: as many as `rows` need.
        row_labels: a label a row. Default: the names of a dict, else none.
        column_labels: a label a column. Defaults to `None`, none.
        title: title of the figure. Defaults to `"Images"`.
        xlabel: what the columns are. Defaults to `None`, nothing.
        ylabel: what the rows are. Defaults to `None`, nothing.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if these are no images, or rows of different shapes; if they do not fit into `rows` and `columns`,
            or are already in others; if there are not as many labels; or if `path` ends in no kind of figure.

    Example:
        ```python
        plotting.image_grid(digits, columns=10, column_labels=range(10), title="Drawn digits", path="digits.png")
        ```
    """
    given = {name: value for name, value in (("rows", rows), ("columns", columns)) if value is not None}
    for name, value in given.items():
        positive_integer(name, value)
    parts = None
    if isinstance(images, dict):
        row_labels = list(images) if row_labels is None else row_labels
        parts = [to_pixels(part, "images") for part in images.values()]  # each by itself: uint8 beside floats
    elif (array := real(images)) is not None and array.ndim == 5 and len(array):
        parts = [to_pixels(part, "images") for part in array]
    if parts is None:
        pixels = to_pixels(images, "images")
    else:
        if not parts or len({part.shape for part in parts}) > 1:
            raise ValueError(
                f"The rows of `images` must be of one shape. Received: shapes {[part.shape for part in parts]}"
            )
        pixels, rows, columns = np.concatenate(parts), len(parts), len(parts[0])
        for name, value in (("rows", rows), ("columns", columns)):
            if given.get(name, value) != value:
                raise ValueError(f"`{name}` must be {value}, as the images have. Received: {name}={given[name]}")
    return finish(_grid(pixels, rows, columns, row_labels, column_labels, title, xlabel, ylabel), path)


def _grid(pixels, rows, columns, row_labels, column_labels, title, xlabel=None, ylabel=None):
    """A figure of pixels `(N, H, W, C)` in rows, as `to_pixels` gives them."""
    count, height, width, channels = pixels.shape
    if rows is not None and columns is not None and rows * columns < count:
        raise ValueError(f"{count} images do not fit. Received: rows={rows}, columns={columns}")
    row_labels = None if row_labels is None else tuple(row_labels) if np.iterable(row_labels) else row_labels
    if columns is None:
        labels = len(row_labels) if isinstance(row_labels, tuple) else 0
        columns = -(-count // (rows or labels or max(round(np.sqrt(count)), 1)))
    rows = rows or -(-count // columns)
    row_labels = to_labels("row_labels", row_labels, rows)
    column_labels = to_labels("column_labels", column_labels, columns)
    gap = max(1, round(min(height, width) / 14))
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for i, image in enumerate(pixels):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = image
    tile = float(np.clip(min(9.0 / columns, 12.0 / rows), 0.15, 1.2))
    figure = new_figure(max(tile * columns, 2.5) + 0.4, tile * rows * height / width + 0.9)
    axis = figure.subplots()
    show_image(axis, sheet)
    axis.spines[:].set_visible(False)
    if row_labels is not None:
        axis.set_yticks(np.arange(rows) * (height + gap) + (height - 1) / 2, row_labels)
    if column_labels is not None:
        axis.set_xticks(np.arange(columns) * (width + gap) + (width - 1) / 2, column_labels)
    axis.tick_params(length=0)
    axis.set(title=plain(title), xlabel=plain(xlabel), ylabel=plain(ylabel))
    return figure


def trajectory(steps, times, *, columns=10, row_labels=None, title="From noise to image", path=None):
    """Draw how images arise: a column a step, from noise on the left to the result on the right.

    Args:
        steps: images `(S, N, H, W, C)`, or a list of S arrays `(N, H, W[, C])`, as in the `"noisy"` or `"clean"` of a
            trajectory of `LatentDiffusion.generate`.
        times: `(S,)`, time of each step: 1 is noise, 0 is data.
        columns: at most so many steps are drawn, evenly chosen, the first and the last among them (of 1 the first).
            Defaults to 10.
        row_labels: a label an image. Defaults to `None`, none.
        title: title of the figure. Defaults to `"From noise to image"`.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the steps are no images, or of different shapes; if there are not as many times or labels; or if
            `path` ends in no kind of figure.

    Example:
        ```python
        images, trajectory = model.generate(range(5), return_trajectory=True)
        plotting.trajectory(trajectory["noisy"], trajectory["times"], row_labels=range(5), path="trajectory.png")
        ```
    """
    columns = positive_integer("columns", columns)
    pixels, times = to_steps(steps, numbers("times", times, 1, "one time a step"))
    chosen = np.unique(np.linspace(0, len(pixels) - 1, min(columns, len(pixels))).round().astype(int))
    shown = np.stack([pixels[i] for i in chosen], axis=1)  # (N, S, H, W, C)
    labels = [f"{time:.2f}" for time in times[chosen]]
    shown, shape = shown.reshape(-1, *shown.shape[2:]), shown.shape[:2]
    figure = _grid(shown, *shape, row_labels, labels, title, "time t (1 is noise, 0 is data)")
    return finish(figure, path)
