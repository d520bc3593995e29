"""Tasks: each asks `generate` or `score` for what its name says, and gives back what its docstring says."""

import keras
import numpy as np
import pytest

import keras_vqdit as kv
from keras_vqdit import tasks
from tests.models.small import images
from tests.models.test_multimodal_diffusion import alike, small

OPTIONS = {"num_steps": 2, "seed": 0, "verbose": 0}
ARGUMENTS = {"image": "image", "speech": "audio", "text": "text"}


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def trained():
    model = small()
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    model.fit(alike(256)[1], epochs=15, batch_size=64, verbose=0)
    return model


@pytest.mark.parametrize("name", [name for name in tasks.__all__ if "_to_" in name])
def test_one_modality_from_another(model, name):
    source, target = (ARGUMENTS[part] for part in name.split("_to_"))
    given = {"image": images(2), "audio": alike(2)[1]["audio"], "text": ["ab", "b"]}[source]
    task = getattr(kv.tasks, name)
    drawn = task(model, given, **OPTIONS)
    expected = model.generate({source: given}, want=[target], **OPTIONS)[target]
    np.testing.assert_array_equal(drawn, expected)
    assert len(drawn) == 2
    assert task.__name__ == name and f"kv.tasks.{name}(" in task.__doc__
    with pytest.raises(TypeError, match="Options of the sampler"):
        task(model, given, **OPTIONS, eta=1.0)


def test_another_modality_is_drawn_on_the_way(model):
    x, mask = images(2), np.indices((8, 8))[0] >= 4
    options = {**OPTIONS, "return_codes": True}
    expected = model.generate({"image": x}, ["text", "audio"], **options)["audio"]
    np.testing.assert_array_equal(tasks.image_to_speech(model, x, through="text", **options), expected)
    np.testing.assert_array_equal(tasks.image_to_speech(model, x, through=["text"], **options), expected)
    expected = model.generate({"image": x}, ["text", "audio", "image"], fill={"image": mask}, **options)["image"]
    drawn = tasks.infill_image(model, x, mask, through=["text", "audio"], **options)
    np.testing.assert_array_equal(drawn, expected)
    for wrong in ("smell", "audio"):
        with pytest.raises(ValueError, match="`want` must list modalities among"):
            tasks.image_to_speech(model, x, through=wrong, **OPTIONS)


def test_all_modalities_from_nothing(model):
    drawn = tasks.sample_jointly(model, 3, **OPTIONS)
    assert {name: len(one) for name, one in drawn.items()} == {"image": 3, "audio": 3, "text": 3}
    assert list(tasks.sample_jointly(model, want=["text", "image"], **OPTIONS)) == ["text", "image"]


def test_infilling_keeps_the_rest(model):
    x, mask = images(2), np.indices((8, 8))[0] >= 4
    options = {**OPTIONS, "return_codes": True}
    drawn = tasks.infill_image(model, x, mask, **options)
    codes = np.array(model.tokenizers["image"].encode(x))
    np.testing.assert_array_equal(drawn[:, 0], codes[:, 0])
    expected = model.generate({"image": x, "text": ["ab", "b"]}, ["image"], fill={"image": mask}, **options)
    np.testing.assert_array_equal(
        tasks.infill_image(model, x, mask, given={"text": ["ab", "b"]}, **options), expected["image"]
    )
    with pytest.raises(ValueError, match='`fill` of "image" must be bool'):
        tasks.infill_image(model, x, mask[:3], **OPTIONS)


def test_texts_are_continued(model):
    texts = tasks.complete_text(model, ["a", "ba"], **OPTIONS)
    assert texts[0].startswith("a") and texts[1].startswith("ba")
    assert len(tasks.complete_text(model, ["a"], given={"image": images(1)}, **OPTIONS)) == 1
    with pytest.raises(ValueError, match='"text" is known already'):
        tasks.complete_text(model, ["abab"], **OPTIONS)


def test_retrieval_and_classification(trained):
    label, codes = alike(8, seed=1)
    candidates = np.broadcast_to(np.arange(4)[:, None], (4, 4))
    for options in ({"subtract_prior": False}, {}):
        ranking, scores = tasks.retrieve(trained, {"image": codes["image"]}, {"text": candidates}, **options)
        assert ranking.shape == scores.shape == (8, 4)
        np.testing.assert_array_equal(ranking[:, 0], label)
        assert np.all(np.diff(np.take_along_axis(scores, ranking, axis=1)) <= 0)
    np.testing.assert_array_equal(tasks.classify(trained, {"image": codes["image"]}, {"text": candidates}), label)
    plain = trained.score({"image": codes["image"]}, {"text": candidates})
    prior = trained.score({}, {"text": candidates})
    np.testing.assert_allclose(scores, plain - prior, rtol=1e-5)


def test_equal_candidates_keep_their_order(model):
    ranking, scores = tasks.retrieve(model, {"image": images(1)}, {"text": ["ab", "ba", "a"]})
    assert len(set(scores[0])) == 1 and ranking.tolist() == [[0, 1, 2]]  # an untrained model knows nothing
    assert tasks.classify(model, {"image": images(2)}, ["ab", "ba"]).tolist() == [0, 0]


def test_errors(model):
    with pytest.raises(ValueError, match="Candidates must be of a modality that is not given"):
        tasks.classify(model, {"text": ["ab"]}, ["ab", "ba"])
    with pytest.raises(ValueError, match="What is given must be a dict of modalities among"):
        tasks.classify(model, {"smell": ["ab"]}, ["ab", "ba"])
    with pytest.raises(ValueError, match="`candidates` must be a dict of one modality"):
        tasks.retrieve(model, {"text": ["ab"]}, {})
    with pytest.raises(ValueError, match="`queries` must hold at least one modality"):
        tasks.retrieve(model, {}, {"text": ["ab", "ba"]})
    with pytest.raises(TypeError, match="`candidates` must be a list of texts. Received: 'ab'"):
        tasks.classify(model, {"image": images(2)}, "ab")
