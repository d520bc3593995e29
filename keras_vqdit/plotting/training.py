"""Curves of training."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from keras_vqdit.plotting.drawing import BLUE, VERMILION, finish, log_scale, new_figure

UNITS = {"psnr": "dB", "perplexity": "codes", "accuracy": "fraction", "usage": "fraction", "seconds": "s"}


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
    figure = new_figure(max(3.2 * max(columns), 5.0), 2.5 * sum(rows) + 0.4 + 0.3 * len(runs))
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
    return finish(figure, path)


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
        log_scale(axis)
    unit = next((unit for word, unit in UNITS.items() if word in metric), None)
    axis.set_title(metric.replace("_", " "), fontsize="medium")
    axis.set_ylabel(unit or metric.replace("_", " "))
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlim(min(e[0] for e, _ in lines.values()) - 0.5, max(e[-1] for e, _ in lines.values()) + 0.5)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize="small", frameon=False)
