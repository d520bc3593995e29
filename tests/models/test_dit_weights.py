"""The official DiT: its weights go in and come out again, and then the forward pass is its own to 1e-5."""

from pathlib import Path

import numpy as np
import pytest

from keras_vqdit.models.diffusion_transformer import DiffusionTransformer
from keras_vqdit.models.dit_weights import dit_weights, load_dit_weights

FIXTURE = Path(__file__).parents[1] / "oracles" / "fixtures" / "dit.npz"


@pytest.fixture(scope="module")
def official():
    """What diffusers' DiT computes with random weights in the official layout."""
    arrays = dict(np.load(FIXTURE))
    weights = {name.removeprefix("weights/"): a for name, a in arrays.items() if name.startswith("weights/")}
    return weights, {name: a for name, a in arrays.items() if not name.startswith("weights/")}


def counterpart():
    return DiffusionTransformer(24, 3, 96, 2, patch_size=2, num_classes=5, learn_variance=True)


def test_forward_is_the_official_one(official):
    weights, arrays = official
    model = load_dit_weights(counterpart(), weights)
    output = model({"x": arrays["x"].transpose(0, 2, 3, 1), "t": arrays["times"] / 1000, "label": arrays["labels"]})
    expected = arrays["output"].transpose(0, 2, 3, 1)
    assert expected.std() > 0.3
    np.testing.assert_allclose(np.asarray(output), expected, atol=1e-5)


def test_official_weights_come_back_as_they_went_in(official):
    weights, _ = official
    model = load_dit_weights(counterpart(), weights)
    back = dit_weights(model, (8, 8))
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(back[name], weight, err_msg=name)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("blocks.1.mlp.fc1.bias"), r"missing blocks.1.mlp.fc1.bias; unknown none"),
        (lambda w: w.update({"blocks.2.mlp.fc1.bias": 0}), r"missing none; unknown blocks.2.mlp.fc1.bias"),
        (lambda w: w.pop("pos_embed"), 'must have a weight "pos_embed" with 3 axes'),
        (lambda w: w.update({"pos_embed": w["pos_embed"] + 0.1}), '"pos_embed" must be the sine-cosine positions'),
        (lambda w: w.update({"x_embedder.proj.weight": np.zeros((24, 96))}), "with 4 axes. Received: .*24, 96"),
        (
            lambda w: w.update({"blocks.0.attn.qkv.weight": w["blocks.0.attn.qkv.weight"].T}),
            r'"blocks.0.attn.qkv.weight" must be of shape \(72, 24\). Received: shape=\(24, 72\)',
        ),
        (
            lambda w: w.update({"y_embedder.embedding_table.weight": np.zeros((5, 24))}),
            r'"y_embedder.embedding_table.weight" must be of shape \(6, 24\). Received: shape=\(5, 24\)',
        ),
    ],
    ids=["missing", "unknown", "no positions", "other positions", "rank", "transposed", "no null label"],
)
def test_official_weights_that_do_not_fit(official, change, message):
    weights = dict(official[0])
    change(weights)
    model = counterpart()
    model.build((None, 8, 8, 4))
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        load_dit_weights(model, weights)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 5, "context_dim": 3}, {"num_classes": 5, "query_key_norm": True}]
)
def test_models_without_an_official_counterpart(official, options):
    with pytest.raises(ValueError, match="must have class labels, no context and no query-key norm"):
        load_dit_weights(DiffusionTransformer(24, 3, 96, 2, patch_size=2, **options), official[0])


def test_weights_of_a_model_that_has_none():
    with pytest.raises(ValueError, match="`model` must be built"):
        dit_weights(counterpart(), (8, 8))
