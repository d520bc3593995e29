"""LatentDiffusion: one noised pass, frozen tokenizer, moving average, guided drawing by a compiled program."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vqdit import recipes
from keras_vqdit.diffusion import GaussianDiffusion, RectifiedFlow
from keras_vqdit.diffusion.noise import standard_normal
from keras_vqdit.models.diffusion_transformer import DiffusionTransformer
from keras_vqdit.models.latent_diffusion import LatentDiffusion
from tests.contract import run_contract


@keras.saving.register_keras_serializable("tests")
class Halver(keras.Model):
    """A tokenizer that halves the values of an image and keeps a weight."""

    modality = "image"

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer=keras.initializers.Constant(0.5), name="scale")

    def call(self, x):
        return x * self.scale

    def encode_latents(self, x):
        return ops.cast(x, "float32") * self.scale

    def decode_latents(self, z):
        return z / self.scale

    def compute_latent_shape(self, shape):
        return tuple(shape)


def network(num_classes=3, **options):
    return DiffusionTransformer(16, 2, 32, 1, patch_size=2, num_classes=num_classes, **options)


def build(tokenizer=None, process=None, **options):
    net = options.pop("network", None) or network()
    model = LatentDiffusion(tokenizer, net, process or RectifiedFlow(seed=1), seed=2, **options)
    return model


def batch(n=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.uniform(-1, 1, (n, 4, 4, 2)).astype("float32"),
        "label": rng.integers(0, 3, n).astype("int32"),
    }


def randomize(model, seed=0):
    """The last layer starts at zero, which would hide everything behind it."""
    rng = np.random.default_rng(seed)
    for weight in model.transformer.weights:
        weight.assign(rng.normal(0, 0.2, weight.shape))
    model.reset_average()


def injected(n=8, seed=5):
    rng = np.random.default_rng(seed)
    return {
        **batch(n),
        "noise": rng.normal(size=(n, 4, 4, 2)).astype("float32"),
        "t": rng.uniform(0.1, 0.9, n).astype("float32"),
    }


# === One pass ===


def test_loss_and_denoised_follow_the_process():
    model = build()
    data = injected()
    model(data)
    randomize(model)
    outputs = model(data)
    # Rectified flow by hand: x_t = (1 - t) x0 + t e, target e - x0, clean = x_t - t v.
    x0, e, t = (data[k].astype("float64") for k in ("image", "noise", "t"))
    t4 = t[:, None, None, None]
    x_t = (1 - t4) * x0 + t4 * e
    v = model.ema_transformer({"x": x_t.astype("float32"), "t": data["t"], "label": data["label"]})
    v = ops.convert_to_numpy(v).astype("float64")
    np.testing.assert_allclose(outputs["loss"], np.mean((v - (e - x0)) ** 2, axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(outputs["denoised"], x_t - t4 * v, atol=1e-4)


def test_tokenizer_encodes_and_stays_frozen():
    tokenizer = Halver()
    tokenizer.build((None, 4, 4, 2))
    model = build(tokenizer)
    data = injected()
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(data, verbose=0)
    assert float(tokenizer.scale) == 0.5
    assert all("scale" not in v.path for v in model.trainable_variables)
    latents = {**data, "latents": data["image"] * 0.5}
    del latents["image"]
    np.testing.assert_allclose(model(latents)["loss"], model(data)["loss"], rtol=1e-6)


def test_tokenizer_and_average_stay_frozen_when_the_model_is_set_trainable_again():
    tokenizer = Halver()
    tokenizer.build((None, 4, 4, 2))
    model = build(tokenizer)
    model(batch())
    trained = [v.path for v in model.trainable_variables]
    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    assert [v.path for v in model.trainable_variables] == trained
    assert not tokenizer.trainable_variables
    assert not model.ema_transformer.trainable_variables


def test_compute_loss_averages_with_sample_weights():
    model = build()
    data = injected()
    per_example = ops.convert_to_numpy(model(data)["loss"])
    model.compile("sgd")
    assert model.evaluate(data, verbose=0) == pytest.approx(per_example.mean(), rel=1e-5)
    weights = np.array([1, 0, 0, 0, 2, 0, 0, 1], "float32")
    expected = pytest.approx(np.mean(per_example * weights), rel=1e-5)
    assert float(model.compute_loss(y_pred=model(data), sample_weight=weights)) == expected
    assert model.evaluate(data, sample_weight=weights, verbose=0) == expected
    assert model.evaluate({**data, "sample_weight": weights}, verbose=0) == expected
    history = model.fit(data, sample_weight=0 * weights, validation_data=(data, None, weights), verbose=0).history
    assert history["loss"] == [0.0] and history["val_loss"] == [expected]


@pytest.mark.parametrize("jit_compile", [True, False])
def test_fit_learns(jit_compile):
    model = build()
    model.compile(keras.optimizers.Adam(3e-3), jit_compile=jit_compile)
    data = {"image": np.tile(batch(1)["image"], (256, 1, 1, 1)), "label": np.zeros(256, "int32")}
    history = model.fit(data, batch_size=32, epochs=12, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


def test_moving_average_warms_up_and_follows_the_weights():
    model = build(ema_decay=0.5)
    model.compile(keras.optimizers.SGD(0.05))
    data = injected()
    model(data)
    randomize(model)
    index = int(np.argmax([np.prod(w.shape) for w in model.transformer.weights]))  # any weight will do
    expected = None
    for n in range(12):
        w = ops.convert_to_numpy(model.transformer.weights[index]).astype("float64")
        decay = min(0.5, n / (n + 9))
        expected = w if n == 0 else decay * expected + (1 - decay) * w
        model.fit(data, batch_size=8, verbose=0)
        np.testing.assert_allclose(model.ema_transformer.weights[index], expected, rtol=1e-5, atol=1e-6)
    assert float(model.ema_steps) == 12
    assert not np.allclose(model.transformer.weights[index], expected, atol=1e-6)


def test_evaluate_uses_the_average_and_does_not_move_it():
    model = build()
    model.compile("sgd")
    data = injected()
    model(data)
    randomize(model)
    model.ema_steps.assign(5.0)  # an average that has learned
    before = model.evaluate(data, verbose=0)
    for weight in model.transformer.weights:
        weight.assign(weight * 0)
    assert model.evaluate(data, verbose=0) == before
    assert float(model.ema_steps) == 5


def test_weights_set_by_hand_reach_the_average():
    model, data = build(), injected()
    model(data)
    model.compile("sgd")
    before = model.evaluate(data, verbose=0), model.generate([0, 1], num_steps=2, seed=0, verbose=0)
    rng = np.random.default_rng(3)
    model.transformer.set_weights([rng.normal(0, 0.2, w.shape) for w in model.transformer.get_weights()])
    assert model.evaluate(data, verbose=0) != before[0]  # nothing was learned: the average is the transformer
    assert not np.allclose(model.generate([0, 1], num_steps=2, seed=0, verbose=0), before[1])
    model.fit(data, verbose=0)
    model.transformer.set_weights([w * 0 for w in model.transformer.get_weights()])
    model.reset_average()
    assert float(model.ema_steps) == 0 and all(np.all(w == 0) for w in model.ema_transformer.get_weights())


@keras.saving.register_keras_serializable("tests")
class PlainNetwork(keras.layers.Layer):
    """A transformer of a user: no `build`, layers that build themselves when they are called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2)

    def call(self, inputs, training=None):
        return self.dense(inputs["x"]) * (1 - inputs["t"][:, None, None, None])


def test_a_network_without_build_trains_and_draws():
    model = build(network=PlainNetwork())
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(batch(), epochs=3, verbose=0)
    assert len(model.ema_transformer.weights) == len(model.transformer.weights) == 2
    assert float(model.ema_steps) == 3
    assert model.generate(num_samples=2, num_steps=2, seed=0, verbose=0).shape == (2, 4, 4, 2)


@keras.saving.register_keras_serializable("tests")
class Growing(PlainNetwork):
    """Its config forgets an argument."""

    def __init__(self, extra=0, **kwargs):
        super().__init__(**kwargs)
        self.extra = [self.add_weight(shape=(), name=f"extra_{i}") for i in range(extra)]

    def get_config(self):
        return {name: value for name, value in super().get_config().items() if name != "extra"}


def test_a_network_that_its_config_does_not_rebuild():
    with pytest.raises(ValueError, match="must be rebuilt by its `get_config`.*Received: 3 weights, rebuilt with 2"):
        build(network=Growing(1))(batch())


def test_label_dropout_replaces_the_given_share():
    model = build(label_dropout=0.25)
    conditions = {"label": ops.zeros((4000,), "int32")}
    dropped = ops.convert_to_numpy(model._drop_conditions(conditions, 4000)["label"])
    assert set(dropped) == {0, 3}
    # 4,000 draws: the standard deviation of the share is 0.007.
    assert abs(np.mean(dropped == 3) - 0.25) < 0.03


def test_context_is_dropped_by_its_mask():
    model = build(network=network(num_classes=None, context_dim=5), label_dropout=1.0)
    rng = np.random.default_rng(0)
    data = {**injected(), "context": rng.normal(size=(8, 3, 5)).astype("float32")}
    model(data)
    randomize(model)
    other = {**data, "context": data["context"] + 1}
    assert not np.allclose(model(data)["loss"], model(other)["loss"])
    conditions = model._drop_conditions(model._conditions(data), 8)
    assert not np.any(ops.convert_to_numpy(conditions["context_mask"]))


@pytest.mark.parametrize("mask", [None, [[1, 1, 0]] * 8])
def test_context_trains_the_given_share_of_examples(mask):
    model = build(network=network(num_classes=3, context_dim=5), label_dropout=0.25)
    rng = np.random.default_rng(0)
    data = {**injected(), "context": rng.normal(size=(8, 3, 5)).astype("float32")}
    if mask:
        data["context_mask"] = np.array(mask, "bool")
    model(data)
    randomize(model)
    other = {**data, "context": data["context"] + 1}
    kept = []
    for _ in range(100):
        model.seed_generator.state.assign([0, len(kept)])
        one = ops.convert_to_numpy(model(data, training=True)["loss"])
        model.seed_generator.state.assign([0, len(kept)])
        kept.append(~np.isclose(one, ops.convert_to_numpy(model(other, training=True)["loss"]), rtol=1e-5))
    assert abs(np.mean(kept) - 0.75) < 0.06  # 800 draws: the standard deviation is 0.015
    conditions = model._conditions(data)
    dropped = model._drop_conditions(conditions, 8)
    seen = np.any(ops.convert_to_numpy(dropped["context_mask"]), axis=1)
    np.testing.assert_array_equal(seen, ops.convert_to_numpy(dropped["label"]) != 3)  # both or none
    expected = np.array(mask or np.ones((8, 3)), "bool")
    np.testing.assert_array_equal(ops.convert_to_numpy(dropped["context_mask"]), expected * seen[:, None])


# === Drawing ===


@pytest.fixture(scope="module")
def drawn():
    keras.utils.set_random_seed(0)
    model = build()
    model(batch())
    randomize(model)
    return model


def test_same_seed_same_examples_whatever_came_before(drawn):
    first = drawn.generate([0, 1, 2], num_steps=4, seed=7, verbose=0)
    drawn.generate([1], num_steps=3, seed=1, verbose=0)
    drawn(batch())
    np.testing.assert_array_equal(drawn.generate([0, 1, 2], num_steps=4, seed=7, verbose=0), first)
    assert not np.allclose(drawn.generate([0, 1, 2], num_steps=4, seed=8, verbose=0), first)
    assert first.shape == (3, 4, 4, 2) and first.dtype == np.float32
    assert np.all(np.abs(first) <= 1)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler", "ddim", "ddpm"])
def test_chunks_and_batches_change_nothing(drawn, sampler):
    labels = [0, 1, 2, 0, 1]
    whole = drawn.generate(labels, num_steps=6, sampler=sampler, guidance_scale=2.0, seed=3, verbose=0)
    chunked, trajectory = drawn.generate(
        labels, num_steps=6, sampler=sampler, guidance_scale=2.0, seed=3, verbose=0, return_trajectory=True
    )
    np.testing.assert_allclose(chunked, whole, atol=1e-5)
    np.testing.assert_allclose(trajectory["noisy"][-1], whole, atol=1e-5)
    assert trajectory["noisy"].shape == (7, 5, 4, 4, 2) and trajectory["clean"].shape == (6, 5, 4, 4, 2)
    parts = drawn.generate(labels, num_steps=6, sampler=sampler, guidance_scale=2.0, seed=3, verbose=0, batch_size=2)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_euler_and_guidance_by_hand(drawn):
    labels, scale = np.array([0, 2]), 2.5
    x = ops.convert_to_numpy(standard_normal((2, 4, 4, 2), 11)).astype("float64")
    times = np.linspace(1, 0, 6)
    for t, s in zip(times[:-1], times[1:]):
        conditional, null = (
            ops.convert_to_numpy(
                drawn.ema_transformer(
                    {"x": x.astype("float32"), "t": np.full(2, t, "float32"), "label": label.astype("int32")}
                )
            ).astype("float64")
            for label in (labels, np.array([3, 3]))
        )
        v = null + scale * (conditional - null) if 0.3 <= t <= 0.9 else conditional
        clean = np.clip(x - t * v, -1, 1)  # without a tokenizer, data are within [-1, 1]
        x = clean + s / t * (x - clean)
    ours = drawn.generate(
        labels, num_steps=5, sampler="euler", guidance_scale=scale, guidance_interval=(0.3, 0.9), seed=11, verbose=0
    )
    np.testing.assert_allclose(ours, x, atol=2e-4)


def test_another_number_of_steps_uses_the_other_schedule(drawn):
    """20 and 30 steps share one padded program; each must equal what it gives when it runs first."""
    fresh = build()
    fresh(batch())
    fresh.set_weights(drawn.get_weights())
    expected = fresh.generate([0], num_steps=30, seed=0, verbose=0)
    drawn.generate([0], num_steps=20, seed=0, verbose=0)
    np.testing.assert_allclose(drawn.generate([0], num_steps=30, seed=0, verbose=0), expected, atol=1e-6)


def test_newly_trained_weights_are_used(drawn):
    model = build()
    model(batch())
    model.set_weights(drawn.get_weights())
    before = model.generate([0], num_steps=3, seed=0, verbose=0)
    randomize(model, seed=9)
    assert not np.allclose(model.generate([0], num_steps=3, seed=0, verbose=0), before)


def test_xla_draws_the_same(drawn):
    plain = drawn.generate([0, 1], num_steps=4, guidance_scale=2.0, seed=0, verbose=0, jit_compile=False)
    compiled = drawn.generate([0, 1], num_steps=4, guidance_scale=2.0, seed=0, verbose=0, jit_compile=True)
    np.testing.assert_allclose(compiled, plain, atol=1e-4)


def test_unconditional_drawing_is_the_null_label(drawn):
    free = drawn.generate(num_samples=2, num_steps=3, seed=0, verbose=0)
    assert free.shape == (2, 4, 4, 2)
    assert not np.allclose(free, drawn.generate([0, 0], num_steps=3, seed=0, verbose=0))


def test_progress_is_shown(drawn, capsys):
    drawn.generate([0], num_steps=5, seed=0)
    assert "5/5" in capsys.readouterr().out


@pytest.mark.parametrize(
    "modality, shape, patch_size",
    [("audio", (16, 2), 4), ("video", (2, 4, 4, 1), (1, 2, 2))],
    ids=["audio", "video"],
)
def test_sound_and_video_are_trained_and_drawn_as_images_are(modality, shape, patch_size):
    net = DiffusionTransformer(16, 2, 32, 1, patch_size=patch_size, num_classes=3)
    tokenizer = Halver()
    tokenizer.build((None, *shape))
    model = LatentDiffusion(tokenizer, net, RectifiedFlow(seed=1), modality=modality, seed=2)
    model.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    examples = np.random.default_rng(0).uniform(-1, 1, (1, *shape)).astype("float32") * np.ones((64, *[1] * len(shape)))
    data = {modality: examples.astype("float32"), "label": np.arange(64, dtype="int32") % 3}
    losses = model.fit(data, batch_size=16, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]  # all examples are alike
    drawn = model.generate([0, 2], num_steps=2, seed=0, verbose=0)
    assert drawn.shape == (2, *shape) and np.abs(drawn).max() <= 1 and drawn.std() > 0


# === The contract ===


def test_contract(tmp_path):
    tokenizer = Halver()
    tokenizer.build((None, 4, 4, 2))

    def make(dtype="float32"):
        keras.utils.set_random_seed(0)
        return build(tokenizer, network=network(dtype=dtype), dtype=dtype)

    run_contract(make, injected(), tmp_path=tmp_path)


def test_saved_model_draws_the_same(tmp_path, drawn):
    drawn.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = drawn.generate([0, 1], num_steps=4, guidance_scale=2.0, seed=0, verbose=0)
    np.testing.assert_allclose(
        loaded.generate([0, 1], num_steps=4, guidance_scale=2.0, seed=0, verbose=0), expected, atol=1e-6
    )


def test_a_saved_model_trains_on_as_it_would_have(tmp_path, recwarn):
    model = build()
    model.compile(recipes.diffusion_optimizer(keras.optimizers.schedules.CosineDecay(1e-3, 8)), jit_compile=False)
    model.fit(injected(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations) > 0
    for trained in (model, loaded):
        trained.fit(injected(), shuffle=False, verbose=0)
    for expected, got in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=expected.path)
    assert not [w for w in recwarn if "compile" in str(w.message)]


def test_a_compiled_tokenizer_loads_without_its_optimizer(tmp_path, recwarn):
    tokenizer = Halver()
    tokenizer.build((None, 4, 4, 2))
    tokenizer.compile("adam", "mse")
    model = build(tokenizer)
    model(batch())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not loaded.tokenizer.compiled
    assert not [w for w in recwarn if "Skipping variable" in str(w.message)]


def test_mixed_float16_scales_the_loss_and_keeps_the_average_in_float32():
    model = build(network=network(dtype="mixed_float16"), dtype="mixed_float16")
    model.compile("adam")
    model.fit(batch(), verbose=0)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert {v.dtype for v in model.ema_transformer.weights} == {"float32"}


def test_ddpm_with_learned_variance_and_rescaled_guidance_by_hand():
    process = GaussianDiffusion("cosine", "noise", learn_variance=True, num_timesteps=100)
    model = build(process=process, network=network(learn_variance=True))
    model(batch())
    randomize(model)
    labels, scale, phi, seed = np.array([0, 2]), 3.0, 0.7, 11
    x = ops.convert_to_numpy(standard_normal((2, 4, 4, 2), seed)).astype("float64")
    times = process.times(4)
    levels = [[np.float64(level) for level in process.alpha_sigma(t)] for t in times]
    for i, ((alpha_t, sigma_t), (alpha_s, sigma_s)) in enumerate(zip(levels[:-1], levels[1:])):
        inputs = {"x": x.astype("float32"), "t": np.full(2, process.network_time(times[i]), "float32")}
        (c, variance), (u, _) = (
            np.split(np.float64(model.ema_transformer({**inputs, "label": label.astype("int32")})), 2, axis=-1)
            for label in (labels, np.array([3, 3]))
        )
        noise = u + scale * (c - u)
        spread = c.std((1, 2, 3), keepdims=True) / noise.std((1, 2, 3), keepdims=True)
        noise = phi * spread * noise + (1 - phi) * noise
        clean = np.clip((x - sigma_t * noise) / alpha_t, -1, 1)
        beta = 1 - (alpha_t / alpha_s) ** 2  # of the step from s to t, which both preserve the variance
        mean = (alpha_s * beta * clean + alpha_t / alpha_s * sigma_s**2 * x) / sigma_t**2
        if sigma_s == 0:
            x = mean
            break
        fraction = (variance + 1) / 2
        log_variance = fraction * np.log(beta) + (1 - fraction) * np.log(beta * sigma_s**2 / sigma_t**2)
        drawn_noise = ops.convert_to_numpy(standard_normal(x.shape, (seed, i + 1, 0)))
        x = mean + np.exp(log_variance / 2) * drawn_noise
    assert i == 3
    ours = model.generate(
        labels, num_steps=4, sampler="ddpm", guidance_scale=scale, guidance_rescale=phi, seed=seed, verbose=0
    )
    np.testing.assert_allclose(ours, x, atol=2e-4)


# === Errors ===


def test_wrong_arguments():
    with pytest.raises(TypeError, match="`tokenizer` must have a method `encode_latents`"):
        LatentDiffusion(keras.layers.Dense(1), network())
    with pytest.raises(TypeError, match="`transformer` must be a Layer"):
        LatentDiffusion(None, lambda x: x)
    with pytest.raises(ValueError, match="`label_dropout` must be a finite number, at least 0 and at most 1"):
        build(label_dropout=1.5)
    with pytest.raises(TypeError, match="`process` must be a DiffusionProcess"):
        build(process="flow")
    with pytest.raises(ValueError, match="`ema_decay`"):
        build(ema_decay=1.0)
    with pytest.raises(ValueError, match="`learn_variance` must be the same"):
        build(process=GaussianDiffusion(learn_variance=True))


def test_wrong_data():
    model = build()
    with pytest.raises(ValueError, match='must have a key "label"'):
        model({"image": batch()["image"]})
    with pytest.raises(ValueError, match='must have a key "image" or "latents"'):
        build()({"audio": np.zeros((2, 8, 1), "float32"), "label": np.zeros(2, "int32")})
    model = build()
    model.compile("sgd")
    with pytest.raises(ValueError, match="labels belong to the inputs"):
        model.fit(batch(), np.zeros(8), verbose=0)
    with pytest.raises(ValueError, match="labels belong to the inputs"):
        model.fit(batch(), validation_data=(batch(), np.zeros(8)), verbose=0)
    for name in ("loss", "metrics"):
        with pytest.raises(ValueError, match=f"`{name}` must be None: the diffusion process gives the loss"):
            model.compile("sgd", **{name: "mse"})
    with pytest.raises(ValueError, match="must be floats.*Received: dtype=uint8"):
        build()({"image": np.zeros((2, 4, 4, 2), "uint8"), "label": np.zeros(2, "int32")})


def test_wrong_drawing(drawn):
    with pytest.raises(ValueError, match="does not know the shape of its latents"):
        build().generate([0])
    for arguments, message in [
        ({"labels": [3]}, "`labels` must be from 0 to 2"),
        ({"labels": [0.5]}, "sequence of integers"),
        ({"labels": []}, "sequence of integers"),
        ({"labels": [0, 1], "num_samples": 3}, "must agree on the number"),
        ({"num_samples": 0}, "`num_samples` must be a positive integer"),
        ({"labels": [0], "sampler": "magic"}, "`sampler` must be one of 'ddpm'"),
        ({"labels": [0], "num_steps": 0}, "`num_steps` must be a positive integer"),
        ({"labels": [0], "num_steps": 2.0}, "`num_steps` must be a positive integer"),
        ({"labels": [0], "batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"num_samples": 1, "guidance_scale": 2.0}, "Guidance needs labels"),
        ({"labels": [0], "guidance_interval": (0.5, 0.1)}, "`interval` must be"),
        ({"labels": [0], "context": np.zeros((1, 2, 3))}, "`context` must be None"),
    ]:
        with pytest.raises(ValueError, match=message):
            drawn.generate(**{"verbose": 0, **arguments})
    with pytest.raises(
        TypeError, match=r"Options of the sampler 'dpmpp_2m' are \['clip'\]. Received: \['clip', 'eta'\]"
    ):
        drawn.generate([0], eta=0.5, verbose=0)
    assert drawn.generate([0], num_steps=1, clip=[-0.5, 0.5], verbose=0).max() <= 0.5


def test_only_the_transformer_trains():
    tokenizer = Halver()
    tokenizer.build((None, 4, 4, 2))
    model = build(tokenizer)
    model.compile("sgd")
    model.fit(batch(), verbose=0)
    assert {id(v) for v in model.trainable_variables} == {id(v) for v in model.transformer.trainable_variables}
    assert len(model.transformer.weights) == len(model.ema_transformer.weights)
