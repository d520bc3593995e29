"""From arrays in memory to a `tf.data.Dataset` that knows what is in it."""

import dataclasses
import random

from keras_vqdit.data.images import scale

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
    import tensorflow as tf

    size = len(next(iter(features.values())))
    shapes = {name: tuple(array.shape[1:]) for name, array in features.items()}
    seed = random.randrange(2**31) if info.shuffle and info.seed is None else info.seed
    info = dataclasses.replace(info, size=size, shapes=shapes, seed=seed)
    with tf.device("CPU:0"):
        tensors = {name: tf.constant(array) for name, array in features.items()}
        epoch = tf.Variable(-1, trainable=False, dtype="int64")

    def order(_):
        key = tf.stack([tf.constant(seed, "int64"), epoch.assign_add(1)])
        return tf.random.experimental.stateless_shuffle(tf.range(size, dtype="int64"), seed=key, alg="philox")

    def examples(indices):
        return {name: scale(tf.gather(tensor, indices)) for name, tensor in tensors.items()}

    def serve(shuffle, drop_remainder):
        dataset = tf.data.Dataset.range(size)
        if shuffle:
            dataset = tf.data.Dataset.range(1).map(order).unbatch().apply(tf.data.experimental.assert_cardinality(size))
        dataset = dataset.batch(info.batch_size, drop_remainder=drop_remainder and size >= info.batch_size)
        return dataset.map(examples, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    dataset = serve(info.shuffle, info.drop_remainder)
    dataset.info = info
    dataset.set_epoch = lambda number: epoch.assign(number - 1)
    dataset.in_order = lambda: serve(False, False)
    return dataset
