"""Animations: how examples arise, as a GIF."""

import base64
import html
import io

import numpy as np
from PIL import Image

from keras_vqdit.checks import number, positive_integer
from keras_vqdit.plotting.drawing import check_suffix, to_steps
from keras_vqdit.plotting.images import _grid
from keras_vqdit.saving import atomic_path


class Animation:
    """An animated GIF that a notebook shows of its own accord.

    Attributes:
        frames: number of frames of the file, which joins steps that look alike.
        data: the file, bytes.
        title: title of each frame.
    """

    def __init__(self, frames, data, title):
        self.frames, self.data, self.title = frames, data, title

    def save(self, path):
        """Write the GIF to `path`, which must end in `.gif`."""
        check_suffix(path, ["gif"])
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.data)

    def __repr__(self):
        return f"<Animation {self.title!r}: {self.frames} frames, {len(self.data) / 1e3:.0f} kB>"

    def _repr_html_(self):
        data = base64.b64encode(self.data).decode()
        return f'<img alt="{html.escape(str(self.title))}" src="data:image/gif;base64,{data}"/>'


def animation(
    steps, times=None, *, columns=None, row_labels=None, seconds=4.0, title="From noise to image", dpi=90, path=None
):
    """Draw how images arise, as an animated GIF: a frame a step, then the result for two seconds.

    Args:
        steps: images `(S, N, H, W, C)`, or a list of S arrays `(N, H, W[, C])`, as in the `"noisy"` or `"clean"` of a
            trajectory of `LatentDiffusion.generate`.
        times: `(S,)`, time of each step, written below it. Defaults to `None`: none is written.
        columns: number of columns of the images. Default: about a square.
        row_labels: a label a row. Defaults to `None`, none.
        seconds: how long all steps before the result take together, from 0.1 to 600; but none less than 0.02. Defaults
            to 4.
        title: title of each frame. Defaults to `"From noise to image"`.
        dpi: pixels an inch, from 10 to 600. Defaults to 90.
        path: file to write, `.gif`. Defaults to `None`, none.

    Returns:
        `Animation`.

    Raises:
        ValueError: if the steps are no images, or of different shapes; if there are not as many times or labels; if
            `seconds` or `dpi` are out of range; or if `path` does not end in `.gif`.

    Example:
        ```python
        images, trajectory = model.generate(range(10), return_trajectory=True)
        plotting.animation(trajectory["noisy"], trajectory["times"], columns=10, path="digits.gif")
        ```
    """
    number("seconds", seconds, 0.1, 600)
    number("dpi", dpi, 10, 600)
    if columns is not None:
        positive_integer("columns", columns)
    if path is not None:
        check_suffix(path, ["gif"])
    steps, times = to_steps(steps, times)
    frames = []
    for i, pixels in enumerate(steps):
        label = None if times is None else f"time t = {times[i]:.2f} (1 is noise, 0 is data)"
        figure = _grid(pixels, None, columns, row_labels, None, title, label)
        figure.set_dpi(dpi)
        figure.canvas.draw()
        frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    # A GIF counts hundredths of a second; rounded as times at which frames begin, the sum is right.
    begins = np.round(np.linspace(0.0, 100 * seconds, len(frames)))
    durations = [*np.maximum(10 * np.diff(begins), 20).astype(int).tolist(), 2000]
    # One palette for all, that of the last frame and the first, so that colours do not flicker. White is one of its
    # own, for the background would turn grey if it shared one with the lightest greys.
    colors = Image.fromarray(np.concatenate([frames[0], frames[-1]])).quantize(127)
    palette = (colors.getpalette() + [0] * 381)[:381] + [255] * 3
    colors.putpalette(palette)
    drawn = []
    for frame in frames:
        places = np.array(Image.fromarray(frame).quantize(palette=colors, dither=Image.Dither.NONE))
        places[np.all(frame == 255, axis=-1)] = 127
        drawn.append(Image.fromarray(places))
        drawn[-1].putpalette(palette)
    buffer = io.BytesIO()
    drawn[0].save(buffer, "GIF", save_all=True, append_images=drawn[1:], duration=durations, loop=0, disposal=1)
    with Image.open(buffer) as file:
        made = Animation(getattr(file, "n_frames", 1), buffer.getvalue(), "" if title is None else str(title))
    if path is not None:
        made.save(path)
    return made
