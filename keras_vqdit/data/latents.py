"""Encode a data set once with a frozen tokenizer, and serve what it says instead of the images."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import integer
from keras_vqdit.data.pipeline import describe, to_dataset


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
        ValueError: if `dataset` has no such feature, is infinite or empty.

    Example:
        ```python
        train, test = data.load("mnist_5k")
        latents = data.encode_latents(train, tokenizer)
        model.fit(latents, epochs=30)
        ```
    """
    return _encode(dataset, tokenizer, "encode_latents", "latents", "float32", key, shuffle, seed, verbose)


def encode_codes(dataset, tokenizer, *, key=None, shuffle=None, seed=None, verbose=0):
    """Encode a data set into codes, int32 `(B, *grid)`; all else as `encode_latents`.

    Returns:
        `tf.data.Dataset` of dicts `{"codes", "label"}`.
    """
    return _encode(dataset, tokenizer, "encode", "codes", "int32", key, shuffle, seed, verbose)


def _encode(dataset, tokenizer, method, feature, dtype, key, shuffle, seed, verbose):
    info = describe(dataset)
    key = getattr(tokenizer, "modality", "image") if key is None else key
    if key not in info.shapes:
        raise ValueError(f"`dataset` has no feature `{key}`. Received: features {sorted(info.shapes)}")
    encode = _compiled(getattr(tokenizer, method))
    seed = None if seed is None else integer("seed", seed)
    batches = dataset.in_order() if hasattr(dataset, "in_order") else dataset
    if int(batches.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError("`dataset` must be finite: encode it before `repeat()`. Received: infinite cardinality")
    parts = []
    total = int(batches.cardinality())
    progress = keras.utils.Progbar(total if total > 0 else None, unit_name="batch") if verbose else None
    for batch in batches:
        values = {name: value.numpy() for name, value in batch.items() if name != key}
        encoded = ops.convert_to_numpy(encode(batch[key]))
        if feature == "codes" and encoded.dtype.kind not in "iu":
            raise TypeError(
                f"`tokenizer.encode` must give integer codes. Received: {encoded.dtype}, of {type(tokenizer)}"
            )
        parts.append({feature: encoded.astype(dtype), **values})
        if progress:
            progress.add(1)
    if not parts:
        raise ValueError("`dataset` must have at least one example. Received none")
    features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    known = hasattr(dataset, "info")
    info = dataclasses.replace(
        info,
        batch_size=info.batch_size or len(parts[0][feature]),
        shuffle=(info.shuffle if known else True) if shuffle is None else shuffle,
        seed=info.seed if seed is None else seed,
    )
    return to_dataset(features, info)


def _compiled(encode):
    """One graph for every full batch; on other backends than TensorFlow, NumPy in and the backend's tensor out."""
    if keras.backend.backend() != "tensorflow":
        return lambda x: encode(ops.convert_to_tensor(x.numpy()))
    import tensorflow as tf

    return tf.function(encode)
