"""Figures: what they show, that they need no display, and that they leave the user's matplotlib alone."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from keras_vqdit import plotting

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1.0, 1.0, (12, 8, 8, 1)).astype("float32")
SOUNDS = (0.5 * np.sin(2 * np.pi * 1000.0 * np.arange(1024) / 8000.0) * np.ones((3, 1))).astype("float32")
SCORES = RNG.dirichlet(np.ones(12), (2, 3, 12))  # of 2 layers and 3 heads, 12 positions
LOGS = {"loss": [3.0, 2.0, 1.0], "val_loss": [3.1, 2.2, 1.3], "psnr": [10.0, 12.0, 15.0]}

FIGURES = {
    "training_curves": lambda path: plotting.training_curves({"tokenizer": LOGS, "diffusion": LOGS}, path=path),
    "reconstructions": lambda path: plotting.reconstructions(IMAGES, 0.5 * IMAGES, path=path),
    "codebook_usage": lambda path: plotting.codebook_usage([3, 0, 5, 9], path=path),
    "code_maps": lambda path: plotting.code_maps(np.arange(18).reshape(2, 3, 3), images=IMAGES[:2], path=path),
    "image_grid": lambda path: plotting.image_grid(IMAGES, row_labels=range(3), path=path),
    "spectrograms": lambda path: plotting.spectrograms({"original": SOUNDS, "restored": 0.5 * SOUNDS}, 8000, path=path),
    "lines": lambda path: plotting.lines({"a": [1.0, 2.0]}, xlabel="step", ylabel="loss", title="Lines", path=path),
    "bars": lambda path: plotting.bars({"a": 1.0, "b": 2.0}, xlabel="latency (ms)", title="Bars", path=path),
    "heatmap": lambda path: plotting.heatmap(
        [[1.0, 2.0]], row_labels=["a"], column_labels=[1, 2], title="Table", path=path
    ),
    "attention_maps": lambda path: plotting.attention_maps(
        SCORES, (3, 4), query=5, image=IMAGES[0], title="Attention", path=path
    ),
    "codebook_projection": lambda path: plotting.codebook_projection(
        RNG.normal(size=(4, 3)), counts=[3, 0, 5, 9], vectors=RNG.normal(size=(20, 3)), path=path
    ),
    "trajectory": lambda path: plotting.trajectory([IMAGES[:2]] * 3, [1.0, 0.5, 0.0], path=path),
}


def texts(figure):
    found = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
    return [text for text in found if text]


def drawn(figure):
    """Arrays of all drawn images, without those of colour bars."""
    return [image.get_array() for image in figure.findobj(matplotlib.image.AxesImage)]


# === All of them ===


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_returned_titled_and_written(name, tmp_path):
    path = tmp_path / "new" / "folder" / f"{name}.png"
    figure = FIGURES[name](path)
    assert isinstance(figure, Figure)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    titles = [axis.get_title() for axis in figure.axes] + [figure.get_suptitle()]
    assert any(titles)


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off(name):
    figure = FIGURES[name](None)
    figure.canvas.draw()
    content = figure.get_tightbbox()  # in inches
    width, height = figure.get_size_inches()
    assert content.x0 >= -0.01 and content.y0 >= -0.01
    assert content.x1 <= width + 0.01 and content.y1 <= height + 0.01


def test_no_display_no_open_figures_and_no_change_of_settings():
    code = """
import sys, matplotlib
settings = dict(matplotlib.rcParams.copy())
from tests.test_plotting import FIGURES
for draw in FIGURES.values():
    draw(None).canvas.draw()
pyplot = sys.modules.get("matplotlib.pyplot")  # Keras imports it
assert pyplot is None or not pyplot.get_fignums(), "a figure was left open"
assert dict(matplotlib.rcParams.copy()) == settings
"""
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[1])


# === Training curves ===


def test_training_and_validation_share_a_panel_and_differ_in_line_style():
    figure = plotting.training_curves(LOGS)
    loss, psnr = figure.axes
    assert (loss.get_title(), psnr.get_title(), psnr.get_ylabel(), loss.get_xlabel()) == (
        "loss",
        "psnr",
        "dB",
        "epoch",
    )
    train, validation = loss.lines
    np.testing.assert_array_equal(train.get_data(), ([1, 2, 3], [3.0, 2.0, 1.0]))
    np.testing.assert_array_equal(validation.get_ydata(), [3.1, 2.2, 1.3])
    assert train.get_linestyle() != validation.get_linestyle() and train.get_marker() != validation.get_marker()
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]


def test_histories_of_keras_continue_at_their_first_epoch():
    history = keras.callbacks.History()
    history.history, history.epoch = {"loss": [1.0, 0.5]}, [4, 5]
    line = plotting.training_curves({"later": history}).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [5, 6])


def test_every_model_has_its_row():
    figure = plotting.training_curves({"one": LOGS, "two": {"loss": [1.0]}})
    assert len(figure.axes) == 3 and {"one", "two"} <= set(texts(figure))


def test_losses_over_magnitudes_are_drawn_logarithmically():
    assert plotting.training_curves({"loss": [100.0, 1.0]}).axes[0].get_yscale() == "log"
    assert plotting.training_curves({"loss": [100.0, 90.0]}).axes[0].get_yscale() == "linear"
    assert plotting.training_curves({"loss": [100.0, -1.0]}).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("histories", [{}, 5, {"loss": 1.0}])
def test_no_history_is_an_error(histories):
    with pytest.raises(ValueError, match="`histories` must be what `fit` returns"):
        plotting.training_curves(histories)


# === Reconstructions ===


def test_reconstructions_show_the_absolute_error_and_the_psnr():
    figure = plotting.reconstructions(IMAGES, 0.5 * IMAGES, columns=4)
    first, second, error = (np.stack(drawn(figure)[i : i + 4]) for i in (0, 4, 8))
    np.testing.assert_allclose(first, IMAGES[:4, ..., 0] / 2 + 0.5, atol=1e-6)
    np.testing.assert_allclose(second, IMAGES[:4, ..., 0] / 4 + 0.5, atol=1e-6)
    np.testing.assert_allclose(error, np.abs(IMAGES[:4, ..., 0]) / 4, atol=1e-6)
    psnr = 10 * np.log10(4 / np.mean((IMAGES[0] / 2) ** 2))  # the range is 2
    assert f"{psnr:.1f} dB" in texts(figure) and "PSNR" in texts(figure)


def test_errors_share_one_scale():
    worse = IMAGES.copy()
    worse[1] += 0.5
    limits = {image.get_clim() for axis in plotting.reconstructions(IMAGES, worse).axes[16:24] for image in axis.images}
    assert len(limits) == 1


def test_different_shapes_are_an_error():
    with pytest.raises(ValueError, match="of one shape"):
        plotting.reconstructions(IMAGES, IMAGES[:3])


# === Codes ===


def test_codebook_usage_counts_codes_and_perplexity():
    figure = plotting.codebook_usage([10, 0, 30, 40, 20])
    share = np.array([0.1, 0.3, 0.4, 0.2])
    perplexity = np.exp(-np.sum(share * np.log(share)))
    axis = figure.axes[0]
    assert axis.get_title() == f"Codebook usage: 4 of 5 codes (80.0 %), perplexity {perplexity:.1f}"
    assert axis.get_yscale() == "log" and "1 never chosen" in texts(figure)
    stairs = next(p for p in axis.patches if isinstance(p, matplotlib.patches.StepPatch))
    np.testing.assert_array_equal(stairs.get_data().values, [40, 30, 20, 10])


@pytest.mark.parametrize("counts", [[], [0, 0], [-1, 2], [[1, 2]]])
def test_counts_must_be_counts(counts):
    with pytest.raises(ValueError, match="`counts` must be"):
        plotting.codebook_usage(counts)


def test_code_maps_write_the_codes_and_leave_masked_ones_blank():
    figure = plotting.code_maps(np.array([[[3, -1], [7, 511]]]), num_embeddings=512)
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == ["3", "7", "511"]
    assert drawn(figure)[0].mask.tolist() == [[False, True], [False, False]]
    assert len(plotting.code_maps(np.zeros((5, 100), int)).axes) == 2  # sequences: one map and the colour bar


def test_codes_must_be_integers_and_images_as_many():
    with pytest.raises(ValueError, match="`codes` must be integers"):
        plotting.code_maps(np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="as many as the maps"):
        plotting.code_maps(np.zeros((2, 3, 3), int), images=IMAGES)


# === Generation ===


def test_image_grid_puts_images_row_after_row():
    figure = plotting.image_grid(IMAGES, row_labels=["a", "b", "c"], ylabel="class")
    sheet = drawn(figure)[0]
    step = sheet.shape[1] - 3 * 9  # tiles of 8 with gaps of 1
    assert step == 8 and sheet.shape == (26, 35)
    for i, image in enumerate(IMAGES):
        y, x = 9 * (i // 4), 9 * (i % 4)
        np.testing.assert_allclose(sheet[y : y + 8, x : x + 8], image[..., 0] / 2 + 0.5, atol=1e-6)
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "a",
        "b",
        "c",
    ] and axis.get_ylabel() == "class"


def test_image_grid_takes_columns_rows_of_rows_and_colour():
    assert drawn(plotting.image_grid(IMAGES[:7], columns=3))[0].shape == (26, 26)
    assert drawn(plotting.image_grid(IMAGES.reshape(2, 6, 8, 8, 1)))[0].shape == (17, 53)
    color = np.full((2, 8, 8, 3), 255, "uint8") * np.array([1, 0, 0], "uint8")
    sheet = drawn(plotting.image_grid(color, rows=1))[0]
    np.testing.assert_array_equal(sheet[0, 0], [1.0, 0.0, 0.0])


def test_trajectory_keeps_the_first_and_the_last_step():
    steps, times = (
        np.linspace(-1, 1, 21)[:, None, None, None, None] * np.ones((21, 2, 8, 8, 1)),
        np.linspace(1, 0, 21),
    )
    figure = plotting.trajectory(steps, times, columns=5)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["1.00", "0.75", "0.50", "0.25", "0.00"]
    sheet = drawn(figure)[0]
    np.testing.assert_allclose([sheet[0, 0], sheet[0, 9], sheet[9, -1]], [0.0, 0.25, 1.0], atol=1e-6)


def test_labels_and_times_must_fit():
    with pytest.raises(ValueError, match="`row_labels` must have 4 entries"):
        plotting.image_grid(IMAGES, rows=4, row_labels="abc")
    with pytest.raises(ValueError, match="`times` must be one time a step"):
        plotting.trajectory([IMAGES] * 3, [1.0, 0.0])


# === Images ===


def test_tensors_uint8_and_images_without_channels_are_images_too():
    expected = drawn(plotting.image_grid(IMAGES))[0]
    np.testing.assert_allclose(drawn(plotting.image_grid(keras.ops.convert_to_tensor(IMAGES)))[0], expected)
    np.testing.assert_allclose(drawn(plotting.image_grid(IMAGES[..., 0]))[0], expected)
    as_uint8 = np.round((IMAGES + 1) * 127.5).astype("uint8")
    np.testing.assert_allclose(drawn(plotting.image_grid(as_uint8))[0], expected, atol=1 / 255)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 8, 8, 2)), np.zeros((8, 8)), 255.0 * np.ones((2, 8, 8, 1)), np.ones((2, 8, 8, 1), int)],
)
def test_what_is_no_image_is_refused(images):
    with pytest.raises(ValueError, match="`images` must be"):
        plotting.image_grid(images)


def test_a_failed_figure_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    plotting.image_grid(IMAGES, path=path)
    before = path.read_bytes()

    def fail_halfway(self, target, **_):
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail_halfway)
    with pytest.raises(OSError, match="No space"):
        plotting.image_grid(IMAGES, path=path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize("options", [{"path": "grid"}, {"path": "grid.docx"}, {"columns": 0}, {"rows": 1.5}])
def test_wrong_paths_and_sizes(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must"):
        plotting.image_grid(IMAGES, **options)
    assert list(tmp_path.iterdir()) == []


# === Sound ===


def test_spectrograms_show_levels_over_seconds_and_hertz():
    figure = plotting.spectrograms({"original": SOUNDS, "half": 0.5 * SOUNDS[..., None]}, 8000, labels=["a", "b", "$c"])
    images = figure.findobj(matplotlib.image.AxesImage)
    images = [image for image in images if image.get_array().ndim == 2 and image.get_array().shape[0] == 129]
    assert len(images) == 6
    for image, expected in zip(images, [0.5] * 3 + [0.25] * 3, strict=True):
        level, extent = image.get_array(), image.get_extent()
        assert list(extent) == [0.0, 1024 / 8000, 0.0, 4000.0]
        row = int(np.argmax(level[:, 16]))
        assert row * 4000.0 / 128 == 1000.0
        assert abs(level[row, 16] - 20 * np.log10(expected)) < 0.1
        assert image.get_clim()[1] - image.get_clim()[0] == pytest.approx(70.0)
    found = texts(figure)
    for text in ("time (s)", "original\nfrequency (Hz)", "level (dB)", "$c"):
        assert text in found


def test_a_row_of_spectrograms_that_is_not_full():
    figure = plotting.spectrograms(SOUNDS, 8000, columns=2, labels=[0, 1, 2])
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "audio, options, message",
    [
        (SOUNDS[0], {}, r"must be floats \(N, T\) or \(N, T, 1\)"),
        (SOUNDS[:0], {}, "at least one sound"),
        (np.full((1, 64), np.nan, "float32"), {}, "must be finite"),
        (SOUNDS, {"labels": ["a"]}, "`labels` must have 3 entries. Received: 1"),
    ],
)
def test_errors_of_spectrograms(audio, options, message):
    with pytest.raises(ValueError, match=message):
        plotting.spectrograms(audio, 8000, **options)


# === Charts ===


def test_lines_are_told_apart_without_colours():
    figure = plotting.lines(
        {"a": [1.0, 2.0], "b": ([1, 10], [3.0, 4.0])},
        xlabel="step",
        ylabel="loss (nats)",
        log_x=True,
        marks={"kill": 2},
    )
    axis = figure.axes[0]
    first, second, mark = axis.get_lines()
    np.testing.assert_array_equal(first.get_xydata(), [[1, 1], [2, 2]])
    np.testing.assert_array_equal(second.get_xydata(), [[1, 3], [10, 4]])
    assert first.get_linestyle() != second.get_linestyle() and first.get_marker() != second.get_marker()
    assert mark.get_xdata()[0] == 2 and axis.get_xscale() == "log" and axis.get_ylabel() == "loss (nats)"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b", "kill"]


def test_panels_of_lines():
    panels = {name: {"line": [1.0, 2.0]} for name in ("first", "second")}
    figure = plotting.lines(panels, xlabel="t", ylabel=["m", "s"], title="Both")
    assert [axis.get_title() for axis in figure.axes] == ["first", "second"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["m", "s"]


def test_bars_are_as_long_as_their_values():
    groups = {"one": {"Keras": 3.0, "ONNX": 1.0}, "many": {"ONNX": 20.0}}
    for log in (False, True):
        axis = plotting.bars(groups, xlabel="latency (ms)", log=log).axes[0]
        assert [bar.get_x() + bar.get_width() for bar in axis.patches] == pytest.approx([3.0, 1.0, 20.0])
        assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "many"]
        first, second, third = axis.patches
        assert second.get_hatch() == third.get_hatch() != first.get_hatch()
        assert {"3", "1", "20"} <= set(texts(axis.figure))


def test_a_heatmap_tells_its_numbers():
    figure = plotting.heatmap([[1.0, np.nan], [2.0, 3.0]], row_labels="ab", column_labels="cd", unit="dB")
    assert {"1", "2", "3", "a", "d", "dB"} <= set(texts(figure)) and "nan" not in texts(figure)
    image = plotting.heatmap([[1.0, 10.0, 100.0]], row_labels="a", column_labels="bcd", log=True).axes[0].images[0]
    np.testing.assert_allclose(image.norm(image.get_array()), [[0.0, 0.5, 1.0]])


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plotting.lines({}, xlabel="", ylabel=""), "`series` must be a dict of lines"),
        (lambda: plotting.lines({"a": ([1, 2], [1.0])}, xlabel="", ylabel=""), "The line 'a' must be values"),
        (lambda: plotting.bars({"a": 0.0}, xlabel="", log=True), "positive where log=True"),
        (lambda: plotting.bars({}, xlabel=""), "`values` must be a dict of numbers"),
        (lambda: plotting.heatmap([1.0], row_labels="a", column_labels="b"), r"must be numbers \(rows, columns\)"),
        (lambda: plotting.heatmap([[1.0]], row_labels="ab", column_labels="b"), "`row_labels` must have 1 entries"),
        (lambda: plotting.heatmap([[0.0]], row_labels="a", column_labels="b", log=True), "positive where log=True"),
        (lambda: plotting.attention_maps(SCORES, (3, 3)), "with S = 3 x 3 of the grid"),
        (lambda: plotting.attention_maps(SCORES, (3, 4), query=12), "`query` must be from 0 to 11"),
        (lambda: plotting.codebook_projection(np.ones((4, 1))), "D at least 2"),
        (lambda: plotting.codebook_projection(np.eye(4), vectors=np.ones((4, 3))), "as long as the codes, 4"),
        (lambda: plotting.image_grid({"a": IMAGES, "b": IMAGES[:2]}), "must be of one shape"),
        (lambda: plotting.animation([IMAGES] * 2, [1.0]), "`times` must be one time a step"),
        (lambda: plotting.animation([IMAGES], path="a.png"), "`path` must end in one of .gif"),
    ],
)
def test_errors_of_charts_and_maps(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# === Attention, codebooks, animations ===


def test_attention_maps_show_where_the_query_looks():
    maps = drawn(plotting.attention_maps(SCORES, (3, 4), query=5))
    np.testing.assert_allclose([m for m in maps if m.shape == (3, 4)], SCORES[:, :, 5].reshape(6, 3, 4))
    maps = drawn(plotting.attention_maps(SCORES, (3, 4)))
    np.testing.assert_allclose([m for m in maps if m.shape == (3, 4)], SCORES.mean(axis=2).reshape(6, 3, 4))


def test_a_projection_keeps_the_distances_in_the_plane():
    """Codes that lie in a plane of a space of five dimensions are as far apart in the figure as they are."""
    plane = RNG.normal(size=(6, 2))
    basis = np.linalg.qr(RNG.normal(size=(5, 5)))[0][:2]
    axis = plotting.codebook_projection(plane @ basis, title="Codes").axes[0]
    points = np.asarray(axis.collections[0].get_offsets())

    def distances(x):
        return np.linalg.norm(x[:, None] - x[None], axis=-1)

    np.testing.assert_allclose(distances(points), distances(plane), atol=1e-9)
    assert axis.get_title() == "Codes: a plane with 100 % of the variance"


def test_an_animation_has_a_frame_a_step_and_ends_with_the_result(tmp_path):
    steps = np.stack([np.full((2, 8, 8, 1), value, "float32") for value in (-1.0, 0.0, 1.0)])
    made = plotting.animation(steps, [1.0, 0.5, 0.0], columns=2, path=tmp_path / "steps.gif")
    with Image.open(tmp_path / "steps.gif") as gif:
        assert gif.n_frames == made.frames == 3
        values, durations = [], []
        for i in range(3):
            gif.seek(i)
            frame = np.asarray(gif.convert("L"))
            values.append(frame[frame.shape[0] // 2, frame.shape[1] // 4])
            durations.append(gif.info["duration"])
    np.testing.assert_allclose(values, [0, 127, 255], atol=6)
    assert durations[-1] == 2000 > durations[0]
    assert made._repr_html_().startswith("<img") and made.data == (tmp_path / "steps.gif").read_bytes()


def test_rows_of_images_by_name():
    figure = plotting.image_grid({"real": IMAGES[:4], "drawn": IMAGES[4:8]})
    np.testing.assert_allclose(drawn(figure)[0], drawn(plotting.image_grid(IMAGES[:8], columns=4))[0])
    assert {"real", "drawn"} <= set(texts(figure))


def test_a_notebook_shows_a_figure_of_its_own_accord():
    png, size = plotting.image_grid(IMAGES)._repr_png_()
    assert png[:4] == b"\x89PNG" and 100 < size["width"] < 1000
