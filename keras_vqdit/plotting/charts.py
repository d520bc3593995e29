"""Charts of numbers: lines, bars and tables of colours."""

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from keras_vqdit.checks import number
from keras_vqdit.plotting.drawing import (
    LINE_STYLES,
    MANY,
    SEQUENTIAL,
    draw_array,
    draw_line,
    finish,
    legend,
    legend_name,
    log_numbers,
    log_scale,
    new_figure,
    numbers,
    plain,
    real,
    received,
    style,
    to_labels,
    write,
)
from keras_vqdit.saving import short


def lines(series, *, xlabel, ylabel, log_x=False, log_y=False, markers=None, marks=None, title="", path=None):
    """Draw lines, told apart by colour, line style and marker; of a dict of dicts a panel each.

    Args:
        series: dict name → values `(N,)`, drawn over 1 to N, or → a tuple `(x, y)` of two such; or dict title of a
            panel → such a dict, of which three stand in a row. NaN is a gap.
        xlabel, ylabel: what the axes are, with units; of several panels a string for all, or a list of one each.
        log_x, log_y: whether an axis is logarithmic; what is drawn must be positive then. Up to eight x that nearly double
            from one to the next are the ticks of theirs. Default to `False`.
        markers: whether each value has a marker. Default: where a line has no more than 40.
        marks: dict name → x, places to mark by a vertical line. Defaults to `None`, none.
        title: title of the figure. Defaults to `""`, none.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if a line is not of numbers, or not positive on a logarithmic axis; if there are not as many labels
            as panels; or if `path` ends in no kind of figure.

    Example:
        ```python
        plotting.lines({"float32": losses, "bfloat16": others}, xlabel="step", ylabel="loss (nats)", title="Precision")
        ```
    """
    panels = series if isinstance(series, dict) and series and isinstance(next(iter(series.values())), dict) else None
    panels = panels or {"": series}
    if not all(isinstance(panel, dict) and panel for panel in panels.values()):
        raise ValueError(f"`series` must be a dict of lines, or of dicts of lines. Received: {short(repr(series))}")
    marks = {} if marks is None else marks
    if not isinstance(marks, dict):
        raise ValueError(f"`marks` must be a dict name → x. Received: marks={marks!r}")
    marks = {name: number(f"marks[{name!r}]", x, above=0 if log_x else None) for name, x in marks.items()}
    points = [
        {name: _points(name, values, log_x, log_y) for name, values in panel.items()} for panel in panels.values()
    ]
    below, beside = (
        to_labels(name, [text] * len(panels) if text is None or isinstance(text, str) else text, len(panels))
        for name, text in (("xlabel", xlabel), ("ylabel", ylabel))
    )
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width, height = (6.4, 3.6) if columns == 1 else (4.0, 3.1)
    if (most := max(map(len, points)) + len(marks)) > MANY:  # room for the names beside the axes
        longest = max(len(str(name)) for names in (*points, marks) for name in names)
        width, height = width + 0.6 + 0.075 * longest, max(height, 0.2 * most + 0.7)
    figure = new_figure(width * columns, height * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.suptitle(plain(title))
    for i, (axis, name, panel) in enumerate(zip(axes, panels, points, strict=False)):
        for j, (label, (x, y)) in enumerate(panel.items()):
            draw_line(axis, label, x, y, j, markers)
        for j, (label, x) in enumerate(marks.items()):
            line = LINE_STYLES[(j + 3) % len(LINE_STYLES)]
            axis.axvline(x, color="black", linewidth=1.2, linestyle=line, label=legend_name(label))
        for which, wanted in (("x", log_x), ("y", log_y)):
            if wanted:
                log_scale(axis, which)
        places = np.unique(np.concatenate([x for x, _ in panel.values()]))
        if log_x and 1 < len(places) <= 8 and np.min(places[1:] / places[:-1]) > 1.9:  # few, and apart: name them
            axis.xaxis.set_major_locator(FixedLocator(places))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        elif not log_x and np.all(places % 1 == 0):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_title(plain(name), fontsize="medium")
        axis.set(xlabel=below[i], ylabel=beside[i])
        axis.grid(alpha=0.3)
        legend(axis, len(panel) + len(marks))
    return finish(figure, path)


def _points(name, values, log_x, log_y):
    pair = isinstance(values, tuple) and len(values) == 2
    x, y = map(real, values) if pair else (None, real(values))
    if y is not None and not pair:
        x = 1.0 + np.arange(y.size)
    if x is None or y is None or y.ndim != 1 or x.shape != y.shape or not y.size:
        kinds = " and ".join(map(received, values if pair else [values]))
        raise ValueError(f"The line {name!r} must be values (N,), or x and y of one length. Received: {kinds}")
    x, y = (numbers(f"series[{name!r}]", part, 1, "values (N,)") for part in (x, y))
    if not np.all(np.isfinite(x)):
        raise ValueError(f"The line {name!r} must have a finite x. Received: NaN or infinite values")
    for which, log, part in (("x", log_x, x), ("y", log_y, y)):
        if log and np.any(part <= 0):
            low = np.nanmin(part)
            raise ValueError(
                f"The line {name!r} must be positive where log_{which}=True. Received: values down to {low:g}"
            )
    return x, y


def bars(values, *, xlabel, log=False, format="{:.3g}", title="", path=None):
    """Draw numbers as bars with their values beside them; of a dict of dicts groups, told apart by colour and hatch.

    Args:
        values: dict name → number; or dict name of a group → dict name → number, of which a group may lack some.
        xlabel: what the numbers are, with their unit.
        log: whether the axis is logarithmic; the numbers must be positive then. Defaults to `False`.
        format: how a number is written. Defaults to `"{:.3g}"`.
        title: title of the figure. Defaults to `""`, none.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if `values` are not finite numbers, or not positive on a logarithmic axis; if a group is empty; or
            if `path` ends in no kind of figure.

    Example:
        ```python
        latency = {"one image": {"Keras": 3.1, "ONNX": 0.9}, "64 images": {"Keras": 20, "ONNX": 31}}
        plotting.bars(latency, xlabel="latency (ms)")
        ```
    """
    groups = list(values.values()) if isinstance(values, dict) else []
    grouped = any(isinstance(group, dict) for group in groups)
    if not groups or (grouped and not all(isinstance(group, dict) and group for group in groups)):
        raise ValueError(f"`values` must be a dict of numbers, or of dicts of numbers. Received: {short(repr(values))}")
    groups = values if grouped else {name: {"": value} for name, value in values.items()}
    groups = {name: {kind: number("values", v) for kind, v in group.items()} for name, group in groups.items()}
    kinds = list(dict.fromkeys(kind for group in groups.values() for kind in group))
    drawn = np.array([value for group in groups.values() for value in group.values()])
    if log and np.any(drawn <= 1e-300):  # of smaller ones, half would be 0
        raise ValueError(f"`values` must be positive where log=True. Received: values down to {drawn.min():g}")
    figure = new_figure(6.4, 0.26 * len(drawn) + 0.22 * len(groups) + 1.2)
    axis = figure.subplots()
    y, places, seen = 0.0, [], set()
    bottom = 0.6 * drawn.min() if log else 0.0
    for group in groups.values():
        rows = [y + k for k in range(len(group))]
        places.append(float(np.mean(rows)))
        for row, (kind, value) in zip(rows, group.items(), strict=True):
            color, _, _, hatch = style(kinds.index(kind))
            label = legend_name(kind) if grouped and kind not in seen else None
            look = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
            axis.barh(row, value - bottom, 0.85, bottom, label=label, **look)
            seen.add(kind)
            axis.annotate(
                write(format, value),
                (value, row),
                (-3 if value < 0 else 3, 0),
                textcoords="offset points",
                va="center",
                ha="right" if value < 0 else "left",
                fontsize="small",
            )
        y = rows[-1] + 1.6
    axis.set_yticks(places, [plain(name) for name in groups])
    axis.invert_yaxis()
    if log:
        axis.set_xlim(bottom, drawn.max() * (drawn.max() / bottom) ** 0.15)  # room for the longest one's number
        log_scale(axis, "x")
    else:
        axis.margins(x=0.12)
        axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set(xlabel=plain(xlabel), title=plain(title))
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    legend(axis, len(kinds), loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finish(figure, path)


def heatmap(
    values, *, row_labels, column_labels, xlabel="", ylabel="", unit="", format="{:.3g}", log=False, title="", path=None
):
    """Draw a table of numbers as colours, with the numbers in it where there is room.

    Args:
        values: numbers `(rows, columns)`; NaN stays blank.
        row_labels, column_labels: a label each; some are left out where they would cover each other.
        xlabel, ylabel: what columns and rows are. Default to `""`, nothing.
        unit: what the numbers are, beside the colours. Defaults to `""`, nothing.
        format: how a number is written, or `None` for not at all. Defaults to `"{:.3g}"`.
        log: whether colours are of the logarithms of the numbers, which must be positive then. Defaults to `False`.
        title: title of the figure. Defaults to `""`, none.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if `values` are not numbers `(rows, columns)`, or not positive where `log=True`; if there are not as
            many labels; or if `path` ends in no kind of figure.

    Example:
        ```python
        plotting.heatmap(distances, row_labels=[5, 10, 20], column_labels=[1, 2], xlabel="guidance", ylabel="steps")
        ```
    """
    values = numbers("values", values, 2, "numbers (rows, columns)")
    if not np.any(np.isfinite(values)):
        raise ValueError("`values` must be numbers (rows, columns). Received: nothing that is finite")
    if log and np.any(values <= 0):
        raise ValueError(f"`values` must be positive where log=True. Received: values down to {np.nanmin(values)}")
    rows, columns = values.shape
    row_labels = to_labels("row_labels", () if row_labels is None else row_labels, rows)
    column_labels = to_labels("column_labels", () if column_labels is None else column_labels, columns)
    longest, long = max(map(len, row_labels)), max(map(len, column_labels)) > 6
    width, height = min(max(0.62 * columns, 2.5), 9.0), min(max(0.42 * rows, 1.2), 12.0)
    cell = np.array([height / rows, width / columns])  # in inches
    figure = new_figure(width + 0.08 * longest + 1.6, height + 1.3)
    axis = figure.subplots()
    look = {"cmap": SEQUENTIAL, "norm": "log" if log else None, "aspect": "auto"}
    drawn = draw_array(axis, np.ma.masked_invalid(values), **look)
    letters = 0.2 if long else 0.1 * max(map(len, column_labels)) + 0.1  # inches that a label takes of a row
    across = slice(None, None, 1 if cell[1] >= 0.4 else int(np.ceil(letters / cell[1])))
    down = slice(None, None, int(np.ceil(0.17 / cell[0])))
    axis.set_yticks(range(rows)[down], row_labels[down])
    turned = {"rotation": 30, "ha": "right"} if long else {"rotation": 0, "ha": "center"}
    axis.set_xticks(range(columns)[across], column_labels[across], **turned)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if format is not None and cell[1] >= 0.4 and cell[0] >= 0.17:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if drawn.norm(value) < 0.5 else "black"
                axis.text(j, i, write(format, value), color=color, fontsize="small", ha="center", va="center")
    axis.set(xlabel=plain(xlabel), ylabel=plain(ylabel), title=plain(title))
    bar = figure.colorbar(drawn, label=plain(unit), pad=0.02)
    if log:
        log_numbers(bar.ax.yaxis)
    else:
        bar.ax.yaxis.set_major_locator(MaxNLocator(5))
    return finish(figure, path)
