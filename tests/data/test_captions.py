"""The grammar of captions, and which digit a caption names."""

import pytest

from keras_vqdit.data.captions import LANGUAGES, MAX_LENGTH, caption_tokenizer, captions_of, digit_of

CAPTIONS = [(digit, text) for language in LANGUAGES for digit in range(10) for text in captions_of(digit, language)]


def test_every_caption_names_its_digit_and_no_other():
    assert [digit_of(text) for _, text in CAPTIONS] == [digit for digit, _ in CAPTIONS]


def test_captions_are_short_and_all_different():
    assert len({text for _, text in CAPTIONS}) == len(CAPTIONS) == 3 * 10 * 8
    assert max(len(text) for _, text in CAPTIONS) <= MAX_LENGTH


def test_grammar():
    assert {"a picture of an 8", "this is an eight", "this is a seven"} <= {text for _, text in CAPTIONS}
    assert {"das Bild einer Fünf", "die Zahl fünf"} <= set(captions_of(5, "de"))
    assert "一个手写的七" in captions_of(7, "zh") and "手写数字七" in captions_of(7, "zh")


@pytest.mark.parametrize(
    "caption, digit",
    [
        ("Seven", 7),
        ("eine 7, sieben", 7),
        ("the digit 7.", 7),
        ("一张一的图片", 1),
        ("一个", None),
        ("数字〇", 0),
        ("十七", None),
        ("77", None),
        ("7 or 8", None),
        ("one, zwei", None),
        ("17 or 7", None),
        ("someone", None),
        ("eine Achtung", None),
        ("", None),
        ("\N{REPLACEMENT CHARACTER}?", None),
    ],
)
def test_digit_of_other_texts(caption, digit):
    assert digit_of(caption) == digit


def test_the_tokenizer_knows_every_caption():
    tokenizer = caption_tokenizer()
    texts = [text for _, text in CAPTIONS] + ["Zürich: 3x?"]
    codes = tokenizer.encode(texts)
    assert codes.shape == (len(texts), 32) and 1 not in codes
    assert tokenizer.decode(codes) == texts


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`language` must be one of 'en', 'de', 'zh'"):
        captions_of(1, "fr")
    with pytest.raises(ValueError, match="`digit` must be one of 0, 1.*Received: digit=10"):
        captions_of(10)
