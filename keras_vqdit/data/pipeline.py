"""From arrays in memory to a `tf.data.Dataset` that knows what is in it."""

import dataclasses
import random

from keras_vqdit.data.images import scale
from keras_vqdit.tokenizers import TextTokenizer

# TensorFlow is imported where it is used: the package also runs where Keras has another backend and no TensorFlow.


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a data set holds and how it is served.

    Attributes:
        name: name of the data set.
        size: number of examples, None if unknown.
        batch_size: examples in a batch, None if unknown.
        shapes: feature → shape of one example, e.g. `{"image": (28, 28, 1), "label": ()}`.
        num_classes: number of classes; None without labels, or if unknown.
        class_names: name of each class, or None.
        shuffle: whether the examples come in a new order at every epoch.
        seed: of that order.
        drop_remainder: whether a last, smaller batch is left out.
        sample_rate: of sounds, samples a second; None without sound, or if unknown.
        text_tokenizer: the `TextTokenizer` of texts that are codes; None without text, or if unknown.
    """

    name: str
    size: int | None
    batch_size: int | None
    shapes: dict
    num_classes: int | None = None
    class_names: tuple | None = None
    shuffle: bool = False
    seed: int | None = None
    drop_remainder: bool = False
    sample_rate: int | None = None
    text_tokenizer: TextTokenizer | None = None

    @property
    def image_shape(self):
        """`(height, width, channels)`, or None where there are no images."""
        return self.shapes.get("image")


def describe(dataset):
    """Tell what a `tf.data.Dataset` of dicts holds.

    Args:
        dataset: a data set of `data.load` or `data.encode_latents`, or any other one that yields dicts of batches. Of
            others only the shapes are known.

    Returns:
        `DatasetInfo`.

    Example:
        >>> from keras_vqdit import data
        >>> train, test = data.load("mnist_5k")
        >>> data.describe(train).image_shape, train.info.num_classes, test.info.size
        ((28, 28, 1), 10, 1000)
    """
    info = getattr(dataset, "info", None)
    if isinstance(info, DatasetInfo):
        return info
    spec = getattr(dataset, "element_spec", None)
    if not isinstance(spec, dict):
        raise TypeError(f"`dataset` must be a tf.data.Dataset of dicts. Received: {dataset!r}")
    shapes = {name: tuple(s.shape[1:]) for name, s in spec.items()}
    batch_size = next(iter(spec.values())).shape[0]
    return DatasetInfo("dataset", None, batch_size, shapes, drop_remainder=batch_size is not None)


def to_dataset(features, info):
    """Serve arrays as batches, decoded in memory, shuffled by index and scaled a batch at a time.

    The order of an epoch is a function of the seed and the number of the epoch alone. Epochs count themselves, from 0 on;
    `set_epoch(n)` says which one comes next, as `training.Checkpoint` does to go on in the middle.

    Args:
        features: dict of arrays with the examples along the first axis. uint8 images become float32 in [-1, 1].
        info: `DatasetInfo`; `size` and `shapes` are filled in here.

    Returns:
        `tf.data.Dataset` of dicts, with the attributes `info`, `set_epoch(n)` and `in_order()`: the same examples, each exactly
        once an epoch, unshuffled.
    """
    size = len(next(iter(features.values())))
    return serve({"examples": features}, size, info, lambda examples, key: {"examples": examples})


def serve(banks, size, info, rows):
    """Serve rows of banks as batches; `to_dataset` and `to_paired_dataset` say which.

    Args:
        banks: bank → dict of arrays with its items along the first axis.
        size: number of examples.
        info: as in `to_dataset`.
        rows: function of the numbers of all examples, in the order of an epoch, and of a key, int64 `(2,)`: bank → row of each
            example. The key is the seed and the number of the epoch; zeros where every epoch is the same.

    Returns:
        As `to_dataset`.
    """
    import tensorflow as tf

    shapes = {name: tuple(array.shape[1:]) for bank in banks.values() for name, array in bank.items()}
    seed = random.randrange(2**31) if info.shuffle and info.seed is None else info.seed
    info = dataclasses.replace(info, size=size, shapes=shapes, seed=seed)
    with tf.device("CPU:0"):
        banks = {name: {key: tf.convert_to_tensor(a) for key, a in bank.items()} for name, bank in banks.items()}
        epoch = tf.Variable(-1, trainable=False, dtype="int64")

    def shuffled(_):
        key = tf.stack([tf.constant(seed, "int64"), epoch.assign_add(1)])
        numbers = tf.range(size, dtype="int64")
        return rows(tf.random.experimental.stateless_shuffle(numbers, seed=key, alg="philox"), key)

    def examples(chosen):
        return {
            name: scale(tf.gather(array, chosen[bank]))
            for bank, arrays in banks.items()
            for name, array in arrays.items()
        }

    def batches(shuffle, drop_remainder):
        if shuffle:
            dataset = tf.data.Dataset.range(1).map(shuffled).unbatch()
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(size))
        else:
            with tf.device("CPU:0"):
                fixed = rows(tf.range(size, dtype="int64"), tf.zeros(2, "int64"))
            dataset = tf.data.Dataset.from_tensor_slices(fixed)
        dataset = dataset.batch(info.batch_size, drop_remainder=drop_remainder and size >= info.batch_size)
        return dataset.map(examples, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    dataset = batches(info.shuffle, info.drop_remainder)
    dataset.info = info
    dataset.set_epoch = lambda number: epoch.assign(number - 1)
    dataset.in_order = lambda: batches(False, False)
    return dataset
