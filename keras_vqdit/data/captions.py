"""Captions of digits in English, German and Chinese: a small grammar, and which digit a caption names."""

import re
import string

from keras_vqdit.checks import one_of
from keras_vqdit.tokenizers import TextTokenizer

LANGUAGES = ("en", "de", "zh")
MAX_LENGTH = 32  # characters of the longest caption

WORDS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "de": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
    "zh": tuple("零一二三四五六七八九"),
}

# {digit}: 7; {word}: seven; {noun}: the word as a noun, Sieben, which is feminine in German; {a}: its article, a or an.
TEMPLATES = {
    "en": (
        "a handwritten {word}",
        "the digit {digit}",
        "the digit {word}",
        "a picture of {a} {digit}",
        "number {word}",
        "this is {a} {word}",
        "{word}, written by hand",
        "a drawing of the number {digit}",
    ),
    "de": (
        "eine handgeschriebene {noun}",
        "die Ziffer {digit}",
        "das Bild einer {noun}",
        "die Zahl {word}",
        "dies ist eine {noun}",
        "eine {noun} in Handschrift",
        "ein Bild der Ziffer {digit}",
        "jemand schrieb eine {noun}",
    ),
    "zh": (
        "手写数字{word}",
        "数字{digit}",
        "一个手写的{word}",
        "一张{digit}的图片",
        "这是数字{word}",
        "手写的{digit}",
        "数字{word}的图片",
        "有人写了一个{word}",
    ),
}

_DIGITS = {word: digit for words in (*WORDS.values(), string.digits, "〇") for digit, word in enumerate(words)}
_MEASURES = re.compile("一(?=[个张])")  # a, not one
_NUMERALS = re.compile("[0-9]+|[〇零一二三四五六七八九十百千万]+")
_LATIN = re.compile("[a-zäöüß]+")


def captions_of(digit, language="en"):
    """All captions of a digit in a language.

    Args:
        digit: from 0 to 9.
        language: `"en"`, `"de"` or `"zh"`. Defaults to `"en"`.

    Returns:
        List of captions, each of at most 32 characters.

    Raises:
        ValueError: if there is no such digit or language.

    Example:
        >>> captions_of(8)[:4]
        ['a handwritten eight', 'the digit 8', 'the digit eight', 'a picture of an 8']
        >>> captions_of(7, "de")[0]
        'eine handgeschriebene Sieben'
    """
    language = one_of("language", language, LANGUAGES)
    word = WORDS[language][one_of("digit", digit, range(10))]
    parts = {"digit": digit, "word": word, "noun": word.capitalize(), "a": "an" if digit == 8 else "a"}
    return [template.format(**parts) for template in TEMPLATES[language]]


def digit_of(caption):
    """The digit that a caption names, also one that a model has written.

    Args:
        caption: a text, in any of the languages.

    Returns:
        Integer from 0 to 9; `None` if the caption names none, several, or a number of several digits.

    Example:
        >>> [digit_of(caption) for caption in ("a handwritten seven", "一个手写的七", "2 or 3", "17", "a cat")]
        [7, 7, None, None, None]
    """
    caption = _MEASURES.sub(" ", caption.lower())
    names = [word for word in _LATIN.findall(caption) if word in _DIGITS] + _NUMERALS.findall(caption)
    digits = {_DIGITS.get(name) for name in names}  # None: a number of several digits
    return digits.pop() if len(digits) == 1 else None


def caption_tokenizer(kind="characters"):
    """A `TextTokenizer` for all captions, whose vocabulary does not depend on the data.

    Args:
        kind: `"characters"`, those of all captions, and letters, digits, space and punctuation besides; or `"bpe"`, byte pairs,
            of which a word of a caption is one, so that most captions have three to six codes of the eight that there is room
            for (needs `pip install "keras_vqdit[text]"`). Defaults to `"characters"`.

    Returns:
        A `TextTokenizer`.

    Example:
        >>> caption_tokenizer().encode(["a handwritten seven"]).shape
        (1, 32)
    """
    texts = [caption for language in LANGUAGES for digit in range(10) for caption in captions_of(digit, language)]
    if one_of("kind", kind, ("characters", "bpe")) == "bpe":
        return TextTokenizer.train(texts, "bpe", max_length=8)
    more = string.ascii_letters + string.digits + "äöüÄÖÜß" + " .,;:!?'\"()-，。！？、"
    return TextTokenizer("characters", MAX_LENGTH, vocabulary=sorted(set("".join(texts) + more)))
