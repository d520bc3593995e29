"""What every process promises: its algebra in closed form, and the contract of a Keras layer."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.diffusion import GaussianDiffusion, RectifiedFlow
from tests.contract import run_contract
from tests.diffusion.problems import PROCESSES, levels

RNG = np.random.default_rng(0)
X0, NOISE = RNG.normal(size=(2, 6, 4, 5, 3)).astype("float32")
T = np.array([0.001, 0.25, 0.5, 0.75, 0.999, 1.0], "float32")


def wide(values):
    """(B,) against (B, H, W, C)."""
    return np.asarray(values, "float64")[:, None, None, None]


every_process = pytest.mark.parametrize("name", PROCESSES)
every_prediction = pytest.mark.parametrize(
    "process",
    [
        GaussianDiffusion("linear", "noise"),
        GaussianDiffusion("linear", "clean", zero_terminal_snr=True),
        GaussianDiffusion("linear", "v", zero_terminal_snr=True),
        RectifiedFlow(),
    ],
    ids=["noise", "clean", "v", "flow"],
)


# === Algebra ===


@every_process
def test_noised_example(name):
    process = PROCESSES[name]()
    alpha, sigma = levels(process, T)
    np.testing.assert_allclose(process.alpha_sigma(T), (alpha, sigma), atol=1e-7)
    x_t = process.add_noise(X0, T, NOISE)
    np.testing.assert_allclose(x_t, wide(alpha) * X0 + wide(sigma) * NOISE, atol=1e-6)
    for i, t in enumerate(T):  # a scalar time
        np.testing.assert_allclose(process.add_noise(X0, t, NOISE)[i], x_t[i], atol=1e-6)


@every_process
def test_ends(name):
    process = PROCESSES[name]()
    np.testing.assert_array_equal(process.add_noise(X0, 0.0, NOISE), X0)
    alpha, sigma = process.alpha_sigma(1.0)
    assert float(alpha) < 0.01 and float(sigma) > 0.9999
    if name in ("zero_snr", "flow", "shifted"):
        assert (float(alpha), float(sigma)) == (0, 1)


@every_prediction
def test_target_and_its_inverses(process):
    alpha, sigma = (wide(level) for level in levels(process, T))
    expected = {
        "noise": NOISE,
        "clean": X0,
        "v": alpha * NOISE - sigma * X0,
        "flow": NOISE.astype("float64") - X0,
    }[getattr(process, "prediction", "flow")]
    target = process.target(X0, NOISE, T)
    np.testing.assert_allclose(target, expected, atol=1e-6)
    x_t = process.add_noise(X0, T, NOISE)
    # The inverses divide by the smaller of alpha and sigma, which is 0.006 at the ends of this schedule.
    np.testing.assert_allclose(process.to_clean(x_t, target, T), X0, atol=1e-4)
    np.testing.assert_allclose(process.to_noise(x_t, target, T), NOISE, atol=1e-4)
    np.testing.assert_array_equal(process.loss(target, X0, NOISE, T), np.zeros(6))


@every_prediction
def test_any_prediction_splits_the_input(process):
    """alpha clean + sigma noise = x_t for whatever the network says, not for the target alone."""
    x_t, prediction = X0, NOISE
    t = T[1:4]
    clean, noise = (f(x_t[1:4], prediction[1:4], t) for f in (process.to_clean, process.to_noise))
    alpha, sigma = (wide(level) for level in levels(process, t))
    np.testing.assert_allclose(alpha * clean + sigma * noise, x_t[1:4], atol=1e-5)


def test_v_closed_forms():
    process = GaussianDiffusion("cosine", "v")
    alpha, sigma = (wide(level) for level in levels(process, T))
    x, v = X0, NOISE
    np.testing.assert_allclose(process.to_clean(x, v, T), alpha * x - sigma * v, atol=1e-6)
    np.testing.assert_allclose(process.to_noise(x, v, T), alpha * v + sigma * x, atol=1e-6)


def test_flow_closed_forms():
    process = RectifiedFlow()
    np.testing.assert_allclose(process.to_clean(X0, NOISE, T), X0 - wide(T) * NOISE, atol=1e-6)
    np.testing.assert_allclose(process.to_noise(X0, NOISE, T), X0 + (1 - wide(T)) * NOISE, atol=1e-6)


def test_loss_is_the_weighted_mean_squared_error_of_each_example():
    process = GaussianDiffusion("linear", "v", min_snr_gamma=5.0)
    prediction = RNG.normal(size=X0.shape)
    alpha, sigma = levels(process, T)
    error = ((prediction - (wide(alpha) * NOISE - wide(sigma) * X0)) ** 2).mean((1, 2, 3))
    snr = alpha**2 / sigma**2
    np.testing.assert_allclose(
        process.loss(prediction, X0, NOISE, T), np.minimum(snr, 5) / (snr + 1) * error, rtol=1e-5
    )
    error = ((prediction - (NOISE.astype("float64") - X0)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(RectifiedFlow().loss(prediction, X0, NOISE, T), error, rtol=1e-5)


def test_network_time():
    t = np.array([0, 0.001, 0.002, 0.5, 1.0], "float32")
    np.testing.assert_allclose(GaussianDiffusion().network_time(t) * 1000, [0, 0, 1, 499, 999], atol=1e-4)
    np.testing.assert_allclose(GaussianDiffusion(num_timesteps=10).network_time(0.7), 0.6, atol=1e-6)
    np.testing.assert_array_equal(RectifiedFlow().network_time(t), t)


@pytest.mark.parametrize("num_timesteps", [7, 1000, 4000])
def test_every_entry_of_the_table_is_found_again(num_timesteps):
    process = GaussianDiffusion(num_timesteps=num_timesteps)
    index = np.arange(num_timesteps + 1)
    np.testing.assert_array_equal(process.table_index((index / num_timesteps).astype("float32")), index)


def test_prediction_without_learned_variance():
    for process in (GaussianDiffusion(), RectifiedFlow()):
        assert process.prediction_channels(3) == 3
        prediction, fraction = process.split_prediction(ops.cast(NOISE, "bfloat16"))
        assert fraction is None and keras.backend.standardize_dtype(prediction.dtype) == "float32"
        clean, fraction = process.denoised(X0, NOISE, T)
        assert fraction is None
        np.testing.assert_array_equal(clean, process.to_clean(X0, NOISE, T))


# === Random times ===


def test_gaussian_times_are_uniform_over_the_table():
    """5,000 draws of 10 entries: counts within 4.5 standard errors; entry 0, the clean example, never comes."""
    t = ops.convert_to_numpy(GaussianDiffusion(num_timesteps=10, seed=1).sample_times(5000))
    counts = np.bincount(np.round(t * 10).astype(int), minlength=11)
    assert t.dtype == np.float32 and counts[0] == 0 and len(counts) == 11
    assert np.abs(counts[1:] - 500).max() < 4.5 * np.sqrt(5000 * 0.1 * 0.9)


@pytest.mark.parametrize("location, scale, shift", [(0.0, 1.0, 1.0), (-0.5, 1.4, 1.0), (0.3, 0.8, 3.0)])
def test_flow_times_are_logit_normal(location, scale, shift):
    """A shift adds log(shift) to the logit. 20,000 draws: within 4.5 standard errors."""
    t = RectifiedFlow(location=location, scale=scale, shift=shift, seed=1).sample_times(20_000)
    t = ops.convert_to_numpy(t).astype("float64")
    logit = np.log(t / (1 - t))
    assert abs(logit.mean() - location - np.log(shift)) < 4.5 * scale / np.sqrt(20_000)
    assert abs(logit.std() / scale - 1) < 4.5 / np.sqrt(40_000)
    assert abs((((logit - logit.mean()) / logit.std()) ** 4).mean() - 3) < 4.5 * np.sqrt(24 / 20_000)


# === A layer that noises its input ===


@every_process
def test_call_noises_the_input(name):
    process = PROCESSES[name](seed=3)
    x_t, noise, t = process(X0)
    assert t.shape == (6,) and (np.asarray(t) > 0).all() and (np.asarray(t) <= 1).all()
    np.testing.assert_array_equal(x_t, process.add_noise(X0, t, noise))
    _, other_noise, other_t = process(X0)
    assert np.abs(noise - other_noise).min() > 0 and np.abs(t - other_t).max() > 0
    again = PROCESSES[name](seed=3)(X0)
    for a, b in zip(again, (x_t, noise, t)):
        np.testing.assert_array_equal(a, b)


def test_call_takes_times_and_noise():
    x_t, noise, t = RectifiedFlow()(X0, t=0.25, noise=NOISE)
    np.testing.assert_array_equal(t, np.full(6, 0.25))
    np.testing.assert_array_equal(noise, NOISE)
    np.testing.assert_allclose(x_t, 0.75 * X0 + 0.25 * NOISE, atol=1e-6)


def test_processes_have_no_trainable_weights():
    for build in PROCESSES.values():
        process = build()
        process(X0)
        assert process.weights == [] and len(process.seed_generator.state.shape) == 1
        assert process.built


@keras.saving.register_keras_serializable("keras_vqdit_tests")
class Noised(keras.Model):
    """A process that takes its times and noise as inputs: only so do two calls agree."""

    def __init__(self, process, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.process = process

    def call(self, inputs):
        x0, t, noise = inputs
        return self.process(x0, t=t, noise=noise)

    def get_config(self):
        return {**super().get_config(), "process": keras.saving.serialize_keras_object(self.process)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "process": keras.saving.deserialize_keras_object(config["process"])})


@every_process
def test_contract(name, tmp_path):
    run_contract(lambda **kwargs: Noised(PROCESSES[name](seed=1, **kwargs)), [X0, T, NOISE], tmp_path=tmp_path)


@pytest.mark.parametrize(
    "process",
    [
        GaussianDiffusion(
            "cosine", "v", num_timesteps=50, zero_terminal_snr=True, min_snr_gamma=5.0, learn_variance=True, seed=4
        ),
        RectifiedFlow(location=0.5, scale=1.2, shift=2.0, seed=4),
    ],
)
def test_config_keeps_every_argument(process):
    clone = process.__class__.from_config(process.get_config())
    assert clone.get_config() == process.get_config()
    for a, b in zip(clone(X0), process.__class__.from_config(process.get_config())(X0)):
        np.testing.assert_array_equal(a, b)
    arguments = set(inspect.signature(process.__class__).parameters) - {"kwargs"}
    assert arguments <= set(process.get_config())
    default = process.__class__().get_config()
    assert all(process.get_config()[argument] != default[argument] for argument in arguments)
    saved = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(process))
    assert saved.get_config() == process.get_config()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
@every_process
def test_numbers_are_float32_under_every_policy(name, policy):
    """Not merely close: the same bits as in float32."""
    expected = PROCESSES[name](seed=1)(X0, t=T, noise=NOISE)
    process = PROCESSES[name](seed=1, dtype=policy)
    for a, b in zip(process(X0, t=T, noise=NOISE), expected):
        assert keras.backend.standardize_dtype(a.dtype) == "float32"
        np.testing.assert_array_equal(a, b)
    loss = process.loss(ops.cast(NOISE, "bfloat16"), X0.astype("float64"), NOISE, T)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"


@every_process
def test_symbolic_call(name):
    x = keras.Input((4, 5, 3))
    outputs = PROCESSES[name]()(x)
    assert [o.shape for o in outputs] == [(None, 4, 5, 3), (None, 4, 5, 3), (None,)]
    assert {o.dtype for o in outputs} == {"float32"}
    model = keras.Model(x, outputs)
    assert [o.shape for o in model(X0)] == [(6, 4, 5, 3), (6, 4, 5, 3), (6,)]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", ["linear", "flow"])
def test_fit_draws_anew_in_every_step(name, jit_compile):
    class Probe(keras.Model):
        """The network is one number."""

        def __init__(self):
            super().__init__()
            self.process, self.scale = PROCESSES[name](seed=1), self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            x_t, noise, t = self.process(x)
            return self.process.loss(self.scale * x_t, x, noise, t)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return ops.mean(y_pred)

    losses = []
    model = Probe()
    model.compile(keras.optimizers.SGD(0.0), jit_compile=jit_compile)
    data = tf.data.Dataset.from_tensors(X0).repeat(3)
    log = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
    model.fit(data, shuffle=False, verbose=0, callbacks=[log])
    assert len(set(losses)) == 3 and np.isfinite(losses).all()


# === Errors ===


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: GaussianDiffusion("quadratic"),
            "`schedule` must be one of 'linear', 'cosine', 'sigmoid'. Received: sch",
        ),
        (
            lambda: GaussianDiffusion("linear", "score"),
            "`prediction` must be one of 'noise', 'eps', 'clean', 'x0', 'v'. R",
        ),
        (
            lambda: GaussianDiffusion(num_timesteps=1),
            "`num_timesteps` must be an integer of at least 2. Received: num_ti",
        ),
        (lambda: GaussianDiffusion(num_timesteps=10.0), "Received: num_timesteps=10.0"),
        (
            lambda: GaussianDiffusion(min_snr_gamma=0),
            "`min_snr_gamma` must be a finite number, more than 0. Received: min_snr_gam",
        ),
        (lambda: GaussianDiffusion(zero_terminal_snr=True), "`prediction` must be 'v' or 'clean' where `zero_terminal"),
        (lambda: GaussianDiffusion("cosine", "eps", zero_terminal_snr=True), "Received: prediction='eps'"),
        (lambda: RectifiedFlow(scale=0.0), "`scale` must be a finite number, more than 0. Received: scale=0.0"),
        (lambda: RectifiedFlow(shift=-1.0), "`shift` must be a finite number, more than 0. Received: shift=-1.0"),
        (
            lambda: RectifiedFlow().loss(NOISE[..., :2], X0, NOISE, T),
            "`prediction` must have shape (6, 4, 5, 3) for ex",
        ),
        (lambda: RectifiedFlow().loss(NOISE[:, 0], X0, NOISE, T), "Received: prediction.shape=(6, 5, 3)"),
    ],
)
def test_wrong_arguments_are_told(build, message):
    with pytest.raises(ValueError) as error:
        build()
    assert message in str(error.value)


def test_aliases():
    assert GaussianDiffusion("linear", "eps").prediction == "noise"
    assert GaussianDiffusion("linear", "x0").get_config()["prediction"] == "clean"
