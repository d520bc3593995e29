"""Curves of training."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from keras_vqdit.plotting.drawing import draw_line, finish, legend, log_scale, new_figure, numbers, plain, real
from keras_vqdit.saving import short

UNITS = {"psnr": "dB", "perplexity": "codes", "accuracy": "fraction", "usage": "fraction", "seconds": "s"}
PLACES = {"training": 0, "validation": 1}  # in the cycle of styles


def training_curves(histories, *, title="Training", path=None):
    """Draw losses and metrics over the epochs: a panel a metric, training and validation together, a row a model.

    Args:
        histories: what `fit` returns, or a dict metric → values `(epochs,)`; or a dict name → one of these, for several
            models.
        title: title of the figure. Defaults to `"Training"`.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if these are no histories, or have no epoch; or if `path` ends in no kind of figure.

    Example:
        ```python
        histories = {"tokenizer": tokenizer.fit(train), "diffusion": model.fit(latents)}
        plotting.training_curves(histories, path="curves.png")
        ```
    """
    if not isinstance(histories, dict) or not histories or not _is_history(next(iter(histories.values()))):
        histories = {"": histories}
    runs = {name: _panels(history) for name, history in histories.items()}
    rows = [-(-len(panels) // 4) for panels in runs.values()]
    columns = [-(-len(panels) // count) for panels, count in zip(runs.values(), rows, strict=True)]
    figure = new_figure(max(3.2 * max(columns), 5.0), 2.5 * sum(rows) + 0.4 + 0.3 * len(runs))
    figure.suptitle(plain(title))
    parts = np.ravel(figure.subfigures(len(runs), 1, height_ratios=rows, squeeze=False))
    for part, (name, panels), shape in zip(parts, runs.items(), zip(rows, columns, strict=True), strict=True):
        if name != "":
            part.suptitle(plain(name), fontsize="medium", fontweight="bold", x=0.01, ha="left")
        axes = part.subplots(*shape, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.remove()
        for axis, (metric, curves) in zip(axes, panels.items(), strict=False):
            _draw(axis, metric, curves)
    return finish(figure, path)


def _is_history(value):
    values = value.values() if isinstance(value, dict) else ()
    return hasattr(value, "history") or (isinstance(value, dict) and all(np.ndim(real(v)) == 1 for v in values))


def _panels(history):
    """Metric → {"training": (epochs, values), "validation": …}, in the order in which the metrics were logged."""
    logs = getattr(history, "history", history)
    if not isinstance(logs, dict) or not logs or not _is_history(logs):
        raise ValueError(
            f"`histories` must be what `fit` returns, with at least one epoch. Received: {short(repr(logs))}"
        )
    first = history.epoch[0] if getattr(history, "epoch", None) else 0
    panels = {}
    for key, values in logs.items():
        metric, kind = (key[4:], "validation") if str(key).startswith("val_") else (str(key), "training")
        values = numbers(f"histories[{key!r}]", values, 1, "what `fit` returns, with at least one epoch")
        panels.setdefault(metric, {})[kind] = (first + 1 + np.arange(len(values)), values)
    return panels


def _draw(axis, metric, curves):
    for kind, (epochs, values) in curves.items():
        draw_line(axis, kind, epochs, values, PLACES[kind])
    values = np.concatenate([values for _, values in curves.values()])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        log_scale(axis)
    unit = next((unit for word, unit in UNITS.items() if word in metric), None)
    name = plain(metric.replace("_", " "))
    axis.set_title(name, fontsize="medium")
    axis.set(xlabel="epoch", ylabel=unit or name)
    axis.set_xlim(min(e[0] for e, _ in curves.values()) - 0.5, max(e[-1] for e, _ in curves.values()) + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(alpha=0.3)
    legend(axis, len(curves))
