"""Figures of sounds."""

import numpy as np
from keras import ops

from keras_vqdit import checks
from keras_vqdit.checks import positive_integer
from keras_vqdit.layers.spectrogram import check_window, magnitude, stft
from keras_vqdit.plotting.drawing import SEQUENTIAL, finish, new_figure, plain, to_labels, to_sounds


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
        audio: sounds `(N, T)` or `(N, T, 1)`, row after row; or a dict of names and such, a row each, such as originals
            and their reconstructions.
        sample_rate: samples a second, in Hz.
        columns: number of columns; of a dict's sounds, the first ones are drawn. Defaults to 4.
        labels: a title a sound, or of a dict a title a column. Defaults to `None`, none.
        window_size, hop: in samples, see `layers.stft`. Default to 256 and 32.
        range_db: what is so far below the loudest place of all is drawn as silence, in decibels. Defaults to 70.
        title: title of the figure. Defaults to `"Spectrograms"`.
        path: file to write. Defaults to `None`, none.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the sounds are none, of another shape or not finite; if there are not as many labels; or if
            `path` ends in no kind of figure.

    Example:
        ```python
        plotting.spectrograms({"original": audio, "restored": tokenizer(audio)[0]}, 8000, path="sound.png")
        ```
    """
    checks.number("sample_rate", sample_rate, above=0)
    checks.number("range_db", range_db, above=0)
    check_window(window_size, hop)
    columns = positive_integer("columns", columns)
    named = isinstance(audio, dict)
    if named:
        rows = {name: to_sounds(sounds)[:columns] for name, sounds in audio.items()}
        if not rows:
            raise ValueError("`audio` must have at least one sound. Received none")
        label_count = max(map(len, rows.values()))
    else:
        sounds = to_sounds(audio)
        rows = {i: sounds[i : i + columns] for i in range(0, len(sounds), columns)}
        label_count = len(sounds)
    labels = to_labels("labels", labels, label_count)
    count = max(map(len, rows.values()))
    drawn_levels = {name: levels(sounds, window_size, hop) for name, sounds in rows.items()}
    top = max(level.max() for level in drawn_levels.values())
    figure = new_figure(max(2.3 * count, 2.5) + 1.2, 1.7 * len(rows) + 0.7)
    figure.suptitle(plain(title))
    axes = figure.subplots(len(rows), count, squeeze=False, sharex=True, sharey=True)
    for i, (row, (name, sounds)) in enumerate(zip(axes, rows.items(), strict=True)):
        for j, axis in enumerate(row):
            if j >= len(sounds):
                axis.remove()
                continue
            drawn = axis.imshow(
                drawn_levels[name][j].T,
                origin="lower",
                aspect="auto",
                extent=(0.0, sounds.shape[1] / sample_rate, 0.0, sample_rate / 2),
                cmap=SEQUENTIAL,
                vmin=top - range_db,
                vmax=top,
            )
            axis.grid(False)
            if labels is not None and (i == 0 or not named):
                axis.set_title(labels[j if named else i * columns + j], fontsize="small")
            if i == len(rows) - 1 or j >= len(list(rows.values())[i + 1]):
                axis.set_xlabel("time (s)")
                axis.tick_params(labelbottom=True)
        begin = f"{plain(name)}\n" if named else ""
        row[0].set_ylabel(f"{begin}frequency (Hz)")
    figure.colorbar(drawn, ax=[axis for axis in axes.ravel() if axis.figure is not None], label="level (dB)", pad=0.02)
    return finish(figure, path)


def levels(sounds, window_size, hop):
    """Levels over time and frequency, where a full tone has 0.

    Args:
        sounds: floats in [-1, 1], `(N, T)`.
        window_size, hop: in samples.

    Returns:
        Decibels, an array `(N, frames, window_size / 2 + 1)`.
    """
    size = ops.convert_to_numpy(magnitude(*stft(sounds, window_size, hop), 1e-10))
    return 20.0 * np.log10(size / (window_size / 4))
