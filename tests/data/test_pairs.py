"""Examples of several modalities, paired by label, and their codes."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vqdit import data
from keras_vqdit.tokenizers import TextTokenizer

from .test_load import collect

# Every item holds its own number, so that a test sees which ones were paired.
LABELS = {"image": np.arange(40) % 4, "audio": np.repeat(np.arange(4), 25), "text": np.arange(20) % 4}


def banks():
    return {
        "image": np.arange(40, dtype="uint8").reshape(40, 1, 1, 1),
        "audio": np.arange(100, dtype="float32").reshape(100, 1, 1) / 100,
        "text": np.arange(20, dtype="int32").reshape(20, 1),
    }


def paired(seed=0, shuffle=True, **options):
    info = data.DatasetInfo("pairs", None, 8, {}, shuffle=shuffle, seed=seed)
    return data.to_paired_dataset(banks(), LABELS, info, **options)


def items(dataset):
    """Numbers of the items, `(N, 3)`: image, audio, text; and the labels."""
    batch = collect(dataset)
    columns = [(batch["image"] + 1) * 127.5, batch["audio"] * 100, batch["text"]]
    return np.column_stack([np.round(column).astype(int).ravel() for column in columns]), batch["label"]


# === Pairs ===


def test_items_of_an_example_have_its_label():
    found, labels = items(paired())
    assert sorted(found[:, 0]) == list(range(40))
    for column, name in enumerate(("image", "audio", "text")):
        np.testing.assert_array_equal(LABELS[name][found[:, column]], labels)


def test_pairs_are_new_at_every_epoch_and_the_same_for_a_seed():
    dataset, again = paired(), paired()
    first, second = items(dataset)[0], items(dataset)[0]
    np.testing.assert_array_equal(first, items(again)[0])
    assert not np.array_equal(first, items(paired(seed=1))[0])
    by_image = [epoch[np.argsort(epoch[:, 0])] for epoch in (first, second)]
    for column in (1, 2):
        assert np.mean(by_image[0][:, column] == by_image[1][:, column]) < 0.5, "1 of 25 and 1 of 5 are expected"
    dataset.set_epoch(1)
    np.testing.assert_array_equal(items(dataset)[0], second)


def test_modalities_are_drawn_independently():
    dataset = paired()
    drawn = np.concatenate([items(dataset)[0] for _ in range(50)])
    drawn = drawn[LABELS["image"][drawn[:, 0]] == 0]
    counts = np.zeros((25, 5))
    np.add.at(counts, (drawn[:, 1], drawn[:, 2] // 4), 1)
    assert counts.sum() == 500
    # 125 cells of 4 each: chi-square of 124 degrees of freedom, which is below 200 but once in 10,000 times.
    assert np.sum((counts - 4.0) ** 2 / 4.0) < 200


def test_without_shuffling_the_pairs_are_fixed_whatever_the_seed():
    dataset = paired(shuffle=False)
    first = items(dataset)[0]
    np.testing.assert_array_equal(first[:, 0], np.arange(40))
    for other in (dataset, paired(shuffle=False, seed=5), paired(seed=5).in_order()):
        np.testing.assert_array_equal(items(other)[0], first)


def test_the_anchor_is_what_an_epoch_passes_over():
    dataset = paired(anchor="audio")
    found, labels = items(dataset)
    assert sorted(found[:, 1]) == list(range(100)) and dataset.info.size == 100
    np.testing.assert_array_equal(LABELS["text"][found[:, 2]], labels)


def test_shapes_and_ranges():
    dataset = paired()
    assert dataset.info.shapes == {"image": (1, 1, 1), "audio": (1, 1), "text": (1,), "label": ()}
    assert dataset.banks["image"].dtype == "uint8", "scaled a batch at a time"
    assert {n: s.dtype.name for n, s in dataset.element_spec.items()} == {
        "image": "float32",
        "audio": "float32",
        "text": "int32",
        "label": "int32",
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"anchor": "video"}, "must have the same keys, and `anchor`"),
        ({"labels": {**LABELS, "text": np.arange(20) % 3}}, "one of 'text', too. Received: labels \\[3\\]"),
        ({"labels": {**LABELS, "audio": np.arange(99)}}, r"shape \(100,\)"),
        ({"labels": {name: values - 1 for name, values in LABELS.items()}}, "from 0 on"),
        ({"labels": {"image": LABELS["image"]}}, "labels of \\['image'\\]"),
    ],
)
def test_banks_that_do_not_fit_are_refused(change, message):
    options = {"labels": LABELS, "info": data.DatasetInfo("pairs", None, 8, {}), **change}
    with pytest.raises(ValueError, match=message):
        data.to_paired_dataset(banks(), **options)


# === Codes ===


class Tokenizer:
    """Codes of a fake tokenizer: two levels of the mean of an item."""

    def __init__(self, modality, factor):
        self.modality, self.factor, self.traces = modality, factor, 0

    def encode(self, x):
        self.traces += 1
        whole = tf.cast(tf.round(tf.reduce_mean(x, axis=list(range(1, len(x.shape)))) * self.factor), "int32")
        return tf.stack([whole + 200, whole % 7], axis=-1)


def test_codes_of_banks_are_those_of_the_items_paired_alike():
    tokenizers = {"image": Tokenizer("image", 127.5), "audio": Tokenizer("audio", 100)}
    dataset = paired(seed=3)
    codes = data.encode_codes(dataset, tokenizers)
    assert (codes.info.size, codes.info.batch_size, codes.info.seed) == (40, 8, 3)
    assert codes.info.shapes == {"image": (2,), "audio": (2,), "text": (1,), "label": ()}
    for one, other in ((dataset, codes), (dataset, codes), (dataset.in_order(), codes.in_order())):  # two epochs
        batch, encoded = collect(one), collect(other)
        for name in ("image", "audio"):
            assert encoded[name].dtype == np.int32
            np.testing.assert_array_equal(encoded[name], tokenizers[name].encode(batch[name]))
        for name in ("text", "label"):
            np.testing.assert_array_equal(encoded[name], batch[name])


def test_banks_are_encoded_once_by_one_program():
    tokenizer = Tokenizer("audio", 100)
    codes = data.encode_codes(paired(), {"audio": tokenizer}, verbose=0)
    collect(codes)
    assert tokenizer.traces == 1 and codes.banks["audio"].shape == (100, 2)


def test_codes_can_be_served_in_another_order():
    codes = data.encode_codes(paired(), {"audio": Tokenizer("audio", 100)}, shuffle=False, seed=9)
    np.testing.assert_array_equal(collect(codes)["label"], LABELS["image"])
    assert codes.info.seed == 9


def test_a_dict_of_tokenizers_encodes_other_data_sets():
    texts = TextTokenizer.train(["a cat", "ein Hund"])
    dataset = tf.data.Dataset.from_tensor_slices(
        {"image": np.ones((3, 2, 2, 1), "float32"), "text": ["a cat", "ein Hund", "a"], "label": [0, 1, 0]}
    ).batch(2)
    codes = data.encode_codes(dataset, {"image": Tokenizer("image", 5), "text": texts}, shuffle=False)
    batch = collect(codes)
    assert set(batch) == {"image", "text", "label"} and batch["text"].dtype == np.int32
    assert texts.decode(batch["text"]) == ["a cat", "ein Hund", "a"]
    np.testing.assert_array_equal(batch["image"], [[205, 5]] * 3)
    alone = data.encode_codes(dataset, texts, shuffle=False)
    np.testing.assert_array_equal(collect(alone)["codes"], batch["text"])


def test_texts_that_are_codes_stay_if_they_are_of_the_same_tokenizer():
    texts = TextTokenizer("bytes", 1)
    info = data.DatasetInfo("pairs", None, 8, {}, text_tokenizer=texts)
    dataset = data.to_paired_dataset(banks(), LABELS, info)
    codes = data.encode_codes(dataset, {"text": TextTokenizer("bytes", 1)})
    np.testing.assert_array_equal(codes.banks["text"], dataset.banks["text"])
    with pytest.raises(ValueError, match="codes of another one"):
        data.encode_codes(dataset, {"text": TextTokenizer("bytes", 2)})


def test_what_can_not_be_encoded_is_named():
    with pytest.raises(ValueError, match="no feature `video`"):
        data.encode_codes(paired(), {"video": Tokenizer("video", 1)})
    with pytest.raises(ValueError, match="`key` must be None"):
        data.encode_codes(paired(), {"image": Tokenizer("image", 1)}, key="image")

    class Floats(Tokenizer):
        def encode(self, x):
            return x

    with pytest.raises(TypeError, match="must give integer codes. Received: float32"):
        data.encode_codes(paired(), {"audio": Floats("audio", 1)})


# === The multimodal digits ===


@pytest.fixture(scope="module")
def digits(shared_data):
    if not all((shared_data / "tfds" / name).is_dir() for name in ("mnist", "spoken_digit")):
        pytest.skip("mnist and spoken_digit are not prepared")
    return data.load("multimodal_digits", data_dir=shared_data / "tfds", audio_copies=1, languages=("en", "zh"))


def test_multimodal_digits(digits):
    train, test = digits
    assert (train.info.size, test.info.size, train.info.sample_rate) == (60_000, 10_000, 8000)
    assert train.info.shapes == {"image": (28, 28, 1), "audio": (6144, 1), "text": (32,), "label": ()}
    batch = {name: value.numpy() for name, value in next(iter(train)).items()}
    assert -1.0 == batch["image"].min() and batch["audio"].max() <= 1.0
    captions = train.info.text_tokenizer.decode(batch["text"])
    assert [data.digit_of(caption) for caption in captions] == batch["label"].tolist()


def test_training_and_test_items_of_the_digits_are_apart(digits):
    train, test = digits
    for name in ("image", "audio"):
        parts = [{item.tobytes() for item in dataset.banks[name].numpy()} for dataset in (train, test)]
        assert not parts[0] & parts[1], name
    assert len(test.banks["audio"]) == 250 and len(train.banks["audio"]) == 2250
    assert len(train.banks["text"]) == 160


def test_each_test_example_keeps_its_sound_and_its_caption(digits):
    _, test = digits
    first, again = (next(iter(test)) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_languages_are_checked(tmp_path):
    for languages in (("en", "fr"), ()):
        with pytest.raises(ValueError, match="`languages` must be one of 'en', 'de', 'zh'"):
            data.load("multimodal_digits", data_dir=tmp_path, languages=languages)
