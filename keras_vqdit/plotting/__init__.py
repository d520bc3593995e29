"""Figures of training, reconstruction, codebooks, attention and generation: functions of arrays, without a display.

Images are uint8, or floats in [-1, 1], `(N, H, W)` or `(N, H, W, C)` with 1 or 3 channels; sounds floats in [-1, 1],
`(N, T)` or `(N, T, 1)`; NumPy arrays or tensors. Every function returns a `matplotlib.figure.Figure`, which shows
itself where it is the last expression of a notebook's cell, and also writes it to `path` where one is given.
(`animation` returns an `Animation`, which does the same as a GIF.) No pyplot: the user's backend, figures and styles
stay as they are. The colour-blind tell the colours apart; in grey, line styles, markers and hatches do it.
"""

from keras_vqdit.plotting.animations import Animation, animation
from keras_vqdit.plotting.attention import attention_maps
from keras_vqdit.plotting.charts import bars, heatmap, lines
from keras_vqdit.plotting.codes import code_maps, codebook_projection, codebook_usage
from keras_vqdit.plotting.images import image_grid, reconstructions, trajectory
from keras_vqdit.plotting.sound import spectrograms
from keras_vqdit.plotting.training import training_curves

__all__ = [
    "Animation",
    "animation",
    "attention_maps",
    "bars",
    "code_maps",
    "codebook_projection",
    "codebook_usage",
    "heatmap",
    "image_grid",
    "lines",
    "reconstructions",
    "spectrograms",
    "training_curves",
    "trajectory",
]
