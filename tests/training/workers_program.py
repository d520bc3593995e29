"""Trains small models on workers that talk over the loopback: run by `test_workers.py`, which sets `TF_CONFIG`.

Usage: python -m tests.training.workers_program FILE [CHECKPOINTS [SECONDS_A_STEP]]
"""

import contextlib
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_vqdit as kv
from tests.training.replicas_program import IMAGES, INJECTED, adam, diffusion, tokenizer, value, with_a_hole

# name -> (model, optimizer, data, options of compile, options of fit)
CASES = {
    "tokenizer": (
        lambda: tokenizer(restart_threshold=0.2), adam, IMAGES, {"jit_compile": True}, {}
    ),
    "diffusion": (
        lambda: diffusion(3, label_dropout=0.0),
        lambda: adam(use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=2, global_clipnorm=1.0),
        {**{key: values[:161] for key, values in INJECTED.items()}, "image": with_a_hole()[:161]},
        {"jit_compile": False, "steps_per_execution": 2},
        {"shuffle": False, "sample_weight": np.linspace(0, 2, 161, dtype="float32")},
    ),
    "float16": (lambda: diffusion(dtype="mixed_float16"), adam, INJECTED, {"jit_compile": False}, {"shuffle": False}),
    "bfloat16": (lambda: diffusion(dtype="mixed_bfloat16"), adam, INJECTED, {"jit_compile": False}, {"shuffle": False}),
}  # fmt: skip
IN_HALF_PRECISION = ("float16", "bfloat16")


class Slow(keras.callbacks.Callback):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(self.seconds)


def main(file, checkpoints=None, seconds=0.0):
    scope, results, worker = contextlib.nullcontext, {}, 0
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        scope, worker = strategy.scope, strategy.cluster_resolver.task_id
    for name, (make, optimizer, data, compiling, fitting) in CASES.items():
        keras.utils.set_random_seed(3)
        with scope():
            model = make()
            model.compile(optimizer(), **compiling)
        callbacks = []
        if checkpoints:
            callbacks = [kv.training.Checkpoint(f"{checkpoints}/{name}", every=2), Slow(float(seconds))]
        fed = {"x": data, "batch_size": 40}
        if isinstance(data, np.ndarray):
            fed = {"x": kv.data.load(({"image": data}, {"image": data}), batch_size=40)[0]}
        history = model.fit(**fed, **fitting, epochs=3, verbose=0, callbacks=callbacks).history
        results.update({f"{name}/fit {key}": values for key, values in history.items()})
        whole = data if isinstance(data, np.ndarray) else INJECTED
        evaluated = model.evaluate(whole, batch_size=40, verbose=0, return_dict=True)
        results.update({f"{name}/evaluate {key}": one for key, one in evaluated.items()})
        results[f"{name}/skipped steps"] = model.skipped_steps
        variables = [*model.weights, *model.optimizer.variables]
        results.update({f"{name}/weight {i} {v.name}": value(v)[0] for i, v in enumerate(variables)})
    np.savez(f"{file}-{worker}.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
