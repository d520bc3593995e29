"""Draw the picture of the README, docs/tour.png, with the presets: `python docs/picture.py` (needs the extra `text`)."""

from pathlib import Path

import keras
import numpy as np

import keras_vqdit as kv
from keras_vqdit.plotting.codes import draw_code_map
from keras_vqdit.plotting.drawing import DPI, MARGINS, SEQUENTIAL, NotebookFigure, show_image, to_pixels
from keras_vqdit.plotting.sound import levels

RATE = 8000  # samples a second of the speech
FOLDER = Path(__file__).parent
CAPTIONS = ["eine handgeschriebene Sieben", "the digit 4"]


def panel(figure, title, widths):
    """One strip of the picture: axes of the given widths, with arrows where a width is 0."""
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, y=0.98, ha="left")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.1, top=0.8, wspace=0.1)
    axes = figure.subplots(1, len(widths), width_ratios=[width or 0.22 for width in widths])
    for axis, width in zip(axes, widths, strict=True):
        axis.set(xticks=[], yticks=[])
        if not width:
            axis.set_axis_off()
            axis.annotate("", (0.95, 0.5), (0.05, 0.5), "axes fraction", arrowprops={"arrowstyle": "-|>", "lw": 1.6})
    return axes


def main():
    keras.utils.set_random_seed(0)
    figure = NotebookFigure(figsize=(9.6, 4.5), dpi=DPI)
    strips = figure.subfigures(3, 1, height_ratios=[1.0, 0.8, 1.05])

    tokenizer = kv.VQVAE.from_preset("mnist_tokenizer")
    images = kv.recipes.to_arrays(kv.data.load("mnist_5k")[1], limit=8)[[0, 3]]
    codes = np.asarray(tokenizer.encode(images))
    restored = np.asarray(tokenizer.decode(codes))
    axes = panel(strips[0], "A tokenizer: an image to 49 codes, and back", [1, 0, 1, 0, 1, 0.5, 1, 0, 1, 0, 1])
    axes[5].set_axis_off()
    for i in range(2):
        show_image(axes[6 * i], to_pixels(images[i : i + 1], "images")[0])
        draw_code_map(axes[6 * i + 2], codes[i], tokenizer.num_embeddings, fontsize=3.4)
        show_image(axes[6 * i + 4], to_pixels(restored[i : i + 1], "images")[0])

    model = kv.LatentDiffusion.from_preset("mnist_diffusion")
    drawn, trajectory = model.generate(
        [5, 8], num_steps=20, guidance_scale=1.5, seed=3, verbose=0, return_trajectory=True
    )
    shown = trajectory["noisy"][[0, 8, 12, 15, 17, 20]]
    axes = panel(
        strips[1],
        "A diffusion transformer: noise to latents, their codes, and so to images",
        [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
    )
    for step, axis in zip(shown, axes[::2], strict=True):
        show_image(axis, to_pixels(np.concatenate([step[:1], step[1:]], axis=2), "images")[0])

    model = kv.MultimodalDiffusion.from_preset("multimodal_digits")
    made = model.generate({"text": CAPTIONS}, want=["image", "audio"], seed=0, verbose=0, **model.card["generate"])
    title = "Any to any: a caption to an image and to speech (and each to every other)"
    axes = panel(strips[2], title, [1.9, 0, 1, 0.25, 1.7, 0.2, 1.1, 0, 1, 0.25, 1.7])
    power = levels(made["audio"][..., 0], 256, 32)
    for i, caption in enumerate(CAPTIONS):
        text, _, image, gap, sound = axes[6 * i : 6 * i + 5]
        for axis in (text, gap, *axes[5:6]):
            axis.set_axis_off()
        text.text(0.5, 0.5, f"“{caption}”".replace(" ", "\n"), fontsize=10, style="italic", ha="center", va="center")
        show_image(image, to_pixels(made["image"][i : i + 1], "images")[0])
        sound.imshow(
            power[i].T, origin="lower", aspect="auto", cmap=SEQUENTIAL, vmin=power.max() - 60, vmax=power.max()
        )
        sound.set_xlabel(f"time: {made['audio'].shape[1] / RATE:.2f} s", fontsize=7)
        sound.set_ylabel(f"0 to {RATE / 2000:g} kHz", fontsize=7)
    figure.savefig(FOLDER / "tour.png", **MARGINS)


if __name__ == "__main__":
    main()
