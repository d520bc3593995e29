"""Emoji with their names, and Shakespeare's lines."""

import json

import numpy as np
import pytest

from keras_vqdit import data
from keras_vqdit.tokenizers import TextTokenizer

from .test_load import collect


def write_emoji(folder, size=60, variants=3):
    """Emoji whose pixels hold the number of the base emoji, each with variants."""
    entries, images = [], []
    for i in range(size):
        for variant in range(variants):
            own, base = f"{i}-{variant}", f"{i}-0" if variant else None
            entries.append({"hexcode": own, "base": base, "group": "ab"[i % 2], "en": f"e {own}", "de": f"ä {own}"})
            images.append(np.full((4, 4, 3), i, "uint8"))
    folder.mkdir(exist_ok=True)
    np.savez(folder / "noto_rgb64.npz", images=np.stack(images), hexcode=np.array([e["hexcode"] for e in entries]))
    (folder / "captions.json").write_text(json.dumps(entries))
    return folder


def test_variants_of_an_emoji_do_not_leak(tmp_path):
    train, test = data.load("emoji", data_dir=write_emoji(tmp_path))
    bases = [set(np.round((collect(d.in_order())["image"][:, 0, 0, 0] + 1) * 127.5)) for d in (train, test)]
    assert not bases[0] & bases[1] and len(bases[0] | bases[1]) == 60
    assert train.info.size + test.info.size == 180 and 1 <= len(bases[1]) <= 15


def test_emoji_have_their_name_and_group(tmp_path):
    train, _ = data.load("emoji", data_dir=write_emoji(tmp_path), language="de", image_size=2)
    assert train.info.image_shape == (2, 2, 3) and train.info.class_names == ("a", "b")
    batch = collect(train)
    numbers = np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
    names = train.info.text_tokenizer.decode(batch["text"])
    assert all(name.startswith(f"ä {number}-") for name, number in zip(names, numbers))
    np.testing.assert_array_equal(batch["label"], numbers % 2)
    own, _ = data.load("emoji", data_dir=tmp_path, text_tokenizer=TextTokenizer("bytes", 20))
    assert own.info.shapes["text"] == (20,) and own.info.text_tokenizer.kind == "bytes"


def test_folders_without_emoji_are_named(tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(ValueError, match="`data_dir` must be a folder that holds noto_rgb64.npz and captions.json"):
            data.load("emoji", data_dir=folder)
    write_emoji(tmp_path)
    with pytest.raises(ValueError, match="`language` must be one of 'en', 'de', 'fr', 'zh'"):
        data.load("emoji", data_dir=tmp_path, language="it")
    for content in ("no json", "{}", '[{"en": "a"}]', "[1]"):
        (tmp_path / "captions.json").write_text(content)
        with pytest.raises(ValueError, match="must hold"):
            data.load("emoji", data_dir=tmp_path)


def test_the_real_emoji_do_not_leak(shared_data):
    folder = shared_data / "emoji"
    if not folder.is_dir():
        pytest.skip("there are no emoji")
    train, test = data.load("emoji", data_dir=folder, image_size=4)
    assert train.info.size + test.info.size == 3786 and 0.08 < test.info.size / 3786 < 0.13
    entries = json.loads((folder / "captions.json").read_text("utf-8"))
    bases = {entry["en"]: entry["base"] or entry["hexcode"] for entry in entries}
    texts = [collect(dataset.in_order())["text"] for dataset in (train, test)]
    parts = [{bases[name] for name in train.info.text_tokenizer.decode(text)} for text in texts]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == len(set(bases.values()))


def test_shakespeare(shared_data):
    if not (shared_data / "tfds" / "tiny_shakespeare").is_dir():
        pytest.skip("tiny_shakespeare is not prepared")
    train, test = data.load("tiny_shakespeare", data_dir=shared_data / "tfds", text_length=64)
    assert train.info.shapes == {"text": (64,)} and train.info.num_classes is None
    assert (train.info.size, test.info.size) == (1_003_854 // 64, 55_770 // 64)
    codes = collect(train.in_order())["text"]
    assert codes.dtype == np.int32 and codes.min() == 2 and codes.max() == train.info.text_tokenizer.num_embeddings - 1
    assert train.info.text_tokenizer.decode(codes[:1])[0].startswith("First Citizen:\nBefore we proceed")
    assert collect(test)["text"].min() >= 2, "no character is unknown"
