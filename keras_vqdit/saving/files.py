"""Atomic files: a reader finds the old file or the new one, never half of one."""

import contextlib
import json
import os
import tempfile
import zipfile
from pathlib import Path

import keras


@contextlib.contextmanager
def atomic_path(path):
    """A temporary path in the folder of `path`, which replaces `path` when the block ends well.

    A link stays a link, and an old file's permissions those of the new one.

    Args:
        path: where the file shall be. Folders are made.

    Raises:
        IsADirectoryError: if `path` is a folder.

    Example:

    ```python
    with atomic_path("digits.npz") as temporary:
        np.savez(temporary, images=images)
    ```
    """
    path = Path(path).resolve()
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be a file, but is a folder. Received: path={path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes a private file; give it the permissions of the old one, or those that any new file has.
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask():
    mask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(mask)
    return mask


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
        ValueError: if the path does not end in `.keras`.
    """
    if not str(path).endswith(".keras"):
        raise ValueError(f"`path` must end in '.keras'. Received: path={str(path)!r}")
    with atomic_path(path) as temporary:
        model.save(temporary, overwrite=True)


def load_model(path, expected=None, *, custom_objects=None):
    """Load a `.keras` file.

    Args:
        path: the file.
        expected: a class, or a tuple of them, that the model must be of. Defaults to `None`, any.
        custom_objects: as in `keras.saving.load_model`.

    Returns:
        The model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no Keras file, or holds another kind of model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no model at {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged, or no .keras file")
    try:
        model = keras.saving.load_model(path, custom_objects=custom_objects)
    except Exception as error:
        raise ValueError(f"{path} can not be loaded as a Keras model: {error}") from error
    if expected is not None and not isinstance(model, expected):
        names = " or ".join(c.__name__ for c in (expected if isinstance(expected, tuple) else (expected,)))
        raise ValueError(f"{path} must hold a {names}. It holds a {type(model).__name__}")
    return model


def save_json(content, path):
    """Save a JSON file, atomically.

    Raises:
        ValueError: for a number that JSON does not know, NaN or infinity.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
