"""Figures of training, reconstruction, codebooks and generation: functions of arrays, drawn without a display.

Images are uint8, or floats in [-1, 1], `(N, H, W)` or `(N, H, W, C)` with 1 or 3 channels; sounds floats in [-1, 1], `(N, T)` or
`(N, T, 1)`; NumPy arrays or tensors. Every
function returns a `matplotlib.figure.Figure`, and also writes it to `path` where one is given. No pyplot: the user's
backend, figures and styles stay as they are.
"""

from pathlib import Path

import numpy as np
from keras import ops
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from keras_vqdit import checks
from keras_vqdit.checks import positive_integer
from keras_vqdit.layers.spectrogram import check_window, magnitude, stft
from keras_vqdit.saving import atomic_path

# Okabe and Ito: told apart by the colour-blind; line styles and markers tell them apart in grey.
BLUE, VERMILION, GRAY = "#0072B2", "#D55E00", "#555555"
SEQUENTIAL = "cividis"  # its lightness rises evenly, for every kind of colour vision and in grey
UNITS = {"psnr": "dB", "perplexity": "codes", "accuracy": "fraction", "usage": "fraction", "seconds": "s"}
DPI = 150


# === Training ===


def training_curves(histories, *, title="Training", path=None):
    """Draw losses and metrics over the epochs: a panel a metric, training and validation together, a row a model.

    Args:
        histories: what `fit` returns, or a dict metric → values; or a dict name → one of these, for several models.
        title: title of the figure.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.

    Example:
        ```python
        plotting.training_curves({"tokenizer": tokenizer.fit(train), "diffusion": model.fit(latents)}, path="curves.png")
        ```
    """
    if not isinstance(histories, dict) or not histories or not _is_history(next(iter(histories.values()))):
        histories = {"": histories}
    runs = {name: _panels(history) for name, history in histories.items()}
    rows = [-(-len(panels) // 4) for panels in runs.values()]
    columns = [-(-len(panels) // count) for panels, count in zip(runs.values(), rows, strict=True)]
    figure = _figure(max(3.2 * max(columns), 5.0), 2.5 * sum(rows) + 0.4 + 0.3 * len(runs))
    figure.suptitle(title)
    parts = np.ravel(figure.subfigures(len(runs), 1, height_ratios=rows, squeeze=False))
    for part, (name, panels), shape in zip(parts, runs.items(), zip(rows, columns, strict=True), strict=True):
        if name:
            part.suptitle(name, fontsize="medium", fontweight="bold", x=0.01, ha="left")
        axes = part.subplots(*shape, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.remove()
        for axis, (metric, lines) in zip(axes, panels.items(), strict=False):
            _curve(axis, metric, lines)
    return _finish(figure, path)


def _is_history(value):
    return hasattr(value, "history") or (isinstance(value, dict) and all(np.ndim(v) == 1 for v in value.values()))


def _panels(history):
    """Metric → {"training": (epochs, values), "validation": …}, in the order in which the metrics were logged."""
    logs = getattr(history, "history", history)
    if not isinstance(logs, dict) or not logs or not _is_history(logs):
        raise ValueError(f"`histories` must be what `fit` returns, with at least one epoch. Received: {logs!r}")
    first = history.epoch[0] if getattr(history, "epoch", None) else 0
    panels = {}
    for key, values in logs.items():
        metric, kind = (key[4:], "validation") if key.startswith("val_") else (key, "training")
        values = np.asarray(values, "float64")
        panels.setdefault(metric, {})[kind] = (first + 1 + np.arange(len(values)), values)
    return panels


def _curve(axis, metric, lines):
    styles = {"training": (BLUE, "-", "o"), "validation": (VERMILION, "--", "s")}
    for kind, (epochs, values) in lines.items():
        color, line, marker = styles[kind]
        markers = marker if len(epochs) <= 40 else None
        axis.plot(
            epochs,
            values,
            color=color,
            linestyle=line,
            marker=markers,
            markersize=3.5,
            linewidth=1.5,
            label=kind,
        )
    values = np.concatenate([values for _, values in lines.values()])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        _log_scale(axis)
    unit = next((unit for word, unit in UNITS.items() if word in metric), None)
    axis.set_title(metric.replace("_", " "), fontsize="medium")
    axis.set_ylabel(unit or metric.replace("_", " "))
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlim(min(e[0] for e, _ in lines.values()) - 0.5, max(e[-1] for e, _ in lines.values()) + 0.5)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize="small", frameon=False)


# === Reconstruction ===


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
    first, second = _pixels(originals, "originals"), _pixels(reconstructions, "reconstructions")
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
    figure = _figure(tile * len(first) + 2.0, 3 * tile * height / width + 1.0, "compressed")
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
            drawn = _show(axis, image)
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
    return _finish(figure, path)


# === Sound ===


def spectrograms(
    audio,
    sample_rate,
    *,
    columns=4,
    labels=None,
    window_size=256,
    hop=32,
    range_db=70.0,
    title="Spectrograms",
    path=None,
):
    """Draw the spectrograms of sounds in a grid: level in decibels over time and frequency.

    Args:
        audio: sounds `(N, T)` or `(N, T, 1)`, row after row; or a dict of names and such, a row each, such as originals and their
            reconstructions.
        sample_rate: samples a second, in Hz.
        columns: number of columns; of a dict's sounds, the first ones are drawn. Defaults to 4.
        labels: a title a sound, or of a dict a title a column; or None.
        window_size, hop: in samples, see `layers.stft`. Default to 256 and 32.
        range_db: what is so far below the loudest place of all is drawn as silence, in decibels. Defaults to 70.
        title: title of the figure.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the sounds are of another shape or not finite, or there are not as many labels.

    Example:
        ```python
        plotting.spectrograms({"original": audio, "restored": tokenizer(audio)[0]}, 8000, path="sound.png")
        ```
    """
    checks.number("sample_rate", sample_rate, above=0)
    checks.number("range_db", range_db, above=0)
    check_window(window_size, hop)
    columns = positive_integer("columns", columns)
    rows = {name: _sounds(sounds)[:columns] for name, sounds in audio.items()} if isinstance(audio, dict) else None
    if rows is None:
        sounds = _sounds(audio)
        rows = {i: sounds[i : i + columns] for i in range(0, len(sounds), columns)}
        label_count = len(sounds)
    else:
        label_count = max(map(len, rows.values()), default=0)
    if not label_count:
        raise ValueError("`audio` must have at least one sound. Received none")
    if labels is not None and len(labels) != label_count:
        raise ValueError(f"`labels` must have {label_count} entries. Received: {len(labels)}")
    count = max(map(len, rows.values()))
    levels = {}
    for name, sounds in rows.items():
        size = _numpy(magnitude(*stft(sounds, window_size, hop), 1e-10))
        levels[name] = 20.0 * np.log10(size / (window_size / 4))  # a full tone has 0 dB
    top = max(level.max() for level in levels.values())
    figure = _figure(max(2.3 * count, 2.5) + 1.2, 1.7 * len(rows) + 0.7)
    figure.suptitle(title)
    axes = figure.subplots(len(rows), count, squeeze=False, sharex=True, sharey=True)
    for i, (row, (name, sounds)) in enumerate(zip(axes, rows.items(), strict=True)):
        for j, axis in enumerate(row):
            if j >= len(sounds):
                axis.remove()
                continue
            drawn = axis.imshow(
                levels[name][j].T,
                origin="lower",
                aspect="auto",
                extent=(0.0, sounds.shape[1] / sample_rate, 0.0, sample_rate / 2),
                cmap=SEQUENTIAL,
                vmin=top - range_db,
                vmax=top,
            )
            place = j if isinstance(audio, dict) else i * columns + j
            if labels is not None and (i == 0 or not isinstance(audio, dict)):
                axis.set_title(str(labels[place]), fontsize="small", parse_math=False)
            if i == len(rows) - 1 or j >= len(list(rows.values())[i + 1]):
                axis.set_xlabel("time (s)")
                axis.tick_params(labelbottom=True)
        begin = f"{name}\n" if isinstance(audio, dict) else ""
        row[0].set_ylabel(f"{begin}frequency (Hz)")
    figure.colorbar(drawn, ax=[axis for axis in axes.ravel() if axis.figure is not None], label="level (dB)", pad=0.02)
    return _finish(figure, path)


# === Codebook ===


def codebook_usage(counts, *, title="Codebook usage", path=None):
    """Draw how often each code was chosen, the most frequent first, on a logarithmic scale.

    Args:
        counts: `(K,)`, how many vectors chose each code, over a whole data set.
        title: begins the title; usage and perplexity follow.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.
    """
    counts = np.asarray(_numpy(counts), "float64")
    if counts.ndim != 1 or counts.size == 0 or np.any(counts < 0) or not counts.sum() > 0:
        raise ValueError(
            f"`counts` must be (K,), not negative, and not all 0. Received: shape {counts.shape}, sum {counts.sum()}"
        )
    ranked = np.sort(counts)[::-1]
    size, used = len(counts), int(np.sum(counts > 0))
    share = ranked[:used] / counts.sum()
    perplexity = np.exp(-np.sum(share * np.log(share)))
    bottom = min(ranked[used - 1], counts.mean()) / 2
    figure = _figure(6.4, 3.4)
    axis = figure.subplots()
    _log_scale(axis)
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
    return _finish(figure, path)


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
    codes = np.asarray(_numpy(codes))
    if codes.ndim not in (2, 3) or codes.size == 0 or codes.dtype.kind not in "iu":
        raise ValueError(f"`codes` must be integers (N, h, w) or (N, T). Received: {codes.dtype}, shape {codes.shape}")
    columns, largest = positive_integer("columns", columns), int(codes.max())
    if num_embeddings is not None and largest >= positive_integer("num_embeddings", num_embeddings):
        raise ValueError(
            f"`codes` must be less than `num_embeddings`, {num_embeddings}. Received: codes up to {largest}"
        )
    size = max(largest + 1 if num_embeddings is None else num_embeddings, 2)
    maps = codes[:columns] if codes.ndim == 3 else codes[None]
    pixels = None if images is None else _pixels(images, "images")[:columns]
    if pixels is not None and len(pixels) != len(maps):
        raise ValueError(f"`images` must be as many as the maps. Received: {len(pixels)} images, {len(maps)} maps")
    count, height, width = maps.shape
    numbered = width <= 16
    tile = max(1.3, 0.21 * width) if numbered else min(0.08 * width, 9.0 / count)
    ratios = [height / width] if pixels is None else [pixels.shape[1] / pixels.shape[2], height / width]
    figure = _figure(tile * count + 1.2, max(tile * sum(ratios), 0.9) + 0.7, "compressed")
    figure.suptitle(title)
    axes = figure.subplots(len(ratios), count, squeeze=False, height_ratios=ratios)
    if pixels is not None:
        for axis, image in zip(axes[0], pixels, strict=True):
            _show(axis, image)
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
    return _finish(figure, path)


# === Generation ===


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
        images: `(N, H, W[, C])`, row after row; or `(rows, columns, H, W, C)`.
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
    images = _numpy(images)
    if images.ndim == 5:
        columns = images.shape[1]
        images = images.reshape(-1, *images.shape[2:])
    pixels = _pixels(images, "images")
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
    figure = _figure(max(tile * columns, 2.5) + 0.4, tile * rows * height / width + 0.9)
    axis = figure.subplots()
    _show(axis, sheet)
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
    return _finish(figure, path)


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
    steps = np.stack([_numpy(step) for step in steps])
    times = np.asarray(_numpy(times), "float64")
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


# === Drawing ===


def _log_scale(axis):
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _figure(width, height, layout="constrained"):
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)  # becomes its canvas
    return figure


def _finish(figure, path):
    if path is not None:
        kinds = figure.canvas.get_supported_filetypes()
        if Path(path).suffix[1:].lower() not in kinds:
            raise ValueError(
                f"`path` must end in one of {', '.join(f'.{kind}' for kind in sorted(kinds))}. Received: path={path!s}"
            )
        with atomic_path(path) as temporary:
            figure.savefig(temporary, bbox_inches="tight", pad_inches=0.08)
    return figure


def _show(axis, image):
    axis.set(xticks=[], yticks=[])
    gray = image.shape[-1] == 1
    return axis.imshow(
        image[..., 0] if gray else image,
        cmap="gray" if gray else None,
        vmin=0.0,
        vmax=1.0,
        interpolation="antialiased",
    )


def _numpy(values):
    return ops.convert_to_numpy(values)


def _sounds(audio):
    """Sounds as float32 `(N, T)`."""
    audio = np.asarray(_numpy(audio))
    if audio.ndim == 3 and audio.shape[2] == 1:
        audio = audio[..., 0]
    if audio.ndim != 2 or audio.dtype.kind != "f" or not audio.shape[1]:
        raise ValueError(f"`audio` must be floats (N, T) or (N, T, 1). Received: {audio.dtype}, shape {audio.shape}")
    if not np.all(np.isfinite(audio)):
        raise ValueError("`audio` must be finite. Received: NaN or infinite values")
    return audio.astype("float32")


def _pixels(images, name):
    """Images as float64 `(N, H, W, C)` in [0, 1]."""
    images = np.asarray(_numpy(images))
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.size == 0:
        raise ValueError(f"`{name}` must be images (N, H, W) or (N, H, W, 1 or 3). Received: shape {images.shape}")
    if images.dtype == np.uint8:
        return images / 255.0
    if images.dtype.kind == "f" and not np.all(np.isfinite(images)):
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinite values")
    if images.dtype.kind != "f" or np.max(np.abs(images)) > 20.0:  # noise in pixel space stays well below
        raise ValueError(
            f"`{name}` must be uint8, or floats in [-1, 1]. Received: {images.dtype}, up to {np.max(np.abs(images))}"
        )
    return np.clip(images.astype("float64") / 2.0 + 0.5, 0.0, 1.0)
