"""Text as codes: bytes, characters, or byte pairs."""

import importlib.util
from collections.abc import Iterable

import keras
import numpy as np

from keras_vqdit.checks import one_of, positive_integer

PADDING, UNKNOWN = 0, 1
KINDS = ("bytes", "characters", "bpe")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@keras.saving.register_keras_serializable("keras_vqdit")
class TextTokenizer:
    """Turn texts into int32 codes of one length, and back. Code 0 is padding, and ends a text.

    `TextTokenizer.train(texts)` finds the vocabulary; the constructor takes one that is known. It has no weights, and is part of
    the configuration of a model that has it.

    Args:
        kind: `"bytes"`, the 256 bytes of UTF-8; `"characters"`; or `"bpe"`, pairs of bytes that were merged again and again,
            by the package `tokenizers` (`pip install "keras_vqdit[text]"`).
        max_length: codes of a text, a positive integer.
        vocabulary: list of the characters, or of the tokens of byte pairs; bytes have none.
        merges: list of pairs of tokens, for `"bpe"`, in the order in which they are merged.
        truncate: cut texts that are too long, instead of raising an error. Defaults to `False`.
        modality: key of the texts in a data set of dicts. Defaults to `"text"`.

    Attributes:
        num_embeddings: number of codes, padding included.
        code_shape: `(max_length,)`.

    Raises:
        ValueError: if an argument has an impossible value.
        ImportError: if `kind` is `"bpe"` and `tokenizers` is not installed.

    Example:

    >>> tokenizer = TextTokenizer.train(["the digit 7", "a seven"], "characters", max_length=12)
    >>> codes = tokenizer.encode(["a digit"])
    >>> codes.shape, codes.dtype.name
    ((1, 12), 'int32')
    >>> tokenizer.decode(codes)
    ['a digit']

    References:
        - [Neural Machine Translation of Rare Words with Subword Units](https://arxiv.org/abs/1508.07909)
    """

    def __init__(self, kind="bytes", max_length=64, vocabulary=None, merges=None, *, truncate=False, modality="text"):
        self.kind = one_of("kind", kind, KINDS)
        self.max_length = positive_integer("max_length", max_length)
        self.truncate, self.modality = truncate, modality
        if (vocabulary is None) != (kind == "bytes") or (merges is None) != (kind != "bpe"):
            raise ValueError(
                "`vocabulary` must be given for characters and bpe, and `merges` for bpe: `TextTokenizer.train` finds them. "
                f"Received: kind={kind!r}, vocabulary={_said(vocabulary)}, merges={_said(merges)}"
            )
        self.vocabulary = None if vocabulary is None else [str(token) for token in vocabulary]
        if vocabulary is not None and len(set(self.vocabulary)) < len(self.vocabulary):
            raise ValueError("`vocabulary` must not hold a token twice")
        if kind == "characters" and any(len(token) != 1 for token in self.vocabulary):
            raise ValueError("`vocabulary` must hold single characters")
        self.merges = None if merges is None else [tuple(pair) for pair in merges]
        self._encoder = _Bpe(self.vocabulary, self.merges) if kind == "bpe" else None
        self._codes = {token: i + 2 for i, token in enumerate(self.vocabulary or ())}

    @classmethod
    def train(cls, texts, kind="characters", max_length=None, *, vocabulary_size=512, **options):
        """A tokenizer whose vocabulary is that of texts.

        Args:
            texts: iterable of texts.
            kind: as in the constructor. Defaults to `"characters"`.
            max_length: defaults to that of the longest of the texts.
            vocabulary_size: most tokens of `"bpe"`, the 256 bytes included. Defaults to 512.
            **options: further arguments of the constructor.

        Returns:
            A `TextTokenizer`.

        Raises:
            ValueError: if there are no texts, or an argument has an impossible value.
            TypeError: if `texts` are no texts.
        """
        texts = list(_check_texts(texts))
        if not texts:
            raise ValueError("`texts` must hold at least one text. Received: none")
        found = {}
        if kind == "characters":
            found["vocabulary"] = sorted(set("".join(texts)))
        elif kind == "bpe":
            found["vocabulary"], found["merges"] = _train_bpe(
                texts, positive_integer("vocabulary_size", vocabulary_size)
            )
        tokenizer = cls(kind, 1 if max_length is None else max_length, **found, **options)
        if max_length is None:
            tokenizer.max_length = max(max(len(tokenizer._tokens(text)) for text in texts), 1)
        return tokenizer

    @property
    def num_embeddings(self):
        return 257 if self.kind == "bytes" else len(self.vocabulary) + 2

    @property
    def about_codes(self):
        """What the codes are, for those who read them without this package."""
        if self.kind == "bytes":
            return "0 ends a text; code n is byte n - 1 of UTF-8"
        tokens = "characters" if self.kind == "characters" else "byte pairs, in GPT-2's letters for bytes"
        return f"0 ends a text; 1 is unknown; code n is entry n - 2 of the vocabulary, which is of {tokens}"

    @property
    def code_shape(self):
        return (self.max_length,)

    # === Between texts and codes ===

    def encode(self, texts):
        """Encode texts.

        Args:
            texts: list of texts, or one text.

        Returns:
            int32 NumPy array `(B, max_length)`, filled up with 0. A character that the vocabulary does not have is 1.

        Raises:
            ValueError: if a text is longer than `max_length` codes, unless `truncate` is set, or no Unicode.
            TypeError: if `texts` are no texts.
        """
        texts = list(_check_texts(texts))
        rows = [self._tokens(text) for text in texts]
        longest = max(map(len, rows), default=0)
        if longest > self.max_length and not self.truncate:
            raise ValueError(
                f"Texts must be of at most max_length={self.max_length} codes; truncate=True cuts longer ones. "
                f"Received: a text of {longest} codes, {_short(texts, rows, longest)!r}"
            )
        codes = np.full((len(rows), self.max_length), PADDING, "int32")
        for row, tokens in zip(codes, rows, strict=True):
            row[: len(tokens)] = tokens[: self.max_length]
        return codes

    def decode(self, codes):
        """Decode codes, each text up to its first padding.

        Args:
            codes: integers `(B, T)`.

        Returns:
            List of texts. Bytes that are no UTF-8 become replacement characters.

        Raises:
            ValueError: if a code is none of this tokenizer.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.dtype.kind not in "iu":
            raise ValueError(f"`codes` must be integers (B, T). Received: {codes.dtype}, shape={codes.shape}")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.num_embeddings:
            raise ValueError(
                f"`codes` must be from 0 to {self.num_embeddings - 1}. Received: codes from {codes.min()} to {codes.max()}"
            )
        ends = [np.flatnonzero(row == PADDING)[:1] for row in codes]
        return [self._text(row[: end[0]] if len(end) else row) for row, end in zip(codes, ends, strict=True)]

    def _tokens(self, text):
        if self.kind == "bytes":
            return [byte + 1 for byte in text.encode("utf-8")]
        if self.kind == "characters":
            return [self._codes.get(letter, UNKNOWN) for letter in text]
        return [code + 2 for code in self._encoder.encode(text)]

    def _text(self, codes):
        if self.kind == "bytes":
            return bytes(int(code) - 1 for code in codes).decode("utf-8", errors="replace")
        if self.kind == "characters":
            return "".join(REPLACEMENT if code == UNKNOWN else self.vocabulary[code - 2] for code in codes)
        return self._encoder.decode([int(code) - 2 for code in codes if code != UNKNOWN])

    # === Config ===

    def get_config(self):
        return {
            "kind": self.kind,
            "max_length": self.max_length,
            "vocabulary": self.vocabulary,
            "merges": None if self.merges is None else [list(pair) for pair in self.merges],
            "truncate": self.truncate,
            "modality": self.modality,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _said(values):
    return None if values is None else f"{len(values)} entries"


def _short(texts, rows, length):
    """The first text of so many codes, or its beginning."""
    text = next(text for text, row in zip(texts, rows, strict=True) if len(row) == length)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _check_texts(texts):
    texts = texts.tolist() if isinstance(texts, np.ndarray) else texts
    texts = [texts] if isinstance(texts, (str, bytes)) else texts
    if not isinstance(texts, Iterable):
        raise TypeError(f"Texts must be a list of str. Received: {texts!r} of type {type(texts).__name__}")
    for text in texts:
        try:
            text = text.decode("utf-8") if isinstance(text, bytes) else text
            if not isinstance(text, str):
                raise TypeError(f"Texts must be str. Received: {text!r} of type {type(text).__name__}")
            text.encode("utf-8")
        except UnicodeError:
            raise ValueError(f"Texts must be Unicode. Received: {text!r}") from None
        yield text


# === Byte pairs, by the library `tokenizers` ===


def _library():
    if not importlib.util.find_spec("tokenizers"):
        raise ImportError('Byte pairs are found by tokenizers. Install it by: pip install "keras_vqdit[text]"')
    import tokenizers

    return tokenizers


class _Bpe:
    """Byte-level byte pair encoding: every text has a code, and comes back as it was."""

    def __init__(self, vocabulary, merges):
        library = _library()
        try:
            model = library.models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges)
        except Exception as error:  # the library has no kind of its own
            raise ValueError(
                f"`merges` must be pairs of tokens of the `vocabulary`, which holds what they give. Received: {error}"
            ) from error
        self.tokenizer = _byte_level(library.Tokenizer(model))

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    def decode(self, codes):
        return self.tokenizer.decode(codes)


def _byte_level(tokenizer):
    library = _library()
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _train_bpe(texts, vocabulary_size):
    """`(vocabulary, merges)` of texts."""
    import json

    if vocabulary_size < 256:
        raise ValueError(
            f"`vocabulary_size` must be at least 256, the bytes. Received: vocabulary_size={vocabulary_size}"
        )
    library = _library()
    tokenizer = _byte_level(library.Tokenizer(library.models.BPE()))
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]
