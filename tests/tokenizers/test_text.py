"""Texts come back from their codes; what can not is told."""

import json

import keras
import numpy as np
import pytest

from keras_vqdit.saving.strict import check_config
from keras_vqdit.tokenizers import TextTokenizer, text

TEXTS = [
    "the digit 7",
    "a handwritten seven",
    "eine handgeschriebene Sieben",
    "手写数字七",
    "",
    "two  spaces\nand a line 🙂",
]


def trained(kind, **options):
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="byte pairs need the package tokenizers")
    return TextTokenizer.train(TEXTS, kind, vocabulary_size=300, **options)


@pytest.mark.parametrize("kind", text.KINDS)
def test_texts_come_back(kind):
    tokenizer = trained(kind)
    codes = tokenizer.encode(TEXTS)
    assert codes.dtype == "int32" and codes.shape == (6, *tokenizer.code_shape)
    assert codes.max() < tokenizer.num_embeddings and codes.min() == 0 and np.all(codes[4] == 0)
    assert (codes != 0).sum(1).max() == tokenizer.max_length  # that of the longest
    assert tokenizer.decode(codes) == TEXTS
    np.testing.assert_array_equal(tokenizer.encode(np.array(TEXTS)), codes)
    np.testing.assert_array_equal(tokenizer.encode([one.encode() for one in TEXTS]), codes)
    np.testing.assert_array_equal(tokenizer.encode("the digit 7"), codes[:1])


@pytest.mark.parametrize("kind", text.KINDS)
def test_saved_and_loaded(kind):
    tokenizer = trained(kind)
    config = keras.saving.serialize_keras_object(tokenizer)
    check_config(json.loads(json.dumps(config)), "config.json")  # as a preset does
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    np.testing.assert_array_equal(again.encode(TEXTS), tokenizer.encode(TEXTS))
    assert again.get_config() == tokenizer.get_config()


def test_known_codes():
    assert TextTokenizer("bytes", 4).encode("é").tolist() == [[0xC3 + 1, 0xA9 + 1, 0, 0]]
    assert TextTokenizer("characters", 3, ["a", "b"]).encode(["ba", "?a"]).tolist() == [[3, 2, 0], [1, 2, 0]]
    assert TextTokenizer("characters", 3, ["a", "b"]).decode([[1, 2, 0], [3, 0, 2]]) == [
        "\N{REPLACEMENT CHARACTER}a",
        "b",
    ]
    assert TextTokenizer("bytes", 4).decode(np.array([[0xC3 + 1, 0, 0, 0]])) == ["\N{REPLACEMENT CHARACTER}"]


def test_byte_pairs_are_shorter_than_bytes():
    tokenizer = trained("bpe")
    assert tokenizer.num_embeddings == 302
    assert (tokenizer.encode(TEXTS) != 0).sum() < 0.8 * sum(len(one.encode()) for one in TEXTS)
    assert tokenizer.decode(TextTokenizer(**{**tokenizer.get_config(), "max_length": 99}).encode("never seen: ß")) == [
        "never seen: ß"
    ]


def test_too_long():
    tokenizer = TextTokenizer("bytes", 3)
    with pytest.raises(ValueError, match="at most max_length=3 codes.*Received: a text of 5 codes"):
        tokenizer.encode(["seven"])
    assert TextTokenizer("bytes", 3, truncate=True).decode(
        TextTokenizer("bytes", 3, truncate=True).encode("seven")
    ) == ["sev"]


def test_errors(monkeypatch):
    tokenizer = TextTokenizer("bytes", 3)
    for wrong in (None, 5):
        with pytest.raises(TypeError, match="Texts must be a list of str"):
            TextTokenizer().encode(wrong)
    with pytest.raises(ValueError, match="Texts must be Unicode"):
        TextTokenizer().encode(["\udcff"])
    with pytest.raises(ValueError, match="Texts must be Unicode"):
        TextTokenizer().encode([b"\xff"])
    with pytest.raises(ValueError, match="`max_length` must be a positive integer"):
        TextTokenizer.train(["abc"], max_length=0)
    assert TextTokenizer().encode(np.array("abc")).shape == TextTokenizer().encode(b"abc").shape == (1, 64)
    with pytest.raises(TypeError, match="Texts must be str. Received: 7 of type int"):
        tokenizer.encode([7])
    with pytest.raises(ValueError, match="`codes` must be from 0 to 256. Received: codes from 0 to 257"):
        tokenizer.decode([[0, 257]])
    with pytest.raises(ValueError, match=r"`codes` must be integers \(B, T\)"):
        tokenizer.decode([0.5])
    with pytest.raises(ValueError, match="`kind` must be one of 'bytes', 'characters', 'bpe'"):
        TextTokenizer("words")
    with pytest.raises(ValueError, match="`vocabulary` must be given for characters and bpe"):
        TextTokenizer("characters")
    with pytest.raises(ValueError, match="must not hold a token twice"):
        TextTokenizer("characters", 3, ["a", "a"])
    with pytest.raises(ValueError, match="must hold single characters"):
        TextTokenizer("characters", 3, ["ab"])
    with pytest.raises(ValueError, match="at least one text"):
        TextTokenizer.train([])
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "keras_vqdit\[text\]"'):
        TextTokenizer.train(TEXTS, "bpe")
