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
from tests.training.replicas_program import IMAGES, INJECTED, adam, diffusion, tokenizer, value

# name -> (model, data, options of compile)
CASES = {
    "tokenizer": (lambda: tokenizer(restart_threshold=0.2), IMAGES, {"jit_compile": True}),
    "diffusion": (lambda: diffusion(3, label_dropout=0.0), INJECTED, {"jit_compile": False}),
}


class Slow(keras.callbacks.Callback):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(self.seconds)


def main(file, checkpoints=None, seconds=0.0):
    keras.utils.set_random_seed(3)
    scope, results, worker = contextlib.nullcontext, {}, 0
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        scope, worker = strategy.scope, strategy.cluster_resolver.task_id
    for name, (make, data, options) in CASES.items():
        train, _ = (
            kv.data.load(({"image": data}, {"image": data}), batch_size=40)
            if isinstance(data, np.ndarray)
            else (None, None)
        )
        with scope():
            model = make()
            model.compile(adam(), **options)
        callbacks = []
        if checkpoints:
            callbacks = [kv.training.Checkpoint(f"{checkpoints}/{name}", every=2), Slow(float(seconds))]
        fed = {"x": train} if train is not None else {"x": data, "batch_size": 40, "shuffle": False}
        history = model.fit(**fed, epochs=3, verbose=0, callbacks=callbacks).history
        results.update({f"{name}/fit {key}": values for key, values in history.items()})
        evaluated = model.evaluate(data, batch_size=40, verbose=0, return_dict=True)
        results.update({f"{name}/evaluate {key}": one for key, one in evaluated.items()})
        variables = [*model.weights, *model.optimizer.variables]
        results.update({f"{name}/weight {i} {v.name}": value(v)[0] for i, v in enumerate(variables)})
    np.savez(f"{file}-{worker}.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
