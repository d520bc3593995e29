"""Training steps of `fit`: without XLA, with XLA, and on two replicas with half of the batch each; and the data's own speed.

Run: python -m benchmarks devices
"""

import argparse
import contextlib
import os
import time
from functools import partial

import numpy as np

from benchmarks.turns import processor, report, seconds_of, take_turns

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks devices", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("dit", "tokenizer"), default="dit", help="which (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="examples in a step (default: %(default)s)")
    parser.add_argument("--d-model", type=int, default=192, help="width of the transformer (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="its blocks (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=9, help="timed runs of each (default: %(default)s)")
    options = parser.parse_args(argv)

    import keras
    import tensorflow as tf

    import keras_vqdit as kv

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    rng = np.random.default_rng(0)

    def make():
        if options.model == "tokenizer":
            images = np.tanh(rng.normal(size=(options.batch, 28, 28, 1))).astype("float32")
            return kv.VQVAE.from_size("digits", num_embeddings=256), {"image": images}
        heads = max(1, options.d_model // 32)
        network = kv.DiffusionTransformer(options.d_model, heads, 4 * options.d_model, options.layers, num_classes=10)
        images = rng.normal(size=(options.batch, 7, 7, 16)).astype("float32")
        labels = (np.arange(options.batch) % 10).astype("int32")
        return kv.LatentDiffusion(None, network), {"image": images, "label": labels}

    def training_step(jit_compile, strategy=None):
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            model, data = make()
            model.compile("adamw", jit_compile=jit_compile)
        model.make_train_function()
        data = tf.data.Dataset.from_tensors(data).repeat()
        batches = iter(data if strategy is None else strategy.experimental_distribute_dataset(data))
        return lambda: keras.tree.map_structure(float, model.train_function(batches))

    steps = {
        "one device, XLA": training_step(True),
        "one device, no XLA": training_step(False),
        "two replicas, XLA": training_step(True, tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])),
    }
    print(
        f"{processor()}; Keras {keras.__version__}, TensorFlow {tf.__version__}; {options.model}, batch {options.batch}"
    )
    runs = {title: partial(seconds_of, step) for title, step in steps.items()}
    medians = report(take_turns(runs, repetitions=options.repetitions), "one device, XLA")
    for title, median in medians.items():
        print(f"{title}: {options.batch / median:.0f} examples/s")

    train, _ = kv.data.load("mnist_5k", batch_size=options.batch)
    for _ in train:  # wakes it
        pass
    begin = time.perf_counter()
    count = sum(len(batch["image"]) for _ in range(3) for batch in train)
    print(f"the data alone (mnist_5k, shuffled): {count / (time.perf_counter() - begin):.0f} examples/s")
    return medians


if __name__ == "__main__":
    main()
