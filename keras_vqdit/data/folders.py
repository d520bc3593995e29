"""Folders of files: one sub-folder a class, or a flat one without labels."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keras_vqdit.data.examples import Examples, Source
from keras_vqdit.data.images import fit_to, with_channels, without_alpha

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
TEST_NAMES = ("test", "validation", "val")
SPLIT_NAMES = {"train", "training", "testing", "valid", *TEST_NAMES}


def read_folder(path, *, size=None, channels=None):
    """Read a folder of images as a `Source`; `train/` and `test/` (or `validation/`, `val/`) below it are its splits."""
    parts, listed, class_names = list_classes(path, EXTENSIONS, "images")
    decoded = [_read_images(part, files, size) for part, files in zip(parts, listed, strict=True)]
    check_trained(parts[0], decoded[0], class_names)
    _check_shapes([entry for entries in decoded for entry in entries])
    if channels is None:  # grey only if all are: colour loses nothing, grey does
        channels = max(image.shape[-1] for entries in decoded for _, _, image in entries)
    stacked = [np.stack([with_channels(image, channels) for _, _, image in entries]) for entries in decoded]
    return folder_source(path, "image", stacked, decoded, class_names)


def holds(path, extensions):
    """Whether there is a file of one of these kinds in a folder."""
    return any(file.suffix.lower() in extensions for file in Path(path).rglob("*"))


def list_classes(path, extensions, kind):
    """`(parts, files, class_names)`: the folder of each split, its files, see `_list_files`, and the names of the sub-folders."""
    root = Path(path)
    tests = [root / name for name in TEST_NAMES if (root / name).is_dir()]
    parts = [root / "train", tests[0]] if tests and (root / "train").is_dir() else [root]
    if parts == [root]:
        parts = [_without_splits(root)]
    listed = [_list_files(part, extensions, kind) for part in parts]
    class_names = tuple(sorted({name for files in listed for _, name in files if name is not None}))
    if class_names and any(name is None for files in listed for _, name in files):
        raise ValueError(f"{root}: {kind} must all lie in class sub-folders, or all directly in the folder.")
    return parts, listed, class_names


def check_trained(part, entries, class_names):
    """Raise a ValueError where a class has no entry `(path, class name, …)` to learn it from."""
    untrained = [name for name in class_names if name not in {entry[1] for entry in entries}]
    if untrained:
        raise ValueError(f"{part} must hold a file of every class. Received: none of {', '.join(untrained)}")


def folder_source(path, modality, arrays, parts, class_names, **known):
    """A `Source` of the arrays of one or two splits, and of their entries `(path, class name, …)`."""
    examples = []
    for array, entries in zip(arrays, parts, strict=True):
        labels = np.array([class_names.index(name) for _, name, *_ in entries], "int32") if class_names else None
        examples.append(Examples({modality: array}, labels))
    if len(examples) == 2:  # the listing is sorted by class: let the first test batch show all of them
        examples[1] = examples[1].take(np.random.RandomState(0).permutation(len(examples[1])))
    return Source(Path(path).resolve().name, *examples, class_names=class_names or None, **known)


def _without_splits(root):
    """The folder whose sub-folders are the classes: a lone `train/`, or the folder itself."""
    names = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
    if names == ["train"]:
        return root / "train"
    if names and {name.lower() for name in names} <= SPLIT_NAMES:
        raise ValueError(
            f"The sub-folders of {root} must be classes, or `train/` and one of {', '.join(f'`{n}/`' for n in TEST_NAMES)}. "
            f"Received: {', '.join(sorted(names))}"
        )
    return root


def _list_files(root, extensions, kind):
    """Files below a folder as sorted `(path, class name or None)`; hidden ones are none of ours."""
    files = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
        if path.suffix.lower() in extensions and path.is_file() and not hidden:
            files.append((path, parts[0] if len(parts) > 1 else None))
    if not files:
        raise ValueError(
            f"No {kind} in {root}: there must be files {', '.join(extensions)} in it or in its sub-folders."
        )
    return files


def _read_images(root, files, size):
    """Decode files on all cores. Corrupt ones are named in one warning and left out."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(lambda file: decode_image(file[0], size), files))
    corrupt = [str(path) for (path, _), image in zip(files, images, strict=True) if image is None]
    if corrupt:
        named = "\n  ".join(corrupt[:20]) + (f"\n  and {len(corrupt) - 20} more" if len(corrupt) > 20 else "")
        warnings.warn(
            f"{len(corrupt)} of {len(files)} image files can not be read and are skipped:\n  {named}",
            stacklevel=4,
        )
    if len(corrupt) == len(files):
        raise ValueError(f"None of the {len(files)} image files in {root} can be read.")
    return [(*file, image) for file, image in zip(files, images, strict=True) if image is not None]


def decode_image(path, size):
    """One image file as uint8 `(H, W, 1 or 3)`, transparency laid on white; None if it is corrupt."""
    import tensorflow as tf

    try:
        image = tf.io.decode_image(path.read_bytes(), expand_animations=False).numpy()
    except (tf.errors.InvalidArgumentError, OSError):
        return None
    # The fourth channel of a BMP is mostly padding, not transparency.
    image = image[..., :3] if path.suffix.lower() == ".bmp" else without_alpha(image)
    return image if size is None or image.shape[:2] == size else fit_to(image, size).numpy()


def _check_shapes(entries):
    path, _, image = entries[0]
    for other_path, _, other in entries:
        if other.shape[:2] != image.shape[:2]:
            raise ValueError(
                "Images differ in size: pass `image_size` to scale and crop them to one. "
                f"Received: {path} {image.shape[:2]}, {other_path} {other.shape[:2]}"
            )
