"""`.keras` files of strangers: a clear error, nothing executed, nothing written, memory bounded."""

import io
import json
import sys
import zipfile

import h5py
import numpy as np
import pytest

import keras_vqdit as kv
from keras_vqdit.saving import load_model, save_model
from tests.saving.memory import bounded_memory
from tests.saving.test_presets import tokenizer

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The members of a good file: name -> bytes."""
    model = tokenizer()
    model.compile("adam")
    save_model(model, path := tmp_path_factory.mktemp("good") / "model.keras")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def edit(change):
    """Another configuration."""

    def apply(members):
        content = json.loads(members[CONFIG])
        change(content)
        members[CONFIG] = json.dumps(content)

    return apply


def layer(module, name, config=None):
    """An encoder in which one layer is another one."""

    def change(content):
        one = content["config"]["encoder"]["config"]["layers"][1]
        one.update(module=module, class_name=name, registered_name=None)
        one["config"] = one["config"] if config is None else config

    return edit(change)


def weights(change):
    """Other weights; `change` gets the file and the name of its first array."""

    def apply(members):
        buffer = io.BytesIO(members[WEIGHTS])
        with h5py.File(buffer, "r+") as file:
            names = []
            file.visititems(
                lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) and one.size else None
            )
            change(file, min(names))
        members[WEIGHTS] = buffer.getvalue()

    return apply


def point(target):
    def change(file, name):
        del file[name]
        file[name] = target

    return weights(change)


def fill(value):
    return weights(lambda file, name: file[name].write_direct(np.full(file[name].shape, value, file[name].dtype)))


def nest(file, name):
    """Groups in which there are 2⁵⁰ ways."""
    group = file.create_group("groups")
    for _ in range(50):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


def as_bytes(file, name):
    """Numbers of one byte, where the model has four."""
    names = []
    file.visititems(lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) else None)
    for name in names:
        if file[name].dtype == "float32":
            shape = file[name].shape
            del file[name]
            file.create_dataset(name, data=np.zeros(shape, "uint8"))


def usage(count=1 << 24):
    return {
        "class_name": "CodebookUsage", "module": "keras_vqdit.metrics.codebook", "config": {"num_embeddings": count},
        "registered_name": "keras_vqdit>CodebookUsage",
    }  # fmt: skip


def compiled_within(content):
    """A large codebook, and an encoder that is compiled, as no model without values can be."""
    for part in (content["config"], content["config"]["quantizer"]["config"]):
        part.update(num_embeddings=1 << 24)
    content["config"]["encoder"]["compile_config"] = content["compile_config"]


def constrain(content):
    content["config"]["encoder"]["config"]["layers"][1]["config"]["kernel_constraint"] = usage()


def call_often(content):
    one = content["config"]["encoder"]["config"]["layers"][-1]
    one["inbound_nodes"] = one["inbound_nodes"] * 20_000


MUON = {
    "module": "keras.optimizers",
    "class_name": "Muon",
    "config": {"exclude_layers": ["(a+)+$"]},
    "registered_name": None,
}


def bomb(file, name):
    """Terabytes of zeros in a file of kilobytes."""
    del file[name]
    file.create_dataset(name, (1 << 20, 1 << 20), "float32", chunks=(1024, 1024), compression="gzip")


def pack(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def twice(members):
    buffer = io.BytesIO(pack(members))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(CONFIG, "{}")
    return buffer.getvalue()


def encrypted(members):
    content = bytearray(pack({CONFIG: members[CONFIG], **members}))  # the configuration comes first
    content[content.find(b"PK\x03\x04") + 6] |= 1
    content[content.find(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


# Kind -> what changes the members, or makes the bytes of the file, and what the error says.
HOSTILE = {
    "empty": (lambda members: b"", "is damaged, or no .keras file"),
    "a pickle": (lambda members: b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.", "is damaged, or no .keras file"),
    "truncated": (lambda members: pack(members)[:-2000], "is damaged, or no .keras file"),
    "encrypted": (encrypted, "is damaged, or no .keras file.*encrypted"),
    "no weights": (lambda members: members.pop(WEIGHTS), "must hold a configuration, metadata and weights"),
    "a path out of it": (
        lambda members: members.update({"../hacked": "x"}), "must hold a configuration, metadata and weights",
    ),
    "an absolute path": (
        lambda members: members.update({"/tmp/hacked": "x"}), "must hold a configuration, metadata and weights",
    ),
    "assets": (lambda members: members.update({"assets/x": "x"}), "must hold a configuration, metadata and weights"),
    "a member twice": (twice, "must hold a configuration, metadata and weights"),
    "a zip bomb": (
        lambda members: pack({**members, WEIGHTS: bytes(1 << 28)}, zipfile.ZIP_DEFLATED), "must hold its parts as they are",
    ),
    "weights of another format": (lambda members: members.update({WEIGHTS: b"PK\x03\x04"}), "can not be loaded"),
    "JSON a thousand deep": (
        lambda members: members.update({CONFIG: b'{"a":' * 1000 + b"1" + b"}" * 1000}), "nested at most 64 deep",
    ),
    "a JSON list": (lambda members: members.update({CONFIG: "[]"}), "must hold a JSON object"),
    "a Lambda": (layer("keras.layers", "Lambda", {"function": {"class_name": "__lambda__"}}), "must name classes"),
    "a SavedModel within": (layer("keras.layers", "TFSMLayer", {"filepath": "/tmp"}), "must name classes"),
    "a module to import": (layer("antigravity", "Dense"), "must name classes.*Received: antigravity.Dense"),
    "a function of the system": (layer("os", "system"), "must name classes.*Received: os.system"),
    "an unknown class": (layer("keras.layers", "Unknown"), "must name classes"),
    "a module to import for the optimizer": (
        edit(lambda c: c["compile_config"].update(optimizer={"module": "antigravity", "class_name": "Adam", "config": {}})),
        "must name classes.*Received: antigravity.Adam",
    ),
    "no object to compile by": (edit(lambda c: c.update(compile_config=[1])), "'compile_config' must be an object"),
    "a huge codebook": (
        edit(lambda c: c["config"].update(num_embeddings=1 << 40)), "'num_embeddings' must be at most",
    ),
    "a large codebook": (
        edit(lambda c: [part.update(num_embeddings=1 << 24) for part in (c["config"], c["config"]["quantizer"]["config"])]),
        "at most four times its weights|must hold the [0-9]+ bytes of weights",
    ),
    "a large codebook, and a model compiled within": (edit(compiled_within), "at most four times its weights"),
    "a metric for a constraint": (edit(constrain), "must name classes"),
    "large metrics": (edit(lambda c: c["compile_config"].update(metrics=[usage()] * 8)), "at most four times its weights"),
    "a layer called twenty thousand times": (edit(call_often), "must make and call at most 2000 layers"),
    "a pattern that takes for ever": (
        edit(lambda c: c["compile_config"].update(optimizer=MUON)), "'exclude_layers' must hold plain words",
    ),
    "a huge example": (
        edit(lambda c: c["build_config"].update(input_shape=[None, 1 << 20, 1 << 20, 1])), "must be of at most [0-9]+ elements",
    ),
    "an infinite number": (
        lambda members: members.update({CONFIG: members[CONFIG].replace(b"0.25", b"1e999")}), "received 1e999",
    ),
    "groups without end": (weights(nest), "received an object twice"),
    "bytes for numbers": (weights(as_bytes), "must hold the [0-9]+ bytes of weights"),
    "NaN weights": (fill(np.nan), "must hold finite weights"),
    "an external link": (point(h5py.ExternalLink("/etc/passwd", "/")), "received a link"),
    "a soft link": (point(h5py.SoftLink("/nowhere")), "received a link"),
    "an HDF5 bomb": (weights(bomb), "does not lie in the file as it is"),
    "another shape": (
        weights(lambda file, name: (file.__delitem__(name), file.create_dataset(name, data=np.zeros((7, 5), "float32")))),
        "must hold the [0-9]+ bytes of weights",
    ),
}  # fmt: skip


WHOLE = ("empty", "a pickle", "truncated", "encrypted", "a member twice", "a zip bomb")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives(kind, good, tmp_path, monkeypatch):
    change, message = HOSTILE[kind]
    members = dict(good)
    made = change(members)
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    path = tmp_path / "there" / "model.keras"
    path.write_bytes(made if kind in WHOLE else pack(members))
    monkeypatch.chdir(tmp_path / "here")
    modules = set(sys.modules)
    with bounded_memory(), pytest.raises(ValueError, match=message) as caught:
        load_model(path, kv.VQVAE)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
    assert not list((tmp_path / "here").iterdir())
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["model.keras"]
    assert "antigravity" not in set(sys.modules) - modules


def test_the_good_one_is_loaded(good, tmp_path):
    (tmp_path / "model.keras").write_bytes(pack(good))
    assert isinstance(load_model(tmp_path / "model.keras", kv.VQVAE), kv.VQVAE)


def test_flipped_bytes(good, tmp_path):
    """Whatever byte is wrong, there is a clear error or a model, but no crash."""
    content, rng, path = pack(good), np.random.default_rng(0), tmp_path / "model.keras"
    for _ in range(30):
        flipped = bytearray(content)
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            load_model(path)
        except ValueError as error:
            assert str(path) in str(error)
