"""What all figures share: colours, texts, scales, checks of arguments, images, lines and files."""

import io
import os
from pathlib import Path

import numpy as np
from keras import ops
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from keras_vqdit.saving import atomic_path, short

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
MANY = 6  # more names than that stand beside the axes, for they would cover the data


# === Figures and files ===


class NotebookFigure(Figure):
    """A figure that a notebook shows of its own accord, without pyplot."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI, **MARGINS)
        png = buffer.getvalue()
        # The pixels of a DPI of 150, at the size of one of 96, so that letters are as large as the text around them.
        width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
        return png, {"width": round(width * 96 / DPI), "height": round(height * 96 / DPI)}


def new_figure(width, height, layout="constrained"):
    figure = NotebookFigure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)  # becomes its canvas
    return figure


def finish(figure, path):
    """Write a figure to `path`, where one is given, and return it."""
    if path is not None:
        check_suffix(path, figure.canvas.get_supported_filetypes().keys() - {"pgf"})  # that one needs a TeX
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=DPI, **MARGINS)
    return figure


def check_suffix(path, kinds):
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"`path` must be a string or a path. Received: path={short(repr(path))}")
    if Path(path).suffix[1:].lower() not in kinds:
        raise ValueError(
            f"`path` must end in one of {', '.join(f'.{kind}' for kind in sorted(kinds))}. Received: path={path!s}"
        )


# === Texts ===


def plain(text):
    """A text as it is, without mathematics between dollars; of `None` none."""
    return "" if text is None else str(text).replace("$", r"\$")


def legend_name(name):
    """A name for a legend, from which Matplotlib leaves out those that are empty or begin with `_`."""
    text = plain(name)
    return f"\u200b{text}" if text[:1] in ("", "_") else text  # a space without width


def legend(axis, count, **options):
    """A legend where there are several names, beside the axes where there are many."""
    if count > MANY:
        options |= {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    if count > 1:
        axis.legend(fontsize="small", **{"framealpha": 0.9} | options)


def write(format, value):
    """A number, written as `format` says."""
    try:
        return plain(format.format(value))
    except (AttributeError, LookupError, ValueError):
        raise ValueError(f"`format` must be one of a number, such as '{{:.3g}}'. Received: {format!r}") from None


# === Series, told apart without colours ===


def style(place):
    """Colour, line style, marker and hatch of a series. From the ninth on the last three move on, so that 64 differ."""
    colors, shifted = place % len(COLORS), (place + place // len(COLORS)) % len(COLORS)
    return COLORS[colors], LINE_STYLES[shifted], MARKERS[shifted], HATCHES[shifted]


def draw_line(axis, name, x, y, place, markers=None):
    """A line in the style of its place, with markers where they are wanted, or by default no more than 40."""
    color, line, marker, _ = style(place)
    few = len(x) <= 40 if markers is None else markers
    look = {"color": color, "linestyle": line, "marker": marker if few else None, "markersize": 4, "linewidth": 1.5}
    axis.plot(x, y, label=legend_name(name), **look)


# === Logarithmic scales ===


def log_scale(axis, which="y"):
    """A logarithmic scale. Call it after the data are drawn: its numbers depend on the limits."""
    getattr(axis, f"set_{which}scale")("log")
    log_numbers(getattr(axis, f"{which}axis"))


def log_numbers(axis):
    """Numbers of a logarithmic axis, also of a bar of colours: of few decades 1, 2 and 5, of many powers of ten."""
    low, high = sorted(axis.get_view_interval())
    axis.set_minor_formatter(NullFormatter())
    if high <= 1000 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))


# === Images ===


def draw_array(axis, values, **options):
    """An image, or a map, on an axis without marks, whatever the user's settings say of images and grids."""
    axis.grid(False)
    axis.set(xticks=[], yticks=[])
    return axis.imshow(values, **{"origin": "upper", "aspect": "equal", "interpolation": "nearest"} | options)


def show_image(axis, image):
    """Pixels `(H, W, C)`, as `to_pixels` gives them."""
    gray = image.shape[-1] == 1
    options = {"cmap": "gray" if gray else None, "vmin": 0.0, "vmax": 1.0, "interpolation": "antialiased"}
    return draw_array(axis, image[..., 0] if gray else image, **options)


# === Checks of arguments ===


def real(values):
    """Real numbers of an array, a tensor or lists, as NumPy; `None` of all else, such as text or ragged lists."""
    try:
        array = np.asarray(ops.convert_to_numpy(values))
    except (TypeError, ValueError):
        return None
    array = array.astype("float32") if array.dtype.name == "bfloat16" else array
    return array if array.dtype.kind in "biuf" else None


def received(values):
    """What came, for errors: kind and shape of numbers, else the value itself."""
    array = real(values)
    return short(repr(values)) if array is None else f"{array.dtype}, shape {array.shape}"


def numbers(name, values, ndim, wanted):
    """Numbers as float64, of which there is at least one.

    Args:
        name: the argument's name.
        values: what was given.
        ndim: number of axes.
        wanted: what it must be, for the error.

    Raises:
        ValueError: if they are no real numbers, of other axes, or too large to be drawn; infinite ones and NaN pass.
    """
    array = real(values)
    if array is None or array.ndim != ndim or not array.size:
        raise ValueError(f"`{name}` must be {wanted}. Received: {received(values)}")
    array = array.astype("float64")
    if np.any(np.abs(array[np.isfinite(array)]) > 1e300):  # Matplotlib's margins would overflow
        raise ValueError(f"`{name}` must be at most 1e300 in size. Received: {array.min():g} to {array.max():g}")
    return array


def to_labels(name, labels, count=None):
    """Labels as a list of texts to draw; `None` of `None`.

    Raises:
        ValueError: if there are not `count` of them.
    """
    if labels is None:
        return None
    try:
        texts = [plain(label) for label in (ops.convert_to_numpy(labels) if ops.is_tensor(labels) else labels)]
    except TypeError:
        raise ValueError(f"`{name}` must be a list of labels. Received: {name}={labels!r}") from None
    if count is not None and len(texts) != count:
        raise ValueError(f"`{name}` must have {count} entries. Received: {len(texts)}")
    return texts


def to_sounds(audio):
    """Sounds as float32 `(N, T)`."""
    sounds = real(audio)
    if sounds is not None and sounds.ndim == 3 and sounds.shape[2] == 1:
        sounds = sounds[..., 0]
    if sounds is None or sounds.ndim != 2 or sounds.dtype.kind != "f" or not sounds.shape[1]:
        raise ValueError(f"`audio` must be floats (N, T) or (N, T, 1). Received: {received(audio)}")
    if not len(sounds):
        raise ValueError("`audio` must have at least one sound. Received none")
    if not np.all(np.isfinite(sounds)):
        raise ValueError("`audio` must be finite. Received: NaN or infinite values")
    if np.max(np.abs(sounds)) > 1e6:  # the power of more would overflow
        raise ValueError(f"`audio` must be in [-1, 1]. Received: values up to {np.max(np.abs(sounds)):.3g}")
    return sounds.astype("float32")


def to_pixels(images, name):
    """Images as float64 `(N, H, W, C)` in [0, 1]."""
    pixels = real(images)
    if pixels is not None and pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels is None or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or pixels.size == 0:
        raise ValueError(f"`{name}` must be images (N, H, W) or (N, H, W, 1 or 3). Received: {received(images)}")
    if pixels.dtype == np.uint8:
        return pixels / 255.0
    if pixels.dtype.kind == "f" and not np.all(np.isfinite(pixels)):
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinite values")
    if pixels.dtype.kind != "f" or np.max(np.abs(pixels)) > 20.0:  # noise in pixel space stays well below
        raise ValueError(
            f"`{name}` must be uint8, or floats in [-1, 1]. Received: {pixels.dtype}, up to {np.max(np.abs(pixels))}"
        )
    return np.clip(pixels.astype("float64") / 2.0 + 0.5, 0.0, 1.0)


def to_steps(steps, times):
    """Steps of images as a list of pixels `(N, H, W, C)`, and their times `(S,)`, or `None`."""
    wanted = "one or more arrays of images (N, H, W) or (N, H, W, 1 or 3), a step each, of one shape"
    try:
        steps = list(steps)
    except TypeError:
        raise ValueError(f"`steps` must be {wanted}. Received: {received(steps)}") from None
    arrays = [real(step) for step in steps]
    # One image a step, (H, W, C), would pass for H images that are one or three pixels wide.
    single = [a is not None and a.ndim == 3 and a.shape[-1] in (1, 3) for a in arrays]
    if not steps or any(single) or any(a is None or a.ndim not in (3, 4) for a in arrays):
        kinds = list(dict.fromkeys(map(received, steps))) or ["none"]
        raise ValueError(f"`steps` must be {wanted}. Received: {'; '.join(kinds)}")
    pixels = [to_pixels(step, "steps") for step in arrays]
    if len(shapes := {step.shape for step in pixels}) > 1:
        raise ValueError(f"`steps` must be {wanted}. Received: shapes {', '.join(map(str, sorted(shapes)))}")
    if times is not None:
        wanted = f"one time a step, ({len(pixels)},)"
        array = numbers("times", times, 1, wanted)
        if len(array) != len(pixels) or not np.all(np.isfinite(array)):
            raise ValueError(f"`times` must be {wanted}, and finite. Received: {short(repr(times))}")
        times = array
    return pixels, times
