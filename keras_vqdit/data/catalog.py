"""TensorFlow Datasets, read from where they were prepared; nothing is downloaded unless asked for."""

import difflib
import os
from pathlib import Path

import numpy as np

from keras_vqdit.data.examples import Examples, Source
from keras_vqdit.data.images import fit_to, prepare
from keras_vqdit.data.sounds import read_sounds

TEST_SPLITS = ("test", "validation")


def default_folder():
    """Where TFDS keeps its data sets when nothing is said."""
    return Path(os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets"))


def prepared(data_dir):
    """Names of the data sets prepared in a folder → folder of the newest version."""
    root = Path(data_dir)
    found = {}
    infos = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    for folder in sorted((info.parent for info in infos), key=lambda folder: _version(folder.name)):
        name = folder.parent.relative_to(root).as_posix()
        found[name] = found[f"{name}:{folder.name}"] = folder
    return found


def _version(text):
    return tuple(int(part) if part.isdigit() else -1 for part in text.split("."))


def read_tfds(name, *, data_dir=None, download=False, size=None, channels=None):
    """Read a TFDS data set of images or sounds, e.g. "mnist", "oxford_flowers102:2.1.1", "spoken_digit" as a `Source`."""
    builder = find_tfds(name, data_dir, download)
    features, splits = builder.info.features, builder.info.splits
    modality = next((modality for modality in ("image", "audio") if modality in features), None)
    if modality is None:
        raise ValueError(
            f'The data set "{name}" has no feature "image" or "audio". It has: {", ".join(sorted(features))}'
        )
    labelled = (
        "label" in features and features["label"].shape == () and np.issubdtype(features["label"].np_dtype, np.integer)
    )
    class_names = tuple(getattr(features["label"], "names", None) or ()) if labelled else ()
    train = "train" if "train" in splits else next(iter(splits))
    test = next((split for split in TEST_SPLITS if split in splits and split != train), None)
    splits = [split for split in (train, test) if split is not None]
    if modality == "audio":
        parts = read_sounds(builder, splits, labelled)
        return Source(name, *parts, class_names=class_names or None, sample_rate=features["audio"].sample_rate)
    parts = [_read_split(builder, split, labelled, size, channels) for split in splits]
    return Source(name, *parts, class_names=class_names or None)


def find_tfds(name, data_dir=None, download=False):
    """The builder of a TFDS data set that is prepared, or, with `download`, then is."""
    folder = default_folder() if data_dir is None else Path(data_dir).expanduser()
    if data_dir is not None and not download and not folder.is_dir():
        raise ValueError(f"There is no folder {data_dir}, given as `data_dir` (--data-dir)")
    return _builder(name, folder, download)


def _builder(name, folder, download):
    import tensorflow_datasets as tfds

    available = prepared(folder)
    if name in available:
        return tfds.builder_from_directory(available[name])
    if download:
        builder = tfds.builder(name, data_dir=folder)
        builder.download_and_prepare()
        return builder
    there = ", ".join(n for n in available if ":" not in n) or "nothing"
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0].split(":")[0] in known:
        raise ValueError(
            f'The data set "{name}" is not prepared in {folder}. There: {there}. '
            "Give its folder as `data_dir` (--data-dir), or let it be downloaded and prepared with `download=True` (--download)."
        )
    similar = difflib.get_close_matches(name, {*available, *known}, 3)
    hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
    raise ValueError(
        f'Unknown data set "{name}".{hint} Valid are "mnist_5k", "multimodal_digits", "emoji", '
        f"the name of a TFDS data set (prepared in {folder}: {there}), "
        "an existing folder of images or of WAV files, an existing .npz file, or arrays."
    )


def _read_split(builder, split, labelled, size, channels):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    feature = builder.info.features["image"]
    if feature.np_dtype != np.uint8:
        raise ValueError(f'The images of "{builder.name}" must be uint8. Received: {feature.np_dtype}')
    if size is None and None in feature.shape:
        raise ValueError(f'The images of "{builder.name}" differ in size ({feature.shape}): pass `image_size`.')

    def select(example):
        image = fit_to(example["image"], size) if None in feature.shape else example["image"]
        return (image, tf.cast(example["label"], "int32")) if labelled else (image,)

    dataset = builder.as_dataset(split=split, read_config=tfds.ReadConfig(try_autocache=False))
    dataset = dataset.map(select, num_parallel_calls=tf.data.AUTOTUNE).batch(1024).prefetch(1)
    batches = list(dataset.as_numpy_iterator())
    if not batches:
        raise ValueError(f'The split "{split}" of "{builder.name}" is empty.')
    arrays = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    return Examples({"image": prepare(arrays[0], size, channels)}, arrays[1] if labelled else None)
