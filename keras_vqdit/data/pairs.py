"""Examples of several modalities, put together from banks of their own by what they show."""

import dataclasses

import numpy as np

from keras_vqdit.data.pipeline import serve

# TensorFlow is imported where it is used, see `pipeline`.


def to_paired_dataset(banks, labels, info, anchor="image"):
    """Serve banks of several modalities as examples, whose items have the same label.

    An epoch passes over the items of the anchor; to each of them an item of every other bank with its label is drawn, a new one
    at every epoch. The draws are a function of the seed, the epoch and the anchor's item alone. Where `info` says not to
    shuffle, they are the same at every epoch, whatever the seed.

    Args:
        banks: modality → array of its items along the first axis. uint8 images become float32 in [-1, 1].
        labels: modality → labels of these items, int32 `(N,)`.
        info: `DatasetInfo`; `size` and `shapes` are filled in here.
        anchor: modality each of whose items comes once an epoch. Defaults to `"image"`.

    Returns:
        `tf.data.Dataset` of dicts of the modalities and `"label"`, with the attributes `info`, `set_epoch(n)` and `in_order()` of
        every data set of this package, and `banks`, `labels` and `anchor`.

    Raises:
        ValueError: if banks and labels do not fit, there is no bank of the anchor, or another bank lacks a label of its items.

    Example:
        >>> banks = {"image": np.zeros((3, 8, 8, 1), "uint8"), "audio": np.zeros((2, 100, 1), "float32")}
        >>> labels = {"image": np.array([1, 0, 1]), "audio": np.array([0, 1])}
        >>> dataset = to_paired_dataset(banks, labels, kv.data.DatasetInfo("pairs", None, 2, {}))
        >>> [batch["label"].numpy().tolist() for batch in dataset], dataset.info.shapes["audio"]
        ([[1, 0], [1]], (100, 1))
    """
    import tensorflow as tf

    _check(banks, labels, anchor)
    with tf.device("CPU:0"):
        banks = {name: tf.convert_to_tensor(bank) for name, bank in banks.items()}
        labels = {name: tf.cast(values, "int32") for name, values in labels.items()}
        others = sorted(set(banks) - {anchor})  # by name: the draws do not depend on the order of the dict
        groups = {name: _by_label(labels[name], int(tf.reduce_max(labels[anchor])) + 1) for name in others}
    size = len(banks[anchor])

    def rows(examples, key):
        wanted = tf.gather(labels[anchor], examples)
        drawn = {anchor: examples}
        for number, (name, (members, starts, counts)) in enumerate(groups.items()):
            own = tf.random.experimental.stateless_fold_in(key, number, alg="philox")
            draws = tf.random.stateless_uniform((size,), own, None, None, "int64", alg="philox")
            place = tf.math.floormod(tf.gather(draws, examples), tf.gather(counts, wanted))
            drawn[name] = tf.gather(members, tf.gather(starts, wanted) + place)
        return drawn

    features = {name: {name: bank} for name, bank in banks.items()}
    features[anchor]["label"] = labels[anchor]
    dataset = serve(features, size, info, rows)
    dataset.banks, dataset.labels, dataset.anchor = banks, labels, anchor
    return dataset


def pair_again(dataset, banks, **changes):
    """A paired data set with other banks in the place of those of `dataset`, paired alike; `changes` are of its `info`."""
    return to_paired_dataset(banks, dataset.labels, dataclasses.replace(dataset.info, **changes), dataset.anchor)


def _by_label(labels, num_labels):
    """`(members, starts, counts)`: the items ordered by label, and where those of each label begin and how many there are."""
    import tensorflow as tf

    counts = tf.math.bincount(labels, minlength=num_labels, dtype=tf.int64)
    return tf.argsort(labels, stable=True), tf.cumsum(counts, exclusive=True), counts


def _check(banks, labels, anchor):
    if anchor not in banks or set(banks) != set(labels):
        raise ValueError(
            "`banks` and `labels` must have the same keys, and `anchor` be one of them. "
            f"Received: banks of {sorted(banks)}, labels of {sorted(labels)}, anchor={anchor!r}"
        )
    found = {name: set(np.unique(values).tolist()) for name, values in labels.items()}
    wanted = found[anchor]
    for name, bank in banks.items():
        if tuple(labels[name].shape) != (len(bank),):
            raise ValueError(
                f"Labels must be one an item, shape ({len(bank)},). Received: shape={tuple(labels[name].shape)} of {name!r}"
            )
        missing = sorted(wanted - found[name])
        if missing or not wanted or min(wanted) < 0:
            raise ValueError(
                f"Every label of {anchor!r} must be from 0 on, and one of {name!r}, too. "
                f"Received: labels {missing or sorted(wanted)}"
            )
