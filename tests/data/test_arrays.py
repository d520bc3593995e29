"""Arrays and `.npz` files: forms, value ranges, labels, and what is refused."""

import numpy as np
import pytest

from keras_vqdit import data
from keras_vqdit.data.arrays import to_images, to_labels

from .test_load import collect

RAMP = np.arange(256, dtype="uint8").reshape(16, 4, 4, 1)  # 16 images that hold every grey


def load_images(images, labels=None, **options):
    train, test = data.load(images if labels is None else (images, labels), **options)
    parts = [collect(train.in_order()), collect(test)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# === Ranges ===


@pytest.mark.parametrize(
    "images",
    [
        RAMP,
        RAMP.astype("int64"),
        RAMP.astype("float64"),
        RAMP.astype("float32") / 255.0,
        RAMP.astype("float32") / 127.5 - 1.0,
        RAMP[..., 0],
    ],
    ids=["uint8", "int64", "float 0..255", "float 0..1", "float -1..1", "no channel axis"],
)
def test_every_accepted_range_comes_out_alike(images):
    loaded = load_images(images)["image"]
    assert loaded.dtype == np.float32 and loaded.shape == (16, 4, 4, 1)
    np.testing.assert_allclose(np.sort(loaded.ravel()), np.arange(256) / 127.5 - 1.0, atol=1e-6)


def test_booleans_are_black_and_white():
    np.testing.assert_array_equal(np.unique(load_images(RAMP > 100)["image"]), [-1.0, 1.0])


def test_one_rule_serves_training_and_test_images():
    # The test images alone would pass for the range [0, 1].
    train, test = to_images([np.array([[[-1.0, 1.0]]]), np.array([[[0.0, 0.5]]])])
    np.testing.assert_array_equal(test.ravel(), [0.0, 0.5])
    np.testing.assert_array_equal(train.ravel(), [-1.0, 1.0])


@pytest.mark.parametrize(
    "images, message",
    [
        (RAMP.astype("float32") * 2, "values from 0.0 to 510.0"),
        (RAMP.astype("float32") - 200, "values from -200.0 to 55.0"),
        (RAMP.astype("int32") + 1, "values from 1 to 256"),
        (np.where(RAMP == 3, np.nan, 0.5), "must be finite"),
        (np.ones((4, 4, 4), "int32"), "pass booleans or floats"),
        (RAMP.astype(str), "dtypes"),
        (np.zeros((10, 784)), r"\(N, height, width\).*shape=\(10, 784\)"),
        (np.zeros((10, 3, 8, 8)), r"channels last.*shape=\(10, 3, 8, 8\)"),
        (np.zeros((0, 8, 8, 1)), "empty"),
        (np.zeros((1, 8, 8, 1)), "At least 2 examples"),
    ],
)
def test_other_values_and_shapes_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        data.load(images)


# === Labels ===


def test_labels_become_int32_and_count_the_classes():
    for labels in (np.arange(16) % 5, (np.arange(16) % 5).astype("float64"), (np.arange(16) % 5)[:, None]):
        train, _ = data.load((RAMP, labels))
        assert collect(train)["label"].dtype == np.int32 and train.info.num_classes == 5


def test_words_as_labels_become_sorted_classes():
    words = np.array(["dog", "cat"] * 8)
    train, _ = data.load((RAMP, words))
    assert train.info.class_names == ("cat", "dog") and train.info.num_classes == 2
    loaded = load_images(RAMP, words)
    first = np.round((loaded["image"][:, 0, 0, 0] + 1) * 127.5) // 16  # the number of the image
    np.testing.assert_array_equal(loaded["label"], np.where(first % 2 == 0, 1, 0))


def test_words_are_numbered_over_training_and_test_labels_together():
    (train, test), names = to_labels([np.array(["b", "c"]), np.array(["a"])], [2, 1])
    assert names == ("a", "b", "c") and train.tolist() == [1, 2] and test.tolist() == [0]


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.eye(16), "not one-hot"),
        (np.arange(15), r"shape \(16,\)"),
        (np.arange(16) - 1, "whole numbers from 0"),
        (np.arange(16) + 0.5, "whole numbers from 0"),
    ],
)
def test_other_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        data.load((RAMP, labels))


# === Forms ===


def test_pairs_give_training_and_test_sets():
    labels = np.arange(16) % 2
    for pair in (
        ((RAMP[:10], labels[:10]), (RAMP[10:], labels[10:])),
        ({"image": RAMP[:10], "label": labels[:10]}, {"images": RAMP[10:], "labels": labels[10:]}),
    ):
        train, test = data.load(pair)
        assert (train.info.size, test.info.size) == (10, 6)
        np.testing.assert_array_equal(collect(test)["label"], labels[10:])
        np.testing.assert_allclose(collect(test)["image"], RAMP[10:] / 127.5 - 1.0, atol=1e-6)


def test_images_alone_have_no_label():
    train, _ = data.load(RAMP)
    assert set(train.element_spec) == {"image"} and train.info.num_classes is None


@pytest.mark.parametrize("form", [{"picture": RAMP}, {"image": RAMP, "images": RAMP}])
def test_a_dict_with_other_keys_is_refused(form):
    with pytest.raises(ValueError, match='must have the keys "image" and "label"'):
        data.load(form)


def test_other_forms_are_refused():
    with pytest.raises(TypeError, match="Arrays must come as images"):
        data.load(5)


def test_labels_on_one_side_only_are_refused():
    with pytest.raises(ValueError, match="Either both"):
        data.load(({"image": RAMP, "label": np.arange(16)}, {"image": RAMP}))


# === Size and channels ===


def test_image_size_scales_and_crops_in_the_middle():
    wide = np.zeros((4, 8, 24, 1), "uint8")
    wide[:, :, 8:16] = 200  # only the middle third is left of it
    loaded = load_images(wide, image_size=8)["image"]
    np.testing.assert_allclose(loaded, 200 / 127.5 - 1.0, atol=1e-6)
    assert load_images(wide, image_size=(4, 12))["image"].shape == (4, 4, 12, 1)
    assert load_images(wide.astype("float32") / 255.0, image_size=4)["image"].dtype == np.float32


def test_channels_are_converted():
    color = np.zeros((4, 2, 2, 3), "uint8")
    color[..., 1] = 100  # green: luma 0.587
    np.testing.assert_allclose(load_images(color, channels=1)["image"], 59 / 127.5 - 1.0, atol=1e-6)
    gray = load_images(RAMP, channels=3)["image"]
    assert gray.shape[-1] == 3
    np.testing.assert_array_equal(gray[..., 0], gray[..., 2])


def test_pairs_of_different_sizes_need_an_image_size():
    pair = ({"image": np.zeros((4, 8, 8), "uint8")}, {"image": np.zeros((4, 6, 6), "uint8")})
    with pytest.raises(ValueError, match="pass `image_size`"):
        data.load(pair)
    assert data.load(pair, image_size=6)[0].info.image_shape == (6, 6, 1)


# === .npz ===


def test_npz_as_keras_writes_mnist(tmp_path):
    labels = np.arange(16) % 4
    np.savez(
        tmp_path / "m.npz",
        x_train=RAMP[:12, ..., 0],
        y_train=labels[:12],
        x_test=RAMP[12:, ..., 0],
        y_test=labels[12:],
    )
    train, test = data.load(tmp_path / "m.npz")
    assert (train.info.name, train.info.size, test.info.size) == ("m", 12, 4)
    assert train.info.num_classes == 4 and train.info.image_shape == (4, 4, 1)
    np.testing.assert_array_equal(collect(test)["label"], labels[12:])


@pytest.mark.parametrize("keys", [("image", "label"), ("images", "labels")])
def test_npz_with_images_and_labels(tmp_path, keys):
    np.savez(tmp_path / "m.npz", **dict(zip(keys, (RAMP, np.arange(16)), strict=True)), unrelated=np.array(["x"]))
    train, test = data.load(str(tmp_path / "m.npz"), test_fraction=0.25)
    assert (train.info.size, test.info.size) == (12, 4)


@pytest.mark.parametrize(
    "keys", [("images", "lables"), ("images", "y"), ("x_train", "labels_train"), ("image", "Label")]
)
def test_a_misspelt_key_does_not_lose_the_labels(tmp_path, keys):
    np.savez(tmp_path / "m.npz", **dict(zip(keys, (RAMP, np.arange(16)), strict=True)))
    with pytest.raises(ValueError, match=f"Labels must have the key.*Received: images and {keys[1]}"):
        data.load(tmp_path / "m.npz")


def test_one_single_image_is_no_set():
    with pytest.raises(ValueError, match=r"shape=\(28, 28, 3\), which looks like one single image"):
        data.load(np.zeros((28, 28, 3), "uint8"))


@pytest.mark.parametrize("largest", [5000, 2_000_000_000])
def test_labels_with_absurd_gaps_are_refused(largest):
    with pytest.raises(ValueError, match=f"number the classes from 0 on.*largest label is {largest}, among"):
        data.load((RAMP, np.array([0, largest] * 8)))


def test_npz_with_other_keys_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", x=RAMP)
    with pytest.raises(ValueError, match="must hold x_train, y_train, x_test, y_test.*Received: x$"):
        data.load(tmp_path / "m.npz")


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", image=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(ValueError, match="not an .npz file of plain arrays"):
        data.load(tmp_path / "m.npz")


def test_broken_and_missing_files_are_named(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="broken.npz is not an .npz file"):
        data.load(tmp_path / "broken.npz")
    with pytest.raises(ValueError, match="No such file"):
        data.load(tmp_path / "missing.npz")
