"""Arrays in memory and `.npz` files: checked, and brought to uint8 or to float32 in [-1, 1]."""

import zipfile
from pathlib import Path

import numpy as np

from keras_vqdit.data.examples import Examples, Source
from keras_vqdit.data.images import prepare

IMAGE_KEYS = ("image", "images")
LABEL_KEYS = ("label", "labels")
RANGES = "uint8 or integers in 0..255, floats in [0, 1], in [-1, 1] or in 0..255, or booleans"


def load_arrays(path):
    """The arrays of an `.npz` file, by name; pickled objects are refused."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not an .npz file of plain arrays (pickled objects are refused): {error}"
        ) from error


def read_npz(path, *, size=None, channels=None):
    """Read an `.npz` file with `x_train, y_train, x_test, y_test`, or with `image(s)` and `label(s)`."""
    path, arrays = Path(path), load_arrays(path)
    if "x_train" in arrays:
        if "y_train" not in arrays:
            _check_unlabelled(arrays, ("x_train", "x_test"), "y_train")
        train = (arrays["x_train"], arrays.get("y_train"))
        test = (arrays["x_test"], arrays.get("y_test")) if "x_test" in arrays else None
        return _source(path.stem, train, test, size, channels)
    if not any(key in arrays for key in IMAGE_KEYS):
        raise ValueError(
            f"{path} must hold x_train, y_train, x_test, y_test, or image and label, or images and labels. "
            f"Received: {', '.join(sorted(arrays)) or 'no arrays'}"
        )
    return _source(path.stem, _pair(arrays), None, size, channels)


def from_arrays(data, *, size=None, channels=None):
    """Arrays as a `Source`: images alone, `(images, labels)`, `{"image", "label"}`, or a pair of any of the last two."""
    pair = isinstance(data, (tuple, list)) and len(data) == 2
    if pair and all(isinstance(part, (tuple, list, dict)) for part in data):
        return _source("arrays", _pair(data[0]), _pair(data[1]), size, channels)
    return _source("arrays", _pair(data), None, size, channels)


def _pair(data):
    """One of the accepted forms to `(images, labels or None)`."""
    if isinstance(data, dict):
        images = [data[key] for key in IMAGE_KEYS if key in data]
        labels = [data[key] for key in LABEL_KEYS if key in data]
        if len(images) == 1 and len(labels) <= 1:
            if not labels:
                _check_unlabelled(data, IMAGE_KEYS, LABEL_KEYS[0])
            return images[0], labels[0] if labels else None
        raise ValueError(f'A dict of arrays must have the keys "image" and "label". Received: {sorted(data)}')
    if hasattr(data, "shape"):
        return data, None
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(hasattr(d, "shape") for d in data):
        return tuple(data)
    raise TypeError(
        'Arrays must come as images, as (images, labels), as {"image": images, "label": labels}, or as a pair of '
        f"those for training and testing. Received: {type(data).__name__}"
    )


def _check_unlabelled(arrays, known, missing):
    """A misspelt key must not lose the labels in silence."""
    others = sorted(set(arrays) - set(known))
    if others:
        raise ValueError(
            f'Labels must have the key "{missing}"; images without labels must come alone. '
            f"Received: images and {', '.join(map(str, others))}"
        )


def _source(name, train, test, size, channels):
    parts = [train] if test is None else [train, test]
    images = to_images([images for images, _ in parts])
    labels, class_names = to_labels([labels for _, labels in parts], [len(i) for i in images])
    images = [prepare(array, size, channels) for array in images]
    if len({array.shape[1:] for array in images}) > 1:
        shapes = [array.shape[1:] for array in images]
        raise ValueError(f"Training and test images differ in shape; pass `image_size`. Received: {shapes}")
    examples = [Examples({"image": array}, of) for array, of in zip(images, labels, strict=True)]
    return Source(name, *examples, class_names=class_names)


def to_images(arrays):
    """Check image arrays and bring them to uint8 0..255 or float32 [-1, 1], by one rule for all of them together."""
    arrays = [np.asarray(array) for array in arrays]
    for array in arrays:
        if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3)):
            raise ValueError(
                "Images must be (N, height, width) or (N, height, width, channels), channels last, 1 or 3 of them. "
                f"Received: shape={array.shape}"
            )
        if array.size == 0:
            raise ValueError(f"The set of images is empty. Received: shape={array.shape}")
        if array.ndim == 3 and array.shape[-1] in (1, 3, 4) and array.shape[1] > 4:
            raise ValueError(
                "Images must be (N, height, width) or (N, height, width, channels). Received: shape="
                f"{array.shape}, which looks like one single image; a set of it alone is `image[None]`"
            )
    arrays = [array[..., None] if array.ndim == 3 else array for array in arrays]
    kinds = {array.dtype.kind for array in arrays}
    if kinds == {"b"}:
        return [array.astype("uint8") * 255 for array in arrays]
    if not (kinds <= set("ui") or kinds == {"f"}):
        raise ValueError(f"Images must be {RANGES}. Received: dtypes {[str(array.dtype) for array in arrays]}")
    low, high = min(array.min() for array in arrays), max(array.max() for array in arrays)
    received = f"Received: values from {low} to {high}, {arrays[0].dtype}"
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = [int(i) for a in arrays for i in np.flatnonzero(~np.isfinite(a.reshape(len(a), -1)).all(axis=1))]
        raise ValueError(
            f"Images must be finite. Received: {len(bad)} images with NaN or infinite values, such as number {bad[0]}"
        )
    if kinds <= set("ui"):
        if low < 0 or high > 255:
            raise ValueError(f"Images must be {RANGES}. {received}")
        if high == 1:
            raise ValueError(
                f"Integers of 0 and 1 could be a mask or almost black: pass booleans or floats. {received}"
            )
        return [array.astype("uint8") for array in arrays]
    slack = 1e-5  # rounding of whoever scaled them
    if low >= -slack and high <= 1.0 + slack:
        arrays = [array.astype("float32") * 2.0 - 1.0 for array in arrays]
    elif low >= -slack and high <= 255.0 + 255.0 * slack:
        arrays = [array.astype("float32") / 127.5 - 1.0 for array in arrays]
    elif low < -1.0 - slack or high > 1.0 + slack:
        raise ValueError(f"Images must be {RANGES}. {received}")
    return [np.clip(array.astype("float32"), -1.0, 1.0) for array in arrays]


def to_labels(arrays, sizes):
    """Check label arrays; int32, and the class names where the labels were words. All None: no labels."""
    if all(labels is None for labels in arrays):
        return arrays, None
    if any(labels is None for labels in arrays):
        raise ValueError("Either both training and test images have labels, or none of them.")
    arrays = [np.asarray(labels) for labels in arrays]
    arrays = [labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels for labels in arrays]
    for labels, size in zip(arrays, sizes, strict=True):
        if labels.shape != (size,):
            raise ValueError(
                f"Labels must be one class an image, shape ({size},), not one-hot. Received: shape={labels.shape}"
            )
    if all(labels.dtype.kind in "US" for labels in arrays):
        names, indices = np.unique(np.concatenate(arrays), return_inverse=True)
        names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
        return np.split(indices.astype("int32"), np.cumsum(sizes)[:-1]), names
    for labels in arrays:
        kind = labels.dtype.kind
        whole = kind in "uib" or (kind == "f" and np.all(labels == np.round(labels)))
        if not whole or labels.min() < 0 or labels.max() > np.iinfo("int32").max:
            raise ValueError(
                f"Labels must be whole numbers from 0 on, or words. Received: {labels.dtype}, e.g. {labels[:3]}"
            )
    return [labels.astype("int32") for labels in arrays], None
