"""The presets that come with the package: there, small, loadable, and as good as their cards say."""

import configparser
from pathlib import Path

import numpy as np
import pytest

import keras_vqdit as kv
from keras_vqdit import data, recipes
from keras_vqdit.data.captions import captions_of, digit_of
from keras_vqdit.metrics import train_classifier
from keras_vqdit.quickstart import BUDGETS, JUDGE_BATCH
from keras_vqdit.saving import find_preset

ROOT = Path(__file__).parents[2]
IMAGES = ["fashion_diffusion", "fashion_tokenizer", "mnist_diffusion", "mnist_tokenizer"]
NAMES = sorted([*IMAGES, "multimodal_digits", "speech_tokenizer"])


def test_all_are_there():
    cards = kv.presets()
    assert sorted(cards) == NAMES
    sizes = {name: sum(file.stat().st_size for file in find_preset(name).iterdir()) for name in NAMES}
    assert max(sizes.values()) < 12e6 and sum(sizes.values()) < 40e6
    for name, card in cards.items():
        assert {"description", "data", "licence", "command", "seconds", "hardware", "versions", "metrics"} <= set(
            card
        ), name
        assert name not in IMAGES or card["command"].startswith("python -m keras_vqdit quickstart --dataset ")


def test_wheels_carry_them():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert dict(setup["options.data_files"]) == {
        f"share/keras_vqdit/presets/{name}": f"saved_models/{name}/*" for name in NAMES
    }


@pytest.mark.parametrize("name", IMAGES)
def test_loads(name):
    card = kv.presets()[name]
    images = recipes.to_arrays(data.load("mnist_5k")[1], limit=32)
    if name.endswith("tokenizer"):
        tokenizer = kv.VQVAE.from_preset(name)
        error = np.mean((tokenizer.decode(tokenizer.encode(images)) - images) ** 2)
        assert error < (0.01 if "mnist" in name else 0.1)  # of digits, which the one of clothes has never seen
    else:
        model = kv.LatentDiffusion.from_preset(name)
        drawn = model.generate([1, 1, 8, 8], num_steps=4, verbose=0)
        assert drawn.shape == (4, 28, 28, 1) and model.num_classes == len(card["class_names"])
        assert (drawn[2:] > 0).mean() > 1.2 * (drawn[:2] > 0).mean()  # an 8 has more ink than a 1, a bag than trousers


def test_the_tokenizer_of_speech_restores_speech(shared_data):
    """Of 32 test takes, whose mean lies near that of all: a standard deviation of the takes is 2 dB."""
    card = kv.presets()["speech_tokenizer"]["metrics"]["test"]
    _, test = data.load("spoken_digit", data_dir=shared_data / "tfds", batch_size=32, audio_length=6144)
    tokenizer = kv.AudioTokenizer.from_preset("speech_tokenizer")
    audio = recipes.to_arrays(test, "audio", limit=None)[::8]
    codes = tokenizer.encode(audio)
    assert tuple(codes.shape) == (len(audio), 48, 4)
    measured = np.mean(kv.metrics.spectral_convergence(audio, tokenizer.decode(codes)))
    assert measured == pytest.approx(card["spectral_convergence"], abs=1.5)


def test_the_multimodal_digits_know_what_goes_together(shared_data):
    """Of 30 test images and 30 takes, far more than chance, which is a tenth."""
    model = kv.MultimodalDiffusion.from_preset("multimodal_digits")
    assert model.modalities == ("audio", "image", "text")
    text = model.tokenizers["text"]
    _, test = data.load(
        "multimodal_digits", data_dir=shared_data / "tfds", batch_size=30, audio_copies=1, text_tokenizer=text
    )
    batch = {name: np.array(values) for name, values in next(iter(test.in_order())).items()}
    captions = [captions_of(digit)[0] for digit in range(10)]
    for name in ("image", "audio"):
        told = kv.tasks.classify(model, {name: batch[name]}, captions, num_samples=2)
        assert np.mean(told == batch["label"]) > 0.7
        drawn = model.generate({name: batch[name]}, ["text"], num_steps=8, temperature=0.9, seed=0, verbose=0)["text"]
        assert np.mean([digit_of(text) == label for text, label in zip(drawn, batch["label"], strict=True)]) > 0.7


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_cards_are_true(dataset, shared_data):
    name = dataset.removesuffix("_mnist")
    load = {"data_dir": shared_data / "tfds"}
    train, test = data.load(dataset, batch_size=JUDGE_BATCH, **load)
    card = kv.presets()[f"{name}_tokenizer"]["metrics"]["test"]
    measured = recipes.measure_tokenizer(kv.VQVAE.from_preset(f"{name}_tokenizer"), test)
    for key, value in card.items():
        assert measured[key] == pytest.approx(value, rel=1e-3), key

    card = kv.presets()[f"{name}_diffusion"]["metrics"]["drawn"]
    judge, accuracy = train_classifier(train, test, epochs=BUDGETS["full"].judge_epochs, seed=card["seed"], verbose=0)
    assert accuracy == pytest.approx(card["judge_test_accuracy"], abs=0.003)
    drawing = {key: card[key] for key in ("num_samples", "num_steps", "guidance_scale", "sampler", "seed")}
    model = kv.LatentDiffusion.from_preset(f"{name}_diffusion")
    measured = recipes.measure_generation(model, judge, test, verbose=0, **drawing)
    assert measured["accuracy"] == pytest.approx(card["accuracy"], abs=0.01)
    assert measured["frechet_distance"] == pytest.approx(card["frechet_distance"], rel=0.15)
