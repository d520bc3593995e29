"""Figures of images: reconstructions, grids, and how images arise."""

import numpy as np

from keras_vqdit.checks import positive_integer
from keras_vqdit.plotting.drawing import SEQUENTIAL, finish, new_figure, show_image, to_numpy, to_pixels


def reconstructions(originals, reconstructions, *, columns=8, title="Reconstructions", path=None):
    """Draw originals, their reconstructions and the absolute errors below one another, with the PSNR of each.

    Args:
        originals: images.
        reconstructions: images of the same shape.
        columns: number of images drawn, the first ones.
        title: title of the figure.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.
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
    figure.suptitle(title)
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
        images: `(N, H, W[, C])`, row after row; or `(rows, columns, H, W, C)`; or a dict name → `(columns, H, W[, C])`, a row
            each.
        rows: number of rows. Default: as many as `row_labels`, else about a square.
        columns: number of columns, instead of `rows`.
        row_labels: a label a row, or None.
        column_labels: a label a column, or None.
        title: title of the figure; "" for none.
        xlabel: what the columns are, or None.
        ylabel: what the rows are, or None.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.
    """
    if isinstance(images, dict):
        names, images = list(images), [to_numpy(part) for part in images.values()]
        if not images or any(part.shape != images[0].shape for part in images):
            raise ValueError(
                f"The rows of `images` must be of one shape. Received: shapes {[part.shape for part in images]}"
            )
        row_labels, columns = names if row_labels is None else row_labels, len(images[0])
        images = np.concatenate(images)
    images = to_numpy(images)
    if images.ndim == 5:
        columns = images.shape[1]
        images = images.reshape(-1, *images.shape[2:])
    pixels = to_pixels(images, "images")
    count, height, width, channels = pixels.shape
    for name, value in (("rows", rows), ("columns", columns)):
        if value is not None:
            positive_integer(name, value)
    if rows is not None and columns is not None and rows * columns < count:
        raise ValueError(f"{count} images do not fit. Received: rows={rows}, columns={columns}")
    if columns is None:
        if rows is None:
            rows = len(row_labels) if row_labels is not None else max(round(np.sqrt(count)), 1)
        columns = -(-count // rows)
    rows = -(-count // columns)
    for name, labels, number in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        if labels is not None and len(labels) != number:
            raise ValueError(f"`{name}` must have {number} entries. Received: {len(labels)}")
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
        axis.set_yticks(
            np.arange(rows) * (height + gap) + (height - 1) / 2, [str(k) for k in row_labels], parse_math=False
        )
    if column_labels is not None:
        axis.set_xticks(
            np.arange(columns) * (width + gap) + (width - 1) / 2, [str(k) for k in column_labels], parse_math=False
        )
    axis.tick_params(length=0)
    axis.set(title=title, xlabel=xlabel or "", ylabel=ylabel or "")
    return finish(figure, path)


def trajectory(steps, times, *, columns=10, row_labels=None, title="From noise to image", path=None):
    """Draw how images arise: a column a step, from noise on the left to the result on the right.

    Args:
        steps: images `(S, N, H, W, C)`, or a list of S arrays `(N, H, W, C)`.
        times: `(S,)`, time of each step: 1 is noise, 0 is data.
        columns: at most so many steps are drawn, evenly chosen, the first and the last among them.
        row_labels: a label an image, or None.
        title: title of the figure.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.
    """
    steps = np.stack([to_numpy(step) for step in steps])
    times = np.asarray(to_numpy(times), "float64")
    if times.shape != (len(steps),):
        raise ValueError(f"`times` must be one time a step, ({len(steps)},). Received: shape {times.shape}")
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(columns, len(steps))).round().astype(int))
    rows = np.swapaxes(steps[chosen], 0, 1)  # (N, S, H, W, C)
    return image_grid(
        rows,
        row_labels=row_labels,
        column_labels=[f"{time:.2f}" for time in times[chosen]],
        title=title,
        xlabel="time t (1 is noise, 0 is data)",
        path=path,
    )
