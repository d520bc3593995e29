"""The commands of several modalities, on an untrained model: what they write and print, and errors that say what is valid."""

import keras
import matplotlib.image
import numpy as np
import pytest

import keras_vqdit as kv
from keras_vqdit import cli, cli_files, cli_multimodal
from keras_vqdit.data.captions import captions_of
from tests.models.small import small_vqvae, trained_vqvae
from tests.models.test_audio_tokenizer import LENGTH, tiny
from tests.models.test_multimodal_diffusion import text_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a preset, and a file of each kind."""
    path = tmp_path_factory.mktemp("several")
    keras.utils.set_random_seed(0)
    tokenizers = {"image": small_vqvae(), "audio": tiny(), "text": text_tokenizer()}
    kv.MultimodalDiffusion(tokenizers, 16, 2, num_layers=1, seed=0).save_to_preset(path / "preset")
    matplotlib.image.imsave(path / "a.png", np.indices((28, 28))[0] / 27, cmap="gray", vmin=0, vmax=1)
    matplotlib.image.imsave(path / "b.png", np.zeros((8, 8)), cmap="gray", vmin=0, vmax=1)
    (path / "broken.png").write_text("not an image")
    sound = np.sin(np.arange(100) * 0.3).astype("float32")
    kv.data.write_wav(path / "a.wav", 0.1 * sound, 8000)
    kv.data.write_wav(path / "fast.wav", sound, 16000)
    return path


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """A function that runs a command beside the files, and returns its status and what it printed."""
    monkeypatch.chdir(folder)

    def call(command, *arguments):
        source = ["--preset", "preset", "--verbose", "0"]
        if command in ("generate", "infill", "complete"):
            source += ["--num-steps", "2"]
        status = cli.main([command, *source, *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return call


def pairs(text, batch_size):
    """A tiny data set of three modalities, as `data.load("multimodal_digits")` gives."""
    rng, labels = np.random.default_rng(0), np.arange(8, dtype="int32") % 4
    banks = {
        "image": rng.uniform(-1, 1, (8, 8, 8, 1)).astype("float32"),
        "audio": rng.uniform(-1, 1, (8, LENGTH, 1)).astype("float32"),
        "text": text.encode([captions_of(digit)[1] for digit in labels]),
    }
    info = kv.data.DatasetInfo("digits", None, batch_size, {}, 4, text_tokenizer=text)
    return kv.data.to_paired_dataset(banks, {name: labels for name in banks}, info)


def test_train(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    asked = {}

    def load(name, *, batch_size, text_tokenizer, **options):
        asked.update(options, name=name)
        return pairs(text_tokenizer, batch_size), pairs(text_tokenizer, batch_size)

    compile = kv.MultimodalDiffusion.compile
    monkeypatch.setattr(kv.data, "load", load)
    plain = {"jit_compile": False}  # XLA takes a minute for the three trainings
    monkeypatch.setattr(kv.MultimodalDiffusion, "compile", lambda self, *args, **o: compile(self, *args, **(o | plain)))
    trained_vqvae().save("image.keras")
    tiny().save_to_preset("sounds")
    sizes = ["--epochs", "1", "--batch-size", "4", "--d-model", "16", "--num-heads", "2", "--num-layers", "1"]
    command = ["train", "multimodal", "--image-tokenizer", "image.keras", "--audio-tokenizer", "sounds", *sizes]
    assert cli.main([*command, "--text", "characters", "--out", "model.keras", "--verbose", "0"]) == 0
    assert "wrote model.keras" in capsys.readouterr().out
    assert asked["name"] == "multimodal_digits" and asked["audio_length"] == LENGTH
    assert not list(folder.glob("model-checkpoints*"))
    given = ["--given", "text=the digit 1", "--want", "image", "--num-steps", "2", "--out", "of-the-trained"]
    assert cli.main(["generate", "--model", "model.keras", *given, "--verbose", "0"]) == 0
    assert (folder / "of-the-trained/images.png").exists()
    further = ["train", "multimodal", "--start", "model.keras", "--epochs", "1", "--batch-size", "4", "--verbose", "0"]
    assert cli.main([*further, "--schedule", "linear", "--pair-rate", "0", "--out", "further.keras"]) == 0
    model = kv.saving.load_model("further.keras")
    assert model.transformer.d_model == 16 and model.process.schedule == "linear" and not model.pairs
    rates = "image-text=0.4,image-audio=0.1,text-image=0.2"
    assert cli.main([*further, "--pair-rate", rates, "--out", "further.keras"]) == 0
    expected = {("image", "text"): 0.4, ("image", "audio"): 0.1, ("text", "image"): 0.2}
    assert kv.saving.load_model("further.keras").pairs == expected
    for wrong, message in (
        (["--pair-rate", "image-smell=0.4"], "`pair_rate` must be a number, or a dict"),
        (["--pair-rate", "1.5"], "`pair_rate` must be a finite number, at least 0 and at most 1"),
        (["--text", "bpe", "--d-model", "32"], "--start brings its tokenizers and sizes. Received: --text, --d-model"),
        (["--start", "image.keras"], "must hold a MultimodalDiffusion. It holds a VQVAE"),
    ):
        capsys.readouterr()
        assert cli.main([*further, *wrong, "--out", "wrong.keras"]) == 2
        assert message in capsys.readouterr().err
    command[3] = "sounds"  # no tokenizer of images
    assert cli.main([*command, "--out", "other.keras", "--verbose", "0"]) == 2
    assert "--image-tokenizer must be of image. Received: a tokenizer of audio" in capsys.readouterr().err


def test_generate_writes_what_is_wanted(run, folder):
    arguments = ["--given", "text=ab", "--want", "image,audio", "--num-samples", 2]
    status, printed = run("generate", *arguments, "--out", "drawn", "--guidance-scale", 2, "--temperature", 0.5)
    assert status == 0
    names = {"images.png", "image-0.png", "image-1.png", "audio-0.wav", "audio-1.wav", "spectrograms.png"}
    assert {path.name for path in (folder / "drawn").iterdir()} == names
    assert all(f"wrote drawn/{name}" in printed for name in names)
    assert (folder / "drawn/images.png").read_bytes().startswith(b"\x89PNG")
    one = cli_files.read_image(folder / "drawn/image-1.png", (8, 8, 1))  # is taken as it was drawn
    assert one.shape == (1, 8, 8, 1) and matplotlib.image.imread(folder / "drawn/image-1.png").shape[:2] == (8, 8)
    audio, rate = kv.data.read_wav(folder / "drawn/audio-1.wav")
    assert len(audio) == LENGTH and rate == 8000


def test_what_is_drawn_alone_may_have_a_file_of_its_own(run, folder):
    for want, name in (("image", "one.png"), ("audio", "one.wav")):
        assert run("generate", "--given", "text=ab", "--want", want, "--num-samples", 1, "--out", name)[0] == 0
    assert matplotlib.image.imread(folder / "one.png").shape[:2] == (8, 8)
    assert len(kv.data.read_wav(folder / "one.wav")[0]) == LENGTH
    assert run("generate", "--given", "image=a.png", "--want", "text", "--num-samples", 3, "--out", "texts.txt")[0] == 0
    assert len((folder / "texts.txt").read_text(encoding="utf-8").splitlines()) == 3


def test_a_preset_is_drawn_from_as_its_card_says(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    model = kv.MultimodalDiffusion.from_preset("./preset")
    model.save_to_preset("with-settings", {"generate": {"num_steps": 3, "guidance_scale": 2.5, "more": 1}})
    asked = {}

    def generate(self, given=None, want=None, **options):
        asked.update(options)
        raise ValueError("that is all")

    monkeypatch.setattr(kv.MultimodalDiffusion, "generate", generate)
    assert cli.main(["generate", "--want", "image", "--preset", "with-settings"]) == 2
    assert (asked["num_steps"], asked["guidance_scale"]) == (3, 1.0)  # there is nothing to guide by
    for command in (["generate", "--given", "text=ab"], ["infill", "--image", "a.png"], ["complete", "--text", "a"]):
        for preset, steps, scale in (("./preset", 16, 1.0), ("with-settings", 3, 2.5)):
            assert cli.main([*command, "--preset", preset]) == 2
            assert (asked["num_steps"], asked["guidance_scale"], asked["temperature"]) == (steps, scale, 1.0)
        assert cli.main([*command, "--preset", "with-settings", "--num-steps", "5"]) == 2
        assert (asked["num_steps"], asked["guidance_scale"]) == (5, 2.5)


def test_generate_takes_files_and_the_other_sampler(run, folder):
    arguments = ["--given", "image=a.png", "--given", "audio=a.wav", "--num-samples", 3, "--sampler", "ancestral"]
    assert run("generate", *arguments, "--out", "texts", "--seed", 1)[0] == 0
    first = (folder / "texts/text.txt").read_text(encoding="utf-8")
    assert len(first.splitlines()) == 3
    assert run("generate", *arguments, "--out", "texts", "--seed", 1)[0] == 0
    assert (folder / "texts/text.txt").read_text(encoding="utf-8") == first


def test_files_become_what_the_tokenizers_take(folder):
    image = cli_files.read_image(folder / "a.png", (8, 8, 1))
    assert image.shape == (1, 8, 8, 1) and image.dtype == "float32"
    assert np.all(np.diff(image[0, :, 0, 0]) > 0) and -1 <= image.min() < -0.8 and 0.8 < image.max() <= 1
    sound = cli_files.read_sound(folder / "a.wav", 128, 8000)
    assert sound.shape == (1, 128, 1) and np.max(np.abs(sound)) == 1.0 and not sound[0, :14].any()


def test_infill(run, folder):
    assert run("infill", "--image", "a.png", "--region", "left", "--num-samples", 2, "--out", "infilled.png")[0] == 0
    assert (folder / "infilled.png").read_bytes().startswith(b"\x89PNG")
    assert run("infill", "--image", "a.png", "--through", "text, audio", "--out", "through.png")[0] == 0
    assert (folder / "through.png").read_bytes().startswith(b"\x89PNG")


def test_complete(run):
    status, printed = run("complete", "--text", "ab", "--num-samples", 5)
    head, *rows = printed.splitlines()
    assert status == 0 and head.split() == ["times", "text"]
    assert sum(int(row.split()[0]) for row in rows) == 5 and all(row.split()[1].startswith("ab") for row in rows)


def test_classify(run):
    status, printed = run("classify", "--given", "image=a.png", "--candidates", "ab", "ba", "--num-samples", 2)
    head, *rows, best = printed.splitlines()
    assert status == 0 and head.split() == ["share", "nats", "candidate"] and best == "best: ab"
    assert [row.split() for row in rows] == [["0.500", "0.00", "ab"], ["0.500", "0.00", "ba"]]  # it is untrained


def test_retrieve(run):
    status, printed = run(
        "retrieve", "--given", "text=ab", "--candidates", "image=b.png", "image=a.png", "--no-subtract-prior"
    )
    head, *rows = printed.splitlines()
    assert status == 0 and head.split() == ["rank", "nats", "candidate"]
    assert [row.split()[::2] for row in rows] == [["1", "b.png"], ["2", "a.png"]]
    assert rows[0].split()[1].startswith("-")


def test_export_and_inspect(run, folder):
    assert run("export", "--out", "copy", "--format", "preset")[0] == 0
    assert cli.main(["inspect", "copy"]) == 0
    assert cli.main(["inspect", str(folder / "preset")]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "--given", "smell=ab"], "--given must be NAME=VALUE, with each NAME of audio, image, text"),
        (["generate", "--given", "ab"], "Received: 'ab'"),
        (["infill", "--image", "a.png", "--through", "smell"], "`want` must list modalities among"),
        (["complete", "--text", "a", "--given", "text=ab"], "--given must be of other modalities than --text"),
        (["generate", "--given", "text=a", "--given", "text=b"], "at most once. Received: 'text=b'"),
        (["generate", "--given", "text=ab", "--want", "smell"], "`want` must list modalities among"),
        (["generate", "--given", "text=ab", "--want", ""], "`want` must list modalities among"),
        (["generate", "--given", "text=ab", "--want", "text,image", "--out", "a.png"], "--out must be a folder"),
        (["generate", "--out", "a.wav"], "--out must be a folder"),
        (["generate", "--given", "text=ab", "--want", "image", "--out", "x.png"], "Received: x.png, of 8 x image"),
        (
            ["generate", "--given", "text=ab", "--want", "image", "--num-samples", "1", "--out", "x.wav"],
            "x.wav, of 1 x",
        ),
        (["generate", "--given", "text=ab", "--want", "image", "--out", "x.npz"], "x.npz, of 8 x image"),
        (["generate", "--given", "text=\udcff"], "Texts must be Unicode"),
        (
            ["generate", "--given", "text=ab", "--guidance-scale", "1e39"],
            "at most 1000. Received: guidance_scale=1e+39",
        ),
        (
            ["generate", "--given", "text=ab", "--num-steps", "99999999999"],
            "`num_steps` must be a finite number, at least 1",
        ),
        (["generate", "--given", "image=."], ". is a folder, not a file"),
        (
            ["generate", "--given", "audio=broken.png"],
            "broken.png must be a WAV file of PCM samples. Received: file does",
        ),
        (["generate", "--given", "text=ababab"], "Received: a text of 6 codes, 'ababab'"),
        (
            ["generate", "--given", "text=ab", "--out", "a.png/x"],
            "`path` must be in a folder, and a part of it is a file",
        ),
        (["generate", "--given", "text=a", "--given", "image=a.png", "--given", "audio=a.wav"], "at least one"),
        (["generate", "--given", "image=missing.png"], "No such file: missing.png"),
        (["generate", "--given", "image=broken.png"], "broken.png must be an image"),
        (["generate", "--given", "audio=missing.wav"], "No such file: missing.wav"),
        (["generate", "--given", "audio=fast.wav"], "fast.wav must have 8000 samples a second"),
        (["generate", "--sampler", "ddim"], "--sampler of a MultimodalDiffusion must be one of ancestral, confidence"),
        (["generate", "--labels", "7"], "Received: --labels"),
        (["infill", "--image", "missing.png"], "No such file: missing.png"),
        (["infill", "--image", "a.png", "--out", "a.jpg"], "--out must end in .png"),
        (["complete", "--text", "abab"], '"text" is known already'),
        (["classify", "--given", "text=ab", "--candidates", "ab"], "must be of a modality that is not given"),
        (["retrieve", "--given", "text=ab", "--candidates", "image=a.png", "ab"], "with one NAME of"),
    ],
)
def test_errors(run, arguments, message):
    status, printed = run(*arguments)
    assert status == 2 and message in printed


def test_folders_may_have_dots_and_no_file_is_written_where_one_can_not_be(run, folder):
    arguments = ["--given", "audio=a.wav", "--num-samples", 1, "--out", "drawn.v2"]
    assert run("generate", *arguments, "--want", "text")[0] == 0
    (folder / "drawn.v2/text.txt").write_text("older")
    (folder / "drawn.v2/image-0.png").mkdir()
    status, printed = run("generate", *arguments, "--want", "text,image")
    assert status == 2 and "image-0.png" in printed and "is a folder" in printed
    assert (folder / "drawn.v2/text.txt").read_text() == "older"


def test_sizes_that_do_not_fit_are_told_before_the_data_are_read(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    trained_vqvae().save("images.keras")
    command = ["train", "multimodal", "--image-tokenizer", "images.keras", "--d-model", "10", "--num-heads", "4"]
    assert cli.main([*command, "--data-dir", "nowhere", "--text", "characters", "--out", "none.keras"]) == 2
    assert "num_heads" in capsys.readouterr().err


def test_options_of_the_other_class():
    arguments = cli.build_parser().parse_args(["generate", "--model", "x", "--given", "text=a"])
    with pytest.raises(ValueError, match="A LatentDiffusion takes --num-steps, --sampler, .*Received: --given"):
        cli_multimodal.settle(arguments, object())
