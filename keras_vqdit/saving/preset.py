"""Presets: folders with the configuration and the weights of a trained model, which can come from strangers."""

import contextlib
import copy
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import re
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_vqdit.saving.folders import atomic_folder, check_folder, expand
from keras_vqdit.saving.strict import (
    MAX_JSON,
    Weights,
    check_config,
    check_size,
    first_line,
    itemsize,
    open_regular,
    parse_json,
    read_json,
    short,
    strip_numbers,
    without_compilation,
    without_values,
)

FORMAT, VERSION = "keras_vqdit preset", 1
METADATA, CONFIG, WEIGHTS, CARD = "metadata.json", "config.json", "model.weights.h5", "model_card.json"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
logger = logging.getLogger("keras_vqdit")


class FromPreset:
    """What a model needs for presets: `save_to_preset`, and the class method `from_preset`.

    Attributes:
        card: dict, the model card of the preset that the model comes from, else empty.
    """

    _card = "{}"  # as text, for Keras would track a dict

    @property
    def card(self):
        return json.loads(self._card)

    @classmethod
    def from_preset(cls, name_or_path, *, custom_objects=None):
        """Load a trained model from a preset. Nothing that the files hold is executed.

        Args:
            name_or_path: a name in `keras_vqdit.presets()`, or a folder that `save_to_preset` wrote.
            custom_objects: dict of names and classes of your own that the model is made of, where they are not registered by
                `keras.saving.register_keras_serializable`.

        Returns:
            The model, built, not compiled.

        Raises:
            FileNotFoundError: if there is no such preset.
            ValueError: if a file is damaged, of another version or of another kind of model, or names what is not known.

        Example:

        ```python
        model.save_to_preset("presets/digits", {"data": "4,000 digits of MNIST", "licence": "CC BY-SA 3.0"})
        again = kv.LatentDiffusion.from_preset("presets/digits")
        images = again.generate(labels=range(10), guidance_scale=1.5, seed=0)  # (10, 28, 28, 1)
        ```
        """
        return load_preset(name_or_path, cls, custom_objects=custom_objects)

    def save_to_preset(self, path, card=None, *, custom_objects=None):
        """Save the model as a preset: a folder of `config.json`, `model.weights.h5`, `metadata.json` and `model_card.json`.

        It holds what is needed to use the model and to train it further, but neither the optimizer nor, beside the average
        of the weights, the weights themselves; `training.Checkpoint` keeps those. An older preset stays whole until the
        new one is.

        Args:
            path: the folder. It is made; what is there is replaced if it is a preset.
            card: dict of what users should know: data, metrics, command, time, licence. It must fit JSON.
                `"generate"`, a dict of settings of `generate`, is what the commands draw by. Defaults to `None`,
                the card of the preset that the model comes from.
            custom_objects: dict of names and classes of your own that are not registered; `from_preset` needs it as well.

        Raises:
            ValueError: if the model is not built, its weights are not finite, it is made of what could not be loaded, or the
                card does not fit JSON.
            FileExistsError: if `path` holds something else.
        """
        save_preset(self, path, card, custom_objects)

    def preset_variables(self):
        """The variables that a preset holds, in order: all but the states of random numbers."""
        return [variable for variable in self.weights if variable.name != "seed_generator_state"]

    def values_for_preset(self):
        """The variables whose values those of `preset_variables` get."""
        return self.preset_variables()

    def after_preset(self):
        """Called after a preset has given `preset_variables` their values."""


# === Saving ===


def save_preset(model, path, card=None, custom_objects=None):
    """See `FromPreset.save_to_preset`."""
    if not model.built:
        raise ValueError("The model must be built before it is saved: train it, or call it on a batch")
    check_folder(path, _is_preset)
    config = without_compilation(keras.saving.serialize_keras_object(model))
    arrays = {}
    for variable, source in zip(_describe(model), model.values_for_preset(), strict=True):
        array = keras.ops.convert_to_numpy(source)
        arrays[variable[0]] = array = array.astype("float32") if array.dtype.name == "bfloat16" else array
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise ValueError(f"The weights must be finite. Received: NaN or infinite values in {source.path}")
    text, about = card_text(model.card if card is None else card), json_text(config, "The configuration")
    check_config(json.loads(about), "The configuration", custom_objects)  # or nobody could load it
    parameters = sum(array.size for array in arrays.values())
    with atomic_folder(path, _is_preset) as folder:
        (folder / CONFIG).write_text(about)
        (folder / CARD).write_text(text)
        _write_weights(folder / WEIGHTS, arrays)
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "model": type(model).__name__,
            "parameter_count": parameters,
            "keras_version": keras.__version__,
            "files": {name: _checksum(folder / name) for name in (CONFIG, WEIGHTS)},
        }
        (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")


def json_text(content, name):
    """Content as the text of a JSON file that `parse_json` reads.

    Raises:
        ValueError: if it does not fit.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False, default=_number) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must fit JSON: {error}") from None
    parse_json(text.encode(), name)
    return text


def _number(value):
    """A scalar of NumPy as a number of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"received {type(value).__name__}")


def card_text(card):
    """A model card as text.

    Raises:
        ValueError: if it is no dict, or does not fit JSON.
    """
    if not isinstance(card, (dict, type(None))):
        raise ValueError(f"`card` must be a dict. Received: {type(card).__name__}")
    return json_text(card or {}, "`card`")


def _write_weights(path, arrays):
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def _describe(model):
    """`[(name, shape)]` of what a preset holds."""
    return [
        (f"{i:05d}.{strip_numbers(variable.name)}", tuple(variable.shape))
        for i, variable in enumerate(model.preset_variables())
    ]


def _is_preset(path):
    """Whether a folder is a preset, and nothing else lies in it."""
    return is_ours(path, METADATA, FORMAT, lambda name: name in (METADATA, CONFIG, WEIGHTS, CARD))


def is_ours(path, file, format, may_lie):
    """Whether a JSON file in a folder tells this format, and `may_lie(name)` is true of all that lies there."""
    if not path.is_dir() or not all(may_lie(one.name) for one in path.iterdir()):
        return False
    with contextlib.suppress(ValueError, OSError):
        return read_json(path / file).get("format") == format
    return False


def _checksum(path):
    with open_regular(path) as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# === Loading ===


def load_preset(name_or_path, expected=None, *, custom_objects=None):
    """Load a model of any kind from a preset; see `FromPreset.from_preset`.

    Args:
        name_or_path: a name, or a folder.
        expected: class, or tuple of classes, that the model must be of. Defaults to `None`, any.
        custom_objects: dict of names and classes.
    """
    folder = find_preset(name_or_path)
    for _ in range(5):
        metadata = read_metadata(folder)
        try:
            return _load(folder, metadata, expected, custom_objects)
        except (FileNotFoundError, ValueError):
            if read_metadata(folder) == metadata:
                raise  # otherwise a new one has taken its place meanwhile
    return _load(folder, read_metadata(folder), expected, custom_objects)


def _load(folder, metadata, expected, custom_objects):
    path = folder / CONFIG
    config = _read_config(folder, metadata, custom_objects)
    expected = expected if isinstance(expected, (tuple, type(None))) else (expected,)
    if expected and config["class_name"] not in _names_of(expected):
        names = " or ".join(cls.__name__ for cls in expected)
        raise ValueError(f"{path} must be that of a {names}. Received: a {short(config['class_name'])}")
    with without_values() as scope:  # what it declares is compared with what is there before it takes memory
        described = _describe(declared := _make(config, path, expected, custom_objects))
        needed = sum(math.prod(one.shape) * max(itemsize(one.dtype), 4) for one in declared.preset_variables())
    stated = metadata["files"][WEIGHTS]["bytes"]
    if stated > needed + 4096 * (len(described) + 16):  # what HDF5 adds
        raise ValueError(
            f"{folder / WEIGHTS} must hold the weights that {CONFIG} asks for, {needed} bytes. Received: {stated}"
        )
    with contextlib.ExitStack() as stack:
        # A copy of our own: nobody changes it between the check and the reading.
        own = Path(stack.enter_context(tempfile.TemporaryDirectory())) / WEIGHTS
        _copy_checked(folder / WEIGHTS, metadata, own)
        weights = stack.enter_context(Weights(own, folder / WEIGHTS))
        _compare(described, weights)
        check_size(scope, stated, path)
        model = _make(config, path, expected, custom_objects)
        for (name, _), variable in zip(described, model.preset_variables(), strict=True):
            variable.assign(weights.read(name, variable.dtype))
    model.after_preset()
    model._card = json.dumps(read_card(folder))
    return model


def _names_of(classes):
    """The names of classes and of all their subclasses."""
    return {name for cls in classes for name in (cls.__name__, *_names_of(cls.__subclasses__()))}


def _make(config, path, expected, custom_objects):
    try:
        # A copy, for Keras uses up what it reads.
        model = keras.saving.deserialize_keras_object(copy.deepcopy(config), custom_objects=custom_objects)
    except Exception as error:
        cause = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__
        if type(cause) is ImportError:  # what a part of the model needs, and says
            raise ImportError(f"{path} needs what is not installed: {first_line(cause)}") from error
        raise ValueError(f"{path} is not the configuration of a model: {first_line(cause)}") from error
    if not isinstance(model, expected or FromPreset) or not getattr(model, "built", False):
        raise ValueError(f"{path} must be that of a model of this package, built. Received: {type(model).__name__}")
    return model


def read_metadata(folder):
    """The metadata of a preset, checked."""
    path = folder / METADATA
    metadata = read_json(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} must be of the format {FORMAT!r}. Received: {short(metadata.get('format'))!r}")
    if type(metadata.get("version")) is not int or metadata["version"] != VERSION:
        raise ValueError(
            f"{path} must be of version {VERSION}; a newer one needs a newer keras_vqdit. "
            f"Received: version {short(metadata.get('version'))}"
        )
    files = metadata.get("files")
    for name in (CONFIG, WEIGHTS):
        entry = files.get(name) if isinstance(files, dict) else None
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or type(entry.get("sha256")) is not str:
            raise ValueError(f"{path} must tell `bytes` and `sha256` of {name}. Received: {short(entry)}")
    return metadata


def _read_config(folder, metadata, custom_objects):
    path = folder / CONFIG
    with open_regular(path) as file:
        text = file.read(min(_stated(path, metadata, file), MAX_JSON) + 1)
    if len(text) > MAX_JSON:
        raise ValueError(f"{path} must have at most {MAX_JSON} bytes")
    _check_digest(path, metadata, hashlib.sha256(text).hexdigest())
    config = parse_json(text, path)
    if not isinstance(config.get("class_name"), str) or not isinstance(config.get("config"), dict):
        raise ValueError(f"{path} must have a `class_name` and a `config`. Received: keys {short(sorted(config))}")
    config = without_compilation(config)
    check_config(config, path, custom_objects)
    return config


def _stated(path, metadata, file):
    """The size of a file, as stated and as it is."""
    stated, size = metadata["files"][path.name]["bytes"], os.fstat(file.fileno()).st_size
    if stated != size:
        raise ValueError(f"{path} must have {stated} bytes, as {METADATA} says. Received: {size} bytes")
    return size


def _check_digest(path, metadata, digest):
    if digest != metadata["files"][path.name]["sha256"]:
        raise ValueError(f"{path} is damaged: its checksum is not that in {METADATA}. Received: sha256={digest}")


def _copy_checked(path, metadata, own):
    digest = hashlib.sha256()
    with open_regular(path) as file, open(own, "wb") as target:
        left = _stated(path, metadata, file)
        while left and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            target.write(part)
            left -= len(part)
    _check_digest(path, metadata, digest.hexdigest())


def _compare(described, weights):
    path, stored = weights.path, list(weights.shapes.items())
    for expected, received in zip(described, stored, strict=False):
        if expected != received:
            raise ValueError(f"{path} must hold the weights that {CONFIG} asks for, {expected}. Received: {received}")
    if len(described) != len(stored):
        raise ValueError(f"{path} must hold {len(described)} weights. Received: {len(stored)}")


# === Names ===


def presets():
    """The presets that come with the package.

    Returns:
        Dict of names and model cards (dicts).

    Example:

    ```python
    for name, card in kv.presets().items():
        print(name, card["description"])
    ```
    """
    found = {}
    for folder in reversed(_folders()):
        for path in folder.iterdir() if folder.is_dir() else ():
            if NAME.fullmatch(path.name) and path.is_dir() and (path / METADATA).is_file():
                try:
                    read_metadata(path)
                    found[path.name] = read_card(path)
                except (OSError, ValueError) as error:
                    logger.warning("The preset %s is damaged: %s", path.name, error)
    return dict(sorted(found.items()))


def read_card(folder):
    """The model card of a preset, `{}` if it has none."""
    try:
        return read_json(Path(folder) / CARD)
    except FileNotFoundError:
        return {}


def find_preset(name_or_path):
    """The folder of a preset.

    Raises:
        FileNotFoundError: if there is none.
        TypeError: if `name_or_path` is no text and no path.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"`name_or_path` must be a name or a path. Received: {name_or_path!r}")
    if isinstance(name_or_path, str) and NAME.fullmatch(name_or_path):  # no folder here goes by the name of ours
        for folder in _folders():
            if (folder / name_or_path / METADATA).is_file():
                if Path(name_or_path).is_dir():
                    logger.warning(
                        "%s is the preset that comes with the package; the folder is ./%s", *2 * [name_or_path]
                    )
                return folder / name_or_path
    path = expand(name_or_path)
    if path.is_dir():
        if not (path / METADATA).exists():
            raise FileNotFoundError(f"There is no preset in {path}: it has no {METADATA}")
        return path
    raise FileNotFoundError(
        f"There is no preset {str(name_or_path)!r}: it is no folder, and those that come with the package are "
        f"{', '.join(presets()) or 'not there'}"
    )


def _folders():
    """Where presets may be: beside the package in a checkout, and where a wheel put them."""
    root = Path(__file__).resolve().parents[2]
    folders = (
        [root / "saved_models"] if (root / "setup.cfg").is_file() else [root / "share" / "keras_vqdit" / "presets"]
    )
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        distribution = importlib.metadata.distribution("keras_vqdit")
        for file in distribution.files or ():
            if file.name == METADATA and file.parts[-3:-2] == ("presets",):
                folders.append(Path(distribution.locate_file(file)).resolve().parents[1])
    return list(dict.fromkeys(folders))
