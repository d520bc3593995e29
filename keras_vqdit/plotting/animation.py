"""Animations: how examples arise, as a GIF."""

import base64
import io

import numpy as np
from PIL import Image

from keras_vqdit.checks import number
from keras_vqdit.plotting.drawing import check_suffix, to_numpy
from keras_vqdit.plotting.images import image_grid
from keras_vqdit.saving import atomic_path


class Animation:
    """An animated GIF that a notebook shows of its own accord.

    Attributes:
        frames: number of frames.
        data: the file, bytes.
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
        return f'<img alt="{self.title}" src="data:image/gif;base64,{base64.b64encode(self.data).decode()}"/>'


def animation(
    steps, times=None, *, columns=None, row_labels=None, seconds=4.0, title="From noise to image", dpi=90, path=None
):
    """Draw how images arise, as an animated GIF: a frame a step, then the result for two seconds.

    Args:
        steps: images `(S, N, H, W, C)`, or a list of S arrays `(N, H, W, C)`, as in the `"noisy"` or `"clean"` of a trajectory of
            `LatentDiffusion.generate`.
        times: `(S,)`, time of each step, written above it; or None.
        columns: number of columns of the images. Default: about a square.
        row_labels: a label a row, or None.
        seconds: how long the steps take together. Defaults to 4.
        title: title of each frame.
        dpi: pixels an inch. Defaults to 90.
        path: file to write, `.gif`, or None.

    Returns:
        `Animation`.

    Example:
        ```python
        images, trajectory = model.generate(range(10), return_trajectory=True)
        plotting.animation(trajectory["noisy"], trajectory["times"], columns=10, path="digits.gif")
        ```
    """
    number("seconds", seconds, above=0)
    number("dpi", dpi, above=0)
    steps = [to_numpy(step) for step in steps]
    if not steps:
        raise ValueError("`steps` must have at least one step. Received none")
    if path is not None:
        check_suffix(path, ["gif"])
    if times is not None:
        times = np.asarray(to_numpy(times), "float64")
        if times.shape != (len(steps),):
            raise ValueError(f"`times` must be one time a step, ({len(steps)},). Received: shape {times.shape}")
    frames = []
    for i, images in enumerate(steps):
        label = None if times is None else f"time t = {times[i]:.2f} (1 is noise, 0 is data)"
        figure = image_grid(images, columns=columns, row_labels=row_labels, title=title, xlabel=label)
        figure.set_dpi(dpi)
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()))
    durations = [max(20, round(1000 * seconds / len(frames)))] * (len(frames) - 1) + [2000]
    # One palette for all, that of the last frame and the first, so that colours do not flicker.
    both = Image.fromarray(np.concatenate([np.asarray(frames[0]), np.asarray(frames[-1])]))
    palette = both.quantize(128)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=1)
    made = Animation(len(frames), buffer.getvalue(), title)
    if path is not None:
        made.save(path)
    return made
