"""Figures: what they show, that they need no display, and that they leave the user's matplotlib alone."""

import io
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
from keras_vqdit.plotting.codes import draw_code_map
from keras_vqdit.plotting.drawing import style
from keras_vqdit.plotting.sound import levels

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1.0, 1.0, (12, 8, 8, 1)).astype("float32")
SOUNDS = (0.5 * np.sin(2 * np.pi * 1000.0 * np.arange(1024) / 8000.0) * np.ones((3, 1))).astype("float32")
SCORES = RNG.dirichlet(np.ones(12), (2, 3, 12))  # of 2 layers and 3 heads, 12 positions
LOGS = {"loss": [3.0, 2.0, 1.0], "val_loss": [3.1, 2.2, 1.3], "psnr": [10.0, 12.0, 15.0]}

FIGURES = {
    "training_curves": lambda **o: plotting.training_curves({"tokenizer": LOGS, "diffusion": LOGS}, **o),
    "reconstructions": lambda **o: plotting.reconstructions(IMAGES, 0.5 * IMAGES, **o),
    "codebook_usage": lambda **o: plotting.codebook_usage([3, 0, 5, 9], **o),
    "code_maps": lambda **o: plotting.code_maps(np.arange(18).reshape(2, 3, 3), images=IMAGES[:2], **o),
    "image_grid": lambda **o: plotting.image_grid(IMAGES, row_labels=range(3), **o),
    "spectrograms": lambda **o: plotting.spectrograms({"original": SOUNDS, "restored": 0.5 * SOUNDS}, 8000, **o),
    "lines": lambda **o: plotting.lines(
        {"a": [1.0, 2.0], "b": [2.0, 1.0]}, xlabel="step", ylabel="loss", **{"title": "Lines"} | o
    ),
    "bars": lambda **o: plotting.bars({"a": 1.0, "b": 2.0}, xlabel="latency (ms)", **{"title": "Bars"} | o),
    "heatmap": lambda **o: plotting.heatmap(
        [[1.0, 2.0]], row_labels=["a"], column_labels=[1, 2], **{"title": "Table"} | o
    ),
    "attention_maps": lambda **o: plotting.attention_maps(SCORES, (3, 4), query=5, image=IMAGES[0], **o),
    "codebook_projection": lambda **o: plotting.codebook_projection(
        np.eye(4, 3), counts=[3, 0, 5, 9], vectors=np.eye(20, 3), **o
    ),
    "trajectory": lambda **o: plotting.trajectory([IMAGES[:2]] * 3, [1.0, 0.5, 0.0], **o),
}
WITHOUT_IMAGES = ("training_curves", "codebook_usage", "lines", "bars", "codebook_projection")


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
    figure = FIGURES[name](path=path)
    assert isinstance(figure, Figure)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    titles = [axis.get_title() for axis in figure.axes] + [figure.get_suptitle()]
    assert any(titles)


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off(name):
    figure = FIGURES[name]()
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
    draw().canvas.draw()
pyplot = sys.modules.get("matplotlib.pyplot")  # Keras imports it
assert pyplot is None or not pyplot.get_fignums(), "a figure was left open"
assert dict(matplotlib.rcParams.copy()) == settings
"""
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("name", FIGURES)
def test_dollars_are_no_mathematics(name):
    figure = FIGURES[name](title=r"$5 to $\x_$")
    figure.canvas.draw()  # fails at the mathematics of `\x`
    assert any(r"\x_" in text for text in texts(figure))


def test_dollars_in_names_and_labels():
    name, two = r"$\x$", {r"$\x$": 1.0, "b": 2.0}
    lines = {name: [1.0, 2.0], "b": [2.0, 1.0]}
    axes = {"xlabel": name, "ylabel": name}
    labels = {"row_labels": [name], "column_labels": [name]}
    figures = [
        plotting.lines({name: lines}, marks={name: 1}, **axes),
        plotting.bars({name: two}, xlabel=name, format="${:g}$"),
        plotting.heatmap([[1.0]], unit=name, format="${:g}$", **axes, **labels),
        plotting.training_curves({name: {name: [1.0]}}),
        plotting.attention_maps(SCORES[:1], (3, 4), row_labels=[name]),
        plotting.image_grid(IMAGES[:1], **axes, **labels),
        plotting.image_grid({name: IMAGES[:1]}),
        plotting.spectrograms({name: SOUNDS[:1]}, 8000, labels=[name]),
    ]
    for figure in figures:
        figure.canvas.draw()
        assert not any(matplotlib.cbook.is_math_text(text) for text in texts(figure))


@pytest.mark.parametrize("name", sorted({*FIGURES} - {*WITHOUT_IMAGES}))
def test_settings_of_the_user_do_not_change_images(name, tmp_path):
    FIGURES[name](path=tmp_path / "plain.png")
    with matplotlib.rc_context(
        {"savefig.dpi": 300, "image.origin": "lower", "image.aspect": "auto", "axes.grid": True}
    ):
        FIGURES[name](path=tmp_path / "set.png")
    assert (tmp_path / "set.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


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


def test_curves_have_markers_where_there_are_few_epochs():
    few, many = (plotting.training_curves({"val_loss": np.ones(n)}).axes[0].lines[0] for n in (40, 41))
    assert few.get_marker() == "s" and many.get_marker() == "None" and few.get_linestyle() == "--"


@pytest.mark.parametrize("histories", [{}, 5, {"loss": 1.0}, {"loss": []}, {"loss": ["a"]}, {"a": LOGS, "b": [1.0]}])
def test_no_history_is_an_error(histories):
    with pytest.raises(ValueError, match="must be what `fit` returns, with at least one epoch"):
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


def numbers_at(axis):
    axis.axes.figure.canvas.draw()
    low, high = sorted(axis.get_view_interval())
    return [t.get_text() for t in axis.get_ticklabels() if low <= t.get_position()[axis.axis_name == "y"] <= high]


def test_numbers_of_few_decades_are_1_2_5_and_of_many_are_powers():
    assert numbers_at(plotting.codebook_usage([90, 9, 4]).axes[0].yaxis) == ["2", "5", "10", "20", "50", "100"]
    labels = {"row_labels": "a", "column_labels": "bcd", "log": True}
    codes = np.eye(3)
    assert numbers_at(plotting.heatmap([[1, 2, 30]], **labels).axes[1].yaxis) == ["1", "2", "5", "10", "20"]
    assert numbers_at(plotting.codebook_projection(codes, counts=[1, 2, 8]).axes[1].yaxis) == ["10", "20", "50"]
    wide = [
        plotting.codebook_usage([1e7, 9, 4]).axes[0].yaxis,
        plotting.heatmap([[1e-6, 1, 1e6]], **labels).axes[1].yaxis,
        plotting.codebook_projection(codes, counts=[1, 2, 1e8]).axes[1].yaxis,
        plotting.lines({"a": [1e-5, 1e5]}, xlabel="", ylabel="", log_y=True).axes[0].yaxis,
        plotting.bars({"a": 1e-5, "b": 1e5}, xlabel="", log=True).axes[0].xaxis,
    ]
    for axis in wide:
        found = numbers_at(axis)
        assert 3 <= len(found) <= 9 and all("10^{" in text for text in found)


@pytest.mark.parametrize("counts", [[], [0, 0], [-1, 2], [[1, 2]], [1, np.inf], [1, np.nan], "ab", None, [1j]])
def test_counts_must_be_counts(counts):
    with pytest.raises(ValueError, match="`counts` must be"):
        plotting.codebook_usage(counts)


def test_code_maps_write_the_codes_and_leave_masked_ones_blank():
    figure = plotting.code_maps(np.array([[[3, -1], [7, 511]]]), num_embeddings=512)
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == ["3", "7", "511"]
    assert drawn(figure)[0].mask.tolist() == [[False, True], [False, False]]
    assert len(plotting.code_maps(np.zeros((5, 100), int)).axes) == 2  # sequences: one map and the colour bar
    assert len(plotting.code_maps(np.zeros((12, 2, 2), int)).axes) == 9  # eight maps and the colour bar


def test_a_map_of_codes_can_be_drawn_on_any_axis():
    axis = Figure().subplots()
    image = draw_code_map(axis, np.array([[0, 63, -1]]), 64, fontsize=3)
    assert image.get_clim() == (0, 63) and image.get_array().mask.tolist() == [[False, False, True]]
    assert [(t.get_text(), t.get_color(), t.get_fontsize()) for t in axis.texts] == [
        ("0", "white", 3),
        ("63", "black", 3),
    ]


def test_tall_maps_stay_on_a_page_without_numbers():
    for codes in (np.zeros((300, 16), int), np.zeros((2, 100, 2), int)):
        figure = plotting.code_maps(codes)
        assert figure.get_size_inches()[1] < 13 and not figure.axes[0].texts


def test_codes_must_be_integers_and_images_as_many():
    with pytest.raises(ValueError, match="`codes` must be integers"):
        plotting.code_maps(np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="as many as the maps"):
        plotting.code_maps(np.zeros((2, 3, 3), int), images=IMAGES)
    with pytest.raises(ValueError, match="or −1 where masked. Received: codes down to -2"):
        plotting.code_maps(np.full((2, 3, 3), -2))
    with pytest.raises(ValueError, match="`images` must be `None` for sequences"):
        plotting.code_maps(np.zeros((1, 7), int), images=IMAGES[:1])


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


def test_image_grid_has_the_rows_and_columns_that_are_asked_for():
    assert drawn(plotting.image_grid(IMAGES, rows=9, columns=9))[0].shape == (80, 80)
    assert drawn(plotting.image_grid(IMAGES, rows=5))[0].shape == (44, 26)
    assert drawn(plotting.image_grid({"a": IMAGES}, rows=1, columns=12))[0].shape == (8, 107)
    for images in ({"a": IMAGES}, IMAGES.reshape(1, 12, 8, 8, 1)):
        for given in ("rows", "columns"):
            with pytest.raises(ValueError, match=f"`{given}` must be .*, as the images have. Received: {given}=3"):
                plotting.image_grid(images, **{given: 3})


def test_uint8_and_floats_side_by_side():
    black, also_black = np.full((1, 8, 8), -1.0), np.zeros((1, 8, 8, 1), "uint8")
    gray, also_gray = (
        np.full((1, 8, 8), -0.8),
        np.full((1, 8, 8), 25, "uint8"),
    )  # dark, and so not found out by its range
    for first, second in ((black, also_black), (gray, also_gray)):
        for figure in (
            plotting.image_grid({"float": first, "uint8": second}),
            plotting.trajectory([first, second], [1.0, 0.0]),
        ):
            sheet = drawn(figure)[0]
            assert sheet[0, 0] == pytest.approx(sheet[-1, -1], abs=0.01) and sheet[0, 0] < 0.11
        assert plotting.animation([black, also_black]).frames == 1  # the two look alike


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
    with pytest.raises(ValueError, match="`times` must be one time a step, .*, and finite"):
        plotting.trajectory([IMAGES] * 2, [1.0, np.nan])
    for labels in ([], 3, "abcde"):
        with pytest.raises(ValueError, match="`row_labels` must"):
            plotting.image_grid(IMAGES, row_labels=labels)


@pytest.mark.parametrize("draw", [lambda steps: plotting.trajectory(steps, [1.0, 0.0]), plotting.animation])
@pytest.mark.parametrize(
    "steps", [[], None, 3, "ab", IMAGES, IMAGES[:2, ..., 0], [IMAGES, IMAGES[:3]], [IMAGES, np.zeros((12, 8, 8, 3))]]
)
def test_steps_must_be_images_of_one_shape(draw, steps):
    with pytest.raises(ValueError, match="`steps` must be one or more arrays of images"):
        draw(steps)


@pytest.mark.parametrize("columns", [0, -1, 1.5, True])
def test_columns_must_be_a_positive_integer(columns):
    for draw in (lambda **o: plotting.trajectory([IMAGES], [1.0], **o), lambda **o: plotting.animation([IMAGES], **o)):
        with pytest.raises(ValueError, match="`columns` must be a positive integer"):
            draw(columns=columns)


# === Images ===


def test_tensors_uint8_and_images_without_channels_are_images_too():
    expected = drawn(plotting.image_grid(IMAGES))[0]
    np.testing.assert_allclose(drawn(plotting.image_grid(keras.ops.convert_to_tensor(IMAGES)))[0], expected)
    np.testing.assert_allclose(drawn(plotting.image_grid(IMAGES[..., 0]))[0], expected)
    as_uint8 = np.round((IMAGES + 1) * 127.5).astype("uint8")
    np.testing.assert_allclose(drawn(plotting.image_grid(as_uint8))[0], expected, atol=1 / 255)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 2)),
        np.zeros((8, 8)),
        255.0 * np.ones((2, 8, 8, 1)),
        np.ones((2, 8, 8, 1), int),
        "abc",
        None,
        [[1], [1, 2]],
        {"a": 1.0},
    ],
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


@pytest.mark.parametrize(
    "options", [{"path": "grid"}, {"path": "grid.pgf"}, {"path": 5}, {"columns": 0}, {"rows": 1.5}]
)
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
    for text in ("time (s)", "original\nfrequency (Hz)", "level (dB)", r"\$c"):
        assert text in found
    np.testing.assert_array_equal(images[1].get_array().T, levels(SOUNDS, 256, 32)[1])


def test_a_row_of_spectrograms_that_is_not_full():
    figure = plotting.spectrograms(SOUNDS, 8000, columns=2, labels=[0, 1, 2])
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "audio, options, message",
    [
        (SOUNDS[0], {}, r"must be floats \(N, T\) or \(N, T, 1\)"),
        (SOUNDS[:0], {}, "at least one sound"),
        ({}, {}, "at least one sound"),
        ({"a": SOUNDS[:0], "b": SOUNDS}, {}, "at least one sound"),
        ([[1.0], [1.0, 2.0]], {}, r"must be floats \(N, T\)"),
        (1e200 * SOUNDS.astype("float64"), {}, r"must be in \[-1, 1\]"),
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


def test_few_places_on_a_logarithmic_axis_are_its_ticks():
    few = [((4, 16, 1024), ["4", "16", "1,024"])]
    for places, told in (*few, ((10, 11, 12), None), (range(1, 20), None), ([2**n for n in range(9)], None)):
        axis = plotting.lines({"a": (places, places)}, log_x=True, **LABELS).axes[0]
        ticks = [label.get_text() for label in axis.get_xticklabels()]
        assert (ticks == told) if told else len(ticks) != len(places)


def test_64_series_differ_without_colours_of_their_own():
    assert len({str(style(place)[:2]) for place in range(64)}) == 64
    assert len({str((style(place)[0], style(place)[3])) for place in range(64)}) == 64
    figure = plotting.lines({f"line {i}": [i, i] for i in range(12)}, xlabel="x", ylabel="y")
    looks = {(line.get_color(), str(line._unscaled_dash_pattern), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 12
    bars = plotting.bars({"all": {f"bar {i}": 1.0 for i in range(12)}}, xlabel="x").axes[0].patches
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 12


def test_many_names_stand_beside_the_axes():
    for count, beside in ((6, False), (7, True), (40, True)):
        figure = plotting.lines({f"line {i}": [1.0, 2.0] for i in range(count)}, xlabel="x", ylabel="y")
        figure.canvas.draw()
        (axis,) = figure.axes
        legend = axis.get_legend().get_window_extent()
        assert (legend.x0 > axis.get_window_extent().x1) == beside
        assert axis.get_window_extent().width > 400 and legend.y0 > 0


def test_names_that_begin_with_an_underscore_stay_in_the_legend():
    lines = plotting.lines({"_a": [1.0], "": [2.0]}, xlabel="x", ylabel="y", marks={"_m": 1})
    bars = plotting.bars({"group": {"_a": 1.0, "": 2.0}}, xlabel="x")
    for figure, names in ((lines, ["_a", "", "_m"]), (bars, ["_a", ""])):
        figure.canvas.draw()
        assert [t.get_text().lstrip("\u200b") for t in figure.axes[0].get_legend().get_texts()] == names


@pytest.mark.parametrize(
    "count, markers, expected", [(40, None, True), (41, None, False), (41, True, True), (4, False, False)]
)
def test_markers_where_they_do_not_cover_the_line(count, markers, expected):
    figure = plotting.lines({"a": np.ones(count)}, xlabel="x", ylabel="y", markers=markers)
    assert (figure.axes[0].lines[0].get_marker() != "None") == expected


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


def test_numbers_of_a_heatmap_are_white_on_dark_and_black_on_bright():
    values, labels = [[0.0, 1.0, 9.0, 10.0]], {"row_labels": "a", "column_labels": "bcde"}
    colors = {t.get_text(): t.get_color() for t in plotting.heatmap(values, **labels).axes[0].texts}
    assert colors == {"0": "white", "1": "white", "9": "black", "10": "black"}
    assert not plotting.heatmap(values, format=None, **labels).axes[0].texts


def test_a_large_heatmap_has_neither_numbers_nor_labels_that_cover_each_other():
    figure = plotting.heatmap(np.ones((100, 50)), row_labels=range(100), column_labels=[f"c {i}" for i in range(50)])
    figure.canvas.draw()
    (axis, _), (width, height) = figure.axes, figure.get_size_inches()
    assert not axis.texts and width < 12 and height < 14
    for labels, side in ((axis.get_xticklabels(), 0), (axis.get_yticklabels(), 1)):
        ends = np.array([label.get_window_extent().get_points()[:, side] for label in labels])
        ends = ends[np.argsort(ends[:, 0])]
        assert len(ends) > 10 and np.all(ends[1:, 0] > ends[:-1, 1])
    assert len(plotting.heatmap(np.ones((2, 22)), row_labels="ab", column_labels=range(22)).axes[0].texts) == 44


LABELS = {"xlabel": "", "ylabel": ""}


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plotting.lines({"a": ["b", "c"]}, **LABELS), "The line 'a' must be values"),
        (lambda: plotting.lines({"a": [[1], [1, 2]]}, **LABELS), "The line 'a' must be values"),
        (lambda: plotting.lines({"a": [1j]}, **LABELS), "The line 'a' must be values"),
        (lambda: plotting.lines({"a": None}, **LABELS), "The line 'a' must be values"),
        (lambda: plotting.lines({"a": [1e308, -1e308]}, **LABELS), "at most 1e300"),
        (lambda: plotting.lines({"a": ([np.nan], [1.0])}, **LABELS), "must have a finite x"),
        (lambda: plotting.lines({"a": [1.0, 0.0]}, log_y=True, **LABELS), "positive where log_y=True.*down to 0"),
        (lambda: plotting.lines({"a": ([0, 1], [1, 1])}, log_x=True, **LABELS), "positive where log_x=True.*down to 0"),
        (
            lambda: plotting.lines({"a": [1.0]}, marks={"m": 0}, log_x=True, **LABELS),
            r"`marks\['m'\]` must be .* than 0",
        ),
        (lambda: plotting.lines({"a": [1.0]}, marks=[1], **LABELS), "`marks` must be a dict"),
        (lambda: plotting.lines({"a": {"b": [1.0]}}, xlabel="", ylabel=["y", "z"]), "`ylabel` must have 1 entries"),
        (lambda: plotting.bars({"a": {}, "b": {"x": 1}}, xlabel=""), "`values` must be a dict of numbers"),
        (lambda: plotting.bars({"a": {"x": 1}, "b": 2}, xlabel=""), "`values` must be a dict of numbers"),
        (lambda: plotting.bars({"b": 2, "a": {"x": 1}}, xlabel=""), "`values` must be a dict of numbers"),
        (lambda: plotting.bars({"a": "x"}, xlabel=""), "`values` must be a finite number"),
        (lambda: plotting.bars({"a": 1.0}, xlabel="", format="{:d}"), "`format` must be one of a number"),
        (lambda: plotting.heatmap([["a"]], row_labels="a", column_labels="b"), r"must be numbers \(rows, columns\)"),
        (lambda: plotting.heatmap([[np.nan]], row_labels="a", column_labels="b"), "nothing that is finite"),
        (lambda: plotting.heatmap([[1.0]], row_labels=None, column_labels="b"), "`row_labels` must have 1 entries"),
        (lambda: plotting.attention_maps(SCORES, 12), r"`grid` must be two positive integers, \(h, w\)"),
        (lambda: plotting.attention_maps(SCORES, (-3, -4)), "`grid` must be two positive integers"),
        (lambda: plotting.attention_maps(-SCORES, (3, 4)), r"`scores` must be in \[0, 1\]"),
        (lambda: plotting.attention_maps(SCORES * np.nan, (3, 4)), r"`scores` must be in \[0, 1\]"),
        (lambda: plotting.attention_maps(SCORES, (3, 4), image=IMAGES), "`image` must be one image"),
        (lambda: plotting.attention_maps(SCORES, (3, 4), row_labels="a"), "`row_labels` must have 2 entries"),
        (lambda: plotting.codebook_projection(np.ones((1, 4))), "`codebook` must be at least 2 finite vectors"),
        (lambda: plotting.codebook_projection(np.eye(4), vectors=np.ones((1, 4))), "`vectors` must be at least 2"),
        (lambda: plotting.codebook_projection(np.eye(4), counts=[1, 2]), r"`counts` must be \(4,\), finite"),
        (lambda: plotting.animation([IMAGES], seconds=1e6), "`seconds` must be a finite number, at least 0.1"),
        (lambda: plotting.animation([IMAGES], dpi=1), "`dpi` must be a finite number, at least 10 and at most 600"),
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


def boxes(axis):
    return [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in axis.patches]


def test_attention_maps_mark_the_query_on_image_and_maps():
    """Position 6 of 3 x 4 is in row 1, column 2; a position of the image is (8 / 3, 2) pixels large."""
    figure = plotting.attention_maps(SCORES, (3, 4), query=6, image=IMAGES[0])
    image, *maps = (axis for axis in figure.axes if axis.images)
    np.testing.assert_allclose(image.images[0].get_array(), IMAGES[0, ..., 0] / 2 + 0.5, atol=1e-6)
    np.testing.assert_allclose(boxes(image), [(3.5, 8 / 3 - 0.5, 2.0, 8 / 3)])
    assert len(maps) == 6 and all(boxes(axis) == [(1.5, 0.5, 1, 1)] for axis in maps)
    mean = plotting.attention_maps(SCORES, (3, 4), image=IMAGES[0])
    assert not any(boxes(axis) for axis in mean.axes if axis.images)


def test_a_row_of_attention_maps_shares_its_colours():
    figure = plotting.attention_maps(SCORES, (3, 4), query=5)
    limits = [axis.images[0].get_clim() for axis in figure.axes if axis.images]
    assert limits == [(0.0, SCORES[i, :, 5].max()) for i in (0, 1) for _ in range(3)]
    none = plotting.attention_maps(np.zeros((1, 12, 12)), (3, 4))
    assert none.axes[0].images[0].get_clim() == (0.0, 1e-12)
    assert numbers_at(none.axes[1].yaxis) == ["0"]


def test_the_components_are_those_of_the_vectors_and_unused_codes_are_crosses():
    vectors, codebook = RNG.normal(size=(50, 3)) * [1.0, 5.0, 2.0], RNG.normal(size=(4, 3))
    axis = plotting.codebook_projection(codebook, counts=[3, 0, 5, 9], vectors=vectors).axes[0]
    centred = vectors - vectors.mean(axis=0)
    _, components = np.linalg.eigh(centred.T @ centred)
    plane = components[:, :0:-1]  # of the two largest eigenvalues; each has a sign of its own
    dots, used, unused = (np.asarray(c.get_offsets()) for c in axis.collections)
    sign = np.sign(np.sum(dots * (centred @ plane), axis=0))
    np.testing.assert_allclose(dots * sign, centred @ plane, atol=1e-9)
    expected = (codebook - vectors.mean(axis=0)) @ plane
    np.testing.assert_allclose(used * sign, expected[[0, 2, 3]], atol=1e-9)
    np.testing.assert_allclose(unused * sign, expected[[1]], atol=1e-9)
    names = [t.get_text() for t in axis.get_legend().get_texts()]
    assert names == ["50 vectors", "3 codes", "1 never chosen"]


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


def read_gif(data):
    """Frames `(S, H, W, 3)`, and how long each is shown, in milliseconds."""
    frames, durations = [], []
    with Image.open(io.BytesIO(data)) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
            durations.append(gif.info["duration"])
    return np.stack(frames), durations


def test_an_animation_has_a_frame_a_step_and_ends_with_the_result(tmp_path):
    steps = np.stack([np.full((2, 8, 8, 1), value, "float32") for value in (-1.0, -0.5, 0.0, 1.0)])
    made = plotting.animation(steps, [1.0, 0.5, 0.2, 0.0], columns=2, seconds=1.0, path=tmp_path / "steps.gif")
    assert made.data == (tmp_path / "steps.gif").read_bytes() and made.title == "From noise to image"
    frames, durations = read_gif(made.data)
    assert len(frames) == made.frames == 4
    np.testing.assert_allclose(frames[:, frames.shape[1] // 2, frames.shape[2] // 4, 0], [0, 64, 127, 255], atol=6)
    assert durations == [330, 340, 330, 2000]  # hundredths of a second, which add up to one second


def test_an_animation_has_the_colours_of_its_first_and_last_frame_on_white():
    red, blue = np.zeros((2, 1, 8, 8, 3), "uint8")
    red[..., 0], blue[..., 2] = 200, 200
    frames, _ = read_gif(plotting.animation([red, blue]).data)
    middle = frames[:, frames.shape[1] // 2, frames.shape[2] // 2]
    np.testing.assert_allclose(middle, [[200, 0, 0], [0, 0, 200]], atol=4)
    light = [np.full((4, 8, 8), value, "uint8") for value in (252, 250)]
    frames, _ = read_gif(plotting.animation(light).data)  # almost the white around them, which stays white
    assert np.all(frames[:, [0, -1]] == 255) and np.all(frames[:, :, [0, -1]] == 255)


def test_an_animation_has_the_size_of_its_dpi_and_counts_the_frames_of_the_file():
    small, large = (plotting.animation([IMAGES] * 3 + [-IMAGES], dpi=dpi) for dpi in (30, 60))
    assert small.frames == 2 and read_gif(small.data)[1] == [4000, 2000]  # steps that look alike are one frame
    shapes = [read_gif(made.data)[0].shape[1:3] for made in (small, large)]
    np.testing.assert_allclose(np.multiply(shapes[0], 2), shapes[1], atol=2)


def test_an_animation_in_a_notebook_is_an_image_and_nothing_else():
    made = plotting.animation([IMAGES], title='a"><script>$\\x$</script>')
    shown = made._repr_html_()
    assert shown.startswith('<img alt="a&quot;&gt;&lt;script') and shown.count("<") == 1


def test_rows_of_images_by_name():
    figure = plotting.image_grid({"real": IMAGES[:4], "drawn": IMAGES[4:8]})
    np.testing.assert_allclose(drawn(figure)[0], drawn(plotting.image_grid(IMAGES[:8], columns=4))[0])
    assert {"real", "drawn"} <= set(texts(figure))


def test_a_notebook_shows_a_figure_in_its_size():
    figure = FIGURES["lines"]()
    with matplotlib.rc_context({"savefig.dpi": 300}):
        png, size = figure._repr_png_()
    width, height = figure.get_size_inches()
    np.testing.assert_allclose([size["width"], size["height"]], [96 * width, 96 * height], rtol=0.06)
    with Image.open(io.BytesIO(png)) as image:
        np.testing.assert_allclose(image.size, [150 * width, 150 * height], rtol=0.06)
