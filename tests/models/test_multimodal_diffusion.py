"""Any to any, on tiny models: what trains, what stays, what is drawn and what is scored."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_vqdit as kv
from keras_vqdit.models.code_transformer import CodeTransformer
from keras_vqdit.models.multimodal_diffusion import MultimodalDiffusion
from tests.contract import run_contract
from tests.models.small import images, small_vqvae, trained_vqvae

CAPTIONS = ["ab", "ba", "a", "bbbb", "", "abab", "aa", "b"]


@keras.saving.register_keras_serializable("tests")
class Codes:
    """A tokenizer of what is codes already, with levels."""

    def __init__(self, num_embeddings=5, code_shape=(4, 2), num_levels=2):
        self.num_embeddings, self.code_shape, self.num_levels = num_embeddings, tuple(code_shape), num_levels

    def encode(self, x):
        return np.asarray(x)

    def decode(self, codes):
        return np.asarray(codes)

    def get_config(self):
        return {"num_embeddings": self.num_embeddings, "code_shape": self.code_shape, "num_levels": self.num_levels}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def text_tokenizer():
    return kv.TextTokenizer.train(["abab"], max_length=4)


def small(image=None, dtype=None, **options):
    tokenizers = {"image": image or small_vqvae(), "audio": Codes(), "text": text_tokenizer()}
    return MultimodalDiffusion(tokenizers, 16, 2, num_layers=1, seed=0, dtype=dtype, **options)


def alike(count=64, seed=0):
    """Codes of which every modality tells the others."""
    label = np.random.default_rng(seed).integers(0, 4, count)
    shapes = {"image": (2, 2), "audio": (4, 2), "text": (4,)}
    return label, {name: np.broadcast_to(label.reshape(-1, *(1,) * len(s)), (count, *s)) for name, s in shapes.items()}


def roles_of(model, codes):
    """Which examples have all of a modality given, and which have all of it hidden: `{name: (given, hidden)}`."""
    codes = {name: ops.convert_to_tensor(codes[name]) for name in model.modalities}
    return {name: [np.array(one) for one in both] for name, both in model._roles(codes).items()}


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = small()
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    model.fit(alike(256)[1], epochs=30, batch_size=64, verbose=0)
    return model


# === Training ===


def test_fit_on_data_codes_and_texts():
    image = trained_vqvae()
    model = small(image)
    model.compile("adam", jit_compile=False)
    x = images()
    history = model.fit({"image": x, "text": CAPTIONS}, batch_size=4, verbose=0).history
    assert set(history) == {"loss", "image_loss", "audio_loss", "text_loss"} and np.isfinite(history["loss"]).all()
    assert history["audio_loss"] == [0.0]
    codes = np.array(image.encode(x))
    np.testing.assert_array_equal(model.codes({"image": x})["image"], codes)
    model.fit({"image": codes, "text": model.tokenizers["text"].encode(CAPTIONS)}, batch_size=4, verbose=0)
    assert not image.trainable and all(not v.trainable for v in image.variables)
    scores = model.evaluate({"text": CAPTIONS}, verbose=0, return_dict=True)
    assert scores["text_loss"] > 0 and scores["image_loss"] == 0


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="makes data sets of TensorFlow's")
def test_a_step_on_bad_data_is_skipped():
    """NaN pixels have codes, too, and a compiled program can not raise: the loss must tell."""
    import tensorflow as tf

    model, (_, codes) = small(trained_vqvae()), alike(8)
    model.compile("adam", jit_compile=False)
    hole = images()
    hole[1, 3, 3] = np.nan
    history = model.fit({"image": hole, "text": CAPTIONS}, batch_size=4, shuffle=False, verbose=0).history
    assert model.skipped_steps == 1 and np.isfinite(history["loss"]).all()
    absent = {"image": hole, "has_image": np.arange(8) != 1, "text": CAPTIONS}
    model.fit(absent, batch_size=4, verbose=0)
    assert model.skipped_steps == 1
    for wrong in (16, 99, -2):
        image = np.array(codes["image"])
        image[1, 0, 0] = wrong
        data = tf.data.Dataset.from_tensor_slices({"image": image}).batch(4)
        assert np.isnan(model.evaluate(data, verbose=0, return_dict=True)["loss"])


def test_hidden_modalities_do_not_lower_what_is_logged():
    model, (_, codes) = small(hidden_rate=0.5), alike(4000)
    outputs = model(codes, training=True)
    loss, present = np.array(outputs["text_loss"]), np.array(outputs["text_present"])
    assert abs(present.mean() - 0.5) < 0.05 and not loss[present == 0].any()
    assert np.average(loss, weights=present) == pytest.approx(np.log(4), rel=0.15)


@pytest.mark.parametrize("texts", [np.array(["ab", "b"]), np.array([b"ab", b"b"]), [b"ab", b"b"]], ids=repr)
def test_texts_may_be_arrays_and_bytes(texts):
    model = small()
    expected = model.tokenizers["text"].encode(["ab", "b"])
    np.testing.assert_array_equal(model.known_codes({"text": texts}, None)[0]["text"], expected)
    np.testing.assert_array_equal(model.prepare_arrays({"text": texts})["text"], expected)


def test_one_modality_needs_no_dict():
    model = MultimodalDiffusion({"text": text_tokenizer()}, 16, 2, num_layers=1)
    codes = ops.convert_to_tensor(alike(8)[1]["text"])
    assert set(model._with_weights(codes, None, np.ones(8))) == {"text", "sample_weight"}


def test_an_untrained_model_knows_nothing():
    """The last layer starts at zero: the bound is log K for every code, up to the noise of times and masks."""
    model = small()
    _, codes = alike(4000)
    outputs = model(codes)
    for name, k in (("image", 16), ("audio", 5), ("text", 4)):
        loss = np.array(outputs[f"{name}_loss"])
        assert abs(loss.mean() - np.log(k)) < 5 * loss.std() / np.sqrt(len(loss))
    total = sum(np.array(outputs[f"{name}_loss"]) for name in ("image", "audio", "text")) / 3
    np.testing.assert_allclose(outputs["loss"], total, rtol=1e-5)


def test_pairs_train_one_modality_given_all_of_another_alone():
    model, (_, codes) = small(pair_rate=1.0, hidden_rate=0.0), alike(6000)
    pairs = []
    roles = roles_of(model, codes)
    for given, wanted in itertools.permutations(model.modalities, 2):
        free = ~roles[wanted][0] & ~roles[wanted][1]
        third = next(name for name in model.modalities if name not in (given, wanted))
        here = roles[given][0] & free
        assert roles[third][1][here].all() and not roles[third][0][here].any() and not roles[given][1][here].any()
        pairs.append(here)
    np.testing.assert_array_equal(np.sum(pairs, axis=0), 1)  # each example is in one of the six
    assert np.all(np.abs(np.mean(pairs, axis=1) - 1 / 6) < 4.5 * np.sqrt(5 / 36 / 6000))

    given, hidden = roles["image"]
    noisy, masked, _, trains = (
        np.array(one) for one in model._add_noise("image", ops.cast(codes["image"], "int32"), given, hidden)
    )
    np.testing.assert_array_equal(noisy[given], codes["image"][given])
    assert np.all(noisy[hidden] == 16) and not masked[given | hidden].any()
    np.testing.assert_array_equal(trains, ~(given | hidden))
    outputs = model(codes, training=True)
    present = [np.array(outputs[f"{name}_present"]) for name in model.modalities]
    np.testing.assert_array_equal(np.sum(present, axis=0), 1)


def test_by_the_rate_of_hiding_the_target_of_a_pair_trains_alone():
    model, (_, codes) = small(pair_rate=1.0, hidden_rate=0.3), alike(6000)
    given, hidden = np.sum([one for one in roles_of(model, codes).values()], axis=0)  # how many modalities
    np.testing.assert_array_equal(given + hidden, 2)  # one trains
    assert abs(given.mean() - 0.7) < 4.5 * np.sqrt(0.7 * 0.3 / 6000)


def test_pairs_are_drawn_among_what_an_example_has():
    model, (_, codes) = small(pair_rate=1.0, hidden_rate=0.0), alike(6000)
    missing = {name: np.array(one) for name, one in codes.items()}
    missing["image"][::2] = -1
    missing["audio"][::3] = -1
    roles = roles_of(model, missing)
    there = {name: (one >= 0).reshape(6000, -1).any(axis=1) for name, one in missing.items()}
    several = np.sum([*there.values()], axis=0) > 1
    trains = {name: ~given & ~hidden for name, (given, hidden) in roles.items()}
    for name in missing:
        assert not (trains[name] | roles[name][0])[several & ~there[name]].any()
        assert trains[name][~several].all()  # by times of their own
    np.testing.assert_array_equal(np.sum([*trains.values()], axis=0)[several], 1)
    of_text = [1, 1 / 3, 1 / 2, 1 / 2, 1 / 2, 1 / 3]  # one of those that are there
    assert abs(trains["text"].mean() - np.mean(of_text)) < 4.5 * 0.5 / np.sqrt(6000)


def test_pairs_have_rates_of_their_own():
    rates = {"image": {"text": 0.5, "audio": 0.1}, "text": {"image": 0.2}}
    model, (_, codes) = small(pair_rate=rates, hidden_rate=0.0), alike(6000)
    roles = roles_of(model, codes)
    for given, wanted in itertools.permutations(model.modalities, 2):
        share = np.mean(roles[given][0] & ~roles[wanted][0] & ~roles[wanted][1])
        rate = rates.get(given, {}).get(wanted, 0)
        assert abs(share - rate) <= 4.5 * np.sqrt(rate * (1 - rate) / 6000)
    assert abs(np.mean(sum(one[0] for one in roles.values()) == 0) - 0.2) < 4.5 * np.sqrt(0.16 / 6000)
    again = MultimodalDiffusion.from_config(model.get_config())
    assert again.pairs == model.pairs == {("image", "text"): 0.5, ("image", "audio"): 0.1, ("text", "image"): 0.2}


def test_what_evaluation_measures_is_the_bound_whatever_trains():
    _, codes = alike(3000)
    process = kv.MaskedDiffusion("cosine", weighting="masked", seed=0)
    plain, other = small(process=kv.MaskedDiffusion("cosine", seed=0)), small(process=process, pair_rate=0.9)
    first, second = (model(codes, training=False) for model in (plain, other))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert np.array(first["text_present"]).all()


@pytest.mark.parametrize(
    "rate",
    [-0.1, 1.5, float("nan"), {"image": 0.5}, {"image": {"image": 0.5}}, {"picture": {}}]
    + [{"image": {"text": 0.6}, "text": {"image": 0.6}}, {"image": {"text": -0.1}}],
)
def test_impossible_rates(rate):
    with pytest.raises(ValueError, match="`pair_rate.* must "):
        small(pair_rate=rate)


def test_what_trains_is_the_mean_of_masked_codes_where_that_is_asked_for():
    """An untrained network: log K for each masked code, so that the sum tells 1 / p for each of them."""
    process = kv.MaskedDiffusion("cosine", weighting="masked", seed=0)
    model, (_, codes) = small(process=process, hidden_rate=0.0), alike(4000)
    twin = kv.MaskedDiffusion("cosine", seed=0)
    loss = np.array(model(codes, training=True)["text_loss"])
    for name, levels in (
        ("audio", 2),
        ("image", None),
        ("text", None),
    ):  # the draws of the same seed, in the model's order
        _, masked, t = twin(codes[name], mask_code=9, num_levels=levels)
    expected = np.array(masked).mean(axis=1) * np.log(4) / np.sin(np.pi / 2 * np.array(t))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_times_of_modalities_and_what_is_hidden_are_independent():
    model, (_, codes) = small(hidden_rate=0.5), alike(4000)
    times = [np.array(model._add_noise(name, ops.cast(codes[name], "int32"))[2]) for name in model.modalities]
    hidden = [np.array(one[1], float) for one in roles_of(model, codes).values()]
    for a, b in (*itertools.combinations(times, 2), *itertools.combinations(hidden, 2)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(4000)


def test_what_is_logged_counts_what_is_there_alone():
    """Nats a code of an untrained network: log K, whichever examples or codes are missing, or weigh nothing."""
    model, (_, codes) = small(), alike(4000)
    model.compile("adam", jit_compile=False)
    image = np.array(codes["image"])
    image[:, 1] = -1
    there = np.arange(4000) % 4 == 0
    data = {"image": image, "text": codes["text"], "has_text": there, "audio": codes["audio"]}
    logs = model.evaluate(data, batch_size=500, verbose=0, return_dict=True)
    for name, k in (("image", 16), ("text", 4), ("audio", 5)):
        assert logs[f"{name}_loss"] == pytest.approx(np.log(k), rel=0.1), name
    nothing = model.evaluate({**data, "sample_weight": np.zeros(4000)}, batch_size=500, verbose=0, return_dict=True)
    assert set(nothing.values()) == {0.0}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_half_precision_the_average_keeps_float32(policy):
    model = small(dtype=policy)
    model.compile("sgd", jit_compile=False)
    model.fit(alike(8)[1], batch_size=8, verbose=0)
    weights = [np.float32(1.001) * np.ones(w.shape, "float32") for w in model.transformer.weights]
    model.transformer.set_weights(weights)
    model.ema_transformer.set_weights([0 * w for w in weights])
    model.ema_steps.assign(4097.0)  # of which neither half precision knows the next
    model.fit(alike(8)[1], batch_size=8, verbose=0)
    for average in model.ema_transformer.get_weights():
        np.testing.assert_allclose(average, (1 - 4097 / 4106) * 1.001, rtol=1e-4)
    assert float(model.ema_steps.value) == 4098


def test_evaluation_uses_the_average():
    model, (_, codes) = small(), alike(8)
    bias = model.ema_transformer.final_dense[0].bias
    bias.assign(np.arange(bias.shape[0], dtype="float32"))
    process_seed = model.process.seed_generator.state
    start = ops.convert_to_numpy(process_seed)
    outputs = {}
    for training in (False, True):
        process_seed.assign(start)
        model.hidden_rate = 0.0
        outputs[training] = np.array(model(codes, training=training)["audio_loss"])
    assert np.abs(outputs[True] - outputs[False]).max() > 0.1


def test_weights_of_modalities():
    _, codes = alike(8)
    both = small(weights={"audio": 0.0, "text": 3.0})(codes)
    expected = (np.array(both["image_loss"]) + 3 * np.array(both["text_loss"])) / 4
    np.testing.assert_allclose(both["loss"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="`weights` must be of modalities among"):
        small(weights={"sound": 1.0})
    with pytest.raises(ValueError, match="`weights` must not all be 0"):
        small(weights={"image": 0, "audio": 0, "text": 0})


def gradients(codes):
    """Gradients of a training step, by the network's weights."""
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = small(ema_decay=None)
    for weight in model.transformer.weights:  # the last layer starts at zero, which hides the rest
        weight.assign(np.random.default_rng(weight.shape[0]).normal(size=weight.shape) * 0.3)
    for seed in (model.process.seed_generator, model.seed_generator):
        seed.state.assign([0, 1])
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(codes, training=True)["loss"])
    return [np.zeros(w.shape) if g is None else np.array(g) for g, w in zip(
        tape.gradient(loss, [w.value for w in model.transformer.trainable_variables]),
        model.transformer.trainable_variables, strict=True,
    )]  # fmt: skip


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="takes the gradients by a GradientTape")
def test_a_missing_modality_changes_no_gradient():
    """What stands in the place of missing codes, and how they are said to be missing, makes no difference."""
    _, codes = alike(16)
    without = {name: codes[name] for name in ("image", "text")}
    expected = gradients(without)
    for audio in (
        {"audio": np.full((16, 4, 2), -1)},
        {"audio": codes["audio"], "has_audio": np.zeros(16, bool)},
        {"audio": (codes["audio"] + 1) % 5, "has_audio": np.zeros(16, bool)},
    ):
        for a, b in zip(gradients({**without, **audio}), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(gradients(codes), expected, strict=True))
    names = [w.path for w in small(ema_decay=None).transformer.trainable_variables]
    final = next(g for g, name in zip(expected, names, strict=True) if "final_audio" in name)
    assert not final.any()


def test_single_codes_may_be_unknown():
    model, (_, codes) = small(), alike(8)
    half = np.array(codes["image"])
    half[:, 0] = -1
    other = {**codes, "image": half}
    np.testing.assert_array_equal(model(other)["image_present"], 0.5)
    filled = model.generate(
        {"image": half}, want=["image"], num_steps=2, seed=0, verbose=0, return_codes=True, fill={"image": half < 0}
    )
    np.testing.assert_array_equal(filled["image"][:, 1], half[:, 1])


def test_hidden_modalities_do_not_bias_the_bound_of_evaluation():
    model, (_, codes) = small(hidden_rate=0.9), alike(4000)
    loss = np.array(model(codes, training=False)["text_loss"])
    assert abs(loss.mean() - np.log(4)) < 5 * loss.std() / np.sqrt(len(loss))
    hidden = np.array(model(codes, training=True)["text_loss"])
    assert hidden.mean() == pytest.approx(0.1 * np.log(4), rel=0.3)


# === Drawing ===


def test_every_conditional_is_learned(trained):
    label, codes = alike(12, seed=1)
    names = ("image", "audio", "text")
    for given, want in itertools.permutations(names, 2):
        drawn = trained.generate({given: codes[given]}, [want], num_steps=4, seed=0, verbose=0, return_codes=True)
        assert np.mean(drawn[want] == codes[want]) > 0.95, (given, want)
    # Together, the first codes of all are drawn before any is known, so that they may tell different stories.
    for together, least in ((False, 0.9), (True, 0.7)):
        joint = trained.generate(
            num_samples=96, want=names, num_steps=8, seed=0, verbose=0, return_codes=True, together=together
        )
        first = joint["text"][:, 0]
        agree = [np.mean(one == first.reshape(-1, *(1,) * (one.ndim - 1))) for one in joint.values()]
        assert min(agree) > least and len(np.unique(first)) >= 3


def test_known_codes_never_change_and_no_mask_is_left():
    model, (_, codes) = small(), alike(6)
    rng = np.random.default_rng(0)
    for sampler in ("ancestral", "confidence"):
        fill = {"image": rng.random((6, 2, 2)) < 0.5, "audio": rng.random((6, 4)) < 0.5}
        fill["image"][:, 0, 0] = fill["audio"][:, 0] = True
        given = {name: codes[name] for name in ("image", "audio")}
        drawn = model.generate(
            given,
            ["image", "audio", "text"],
            fill=fill,
            sampler=sampler,
            num_steps=3,
            seed=1,
            verbose=0,
            return_codes=True,
        )
        for name, mask in fill.items():
            mask = mask[..., None] if name == "audio" else mask
            np.testing.assert_array_equal(np.where(mask, 0, drawn[name]), np.where(mask, 0, given[name]))
        for name, k in model.mask_codes.items():
            assert drawn[name].min() >= 0 and drawn[name].max() < k


def test_pixels_and_samples_are_filled_by_the_codes_that_hold_them():
    model = small(trained_vqvae())
    pixels = np.zeros((8, 8), bool)
    pixels[7, 0] = True
    assert model._fill_mask("image", pixels, 2).tolist() == [[[False, False], [True, False]]] * 2
    with pytest.raises(ValueError, match=r"`fill` of \"image\" must be bool, of shape \(8, 8\) or \(2, 2\)"):
        model._fill_mask("image", np.zeros((3, 3), bool), 2)


def test_a_text_is_continued(trained):
    texts = trained.generate({"text": ["a", "ab"]}, want=["text"], num_steps=2, seed=0, verbose=0)["text"]
    assert texts[0].startswith("a") and texts[1].startswith("ab")


def test_what_is_known_in_part_guides_the_rest(trained):
    """By a scale of 0 the rest does not depend on it; by a large one it goes with it."""
    upper = np.array([[False, False], [True, True]])
    zeros, threes = (np.full((32, 2, 2), label) for label in (0, 3))

    def drawn(codes, scale):
        options = {"num_steps": 2, "seed": 3, "guidance_scale": scale, "return_codes": True, "verbose": 0}
        return trained.generate({"image": codes}, ["image"], fill={"image": upper}, **options)["image"]

    np.testing.assert_array_equal(drawn(zeros, 0.0)[:, 1], drawn(threes, 0.0)[:, 1])
    assert np.all(drawn(zeros, 0.0)[:, 0] == 0) and len(np.unique(drawn(zeros, 0.0)[:, 1])) > 2
    right = [np.mean(drawn(threes, scale)[:, 1] == 3) for scale in (0.0, 1.0, 4.0)]
    assert right[0] < 0.6 < right[1] and right[2] > 0.95
    again = trained.generate(
        {"image": threes}, ["image", "text"], fill={"image": upper}, together=True, guidance_scale=4.0, num_steps=2, seed=3,
        return_codes=True, verbose=0,
    )  # fmt: skip
    assert np.mean(again["image"] == 3) > 0.95 and np.mean(again["text"] == 3) > 0.95
    texts = trained.generate(
        {"image": threes}, ["text"], guidance_scale=0.0, num_steps=2, seed=3, return_codes=True, verbose=0
    )
    half = trained.generate(
        {"image": threes}, ["text", "image"], fill={"image": upper}, guidance_scale=0.0, num_steps=2, seed=3,
        return_codes=True, verbose=0,
    )  # fmt: skip
    np.testing.assert_array_equal(texts["text"], half["text"])  # what is known of it guides others, too


def test_guidance_of_one_is_none_and_of_zero_ignores_the_condition(trained):
    _, codes = alike(12, seed=1)
    options = {"want": ["image"], "num_steps": 3, "seed": 0, "verbose": 0, "return_codes": True, "sampler": "ancestral"}
    plain = trained.generate({"text": codes["text"]}, **options)["image"]
    np.testing.assert_array_equal(
        trained.generate({"text": codes["text"]}, guidance_scale=1.0, **options)["image"], plain
    )
    values, scale = trained._values(), ops.convert_to_tensor(1.0)
    masked = {
        name: ops.convert_to_tensor(one) for name, one in trained.known_codes({"text": codes["text"]}, None)[0].items()
    }
    seeds, steps = ops.convert_to_tensor([0, 0]), ops.convert_to_tensor(3)
    found = [
        trained._fill(("image",), by, "ancestral", {}, values, masked, scale, scale, steps, seeds)
        for by in ((), ("text",))
    ]
    np.testing.assert_array_equal(found[0]["image"], found[1]["image"])
    ignored = trained.generate({"text": codes["text"]}, guidance_scale=0.0, **options)["image"]
    np.testing.assert_array_equal(ignored, trained.generate(num_samples=12, **options)["image"])
    assert np.mean(ignored == codes["image"]) < 0.7 < np.mean(plain == codes["image"])
    with pytest.raises(ValueError, match="Guidance needs something given"):
        trained.generate(want=["image"], guidance_scale=2.0, verbose=0)


def test_the_seed_tells_all_whatever_the_batches(trained):
    def draw(**options):
        return trained.generate(num_samples=5, num_steps=3, verbose=0, return_codes=True, **options)

    whole = draw(seed=3)
    for other in (draw(seed=3, batch_size=2), draw(seed=3, jit_compile=True)):
        for name, one in whole.items():
            np.testing.assert_array_equal(one, other[name])
    assert any(np.any(one != draw(seed=4)[name]) for name, one in whole.items())
    for name, one in draw(seed=-5).items():  # any integer, by its last 32 bits
        np.testing.assert_array_equal(one, draw(seed=2**40 - 5)[name])


# === Scoring ===


def test_scores_classify(trained):
    label, codes = alike(12, seed=1)
    candidates = {"text": np.broadcast_to(np.arange(4)[:, None], (4, 4))}
    scores = trained.score({"image": codes["image"]}, candidates, num_samples=4)
    assert scores.shape == (12, 4) and np.all(scores.argmax(axis=1) == label)
    np.testing.assert_allclose(
        trained.score({"image": codes["image"]}, candidates, num_samples=4, batch_size=7), scores, atol=1e-4
    )
    prior = trained.score({}, candidates, num_samples=64)
    assert prior.shape == (1, 4) and np.all(np.abs(prior - np.log(1 / 4)) < 1.5)


def test_the_score_is_the_bound_of_the_process():
    """An untrained network: log K for each code, but for the noise of few masks; equal for candidates, which share them."""
    scores = small().score({}, {"text": ["abab", "a"]}, num_samples=2000)
    np.testing.assert_allclose(scores, -4 * np.log(4), rtol=0.1)
    assert scores[0, 0] == scores[0, 1]
    process = kv.MaskedDiffusion("cosine", weighting="masked")  # which trains by other weights; of levels, too
    scores = small(process=process).score({}, {"audio": np.zeros((1, 4, 2), "int32")}, num_samples=2000)
    np.testing.assert_allclose(scores, -8 * np.log(5), rtol=0.1)


# === Errors ===


def test_errors():
    model, (_, codes) = small(), alike(4)
    for given, want, message in [
        ({"smell": 1}, None, "What is given must be a dict of modalities among"),
        ({"text": ["a"]}, ["smell"], "`want` must list modalities among"),
        ({"text": ["a"]}, [], "`want` must list modalities among"),
        ({"text": ["a"]}, ["image", "image"], "`want` must list modalities among"),
        ({"text": ["a"]}, 3, "`want` must list modalities among"),
        ({"text": ["a"]}, [["image"]], "`want` must list modalities among"),
        ({"image": ["a"]}, ["text"], '"image" must be floats for its tokenizer, or integer codes'),
        (
            {"image": np.zeros((1, 8, 8, 1), "uint8")},
            ["text"],
            r"\(None, 2, 2\). Received: \(1, 8, 8, 1\); data must be floats",
        ),
        ({"image": codes["image"]}, ["image"], '"image" is known already'),
        (
            {"text": ["a", "abab", "b", "a"]},
            ["text"],
            '"text" must leave room for more. Received: all codes known in example 1',
        ),
        (np.zeros((2, 8, 8, 1), "float32"), ["text"], "What is given must be a dict of modalities among"),
        ({"text": ["a"], "image": codes["image"]}, ["audio"], "must agree on the number of examples"),
        ({"image": codes["image"] + 99}, ["text"], "must be from 0 to 15"),
        ({"image": np.full((1, 8, 8, 1), np.nan, "float32")}, ["text"], "must be finite"),
        ({"text": ["abababab"]}, ["image"], "Texts must be of at most max_length=4"),
        (
            {"image": np.full((1, 8, 8, 1), 255.0)},
            ["text"],
            r'"image" must be in \[-1, 1\]. Received: values from 255 to 255',
        ),
        ({"image": 3.0}, ["text"], '"image" must be an array of examples. Received: '),
        ({"image": None}, ["text"], '"image" must be an array of examples. Received: '),
        ({"image": [[1.0], [1.0, 2.0]]}, ["text"], '"image" must be an array. Received: a list whose parts'),
        ({"text": ["a"], 5: 3}, ["image"], "What is given must be a dict of modalities among"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.generate(given, want, verbose=0)
    with pytest.raises(TypeError, match="Options of the sampler 'confidence' are"):
        model.generate({"text": ["a"]}, ["image"], eta=1, verbose=0)
    with pytest.raises(ValueError, match="`fill` must be a dict of modalities .* Received: ndarray"):
        model.generate({"image": codes["image"]}, ["image"], fill=np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="`num_steps` must be a positive integer"):
        model.generate({"text": ["a"]}, ["image"], num_steps={"image": 0}, verbose=0)
    with pytest.raises(ValueError, match="`temperature` must be of modalities among"):
        model.generate({"text": ["a"]}, ["image"], temperature={"picture": 0}, verbose=0)
    with pytest.raises(ValueError, match="`noise` must be a finite number"):
        model.generate({"text": ["a"]}, ["image"], noise=float("nan"), verbose=0)
    with pytest.raises(ValueError, match="must have equally many examples under every key"):
        model({"image": codes["image"], "text": codes["text"][:3]})
    with pytest.raises(ValueError, match="must have equally many examples under every key"):
        model({"image": codes["image"], "has_image": np.ones(3, bool)})
    with pytest.raises(ValueError, match=r'"image" must be of shape \(None, 8, 8, 1\). Received: \(4, 8, 8\)'):
        small(trained_vqvae())({"image": np.zeros((4, 8, 8), "float32")})
    with pytest.raises(ValueError, match="must have at least one of the keys"):
        model({"label": np.zeros(3)})
    with pytest.raises(ValueError, match="must be of a modality that is not given"):
        model.score({"text": ["a"]}, {"text": ["b"]})
    with pytest.raises(ValueError, match="`candidates` must be a dict of one modality"):
        model.score({"text": ["a"]}, {})
    for wrong, message in (
        ({"image": np.full((4, 8, 8, 1), 255.0)}, r'"image" must be in \[-1, 1\]'),
        ({**codes, "has_image": np.full(4, np.nan)}, '"has_image" must be bools, one for each example'),
        ({**codes, "has_image": np.ones((4, 2))}, '"has_image" must be bools, one for each example'),
    ):
        with pytest.raises(ValueError, match=message):
            model.prepare_arrays(wrong)
    with pytest.raises(TypeError, match="Texts must be str. Received: None"):
        model.prepare_arrays({"text": [None]})
    for wrong in (codes["image"] + 99, codes["image"][:0], codes["image"][:, 0], np.zeros((1, 2, 2))):
        with pytest.raises(ValueError, match='Codes of "image" must be integers from 0 to 15'):
            model.decode("image", wrong)
    for name in (5, "", "a/b", "loss", "seed", "has_text"):
        with pytest.raises(ValueError, match="Names of modalities must be str, without /"):
            MultimodalDiffusion({name: text_tokenizer()}, 16, 2)
    with pytest.raises(TypeError, match="`tokenizers` must be a dict"):
        MultimodalDiffusion([], 16, 2)
    with pytest.raises(ValueError, match="`loss` must be None"):
        model.compile("adam", loss="mse")
    with pytest.raises(ValueError, match="A diffusion model has no targets"):
        model.compile("adam")
        model.fit(codes, np.zeros(4))
    for method in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="must hold at least one key. Received: an empty dict"):
            method({}, verbose=0)


# === Files ===


def test_contract(tmp_path):
    modalities = {
        "image": {"num_embeddings": 6, "shape": (2, 2), "num_levels": None},
        "audio": {"num_embeddings": 5, "shape": (4, 2), "num_levels": 2},
    }
    _, codes = alike(3)
    run_contract(
        lambda dtype=None: CodeTransformer(modalities, 16, 2, 32, 1, dtype=dtype),
        {name: np.array(codes[name]) for name in modalities},
        tmp_path=tmp_path,
    )


def test_attention_scores_are_of_the_positions_of_all_modalities():
    modalities = {
        "image": {"num_embeddings": 6, "shape": (2, 2), "num_levels": None},
        "audio": {"num_embeddings": 5, "shape": (4, 2), "num_levels": 2},
    }
    network = CodeTransformer(modalities, 16, 2, 32, 3)
    _, codes = alike(3)
    scores = np.asarray(network.attention_scores(codes))
    assert scores.shape == (3, 3, 2, 8, 8)
    np.testing.assert_allclose(scores.sum(axis=-1), 1.0, rtol=1e-5)
    assert scores[1].std() > 1e-3
    for weight in network.blocks[1].mha.query_key_value_dense.weights:
        weight.assign(0.0 * weight)  # who asks for nothing looks everywhere
    again = np.asarray(network.attention_scores(codes))
    np.testing.assert_allclose(again[1], 1 / 8, rtol=1e-5)
    np.testing.assert_array_equal(again[0], scores[0])


def files_model():
    tokenizers = {"image": trained_vqvae(), "text": text_tokenizer()}
    model = MultimodalDiffusion(tokenizers, 16, 2, num_layers=1, seed=0)
    model.compile("adam", jit_compile=False)
    model.fit({"image": images(), "text": CAPTIONS}, batch_size=4, verbose=0)
    return model


def test_presets_and_keras_files(tmp_path):
    model = files_model()
    options = {"given": {"text": ["ab", "b"]}, "want": ["image"], "num_steps": 2, "seed": 0, "verbose": 0}
    expected = model.generate(**options)["image"]
    model.save_to_preset(tmp_path / "preset", {"data": "none"})
    kv.saving.save_model(model, tmp_path / "model.keras")
    for again in (
        MultimodalDiffusion.from_preset(tmp_path / "preset"),
        kv.saving.load_model(tmp_path / "model.keras"),
    ):
        np.testing.assert_allclose(again.generate(**options)["image"], expected, atol=1e-5)
        assert again.tokenizers["text"].decode(again.tokenizers["text"].encode(["ab"])) == ["ab"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="SavedModels are TensorFlow's")
def test_export(tmp_path):
    import tensorflow as tf

    model = files_model()
    kv.saving.export(model, tmp_path / "exported")
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    assert set(exported.signatures) - {"serving_default"} == {"encode_image", "decode_image", "denoise", "sample"}
    masks = {"image": np.full((2, 2, 2), 16, "int32"), "text": model.tokenizers["text"].encode(["ab", "b"])}
    denoised = exported.signatures["denoise"](**{name: tf.constant(one) for name, one in masks.items()})
    expected = model.network(masks, training=False)
    np.testing.assert_allclose(denoised["image_logits"], expected["image"], atol=1e-5)
    asked = {"image": np.full((2, 2, 2), -1, "int32"), "text": masks["text"]}
    drawn = exported.signatures["sample"](
        **{name: tf.constant(one) for name, one in asked.items()}, seed=tf.constant([7, 0]), num_steps=tf.constant(2)
    )
    live = model.generate({"text": masks["text"]}, ["image"], num_steps=2, seed=7, verbose=0, return_codes=True)
    np.testing.assert_array_equal(drawn["image"], live["image"])
    np.testing.assert_array_equal(drawn["text"], masks["text"])
