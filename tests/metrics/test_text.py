"""Scores of captions, against closed forms and pycocoevalcap; nats as bits."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from keras_vqdit.metrics import bits_per_token, caption_scores, caption_tokens, cider

# Made by tests/oracles/make_cider_fixtures.py.
CORPORA = json.loads((Path(__file__).parents[1] / "oracles" / "fixtures" / "cider.json").read_text(encoding="utf-8"))


# === Tokens ===


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("  Two dogs,\nrunning! ", ["two", "dogs", "running"]),
        ("The dog's red-brown tail", ["the", "dog's", "red", "brown", "tail"]),
        ("Ein Mädchen läuft.", ["ein", "mädchen", "läuft"]),
        ("snake_case 42", ["snake", "case", "42"]),
        ("红色的心形，第7号", ["红", "色", "的", "心", "形", "第", "7", "号"]),
        ("A红b", ["a", "红", "b"]),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", ["full", "width"]),
        ("… !", []),
    ],
)
def test_captions_are_cut_into_words_and_ideographs(text, tokens):
    assert caption_tokens(text) == tokens


# === CIDEr ===


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_cider_is_that_of_pycocoevalcap(name):
    corpus = CORPORA[name]
    np.testing.assert_allclose(cider(corpus["candidates"], corpus["references"]), corpus["score"], atol=1e-10)
    assert name == "alike" or corpus["score"] > 1.0


@pytest.mark.parametrize(
    "candidate, references, expected",
    [
        # All words stand in the references of one example of two, or of none: every weight is ln 2, which cancels.
        ("x y", ["x z"], 1 / 2),
        ("x y", ["x z", "x y"], (1 / 2 + 1) / 2),
        ("x y y", ["x z"], math.exp(-1 / 72) / math.sqrt(5 * 2)),
        ("x x x", ["x"], math.exp(-4 / 72) / 3),
        # "w" stands in both: it weighs nothing.
        ("x w", ["x y w"], math.exp(-1 / 72) / math.sqrt(2)),
        ("w", ["w"], 0.0),
        ("", ["x"], 0.0),
    ],
)
def test_cider_of_single_words_is_its_closed_form(candidate, references, expected):
    score = cider([candidate, "w"], [references, ["w v"]], max_length=1)
    other = math.exp(-1 / 72) * (0.0 if any("w" in r for r in references) else 1 / math.sqrt(2))
    np.testing.assert_allclose(score, 10 * (expected + other) / 2, rtol=1e-12)


# === All scores ===


def test_captions_as_people_wrote_them_have_the_highest_scores():
    captions = ["a red heart on white ground", "two black cats in the snow", "数字七的图像"]
    scores = caption_scores(captions, [[caption.upper() + "."] for caption in captions])
    np.testing.assert_allclose([scores["bleu"], scores["rouge_l"], scores["cider"]], [100.0, 1.0, 10.0], rtol=1e-6)


def test_short_captions_are_scored_by_the_phrases_that_they_have():
    assert caption_scores(["a seven", "a two"], [["a seven"], ["a two"]])["bleu"] == pytest.approx(100.0)


def test_scores_are_their_closed_forms():
    # 4 of 5 words and 2 of 4 pairs are right, 1 of 3 triples; no four in a row, which "exp" counts as half a one of 2.
    scores = caption_scores(["the cat sat on mats"], [["the cat sat down on"]])
    np.testing.assert_allclose(scores["bleu"], 100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25, rtol=1e-6)
    np.testing.assert_allclose(scores["rouge_l"], 4 / 5, rtol=1e-6)
    assert scores["cider"] == 0.0


def test_references_may_differ_in_number():
    scores = caption_scores(["a cat sits there now", "a dog"], [["a dog", "a cat sits there now"], ["a dog"]])
    np.testing.assert_allclose([scores["bleu"], scores["rouge_l"]], [100.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    "candidates, references, error, message",
    [
        (["a"], [["a"], ["b"]], ValueError, "of one length, at least 1. Received: 1 and 2"),
        ([], [], ValueError, "at least 1"),
        (["a"], [[]], ValueError, "at least one caption each"),
        (["a"], ["a"], TypeError, "list of lists"),
        ([b"a"], [["a"]], TypeError, "must be str"),
        ("ab", [["a"], ["b"]], TypeError, "`candidates` must be a list. Received: 'ab'"),
    ],
)
def test_wrong_captions_are_named(candidates, references, error, message):
    for score in (cider, caption_scores):
        with pytest.raises(error, match=message):
            score(candidates, references)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"keras_vqdit\[text\]"):
        caption_scores(["a"], [["a"]])


# === Bits ===


def test_bits_are_nats_by_the_logarithm_of_two():
    assert bits_per_token(math.log(8)) == pytest.approx(3.0)
    np.testing.assert_allclose(bits_per_token(np.log([2.0, 27.0])), np.log2([2.0, 27.0]))
