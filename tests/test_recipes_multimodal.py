"""The recipe of the multimodal digits, and how every task is judged, on tiny models."""

import numpy as np
import pytest

import keras_vqdit as kv
from keras_vqdit.data.captions import caption_tokenizer, captions_of
from keras_vqdit.models import MultimodalDiffusion
from keras_vqdit.recipes_multimodal import measure_multimodal, start_from, train_multimodal
from tests.models.small import trained_vqvae
from tests.models.test_multimodal_diffusion import Codes


class Judge:
    """Recognises a digit that is written into the first value."""

    def predict(self, values, **_):
        digit = np.asarray(values).reshape(len(values), -1)[:, 0].astype(int) % 10
        return np.eye(10)[digit]


class Digits(Codes):
    """A tokenizer of sounds whose codes are digits."""

    def __init__(self):
        super().__init__(num_embeddings=10)

    def encode(self, x):
        return x


@pytest.fixture(scope="module")
def trained():
    text, rng = caption_tokenizer(), np.random.default_rng(0)
    labels = np.arange(20, dtype="int32") % 10
    banks = {
        "image": rng.uniform(-1, 1, (20, 8, 8, 1)).astype("float32"),
        "audio": np.broadcast_to(labels[:, None, None], (20, 4, 2)).astype("int32"),
        "text": text.encode([captions_of(digit)[0] for digit in labels]),
    }
    info = kv.data.DatasetInfo("digits", None, 10, {}, 10, text_tokenizer=text)
    dataset = kv.data.to_paired_dataset(banks, {name: labels for name in banks}, info)
    tokenizers = {"image": trained_vqvae(banks["image"]), "text": text}
    tokenizers["audio"] = Digits()
    model, history = train_multimodal(
        dataset, dataset, tokenizers, epochs=2, d_model=16, num_heads=2, num_layers=1, seed=0, verbose=0
    )
    assert len(history["val_loss"]) == 2 and np.all(np.isfinite(history["val_loss"]))
    return model, dataset


def test_training_starts_from_the_average_of_another(trained):
    start, dataset = trained
    options = {"epochs": 1, "learning_rate": 1e-9, "start": start, "seed": 1, "verbose": 0}
    model, _ = train_multimodal(dataset, None, start.tokenizers, **options)
    assert model is not start and model.process.schedule == "cosine"
    for own, average, last in zip(
        model.transformer.weights, start.ema_transformer.weights, start.transformer.weights, strict=True
    ):
        np.testing.assert_allclose(own, average, atol=1e-6)
        assert np.any(np.array(last) != np.array(average))
    with pytest.raises(ValueError, match="`d_model` must be that of `start`, 16, or None. Received: d_model=32"):
        train_multimodal(dataset, None, start.tokenizers, d_model=32, **options)
    with pytest.raises(ValueError, match="`start` must have the modalities"):
        train_multimodal(dataset, None, {"text": start.tokenizers["text"]}, **options)
    with pytest.raises(TypeError, match="`start` must be a MultimodalDiffusion"):
        train_multimodal(dataset, None, start.tokenizers, **{**options, "start": 5})


def test_what_starts_another_need_not_have_learned():
    model, other = (MultimodalDiffusion({"text": kv.TextTokenizer("bytes", 4)}, 16, 2, num_layers=1) for _ in range(2))
    other.transformer.set_weights([np.full(w.shape, 0.25, "float32") for w in other.transformer.weights])
    start_from(model, other)
    assert all(np.all(np.array(w) == 0.25) for net in (model.transformer, model.ema_transformer) for w in net.weights)


def test_every_task_is_judged(trained):
    model, dataset = trained
    found = measure_multimodal(model, dataset, Judge(), Judge(), num_samples=12, num_steps=2)
    shares = {name: share for name, share in found.items() if name != "seconds"}
    tasks = {f"{a}_to_{b}" for a in ("image", "speech", "text") for b in ("image", "speech", "text") if a != b}
    through = {"image_to_speech_through_text", "infilled_through_text"}
    assert set(shares) == {*tasks, *through, "joint", "infilled", "classified", "image_judge", "speech_judge"}
    assert shares["speech_judge"] == 1.0 and all(0 <= share <= 1 for share in shares.values())


def test_what_the_judges_see_is_what_was_drawn(trained, monkeypatch):
    """A model that answers rightly, and one that never does."""
    model, dataset = trained
    label = np.array(next(iter(dataset.in_order()))["label"])

    asked = []

    def answer(shift):
        def generate(given=None, want=None, *, num_samples=None, **_):
            asked.append((sorted(given or ()), list(want)))
            digits = (label[:10] + shift) % 10 if given else np.zeros(num_samples, int)
            data = {
                "text": [captions_of(digit)[1] for digit in digits],
                "image": np.broadcast_to(digits[:, None, None, None], (len(digits), 8, 8, 1)),
                "audio": np.broadcast_to(digits[:, None, None], (len(digits), 4, 2)),
            }
            return {name: data[name] for name in want}

        return generate

    for shift, expected in ((0, 1.0), (1, 0.0)):
        monkeypatch.setattr(model, "generate", answer(shift))
        found = measure_multimodal(model, dataset, Judge(), Judge(), num_samples=10)
        assert all(found[name] == expected for name in found if "_to_" in name or "infilled" in name)
        assert found["joint"] == 1.0
    for want in (["text", "audio"], ["text", "image"], ["audio"], ["image"]):  # through a caption, and not
        assert asked.count((["image"], want)) == 2
