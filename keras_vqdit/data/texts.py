"""Sources of text: Shakespeare's lines, and emoji with their names."""

import hashlib
import json
from pathlib import Path

import numpy as np

from keras_vqdit.checks import one_of, positive_integer
from keras_vqdit.data.arrays import load_arrays
from keras_vqdit.data.catalog import find_tfds
from keras_vqdit.data.examples import Examples, Source
from keras_vqdit.data.images import prepare
from keras_vqdit.tokenizers import TextTokenizer

SHAKESPEARE, EMOJI = "tiny_shakespeare", "emoji"
EMOJI_FILES = ("noto_rgb64.npz", "captions.json")
EMOJI_LANGUAGES = ("en", "de", "fr", "zh")


def read_shakespeare(*, data_dir=None, download=False, length=128, text_tokenizer=None):
    """The TFDS data set "tiny_shakespeare", cut into texts of `length` characters, as a `Source`."""
    length = positive_integer("text_length", length)
    builder = find_tfds(SHAKESPEARE, data_dir, download)
    parts = []
    for split in ("train", "test"):
        example = next(builder.as_dataset(split=split).as_numpy_iterator())
        text = example["text"].decode("utf-8")
        if len(text) < length:
            raise ValueError(f"`text_length` must be at most {len(text)}. Received: text_length={length}")
        parts.append([text[i : i + length] for i in range(0, len(text) - length + 1, length)])
    tokenizer = text_tokenizer or TextTokenizer.train(parts[0], "characters", length)
    return Source(SHAKESPEARE, *(Examples({"text": tokenizer.encode(p)}) for p in parts), text_tokenizer=tokenizer)


def read_emoji(*, data_dir, size=None, channels=None, language="en", text_tokenizer=None):
    """Emoji, their names and groups, from a folder of `noto_rgb64.npz` and `captions.json`, as a `Source`.

    Variants of an emoji, such as skin tones, are all for training or all for testing; a tenth of the emoji are for testing.
    """
    language = one_of("language", language, EMOJI_LANGUAGES)
    paths = [Path(data_dir or ".").expanduser() / name for name in EMOJI_FILES]
    if data_dir is None or not all(path.is_file() for path in paths):
        raise ValueError(
            f"`data_dir` must be a folder that holds {' and '.join(EMOJI_FILES)}. Received: data_dir={data_dir}"
        )
    try:
        images, entries = load_arrays(paths[0])["images"], json.loads(paths[1].read_text("utf-8"))
        names, groups, bases = zip(
            *[(e[language], e["group"], e["base"] or e["hexcode"]) for e in entries], strict=True
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{data_dir} must hold the images of emoji, their names, groups and codes: {error!r}"
        ) from None
    if len(images) != len(entries):
        raise ValueError(f"{paths[1]} must hold an entry of each of {len(images)} images. Received: {len(entries)}")
    tokenizer = text_tokenizer or TextTokenizer.train(names, "characters")
    class_names, labels = np.unique(groups, return_inverse=True)
    features = {"image": prepare(images, size, channels), "text": tokenizer.encode(names)}
    examples = Examples(features, labels.astype("int32"))
    order = np.random.RandomState(0).permutation(len(names))  # the file is sorted by group
    test = np.array([_is_test(bases[i]) for i in order])
    parts = [examples.take(order[~test]), examples.take(order[test])]
    return Source(EMOJI, *parts, class_names=tuple(map(str, class_names)), text_tokenizer=tokenizer)


def _is_test(name):
    """One of ten names, always the same ones: Python's own `hash` differs from run to run."""
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0
