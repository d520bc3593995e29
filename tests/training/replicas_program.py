"""Trains small models on so many replicas, and writes down what came of it: run by `test_distributed_model.py`.

Usage: python -m tests.training.replicas_program REPLICAS FILE [CASE ...], all cases and more if none is named
"""

import contextlib
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_vqdit as kv
from keras_vqdit.training.replica_steps import ReplicaSteps

RNG = np.random.default_rng(0)
IMAGES = np.tanh(RNG.normal(size=(200, 8, 8, 1)).cumsum(1)).astype("float32")
LABELS = (np.arange(200) % 3).astype("int32")
INJECTED = {
    "image": IMAGES,
    "label": LABELS,
    "noise": RNG.normal(size=IMAGES.shape).astype("float32"),
    "t": RNG.uniform(0.05, 0.95, 200).astype("float32"),
}


def tokenizer(cls=kv.VQVAE, **options):
    if cls is kv.VQVAE and "quantizer" in options:
        options["num_embeddings"] = 24
    elif cls is kv.VQVAE:
        options = {"num_embeddings": 24, "quantizer": kv.VectorQuantizer(24, 4, seed=1, **options)}
    return cls.from_size(
        "digits", input_shape=(8, 8, 1), filters=(8, 8), num_residual_blocks=(0, 1), residual_filters=4, **options
    )


def diffusion(num_classes=None, dtype=None, **options):
    network = kv.DiffusionTransformer(16, 2, 32, 1, patch_size=2, num_classes=num_classes, dtype=dtype)
    return kv.LatentDiffusion(None, network, seed=1, dtype=dtype, **options)


@keras.saving.register_keras_serializable("tests")
class Settled(kv.diffusion.MaskedDiffusion):
    """Times and masks that follow from the codes, so that replicas hide what one device hides."""

    def call(self, codes, t=None, noise=None, **options):
        t = keras.ops.cast(keras.ops.sum(codes, axis=1) % 8 + 1, "float32") / 8
        noise = keras.ops.cast((codes * 7 + np.arange(codes.shape[1])) % 16, "float32") / 16
        return super().call(codes, t, noise, **options)


def multimodal(process=None, **options):
    tokenizers = {name: kv.TextTokenizer.train(["abcde"], max_length=n) for name, n in (("audio", 6), ("text", 4))}
    return kv.MultimodalDiffusion(tokenizers, 16, 2, num_layers=1, process=process, seed=1, **options)


CODES = {  # a third without sound; one tells the other
    "audio": np.tile(LABELS[:, None] + 1, (1, 6)),
    "text": np.tile(LABELS[:, None] + 2, (1, 4)),
    "has_audio": np.arange(200) % 4 > 0,
}


def with_a_hole(example=55):
    """The images, and one that is not a number, in the second batch."""
    images = IMAGES.copy()
    images[example, 3, 3] = np.nan
    return images


def adam(**options):
    return keras.optimizers.AdamW(1e-3, **options)


# name -> (model, optimizer, data, batch size, options of compile, options of fit)
CASES = {
    "ema codebook": (lambda: tokenizer(restart_threshold=0.2), adam, IMAGES, 40, {"jit_compile": True}, {}),
    "uneven last batch, sample weights": (  # the last is of one replica, and k-means can not start from the first
        tokenizer, lambda: keras.optimizers.Nadam(1e-3), with_a_hole(5)[:161], 40,
        {"jit_compile": False, "metrics": ["mse"]},
        {"sample_weight": np.linspace(0, 2, 161, dtype="float32")},
    ),
    "a batch that is not finite, gradient codebook": (
        lambda: tokenizer(codebook="gradient", restart_threshold=0.2), adam, with_a_hole(), 40, {"jit_compile": False}, {},
    ),
    "residual codebooks": (
        lambda: tokenizer(quantizer=kv.ResidualQuantizer(3, 24, 4, seed=1, restart_threshold=0.2)),
        adam, IMAGES, 40, {"jit_compile": True}, {},
    ),
    "a codebook that starts at random": (
        lambda: tokenizer(kmeans_init=False, restart_threshold=None), adam, IMAGES, 40, {"jit_compile": False}, {},
    ),
    "diffusion": (diffusion, adam, INJECTED, 40, {"jit_compile": True}, {}),
    "several modalities": (
        lambda: multimodal(Settled(), hidden_rate=0.0), adam, {k: v[:190] for k, v in CODES.items()}, 40,
        {"jit_compile": False}, {"sample_weight": np.linspace(0, 2, 190, dtype="float32")},
    ),
    "labels, muon": (
        lambda: diffusion(3, label_dropout=0.0), lambda: keras.optimizers.Muon(1e-3, clipnorm=0.1), INJECTED, 40,
        {"jit_compile": False}, {},
    ),
    "average, accumulation, several steps a call": (
        diffusion, lambda: adam(use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=2, global_clipnorm=1.0),
        INJECTED, 40, {"jit_compile": False, "steps_per_execution": 3}, {},
    ),
}  # fmt: skip


class Drawer(kv.training.DistributedModel):
    """Its weight becomes the mean of what the replicas draw."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(5)

    def build(self, input_shape):
        self.drawn = self.add_weight(shape=(), initializer="zeros", name="drawn")

    def call(self, x):
        return self.drawn * keras.random.uniform((), seed=self.seed_generator)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.scale_for_replicas(y_pred)


class Penalised(kv.training.DistributedModel):
    """What comes with layers of Keras's own: a penalty on what they give, and statistics of batches."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.1))
        self.normalization = keras.layers.BatchNormalization(trainable=True)

    def call(self, x, training=False):
        y = self.dense(x)
        return y + 0.0 * self.normalization(y, training=training)


def value(variable):
    """The value on the first replica, and the largest difference to the others."""
    copies = [np.array(copy, "float64") for copy in getattr(variable._value, "values", [variable._value])]
    return copies[0], max(np.abs(copy - copies[0]).max() for copy in copies)


def main(replicas, file, *names):
    scope = contextlib.nullcontext
    if replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
        scope = tf.distribute.MirroredStrategy([f"/cpu:{i}" for i in range(replicas)]).scope
    results = {}
    for name in names or CASES:
        make, optimizer, data, batch_size, compiling, fitting = CASES[name]
        keras.utils.set_random_seed(3)
        with scope():
            model = make()
            model.compile(optimizer(), **compiling)
        steps = Steps()
        history = model.fit(
            data, batch_size=batch_size, epochs=4, shuffle=False, verbose=0, callbacks=[steps], **fitting
        )
        for key in steps.logs[0]:
            results[f"{name}/fit {key} after each step"] = [logs[key] for logs in steps.logs]
        for key, values in history.history.items():
            results[f"{name}/fit {key}"] = values
        data = IMAGES[: len(data)] if isinstance(data, np.ndarray) else data  # without the hole
        for key, one in model.evaluate(data, batch_size=batch_size, verbose=0, return_dict=True).items():
            results[f"{name}/evaluate {key}"] = one
        results[f"{name}/skipped steps"] = model.skipped_steps
        if isinstance(model, kv.VQVAE):
            results[f"{name}/predict"] = model.predict(data, batch_size=batch_size, verbose=0)[0]
        drift = 0.0
        for i, variable in enumerate([*model.weights, *model.optimizer.variables]):
            first, difference = value(variable)
            results[f"{name}/weight {i}"], drift = first, max(drift, difference)
        results[f"{name}/drift"] = drift
    if not names:
        results.update(more(scope))
    if not names and replicas > 1:
        results.update(more_on_replicas(scope, file))
    np.savez(file, **results)


class Steps(keras.callbacks.Callback):
    """What callbacks are told after each step: as much as on one device, whatever replica counted it."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append({key: float(value) for key, value in logs.items()})


def more(scope):
    """What is seen in other ways than by exactness."""
    results = {}
    with scope():
        model = Drawer()
        model.compile(keras.optimizers.SGD(-1.0), jit_compile=True)
    model.fit(np.zeros((8, 1), "float32"), batch_size=8, epochs=1, verbose=0)
    results["drawn"], results["drawn drift"] = value(model.drawn)
    results["seed"], results["seed drift"] = value(model.seed_generator.state)

    with scope():
        model = multimodal()
        model.compile(adam(), jit_compile=False)
    model.fit(CODES, batch_size=40, verbose=0)
    seeds = [process.seed_generator.state for process in (model, model.process)]
    results["times differ"] = {id(seed) for seed in seeds} <= ReplicaSteps(model)._folded_seeds()
    results["times drift"] = max(value(seed)[1] for seed in seeds)

    with scope():
        model = Penalised()
        model.compile("sgd", "mse", jit_compile=False)
    x = RNG.normal(size=(21, 3)).astype("float32")
    results["penalised loss"] = model.fit(x, x, batch_size=10, epochs=2, shuffle=False, verbose=0).history["loss"]
    results["normalization drift"] = max(value(variable)[1] for variable in model.weights)

    def error(make, compiling):
        try:
            with make():
                model = tokenizer()
            with compiling():
                model.compile(adam(), jit_compile=False)
            model.fit(IMAGES[:40], batch_size=40, verbose=0)
            return ""
        except ValueError as error:
            return str(error)

    results["error of the optimizer"] = error(scope, contextlib.nullcontext)
    results["error of the model"] = error(contextlib.nullcontext, scope)
    return results


def more_on_replicas(scope, file):
    """What other tests see on one device."""
    results = {}
    for dtype in ("mixed_float16", "mixed_bfloat16"):
        with scope():
            model = diffusion(dtype=dtype)
            model.compile(adam(), jit_compile=False)
        results[f"{dtype}/fit loss"] = model.fit(INJECTED, batch_size=40, epochs=2, verbose=0).history["loss"]
        results[f"{dtype}/scaled"] = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)

    # What was trained on replicas draws, is saved, and goes on elsewhere.
    with scope():
        model = diffusion(3)
        model.compile(adam(), jit_compile=False)
    model.fit(INJECTED, batch_size=40, verbose=0)
    draw = {"labels": [0, 1, 2], "num_steps": 3, "guidance_scale": 1.5, "seed": 0, "verbose": 0}
    results["drawn images"] = model.generate(**draw)
    model.save(file + ".keras")
    loaded = keras.saving.load_model(file + ".keras")
    results["drawn images after loading"] = loaded.generate(**draw)
    loaded.fit(INJECTED, batch_size=40, verbose=0)
    return results


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
