"""Atomic folders: a reader finds the old folder or the new one, whole."""

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from pathlib import Path


@contextlib.contextmanager
def atomic_folder(path, is_ours):
    """A temporary folder beside `path`, which takes its place when the block ends well.

    Args:
        path: where the folder shall be. Folders above it are made.
        is_ours: function of a path that says whether the folder that is there may be replaced.

    Raises:
        FileExistsError: if there is something else.

    Example:

    ```python
    with atomic_folder("digits", lambda path: (path / "metadata.json").exists()) as temporary:
        (temporary / "metadata.json").write_text("{}")
    ```
    """
    path = check_folder(path, is_ours)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}-", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o777 & ~current_umask())
        for folder, _, names in os.walk(temporary):
            for name in (*names, "."):
                _flush(os.path.join(folder, name))
        if path.exists():
            _exchange(temporary, path)  # the old folder is now the temporary one
        else:
            os.rename(temporary, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(path, is_ours):
    """The absolute path of a folder that may be written; arguments as of `atomic_folder`.

    Raises:
        FileExistsError: if there is something else.
        ValueError: if it is the working folder.
    """
    path = expand(path).resolve()
    if path == Path.cwd():
        raise ValueError(f"`path` must not be the folder that the program works in. Received: path={path}")
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_ours(path))):
        raise FileExistsError(f"`path` holds something else, which is not overwritten. Received: path={path}")
    return path


def expand(path):
    """A path, in which `~` is the home of the user.

    Raises:
        FileNotFoundError: if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"There is no {path}: {error}") from None


def current_umask():
    """The permissions that new files and folders shall not have."""
    mask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def _flush(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems can not flush folders
            os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one, other):
    """Give two folders each other's names: at once where the system can, in two moves where it can not."""
    if not _exchange_at_once(os.fsencode(one), os.fsencode(other)):
        aside = Path(f"{one}-old")
        os.rename(other, aside)
        try:
            os.rename(one, other)
        except OSError:
            os.rename(aside, other)
            raise
        os.rename(aside, one)


def _exchange_at_once(one, other):
    library, here = ctypes.CDLL(None, use_errno=True), -100  # AT_FDCWD
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return library.renameat2(here, one, here, other, 2) == 0  # RENAME_EXCHANGE
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return library.renamex_np(one, other, 2) == 0  # RENAME_SWAP
    return False
