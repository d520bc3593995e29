"""Figures of sounds."""

import numpy as np

from keras_vqdit import checks
from keras_vqdit.checks import positive_integer
from keras_vqdit.layers.spectrogram import check_window, magnitude, stft
from keras_vqdit.plotting.drawing import SEQUENTIAL, finish, new_figure, to_numpy, to_sounds


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
    rows = {name: to_sounds(sounds)[:columns] for name, sounds in audio.items()} if isinstance(audio, dict) else None
    if rows is None:
        sounds = to_sounds(audio)
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
        size = to_numpy(magnitude(*stft(sounds, window_size, hop), 1e-10))
        levels[name] = 20.0 * np.log10(size / (window_size / 4))  # a full tone has 0 dB
    top = max(level.max() for level in levels.values())
    figure = new_figure(max(2.3 * count, 2.5) + 1.2, 1.7 * len(rows) + 0.7)
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
    return finish(figure, path)
