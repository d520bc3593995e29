"""Folders of images: classes, splits, formats, sizes, and files that can not be read."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from keras_vqdit import data

from .test_load import collect


def write(path, value, size=(8, 8), channels=3):
    """A plain image file of one grey, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, channels), value, "uint8")
    if path.suffix.lower() == ".png":
        content = tf.io.encode_png(image).numpy()
    elif path.suffix.lower() in (".jpg", ".jpeg"):
        content = tf.io.encode_jpeg(image, quality=100).numpy()
    else:
        from PIL import Image

        Image.fromarray(image if channels == 3 else image[..., 0]).save(path)
        return
    path.write_bytes(content)


def greys(images):
    return np.round((images[:, 0, 0, 0] + 1.0) * 127.5).astype(int)


def load_all(root, **options):
    train, test = data.load(root, **options)
    parts = [collect(train.in_order()), collect(test)]
    return train.info, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    for k, name in enumerate(["zebra", "ant", "cow"]):
        for i in range(4):
            write(tmp_path / name / f"{i}.png", 50 * k + i)
    info, loaded = load_all(tmp_path, test_fraction=0.25)
    assert info.class_names == ("ant", "cow", "zebra") and info.num_classes == 3 and info.name == tmp_path.name
    assert loaded["image"].dtype == np.float32 and loaded["label"].dtype == np.int32
    expected = {0: 2, 50: 0, 100: 1}  # grey of the first file → label
    for grey, label in zip(greys(loaded["image"]), loaded["label"], strict=True):
        assert label == expected[grey // 50 * 50]
    assert sorted(greys(loaded["image"])) == [0, 1, 2, 3, 50, 51, 52, 53, 100, 101, 102, 103]


def test_a_flat_folder_has_no_labels(tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.png", i)
    info, loaded = load_all(tmp_path)
    assert set(loaded) == {"image"} and info.num_classes is None and info.class_names is None


def test_train_and_test_folders_are_the_two_sets(tmp_path):
    for split, names in (("train", "abc"), ("test", "ab")):
        for name in names:
            write(tmp_path / split / name / "x.png", ord(name) + (100 if split == "test" else 0))
    train, test = data.load(tmp_path)
    assert train.info.class_names == ("a", "b", "c") and test.info.num_classes == 3
    assert sorted(greys(collect(train)["image"])) == [97, 98, 99]
    batch = collect(test)
    assert sorted(zip(greys(batch["image"]), batch["label"], strict=True)) == [(197, 0), (198, 1)]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.bmp", "a.gif"])
def test_every_format_is_read(tmp_path, name):
    write(tmp_path / name, 120)
    write(tmp_path / "other.png", 120)
    _, loaded = load_all(tmp_path)
    np.testing.assert_allclose(loaded["image"], 120 / 127.5 - 1.0, atol=1.5 / 127.5)
    assert loaded["image"].shape == (2, 8, 8, 3)


def test_grey_stays_grey_and_one_colour_image_makes_all_colour(tmp_path):
    write(tmp_path / "a.png", 10, channels=1)
    write(tmp_path / "b.png", 20, channels=1)
    assert load_all(tmp_path)[0].image_shape == (8, 8, 1)
    write(tmp_path / "c.png", 30, channels=3)
    info, loaded = load_all(tmp_path)
    assert info.image_shape == (8, 8, 3) and sorted(greys(loaded["image"])) == [10, 20, 30]
    assert load_all(tmp_path, channels=1)[0].image_shape == (8, 8, 1)


def test_transparency_is_laid_on_white(tmp_path):
    image = np.zeros((8, 8, 4), "uint8")
    image[..., 3] = 51  # black, one fifth opaque
    (tmp_path / "a.png").write_bytes(tf.io.encode_png(image).numpy())
    write(tmp_path / "b.png", 204)
    assert greys(load_all(tmp_path)[1]["image"]).tolist() == [204, 204]


def test_different_sizes_need_an_image_size(tmp_path):
    write(tmp_path / "a.png", 10, size=(8, 8))
    write(tmp_path / "b.png", 20, size=(9, 16))
    with pytest.raises(ValueError, match=r"pass `image_size`.*a\.png \(8, 8\).*b\.png \(9, 16\)"):
        data.load(tmp_path)
    info, loaded = load_all(tmp_path, image_size=6)
    assert info.image_shape == (6, 6, 3) and sorted(greys(loaded["image"])) == [10, 20]


def test_corrupt_files_are_named_and_skipped(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.png", i)
    (tmp_path / "no_image.png").write_bytes(b"not a picture")
    (tmp_path / "cut.jpg").write_bytes(tf.io.encode_jpeg(np.zeros((64, 64, 3), "uint8")).numpy()[:300])
    (tmp_path / "empty.gif").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"(?s)3 of 7 image files can not be read.*cut\.jpg.*empty\.gif.*no_image\.png"
    ):
        _, loaded = load_all(tmp_path)
    assert sorted(greys(loaded["image"])) == [0, 1, 2, 3]


def test_sound_files_give_no_warning_and_other_files_do_not_matter(tmp_path):
    write(tmp_path / "a.png", 1)
    write(tmp_path / "b.png", 2)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"not an image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_all(tmp_path)[1]["image"]) == 2


def test_an_empty_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="No images in"):
        data.load(tmp_path)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="None of the 1 image files"):
        data.load(tmp_path)


def test_images_beside_class_folders_are_an_error(tmp_path):
    write(tmp_path / "a.png", 1)
    write(tmp_path / "dog" / "b.png", 2)
    with pytest.raises(ValueError, match="all lie in class sub-folders, or all directly"):
        data.load(tmp_path)


def test_the_split_does_not_depend_on_the_order_of_the_file_system(tmp_path):
    for root, order in ((tmp_path / "a", range(20)), (tmp_path / "b", reversed(range(20)))):
        for i in order:
            write(root / f"{i:02d}.png", i)
    tests = [greys(collect(data.load(tmp_path / name)[1])["image"]).tolist() for name in "ab"]
    assert tests[0] == tests[1] and len(tests[0]) == 4
