"""Trains small models on the JAX backend, on so many devices: run by `test_data_parallel.py`.

Usage: KERAS_BACKEND=jax python -m tests.training.data_parallel_program DEVICES FILE
"""

import contextlib
import os
import sys

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"

import jax
import keras
import numpy as np

import keras_vqdit as kv

RNG = np.random.default_rng(0)
IMAGES = np.tanh(RNG.normal(size=(160, 8, 8, 1)).cumsum(1)).astype("float32")
INJECTED = {
    "image": IMAGES,
    "label": (np.arange(160) % 3).astype("int32"),
    "noise": RNG.normal(size=IMAGES.shape).astype("float32"),
    "t": RNG.uniform(0.05, 0.95, 160).astype("float32"),
}
IMAGES_WITH_A_HOLE = IMAGES.copy()
IMAGES_WITH_A_HOLE[50] = np.nan  # the second step of an epoch is skipped


def tokenizer():
    quantizer = kv.VectorQuantizer(16, 4, seed=1, restart_threshold=0.2)
    return kv.VQVAE.from_size(
        "digits", input_shape=(8, 8, 1), filters=(8, 8), num_residual_blocks=(0, 1), residual_filters=4,
        num_embeddings=16, quantizer=quantizer,
    )  # fmt: skip


def diffusion(dtype=None):
    network = kv.DiffusionTransformer(16, 2, 32, 1, patch_size=2, num_classes=3, dtype=dtype)
    return kv.LatentDiffusion(None, network, label_dropout=0.0, seed=1, dtype=dtype)


def adam(**options):
    return keras.optimizers.AdamW(1e-3, **options)


# name -> (model, optimizer, data, options of compile, options of fit)
CASES = {
    "tokenizer": (tokenizer, adam, IMAGES_WITH_A_HOLE, {}, {}),
    "diffusion": (
        diffusion,
        lambda: adam(use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=2, global_clipnorm=1.0),
        {key: values[:150] for key, values in INJECTED.items()}, {"steps_per_execution": 2},
        {"sample_weight": np.linspace(0, 2, 150, dtype="float32")},
    ),
    "muon": (diffusion, lambda: keras.optimizers.Muon(1e-3), INJECTED, {}, {}),
    "float16": (lambda: diffusion("mixed_float16"), adam, INJECTED, {}, {}),
    "bfloat16": (lambda: diffusion("mixed_bfloat16"), adam, INJECTED, {}, {}),
}  # fmt: skip


class Line(kv.training.DistributedModel):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def resumed(folder, *stops):
    """Weights after four epochs, with so many interruptions."""
    x = np.linspace(-1, 1, 16, dtype="float32")[:, None]
    for callbacks in (*stops, []):
        keras.utils.set_random_seed(0)
        model = Line()
        model.compile(keras.optimizers.Adam(0.1), "mse")
        checkpoint = kv.training.Checkpoint(folder, every=2)
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(x, x, batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=[checkpoint, *callbacks])
    return np.concatenate([np.ravel(v.value) for v in [*model.weights, *model.optimizer.variables]])


def main(devices, file):
    assert len(jax.devices()) == devices
    if devices > 1:
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=[f"cpu:{i}" for i in range(devices)])
        )
    results = {}
    for name, (make, optimizer, data, compiling, fitting) in CASES.items():
        keras.utils.set_random_seed(3)
        model = make()
        model.compile(optimizer(), **compiling)
        history = model.fit(data, batch_size=40, epochs=5, shuffle=False, verbose=0, **fitting).history
        results.update({f"{name}/fit {key}": values for key, values in history.items()})
        results[f"{name}/skipped steps"] = model.skipped_steps
        results[f"{name}/devices"] = len(model.trainable_variables[0].value.sharding.device_set)
        variables = [*model.weights, *model.optimizer.variables]
        results.update({f"{name}/weight {i} {v.name}": np.asarray(v.value) for i, v in enumerate(variables)})
    results["whole"] = resumed(file + "-whole")
    results["resumed"] = resumed(file + "-parts", [Stop()], [Stop()])
    np.savez(file, **results)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
