"""Charts of numbers: lines, bars and tables of colours."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from keras_vqdit.plotting.drawing import (
    COLORS,
    HATCHES,
    LINE_STYLES,
    MARKERS,
    SEQUENTIAL,
    finish,
    log_scale,
    new_figure,
    plain_numbers,
    to_numpy,
)


def lines(series, *, xlabel, ylabel, log_x=False, log_y=False, markers=None, marks=None, title="", path=None):
    """Draw lines, told apart by colour, line style and marker; of a dict of dicts a panel each.

    Args:
        series: dict name → values `(N,)`, drawn over 1 to N, or → `(x, y)`; or dict title of a panel → such a dict.
        xlabel, ylabel: what the axes are, with units; of several panels a string for all, or a list of one each.
        log_x, log_y: whether an axis is logarithmic. Default to `False`.
        markers: whether each value has a marker. Default: where there are no more than 40.
        marks: dict name → x, places to mark by a vertical line; or None.
        title: title of the figure.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.

    Example:
        ```python
        plotting.lines({"float32": losses, "bfloat16": others}, xlabel="step", ylabel="loss (nats)", title="Precision")
        ```
    """
    panels = series if isinstance(series, dict) and series and isinstance(next(iter(series.values())), dict) else None
    panels = panels or {"": series}
    if not all(isinstance(panel, dict) and panel for panel in panels.values()):
        raise ValueError(f"`series` must be a dict of lines, or of dicts of lines. Received: {series!r}")
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(6.4 if columns == 1 else 4.0 * columns, (3.6 if columns == 1 else 3.1) * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.suptitle(title)
    for i, (axis, (name, panel)) in enumerate(zip(axes, panels.items(), strict=False)):
        for j, (label, values) in enumerate(panel.items()):
            x, y = _points(label, values)
            few = len(x) <= 40 if markers is None else markers
            style = {"color": COLORS[j % len(COLORS)], "linestyle": LINE_STYLES[j % len(LINE_STYLES)]}
            marker = MARKERS[j % len(MARKERS)] if few else None
            axis.plot(x, y, label=str(label), marker=marker, markersize=4, linewidth=1.5, **style)
        for j, (label, x) in enumerate((marks or {}).items()):
            axis.axvline(
                x, color="black", linewidth=1.2, linestyle=LINE_STYLES[(j + 3) % len(LINE_STYLES)], label=label
            )
        for which, wanted in (("x", log_x), ("y", log_y)):
            if wanted:
                log_scale(axis, which)
        if not log_x and all(np.all(_points(*line)[0] % 1 == 0) for line in panel.items()):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel(xlabel if isinstance(xlabel, str) else xlabel[i])
        axis.set_ylabel(ylabel if isinstance(ylabel, str) else ylabel[i])
        axis.grid(alpha=0.3)
        if len(panel) + len(marks or {}) > 1:
            axis.legend(fontsize="small", framealpha=0.9)
    return finish(figure, path)


def _points(name, values):
    if isinstance(values, tuple) and len(values) == 2:
        x, y = (np.asarray(to_numpy(v), "float64") for v in values)
    else:
        y = np.asarray(to_numpy(values), "float64")
        x = 1.0 + np.arange(y.size)
    if y.ndim != 1 or x.shape != y.shape or not y.size:
        raise ValueError(
            f"The line {name!r} must be values (N,), or x and y of one length. Received: shapes {x.shape} and {y.shape}"
        )
    return x, y


def bars(values, *, xlabel, log=False, format="{:.3g}", title="", path=None):
    """Draw numbers as bars with their values written beside them; of a dict of dicts groups, told apart by colour and hatch.

    Args:
        values: dict name → number; or dict name of a group → dict name → number, of which a group may lack some.
        xlabel: what the numbers are, with their unit.
        log: whether the axis is logarithmic. Defaults to `False`.
        format: how a number is written. Defaults to `"{:.3g}"`.
        title: title of the figure.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.

    Example:
        ```python
        plotting.bars({"one image": {"Keras": 3.1, "ONNX": 0.9}, "64 images": {"Keras": 20, "ONNX": 31}}, xlabel="latency (ms)")
        ```
    """
    if not isinstance(values, dict) or not values:
        raise ValueError(f"`values` must be a dict of numbers, or of dicts of numbers. Received: {values!r}")
    grouped = isinstance(next(iter(values.values())), dict)
    groups = values if grouped else {name: {"": value} for name, value in values.items()}
    kinds = list(dict.fromkeys(kind for group in groups.values() for kind in group))
    numbers = np.array([float(v) for group in groups.values() for v in group.values()])
    if not np.all(np.isfinite(numbers)) or (log and np.any(numbers <= 0)):
        raise ValueError(
            f"`values` must be finite{', and positive where log=True' if log else ''}. Received: {values!r}"
        )
    count = sum(len(group) for group in groups.values())
    figure = new_figure(6.4, 0.26 * count + 0.22 * len(groups) + 1.2)
    axis = figure.subplots()
    y, places, seen = 0.0, [], set()
    bottom = 0.6 * numbers.min() if log else 0.0
    for group in groups.values():
        rows = [y + k for k in range(len(group))]
        places.append(float(np.mean(rows)))
        for row, (kind, value) in zip(rows, group.items(), strict=True):
            k = kinds.index(kind)
            style = {"color": COLORS[k % len(COLORS)], "hatch": HATCHES[k % len(HATCHES)], "edgecolor": "white"}
            label = kind if grouped and kind not in seen else None
            axis.barh(row, float(value) - bottom, 0.85, bottom, label=label, linewidth=0.5, **style)
            seen.add(kind)
            text = format.format(float(value))
            side = "right" if value < 0 else "left"
            axis.annotate(
                text,
                (value, row),
                (-3 if value < 0 else 3, 0),
                textcoords="offset points",
                va="center",
                ha=side,
                fontsize="small",
            )
        y = rows[-1] + 1.6
    axis.set_yticks(places, [str(name) for name in groups], parse_math=False)
    axis.invert_yaxis()
    if log:
        axis.set_xlim(bottom, numbers.max() * (numbers.max() / bottom) ** 0.15)  # room for the longest one's number
        log_scale(axis, "x")
    else:
        axis.margins(x=0.12)
        axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set(xlabel=xlabel, title=title)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    if len(kinds) > 1:
        axis.legend(fontsize="small", framealpha=0.9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finish(figure, path)


def heatmap(
    values, *, row_labels, column_labels, xlabel="", ylabel="", unit="", format="{:.3g}", log=False, title="", path=None
):
    """Draw a table of numbers as colours, with the numbers in it.

    Args:
        values: numbers `(rows, columns)`; NaN stays blank.
        row_labels, column_labels: a label each.
        xlabel, ylabel: what columns and rows are.
        unit: what the numbers are, beside the colours.
        format: how a number is written, or None for not at all. Defaults to `"{:.3g}"`.
        log: whether colours are of the logarithms of the numbers, which must be positive then. Defaults to `False`.
        title: title of the figure.
        path: file to write, or None.

    Returns:
        `matplotlib.figure.Figure`.

    Example:
        ```python
        plotting.heatmap(distances, row_labels=[5, 10, 20], column_labels=[1, 2], xlabel="guidance", ylabel="steps")
        ```
    """
    values = np.asarray(to_numpy(values), "float64")
    if values.ndim != 2 or not np.any(np.isfinite(values)):
        raise ValueError(f"`values` must be numbers (rows, columns). Received: shape {values.shape}")
    if log and np.any(values <= 0):
        raise ValueError(f"`values` must be positive where log=True. Received: values down to {np.nanmin(values)}")
    for name, labels, count in (
        ("row_labels", row_labels, len(values)),
        ("column_labels", column_labels, values.shape[1]),
    ):
        if len(labels) != count:
            raise ValueError(f"`{name}` must have {count} entries. Received: {len(labels)}")
    rows, columns = values.shape
    longest = max(len(str(label)) for label in row_labels)
    figure = new_figure(min(max(0.62 * columns, 2.5), 9.0) + 0.08 * longest + 1.6, max(0.42 * rows, 1.2) + 1.3)
    axis = figure.subplots()
    style = {"cmap": SEQUENTIAL, "norm": "log" if log else None, "aspect": "auto", "interpolation": "nearest"}
    drawn = axis.imshow(np.ma.masked_invalid(values), **style)
    axis.set_yticks(range(rows), [str(label) for label in row_labels], parse_math=False)
    long = max(len(str(label)) for label in column_labels) > 6
    axis.set_xticks(
        range(columns),
        [str(label) for label in column_labels],
        parse_math=False,
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if format is not None:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if drawn.norm(value) < 0.5 else "black"
                axis.text(j, i, format.format(value), color=color, fontsize="small", ha="center", va="center")
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    bar = figure.colorbar(drawn, label=unit, pad=0.02)
    if log:
        plain_numbers(bar.ax.yaxis)
    else:
        bar.ax.yaxis.set_major_locator(MaxNLocator(5))
    return finish(figure, path)
