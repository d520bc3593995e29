"""Atomic files: a reader finds the old file or the new one, never half of one."""

import contextlib
import json
import os
import tempfile
from pathlib import Path

import keras


@contextlib.contextmanager
def atomic_path(path):
    """A temporary path in the folder of `path`, which replaces `path` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes a private file; give it the permissions that any new file has.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def save_model(model, path):
    """Save a model as a `.keras` file, atomically: an older file stays whole until the new one is.

    Args:
        model: any Keras model.
        path: where to, ending in `.keras`. Folders are made.

    Raises:
        ValueError: if the path does not end in `.keras`.
    """
    if not str(path).endswith(".keras"):
        raise ValueError(f"`path` must end in '.keras'. Received: path={str(path)!r}")
    with atomic_path(path) as temporary:
        model.save(temporary, overwrite=True)


def load_model(path, expected=None):
    """Load a `.keras` file.

    Args:
        path: the file.
        expected: a class, or a tuple of them, that the model must be of. Defaults to `None`, any.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no Keras file, or holds another kind of model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no model at {path}")
    try:
        model = keras.saving.load_model(path)
    except Exception as error:
        raise ValueError(f"{path} can not be loaded as a Keras model: {error}") from error
    if expected is not None and not isinstance(model, expected):
        names = " or ".join(c.__name__ for c in (expected if isinstance(expected, tuple) else (expected,)))
        raise ValueError(f"{path} must hold a {names}. It holds a {type(model).__name__}")
    return model


def save_json(content, path):
    """Save a JSON file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
