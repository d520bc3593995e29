"""Trains with checkpoints, and writes down the weights when it is done: run by `test_checkpoint.py`, which kills it.

Usage: python -m tests.training.resume_program KIND REPLICAS FOLDER FILE
"""

import contextlib
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_vqdit as kv
from tests.training.replicas_program import IMAGES, LABELS, diffusion, tokenizer


def main(kind, replicas, folder, file):
    keras.utils.set_random_seed(3)
    scope = contextlib.nullcontext
    if replicas > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
        scope = tf.distribute.MirroredStrategy([f"/cpu:{i}" for i in range(replicas)]).scope
    data, test = kv.data.load(
        ({"image": IMAGES, "label": LABELS}, {"image": IMAGES[:40], "label": LABELS[:40]}), batch_size=8
    )
    with scope():
        if kind == "tokenizer":
            model, optimizer = tokenizer(restart_threshold=0.2), keras.optimizers.AdamW(1e-3)
        else:
            model, optimizer = diffusion(3), keras.optimizers.Muon(1e-3, use_ema=True, ema_momentum=0.9)
        model.compile(optimizer, jit_compile=True)
    checkpoint = kv.training.Checkpoint(folder, every=7)
    history = model.fit(data, epochs=12, validation_data=test, verbose=0, callbacks=[checkpoint]).history
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    results = {f"{i} {variable.name}": keras.ops.convert_to_numpy(variable) for i, variable in enumerate(variables)}
    with kv.saving.atomic_path(file) as temporary, open(temporary, "wb") as target:
        np.savez(target, **results, **{f"history {key}": values for key, values in history.items()})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
