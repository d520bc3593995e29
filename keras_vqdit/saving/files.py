"""Atomic files: a reader finds the old file or the new one, never half of one."""

import contextlib
import copy
import io
import json
import math
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import keras

from keras_vqdit.saving.folders import current_umask, expand
from keras_vqdit.saving.strict import (
    MAX_JSON,
    check_config,
    check_size,
    compilations,
    first_line,
    itemsize,
    parse_json,
    plain_arrays,
    short,
    without_compilation,
    without_values,
)


@contextlib.contextmanager
def atomic_path(path):
    """A temporary path in the folder of `path`, which replaces `path` when the block ends well.

    A link stays a link, and an old file's permissions those of the new one.

    Args:
        path: where the file shall be. Folders are made.

    Raises:
        IsADirectoryError: if `path` is a folder.
        NotADirectoryError: if a folder of `path` is a file.

    Example:

    ```python
    with atomic_path("digits.npz") as temporary:
        np.savez(temporary, images=images)
    ```
    """
    path = expand(path).resolve()
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be a file, but is a folder. Received: path={path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(
            f"`path` must be in a folder, and a part of it is a file. Received: path={path}"
        ) from None
    handle, temporary = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes a private file; give it the permissions of the old one, or those that any new file has.
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~current_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def check_writable(path):
    """Raise the error that writing to `path` will raise, before the work and not after it.

    Raises:
        OSError: if the folder can not be made or written to, or `path` is one.
    """
    with contextlib.suppress(_NotReplaced), atomic_path(path):
        raise _NotReplaced


class _NotReplaced(Exception):
    """Ends the block of `atomic_path` without a new file."""


def save_model(model, path):
    """Save a model as a `.keras` file, atomically: an older file stays whole until the new one is.

    Args:
        model: any Keras model.
        path: where to, ending in `.keras`. Folders are made.

    Raises:
        ValueError: if the path does not end in `.keras`, or the weights are not finite.
    """
    if not str(path).endswith(".keras"):
        raise ValueError(f"`path` must end in '.keras'. Received: path={str(path)!r}")
    _check_finite(model, "The model")
    with atomic_path(path) as temporary:
        model.save(temporary, overwrite=True)


def load_model(path, expected=None, *, custom_objects=None):
    """Load a `.keras` file, which may come from a stranger: nothing that it holds is executed, see `strict.check_config`.

    Args:
        path: the file.
        expected: a class, or a tuple of them, that the model must be of. Defaults to `None`, any.
        custom_objects: as in `keras.saving.load_model`: classes of your own that are not registered.

    Returns:
        The model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no Keras file, names what is not known, holds weights that are not finite or not those of its
            configuration, or another kind of model.
    """
    path = expand(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no model at {path}")
    with open_archive(path):
        pass  # before it is copied: it is no larger than what it holds
    try:
        with tempfile.TemporaryDirectory() as folder:  # a copy of our own: nobody changes it after the check
            own = shutil.copyfile(path, Path(folder) / "model.keras")
            _check_archive(own, path, custom_objects)
            model = keras.saving.load_model(own, custom_objects=custom_objects)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} can not be loaded as a Keras model: {first_line(error)}") from error
    if expected is not None and not isinstance(model, expected):
        names = " or ".join(c.__name__ for c in (expected if isinstance(expected, tuple) else (expected,)))
        raise ValueError(f"{path} must hold a {names}. It holds a {type(model).__name__}")
    _check_finite(model, path)
    return model


def _check_finite(model, path):
    for weight in model.weights:
        if not bool(keras.ops.all(keras.ops.isfinite(keras.ops.cast(weight, "float32")))):
            raise ValueError(f"{path} must hold finite weights. Received: NaN or infinite values in {weight.path}")


@contextlib.contextmanager
def open_archive(path, shown=None):
    """A `.keras` file as a zip archive that holds what it should, as it is: nothing is compressed.

    Args:
        path: the file.
        shown: the path for errors. Defaults to `path`.

    Raises:
        ValueError: if it is something else.
    """
    shown = shown or path
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names, size = [member.filename for member in members], sum(member.file_size for member in members)
            if sorted(names) != ["config.json", "metadata.json", "model.weights.h5"]:
                raise ValueError(
                    f"{shown} must hold a configuration, metadata and weights. Received: {short(names[:8])}"
                )
            plain = all(m.compress_type == zipfile.ZIP_STORED and m.file_size == m.compress_size for m in members)
            if not plain or not size <= Path(path).stat().st_size <= size + (1 << 16):
                raise ValueError(
                    f"{shown} must hold its parts as they are, as Keras writes them. Received: {size} bytes in a file of "
                    f"{Path(path).stat().st_size}"
                )
            yield archive
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{shown} is damaged, or no .keras file: {first_line(error)}") from None


def _check_archive(own, path, custom_objects):
    """Check a `.keras` file before Keras reads it; `path` is for the errors."""
    import h5py

    with open_archive(own, path) as archive:
        with archive.open("config.json") as file:
            config = parse_json(file.read(MAX_JSON + 1), f"{path}, config.json")
        check_config(config, f"{path}, config.json", custom_objects)
        with archive.open("model.weights.h5") as file, h5py.File(io.BytesIO(file.read()), "r") as weights:
            arrays = plain_arrays(weights, archive.getinfo("model.weights.h5").file_size, extra=("void16",))
            stored = sum(data.size * data.dtype.itemsize for _, data in arrays)
    for part in ("compile_config", "build_config"):
        if not isinstance(config.get(part, {}), (dict, type(None))):
            raise ValueError(
                f"{path}, config.json: {part!r} must be an object. Received: {type(config[part]).__name__}"
            )
    declared, compiled = copy.deepcopy(without_compilation(config)), copy.deepcopy(compilations(config))
    for one in compiled:
        one.pop("optimizer", None)  # whose variables are a few times those of the model
    with without_values() as scope:
        model = keras.saving.deserialize_keras_object(declared, custom_objects=custom_objects)
        keras.saving.deserialize_keras_object(compiled, custom_objects=custom_objects)
        needed = sum(math.prod(weight.shape) * itemsize(weight.dtype) for weight in model.weights)
    check_size(scope, stored, path)
    if needed > stored:
        raise ValueError(
            f"{path} must hold the {needed} bytes of weights that its configuration asks for. Received: {stored} bytes"
        )


def save_json(content, path):
    """Save a JSON file, atomically.

    Raises:
        ValueError: for a number that JSON does not know, NaN or infinity.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
