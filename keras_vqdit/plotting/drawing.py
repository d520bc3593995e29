"""What all figures share: colours, scales, checks of images and sounds, and files."""

import io
from pathlib import Path

import numpy as np
from keras import ops
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from keras_vqdit.saving import atomic_path

# Okabe and Ito: told apart by the colour-blind; line styles, markers and hatches tell them apart in grey.
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
GRAY = "#555555"
COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, "black", GRAY)
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "xx", "\\\\\\", "++", "oo", "--")
SEQUENTIAL = "cividis"  # its lightness rises evenly, for every kind of colour vision and in grey
DPI = 150
MARGINS = {"bbox_inches": "tight", "pad_inches": 0.08}


class NotebookFigure(Figure):
    """A figure that a notebook shows of its own accord, without pyplot."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", **MARGINS)
        png = buffer.getvalue()
        # The pixels of a DPI of 150, at the size of one of 96, so that letters are as large as the text around them.
        width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
        return png, {"width": round(width * 96 / DPI), "height": round(height * 96 / DPI)}


def log_scale(axis, which="y"):
    """A logarithmic scale whose marks are numbers: of few decades at 1, 2 and 5, of many at powers of ten."""
    getattr(axis, f"set_{which}scale")("log")
    low, high = getattr(axis, f"get_{which}lim")()
    if not high > 1000 * low > 0:
        plain_numbers(getattr(axis, f"{which}axis"))


def plain_numbers(axis):
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def new_figure(width, height, layout="constrained"):
    figure = NotebookFigure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)  # becomes its canvas
    return figure


def finish(figure, path):
    """Write a figure to `path`, where one is given, and return it."""
    if path is not None:
        check_suffix(path, figure.canvas.get_supported_filetypes())
        with atomic_path(path) as temporary:
            figure.savefig(temporary, **MARGINS)
    return figure


def check_suffix(path, kinds):
    if Path(path).suffix[1:].lower() not in kinds:
        raise ValueError(
            f"`path` must end in one of {', '.join(f'.{kind}' for kind in sorted(kinds))}. Received: path={path!s}"
        )


def show_image(axis, image):
    axis.set(xticks=[], yticks=[])
    gray = image.shape[-1] == 1
    return axis.imshow(
        image[..., 0] if gray else image,
        cmap="gray" if gray else None,
        vmin=0.0,
        vmax=1.0,
        interpolation="antialiased",
    )


def to_numpy(values):
    return ops.convert_to_numpy(values)


def to_sounds(audio):
    """Sounds as float32 `(N, T)`."""
    audio = np.asarray(to_numpy(audio))
    if audio.ndim == 3 and audio.shape[2] == 1:
        audio = audio[..., 0]
    if audio.ndim != 2 or audio.dtype.kind != "f" or not audio.shape[1]:
        raise ValueError(f"`audio` must be floats (N, T) or (N, T, 1). Received: {audio.dtype}, shape {audio.shape}")
    if not np.all(np.isfinite(audio)):
        raise ValueError("`audio` must be finite. Received: NaN or infinite values")
    return audio.astype("float32")


def to_pixels(images, name):
    """Images as float64 `(N, H, W, C)` in [0, 1]."""
    images = np.asarray(to_numpy(images))
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
