"""Presets: what is saved comes back, and files of strangers harm nobody."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time

import h5py
import keras
import numpy as np
import pytest

import keras_vqdit as kv
from keras_vqdit.saving import load_preset
from keras_vqdit.saving.preset import CONFIG, METADATA, WEIGHTS
from tests.saving.memory import bounded_memory

RNG = np.random.default_rng(0)
IMAGES = np.tanh(RNG.normal(size=(40, 8, 8, 1)).cumsum(1)).astype("float32")


def tokenizer(**options):
    return kv.VQVAE.from_size(
        "digits", input_shape=(8, 8, 1), filters=(8, 8), residual_filters=4, num_embeddings=16, **options
    )


def diffusion(ema_decay=0.9, process=None):
    network = kv.DiffusionTransformer(16, 2, 32, 1, num_classes=3)
    model = kv.LatentDiffusion(tokenizer(), network, process, ema_decay=ema_decay)
    model.build({"image": (None, 8, 8, 1), "label": (None,)})
    return model


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = diffusion()
    model.compile("adam", jit_compile=False)
    labels = (np.arange(40) % 3).astype("int32")
    model.fit({"image": IMAGES, "label": labels}, batch_size=20, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def good(trained, tmp_path_factory):
    """The files of a good preset: name -> bytes."""
    folder = tmp_path_factory.mktemp("good") / "preset"
    trained.save_to_preset(folder, {"description": "for tests"})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def preset(good, tmp_path):
    """A folder with a good preset, to be made a bad one."""
    folder = tmp_path / "preset"
    folder.mkdir()
    for name, content in good.items():
        (folder / name).write_bytes(content)
    return folder


def seal(folder):
    """Make the checksums right, as a stranger would."""
    metadata = json.loads((folder / METADATA).read_text())
    for name in (CONFIG, WEIGHTS):
        content = (folder / name).read_bytes()
        metadata["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / METADATA).write_text(json.dumps(metadata))


# === What is saved comes back ===


def test_a_diffusion_model_comes_back(trained, preset):
    model = kv.LatentDiffusion.from_preset(preset)
    draw = {"labels": [0, 1, 2], "num_steps": 3, "guidance_scale": 1.5, "seed": 0, "verbose": 0}
    np.testing.assert_array_equal(model.generate(**draw), trained.generate(**draw))
    np.testing.assert_array_equal(model.tokenizer.encode(IMAGES), trained.tokenizer.encode(IMAGES))
    for average, weight in zip(trained.ema_transformer.weights, model.transformer.weights, strict=True):
        np.testing.assert_array_equal(weight, average)
    model.compile("adam", jit_compile=False)
    model.fit({"image": IMAGES, "label": np.zeros(40, "int32")}, verbose=0)  # and trains on


@pytest.mark.parametrize(
    "make",
    [tokenizer, lambda: kv.VAE.from_size("digits", input_shape=(8, 8, 1), filters=(8, 8), residual_filters=4)],
    ids=["VQVAE", "VAE"],
)
def test_a_tokenizer_comes_back(make, tmp_path):
    model = make()
    model.compile("adam", jit_compile=False)
    model.fit(IMAGES, verbose=0)
    model.save_to_preset(tmp_path / "preset")
    loaded = type(model).from_preset(str(tmp_path / "preset"))
    np.testing.assert_array_equal(loaded(IMAGES)[0], model(IMAGES)[0])
    np.testing.assert_array_equal(loaded.encode_latents(IMAGES), model.encode_latents(IMAGES))


@pytest.mark.parametrize(
    "make",
    [
        lambda: diffusion(ema_decay=None),
        lambda: diffusion(process=kv.GaussianDiffusion("cosine", "v", zero_terminal_snr=True)),
    ],
    ids=["without an average", "Gaussian"],
)
def test_other_models_come_back(make, tmp_path):
    model = make()
    model.save_to_preset(tmp_path)
    loaded = load_preset(tmp_path)
    draw = {"labels": [1], "num_steps": 2, "seed": 0, "verbose": 0}
    np.testing.assert_array_equal(loaded.generate(**draw), model.generate(**draw))


@keras.saving.register_keras_serializable("tests")
class Halves(keras.layers.Layer):
    def call(self, x):
        return 0.5 * x


def test_registered_classes_are_welcome(tmp_path):
    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 2, 2), Halves()])
    decoder = keras.Sequential([keras.Input((4, 4, 4)), keras.layers.Conv2DTranspose(1, 2, 2)])
    model = kv.VQVAE(encoder, decoder, 8, 4)
    model.save_to_preset(tmp_path)
    np.testing.assert_array_equal(kv.VQVAE.from_preset(tmp_path)(IMAGES)[0], model(IMAGES)[0])


def test_encoders_of_many_kinds(tmp_path):
    """Operators and functions of Keras, models compiled before, and classes of a script or notebook."""

    @keras.saving.register_keras_serializable("notebook")
    class Halves(keras.layers.Layer):
        def call(self, x):
            return x / 2

    class Doubles(keras.layers.Layer):
        def call(self, x):
            return x * 2

    Halves.__module__ = Doubles.__module__ = "__main__"  # which Keras writes as none
    for i, (layer, custom) in enumerate([(Halves(), None), (Doubles(), {"Doubles": Doubles})]):
        x = inputs = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(4, 4, 4)(x)
        x = layer(keras.ops.tanh(x) + keras.layers.Dense(4)(x) * 0.5)
        encoder = keras.Model(inputs, x)
        encoder.compile("adam", "mse")
        decoder = keras.Sequential([keras.Input((2, 2, 4)), keras.layers.Conv2DTranspose(1, 4, 4)])
        model = kv.VQVAE(encoder, decoder, 8, 4)
        codes = np.array(model.encode(IMAGES))
        model.save_to_preset(tmp_path / str(i), custom_objects=custom)
        np.testing.assert_array_equal(
            kv.VQVAE.from_preset(tmp_path / str(i), custom_objects=custom).encode(IMAGES), codes
        )
        kv.saving.save_model(model, tmp_path / f"{i}.keras")
        again = kv.saving.load_model(tmp_path / f"{i}.keras", custom_objects=custom)
        np.testing.assert_array_equal(again.encode(IMAGES), codes)
    with pytest.raises(ValueError, match="must name classes"):
        model.save_to_preset(tmp_path / "2")


def test_metadata_and_card(preset, good):
    assert set(good) == {CONFIG, WEIGHTS, METADATA, "model_card.json"}
    metadata = json.loads(good[METADATA])
    assert metadata["model"] == "LatentDiffusion" and metadata["parameter_count"] > 1000
    assert json.loads(good["model_card.json"]) == {"description": "for tests"}


# === Saving harms nothing ===


def test_a_preset_is_replaced_and_nothing_else_is(trained, preset, tmp_path):
    trained.save_to_preset(preset, {"new": True})
    assert json.loads((preset / "model_card.json").read_text()) == {"new": True}
    assert {path.name for path in tmp_path.iterdir()} == {"preset"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for path in (other, other / "thesis.tex"):
        with pytest.raises(FileExistsError, match="holds something else, which is not overwritten"):
            trained.save_to_preset(path)
    assert (other / "thesis.tex").read_text() == "years of work"


def test_what_lies_beside_a_preset_is_safe(trained, preset, monkeypatch):
    preset.chmod(0o700)
    trained.save_to_preset(preset)
    assert preset.stat().st_mode & 0o777 == 0o700
    (preset / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else"):
        trained.save_to_preset(preset)
    (preset / "thesis.tex").unlink()
    monkeypatch.chdir(preset)
    with pytest.raises(ValueError, match="must not be the folder that the program works in"):
        trained.save_to_preset(".")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_full_disk_leaves_the_old_preset(trained, preset, good, at_once, monkeypatch, tmp_path):
    if not at_once:
        monkeypatch.setattr("keras_vqdit.saving.folders._exchange_at_once", lambda *_: False)
    trained.save_to_preset(preset, {"description": "for tests"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keras_vqdit.saving.preset._write_weights", full)
    with pytest.raises(OSError, match="No space left"):
        trained.save_to_preset(preset)
    assert {path.name: path.read_bytes() for path in preset.iterdir()}.keys() == good.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["preset"]
    load_preset(preset)


def test_bad_models_and_cards_are_not_saved(trained, tmp_path):
    with pytest.raises(ValueError, match="The model must be built before it is saved"):
        kv.LatentDiffusion(None, kv.DiffusionTransformer(16, 2, 32, 1)).save_to_preset(tmp_path / "a")
    with pytest.raises(ValueError, match="must fit JSON"):
        trained.save_to_preset(tmp_path / "a", {"score": float("nan")})
    for card in (["a"], {"deep": json.loads("[" * 70 + "]" * 70)}, {1: "a", "1": "b"}):
        with pytest.raises(ValueError, match="`card`"):
            trained.save_to_preset(tmp_path / "a", card)
    model = tokenizer()
    model.encoder.weights[0].assign(np.full(model.encoder.weights[0].shape, np.nan))
    with pytest.raises(ValueError, match="The weights must be finite"):
        model.save_to_preset(tmp_path / "a")
    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 2, 2), keras.layers.Lambda(abs)])
    decoder = keras.Sequential([keras.Input((4, 4, 4)), keras.layers.Conv2DTranspose(1, 2, 2)])
    with pytest.raises(ValueError, match="run no code from files.*Received: keras.layers.Lambda"):
        kv.VQVAE(encoder, decoder, 8, 4).save_to_preset(tmp_path / "a")
    assert not list(tmp_path.iterdir())


# === Names ===


def test_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no preset 'nothing': it is no folder, and those that come"):
        kv.VQVAE.from_preset("nothing")
    for name in ("../setup", "a/b", "a\0b", "https://example.org/preset", ""):
        with pytest.raises((FileNotFoundError, ValueError)):
            kv.VQVAE.from_preset(name)
    with pytest.raises(FileNotFoundError, match="it has no metadata.json"):
        kv.VQVAE.from_preset(tmp_path)
    with pytest.raises(TypeError, match="`name_or_path` must be a name or a path. Received: 3"):
        kv.VQVAE.from_preset(3)


def test_names_of_ours_win_and_damaged_ones_are_left_out(good, tmp_path, monkeypatch, caplog):
    ours = tmp_path / "ours"
    for name in ("fine", "damaged", "Not A Name"):
        (ours / name).mkdir(parents=True)
        for file, content in good.items():
            (ours / name / file).write_bytes(content)
    (ours / "damaged" / "model_card.json").write_text("[]")
    monkeypatch.setattr("keras_vqdit.saving.preset._folders", lambda: [ours])
    assert list(kv.presets()) == ["fine"] and "The preset damaged is damaged" in caplog.text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fine").mkdir()  # a folder of the user's goes by another path
    loaded = kv.LatentDiffusion.from_preset("fine")
    assert loaded.card == {"description": "for tests"} and "the folder is ./fine" in caplog.text
    loaded.save_to_preset("copy")  # with its card
    assert kv.LatentDiffusion.from_preset("copy").card == loaded.card
    loaded.save_to_preset("copy", {"score": np.float32(0.5)})
    assert kv.LatentDiffusion.from_preset("copy").card == {"score": 0.5}
    with pytest.raises(FileNotFoundError, match="There is no preset in fine"):
        kv.LatentDiffusion.from_preset("./fine")
    with pytest.raises(FileNotFoundError, match="those that come with the package are fine"):
        kv.LatentDiffusion.from_preset("nothing")
    with pytest.raises(FileNotFoundError, match="There is no ~nobody_of_that_name/x"):
        kv.LatentDiffusion.from_preset("~nobody_of_that_name/x")


def test_replaced_while_it_is_read(trained, preset, monkeypatch):
    """Whoever reads while another one writes gets one preset or the other."""
    from keras_vqdit.saving import preset as room

    read, calls = room.read_metadata, []

    def read_and_replace(folder):
        metadata = read(folder)
        if not calls:
            calls.append(1)
            for variable in trained.weights:
                variable.assign(variable * 1)
            trained.save_to_preset(preset, {"description": "a newer one"})
            (preset / CONFIG).write_text((preset / CONFIG).read_text() + "\n")
            seal(preset)
        return metadata

    monkeypatch.setattr(room, "read_metadata", read_and_replace)
    assert isinstance(load_preset(preset), kv.LatentDiffusion) and calls


def test_bfloat16_weights(tmp_path):
    model = tokenizer(dtype="bfloat16")
    codes = np.array(model.encode(IMAGES))
    model.save_to_preset(tmp_path / "preset")
    again = kv.VQVAE.from_preset(tmp_path / "preset")
    assert {str(weight.dtype) for weight in again.encoder.weights} == {"bfloat16"}
    np.testing.assert_array_equal(again.encode(IMAGES), codes)


def test_the_class_must_be_right(preset):
    with pytest.raises(ValueError, match="config.json must be that of a VQVAE. Received: a LatentDiffusion"):
        kv.VQVAE.from_preset(preset)


# === Files of strangers ===


def edit(name, change):
    def apply(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        if name != METADATA:
            seal(folder)

    return apply


def write(name, content, sealed=False):
    def apply(folder):
        (folder / name).write_bytes(content(folder) if callable(content) else content)
        if sealed:
            seal(folder)

    return apply


def weights(change):
    """Another HDF5 file, sealed."""

    def apply(folder):
        with h5py.File(folder / WEIGHTS, "r+") as file:
            change(file, sorted(file)[0])
        seal(folder)

    return apply


def replace(file, name, **options):
    data = file[name][()]
    del file[name]
    file.create_dataset(name, **{"data": data, **options})


def link(file, name, target):
    del file[name]
    file[name] = target


def symlink(name):
    def apply(folder):
        target = folder.parent / f"elsewhere-{name}"
        os.rename(folder / name, target)
        os.symlink(target, folder / name)

    return apply


def layer(module, name, config=None, registered=None):
    """An encoder in which one layer is another one."""

    def change(content):
        layers = content["config"]["tokenizer"]["config"]["encoder"]["config"]["layers"]
        layers[1].update(module=module, class_name=name, registered_name=registered)
        if config is not None:
            layers[1]["config"] = config

    return edit(CONFIG, change)


def network(**options):
    return edit(CONFIG, lambda content: content["config"]["transformer"]["config"].update(options))


def declare_bomb(file, name):
    """Terabytes of zeros in a file of kilobytes."""
    del file[name]
    file.create_dataset(name, (1 << 20, 1 << 20), "float32", chunks=(1024, 1024), compression="gzip")


def declare_nothing(file, name):
    """Contiguous data that were never written take no space."""
    del file[name]
    file.create_dataset(name, (1 << 20, 1 << 18), "float32")


def sparse(folder):
    """A configuration of three gigabytes, which take no space."""
    with open(folder / CONFIG, "ab") as file:
        file.truncate(3 << 30)
    metadata = json.loads((folder / METADATA).read_text())
    metadata["files"][CONFIG]["bytes"] = 3 << 30
    (folder / METADATA).write_text(json.dumps(metadata))


HOSTILE = {
    "a configuration of gigabytes": (sparse, "config.json must have at most"),
    "numbers too large for float32": (
        weights(lambda f, n: replace(f, n, data=np.full(f[n].shape, 1e300))), "must hold finite weights",
    ),
    "whole numbers": (weights(lambda f, n: replace(f, n, data=np.ones(f[n].shape, "int32"))), "must hold .* as float32"),
    "metadata gone": (lambda folder: (folder / METADATA).unlink(), "has no metadata.json"),
    "config gone": (lambda folder: (folder / CONFIG).unlink(), "There is no file .*config.json"),
    "weights gone": (lambda folder: (folder / WEIGHTS).unlink(), "There is no file .*model.weights.h5"),
    "metadata empty": (write(METADATA, b""), "metadata.json is damaged, or no JSON file"),
    "config empty": (write(CONFIG, b"", sealed=True), "config.json is damaged, or no JSON file"),
    "weights empty": (write(WEIGHTS, b"", sealed=True), "model.weights.h5 is damaged, or no file of weights"),
    "weights truncated": (
        write(WEIGHTS, lambda folder: (folder / WEIGHTS).read_bytes()[:9000], sealed=True), "no file of weights"
    ),
    "weights truncated, not sealed": (
        write(WEIGHTS, lambda folder: (folder / WEIGHTS).read_bytes()[:9000]), "must have .* bytes, as metadata.json says"
    ),
    "files swapped": (
        write(WEIGHTS, lambda folder: (folder / CONFIG).read_bytes(), sealed=True), "no file of weights"
    ),
    "a zip file": (write(WEIGHTS, b"PK\x03\x04" + bytes(100), sealed=True), "no file of weights"),
    "a pickle": (write(CONFIG, b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.", sealed=True), "no JSON file"),
    "a JSON list": (write(CONFIG, b"[]", sealed=True), "must hold a JSON object. Received: list"),
    "JSON a thousand deep": (write(CONFIG, b'{"a":' * 1000 + b"1" + b"}" * 1000, sealed=True), "nested at most 64 deep"),
    "JSON a million deep": (write(CONFIG, b"[" * 1_000_000, sealed=True), "nested at most 64 deep"),
    "huge JSON": (write(METADATA, b" " * (5 << 20)), "must have at most"),
    "keys twice": (write(METADATA, b'{"format": 1, "format": 2}'), "a key twice"),
    "NaN in JSON": (write(METADATA, b'{"version": NaN}'), "received NaN"),
    "no text": (write(METADATA, b"\xff\xfe\x00"), "no JSON file"),
    "another format": (edit(METADATA, lambda m: m.update(format="pickle")), "must be of the format 'keras_vqdit preset'"),
    "another version": (edit(METADATA, lambda m: m.update(version=99)), "a newer one needs a newer keras_vqdit"),
    "a version of another type": (edit(METADATA, lambda m: m.update(version=[1])), "must be of version 1"),
    "no checksums": (edit(METADATA, lambda m: m.update(files={})), "must tell `bytes` and `sha256` of config.json"),
    "a negative size": (
        edit(METADATA, lambda m: m["files"][CONFIG].update(bytes=-5)), "must have -5 bytes, as metadata.json says"
    ),
    "a wrong checksum": (edit(METADATA, lambda m: m["files"][WEIGHTS].update(sha256="0" * 64)), "its checksum is not"),
    "metadata a link": (symlink(METADATA), "must be a regular file, not a folder or a link"),
    "config a link": (symlink(CONFIG), "must be a regular file, not a folder or a link"),
    "weights a link": (symlink(WEIGHTS), "must be a regular file, not a folder or a link"),
    "an unknown class": (edit(CONFIG, lambda c: c.update(class_name="Unknown")), "must be that of|must name classes"),
    "a module to import": (layer("antigravity", "Dense"), "must name classes.*Received: antigravity.Dense"),
    "a function of the system": (layer("os", "system"), "must name classes.*Received: os.system"),
    "a lambda": (
        layer("keras.layers", "Lambda", {"name": "l", "function": {"class_name": "__lambda__", "config": {}}}),
        "must name classes",
    ),
    "a SavedModel within": (layer("keras.layers", "TFSMLayer", {"filepath": "/tmp"}), "must name classes"),
    "a vocabulary file": (layer("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}), "must name classes"),
    "a class under another's name": (
        layer("keras.layers", "Dense", registered="keras_vqdit>VQVAE"), "must name classes"
    ),
    "a class by its own module": (layer("keras.src.layers.core.lambda_layer", "Lambda"), "must name classes"),
    "an unknown activation": (
        layer("keras.layers", "Activation", {"name": "a", "activation": "os.system"}), "is not the configuration"
    ),
    "an activation from a module": (
        layer("keras.layers", "Activation", {"activation": {"module": "os", "class_name": "function", "config": "system"}}),
        "must name classes",
    ),
    "an unknown argument": (network(evil=1), "is not the configuration of a model"),
    "a text for a number": (network(d_model="big"), "is not the configuration of a model"),
    "a huge width": (network(d_model=1 << 40), "'d_model' must be at most"),
    "a large width": (network(d_model=1 << 22, dff=1 << 22), "must hold the weights that config.json asks for"),
    "many layers": (network(num_layers=1 << 20), "'num_layers' must be at most 256"),
    "other layers": (network(num_layers=2), "must hold the weights that config.json asks for|must hold .* weights"),
    "a negative width": (network(d_model=-16), "is not the configuration of a model"),
    "no such class of model": (edit(CONFIG, lambda c: c.pop("class_name")), "must have a `class_name`"),
    "weights not built": (edit(CONFIG, lambda c: c.pop("build_config")), "must be that of a model of this package, built"),
    "NaN weights": (weights(lambda f, n: f[n].write_direct(np.full(f[n].shape, np.nan, "float32"))), "must hold finite"),
    "another dtype": (weights(lambda f, n: replace(f, n, data=np.array([b"text"]))), "of dtype"),
    "objects": (
        weights(lambda f, n: replace(f, n, data=["a"], dtype=h5py.special_dtype(vlen=str))), "no file of weights"
    ),
    "another shape": (weights(lambda f, n: replace(f, n, data=np.zeros((3, 3), "float32"))), "must hold the weights"),
    "an array too many": (weights(lambda f, n: f.create_dataset("zzz", data=[1.0])), "must hold .* weights. Received"),
    "an array too few": (weights(lambda f, n: f.__delitem__(sorted(f)[-1])), "must hold .* weights. Received"),
    "an external link": (weights(lambda f, n: link(f, n, h5py.ExternalLink("/etc/passwd", "/"))), "received a link"),
    "a soft link": (weights(lambda f, n: link(f, n, h5py.SoftLink("/nowhere"))), "received a link"),
    "a group": (weights(lambda f, n: (f.__delitem__(n), f.create_group(n))), "which is no array"),
    "external storage": (
        weights(lambda f, n: replace(f, n, data=None, shape=(3,), dtype="float32", external=[("/etc/hostname", 0, 12)])),
        "does not lie in the file",
    ),
    "a bomb": (weights(declare_bomb), "does not lie in the file as it is"),
    "an array of nothing": (weights(declare_nothing), "arrays of .* bytes or more in a file of"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind, preset, tmp_path, monkeypatch):
    change, message = HOSTILE[kind]
    change(preset)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    modules = set(sys.modules)
    with bounded_memory(), pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        kv.LatentDiffusion.from_preset(preset)
    assert len(str(caught.value)) < 1000 and str(preset) in str(caught.value)
    assert not list((tmp_path / "here").iterdir())  # nothing was executed that leaves a file
    assert not {"antigravity"} & (set(sys.modules) - modules)


def test_flipped_bytes(preset, good):
    """Whatever byte is wrong, there is a clear error, or the model is as it was."""
    rng = np.random.default_rng(0)
    reference = [np.array(weight) for weight in load_preset(preset).weights]
    for name, count in ((METADATA, 60), (CONFIG, 20), (WEIGHTS, 20)):
        for _ in range(count):
            content = bytearray(good[name])
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            (preset / name).write_bytes(content)
            try:
                loaded = load_preset(preset)
            except (ValueError, FileNotFoundError) as error:
                assert str(preset) in str(error)
            else:  # in a part of the metadata that decides nothing
                assert name == METADATA
                assert all(np.array_equal(a, b) for a, b in zip(reference, loaded.weights, strict=True))
        (preset / name).write_bytes(good[name])


FUZZ = """
import sys
import time
from pathlib import Path
import numpy as np
from keras_vqdit.saving.strict import Weights
good, path, rng = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), np.random.default_rng(0)
for _ in range(400):
    content = bytearray(good)
    for _ in range(rng.integers(1, 4)):  # where the structure is, and not among the numbers alone
        content[rng.integers(min(len(content), 6000))] = rng.integers(256)
    path.write_bytes(content)
    try:
        with Weights(path) as weights:
            for name in weights.shapes:
                weights.read(name, "float32")
    except ValueError:
        pass
print("done")
"""


def test_flipped_bytes_of_weights_that_are_sealed(preset, tmp_path):
    """A stranger's checksum is right: the structure of the HDF5 file itself may be wrong, and must not end the process."""
    program = [sys.executable, "-c", FUZZ, str(preset / WEIGHTS), str(tmp_path / "fuzzed.h5")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr[-2000:]


SAVE = """
import sys
import time
import keras_vqdit as kv
model = kv.VQVAE.from_preset(sys.argv[1])
for i in range(10**6):
    for variable in model.weights:
        variable.assign(variable * 0 + i % 2)
    model.save_to_preset(sys.argv[1])
    print(i, flush=True)
"""


def test_killed_while_saving(tmp_path):
    """What is there is one preset or the other, whole."""
    rng, path = np.random.default_rng(0), tmp_path / "preset"
    model = tokenizer()
    for variable in model.weights:
        variable.assign(variable * 0)
    model.save_to_preset(path)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", SAVE, str(path)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "0\n"
            time.sleep(rng.uniform(0.0, 0.5))
        finally:
            process.kill()
            process.wait()
        loaded = load_preset(path)
        assert len({float(value) for weight in loaded.weights for value in np.ravel(weight)}) == 1


def test_a_library_that_is_missing_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tokenizers" else find(name))
    with pytest.raises(ImportError, match=r'needs what is not installed: .* pip install "keras_vqdit\[text\]"'):
        kv.saving.load_preset("multimodal_digits")
