"""Encode a data set once with frozen tokenizers, and serve what they say instead of images, sound and text."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import check_range, fits, integer
from keras_vqdit.data.images import scale
from keras_vqdit.data.pairs import pair_again
from keras_vqdit.data.pipeline import describe, to_dataset
from keras_vqdit.tokenizers import TextTokenizer

BANK_BATCH = 256


def encode_latents(dataset, tokenizer, *, key=None, shuffle=None, seed=None, verbose=0):
    """Encode a data set into continuous latents, to train a diffusion model on them.

    The tokenizer runs once over every example; the latents stay in memory, as float32.

    Args:
        dataset: `tf.data.Dataset` of dicts. Of one that `data.load` made, every example is encoded, also those that
            `drop_remainder` leaves out of an epoch; any other one is encoded as it comes, and must be finite.
        tokenizer: model with `encode_latents(x)`: `(B, …)` to `(B, *grid, embedding_dim)`. It is not changed.
        key: feature to encode. Default: the tokenizer's `modality`, else "image". All other features are kept.
        shuffle: serve a new order at every epoch. Default: as `dataset` does.
        seed: integer: of that order. Default: that of `dataset`.
        verbose: 1 shows a progress bar.

    Returns:
        `tf.data.Dataset` of dicts `{"latents", "label"}`, in batches as large as those of `dataset`.

    Raises:
        TypeError: if the tokenizer has no such method.
        ValueError: if `dataset` has no such feature, is infinite or empty, or data are not finite or not of the shape that the
            tokenizer was built for.

    Example:
        ```python
        train, test = data.load("mnist_5k")
        latents = data.encode_latents(train, tokenizer)
        model.fit(latents, epochs=30)
        ```
    """
    return _encode(dataset, tokenizer, "encode_latents", "latents", "float32", key, shuffle, seed, verbose)


def encode_codes(dataset, tokenizers, *, key=None, shuffle=None, seed=None, verbose=0):
    """Encode a data set into codes, int32 `(B, *code_shape)`; all else as `encode_latents`.

    Args:
        dataset: as in `encode_latents`. Of a paired one, such as "multimodal_digits", every item of a bank is encoded once, and
            the result is paired in the same way.
        tokenizers: a tokenizer, with `encode(x)`; or a dict of them, by the feature that each encodes. A `TextTokenizer` encodes
            strings; texts that are its codes already stay as they are.
        key: feature to encode, of one tokenizer.
        shuffle, seed, verbose: as in `encode_latents`.

    Returns:
        `tf.data.Dataset` of dicts `{"codes", "label"}`; with a dict of tokenizers, every feature keeps its key.

    Raises:
        TypeError: if codes are not integers, a tokenizer has no `encode`, or what shall be text is none.
        ValueError: if `dataset` has no such feature, is infinite or empty, there is no tokenizer, texts are codes of another
            one, or data are not finite, not in [-1, 1], or not of the shape that the tokenizer was built for.

    Example:
        ```python
        train, test = data.load("multimodal_digits", data_dir=folder)
        codes = data.encode_codes(train, {"image": image_tokenizer, "audio": audio_tokenizer})
        model.fit(codes, epochs=30)
        ```
    """
    return _encode(dataset, tokenizers, "encode", "codes", "int32", key, shuffle, seed, verbose)


def _encode(dataset, tokenizers, method, feature, dtype, key, shuffle, seed, verbose):
    info = describe(dataset)
    one = not isinstance(tokenizers, dict)
    if not one and key is not None:
        raise ValueError(f"`key` must be None with a dict of tokenizers. Received: key={key!r}")
    if one:
        tokenizers = {(getattr(tokenizers, "modality", "image") if key is None else key): tokenizers}
    if not tokenizers:
        raise ValueError("`tokenizers` must hold at least one tokenizer. Received: none")
    for name, tokenizer in tokenizers.items():
        if name not in info.shapes:
            raise ValueError(f"`dataset` has no feature `{name}`. Received: features {sorted(info.shapes)}")
        if not hasattr(tokenizer, method):
            raise TypeError(f"A tokenizer must have a method `{method}`. Received: {tokenizer!r} for `{name}`")
    encoders = {name: _encoder(name, tokenizer, method, dtype, info) for name, tokenizer in tokenizers.items()}
    changes = {
        "shuffle": (info.shuffle if hasattr(dataset, "info") else True) if shuffle is None else shuffle,
        "seed": info.seed if seed is None else integer("seed", seed),
    }
    if hasattr(dataset, "banks") and not one:
        return pair_again(dataset, _encode_banks(dataset.banks, encoders, verbose), **changes)
    renamed = {name: feature if one else name for name in tokenizers}
    features, batch_size = _encode_batches(dataset, encoders, renamed, verbose)
    return to_dataset(features, dataclasses.replace(info, batch_size=info.batch_size or batch_size, **changes))


def _encode_banks(banks, encoders, verbose):
    """The banks with the items of some of them encoded, each once."""
    starts = {name: range(0, len(banks[name]), BANK_BATCH) for name in encoders}
    progress = keras.utils.Progbar(sum(map(len, starts.values())), unit_name="batch") if verbose else None
    encoded = {}
    for name, encode in encoders.items():
        parts = []
        for start in starts[name]:
            parts.append(encode(scale(banks[name][start : start + BANK_BATCH])))
            if progress:
                progress.add(1)
        encoded[name] = np.concatenate(parts)
    return {**banks, **encoded}


def _encode_batches(dataset, encoders, renamed, verbose):
    """`(features, batch_size)`: all features as arrays, some of them encoded and under a new name."""
    batches = dataset.in_order() if hasattr(dataset, "in_order") else dataset
    if int(batches.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError("`dataset` must be finite: encode it before `repeat()`. Received: infinite cardinality")
    parts = []
    total = int(batches.cardinality())
    progress = keras.utils.Progbar(total if total > 0 else None, unit_name="batch") if verbose else None
    for batch in batches:
        parts.append(
            {
                renamed.get(name, name): encoders[name](value) if name in encoders else value.numpy()
                for name, value in batch.items()
            }
        )
        if progress:
            progress.add(1)
    if not parts:
        raise ValueError("`dataset` must have at least one example. Received none")
    features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return features, len(next(iter(parts[0].values())))


def _encoder(name, tokenizer, method, dtype, info):
    """A function from a batch, a tensor of TensorFlow, to an array."""
    if isinstance(tokenizer, TextTokenizer):
        known = info.text_tokenizer
        if known is not None and known.get_config() != tokenizer.get_config():
            raise ValueError("Texts must be strings, or codes of the tokenizer given. Received: codes of another one")
        return lambda texts: _encode_texts(name, tokenizer, texts)
    encode, shape = _compiled(getattr(tokenizer, method)), getattr(tokenizer, "example_shape", None)

    def to_array(batch):
        if shape is not None and not fits(batch.shape[1:], shape):
            raise ValueError(
                f"`{name}` must be of shape {(None, *shape)} for its tokenizer. Received: {tuple(batch.shape)}"
            )
        if batch.dtype.is_floating:
            values = batch.numpy()
            if not np.all(np.isfinite(values)):
                raise ValueError(f"`{name}` must be finite. Received: NaN or infinite values")
            if method == "encode":
                check_range(name, values)
        encoded = ops.convert_to_numpy(encode(batch))
        if method == "encode" and encoded.dtype.kind not in "iu":
            raise TypeError(
                f"`tokenizer.encode` must give integer codes. Received: {encoded.dtype}, of {type(tokenizer)}"
            )
        return encoded.astype(dtype)

    return to_array


def _encode_texts(name, tokenizer, texts):
    """Codes of a tensor of strings; codes that it holds already stay as they are."""
    if texts.dtype == "string":
        return tokenizer.encode(texts.numpy())
    if not texts.dtype.is_integer or not fits(texts.shape[1:], tokenizer.code_shape):
        raise (ValueError if texts.dtype.is_integer else TypeError)(
            f"`{name}` must be strings, or codes, integers of shape {(None, *tokenizer.code_shape)}, for its tokenizer. "
            f"Received: {texts.dtype.name} of shape {tuple(texts.shape)}"
        )
    return texts.numpy().astype("int32")


def _compiled(encode):
    """One graph for every full batch; on other backends than TensorFlow, NumPy in and the backend's tensor out."""
    if keras.backend.backend() != "tensorflow":
        return lambda x: encode(ops.convert_to_tensor(x.numpy()))
    import tensorflow as tf

    return tf.function(encode)
