"""A dropout rate of 0 against no dropout at all: training step of a diffusion transformer.

One side is the model with `rate=0.0`. The other is the same model of blocks that have never heard of dropout. A third one,
with `rate=0.1`, shows what dropout costs when it is wanted.

Run: python -m benchmarks dropout
"""

import argparse
import os
from functools import partial

import numpy as np

from benchmarks.turns import processor, report, seconds_of, take_turns

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def without_dropout(network):
    """Take every line about dropout out of the blocks of a network."""
    from keras import ops

    from keras_vqdit.layers.transformer_block import modulate

    def attend(mha, x):
        q, k, v = (mha._split_heads(part) for part in ops.split(mha.query_key_value_dense(x), 3, axis=-1))
        return mha.output_dense(mha._merge_heads(mha._weights(q, k, None) @ ops.transpose(v, (0, 2, 1, 3))))

    def call(block, x, condition=None, context=None, context_mask=None, mask=None, x_mask=None, training=None):
        parts = ops.split(block.modulation(ops.silu(condition))[:, None], 6, axis=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * attend(block.mha, modulate(block.norm1(x), shift1, scale1))
        return x + gate2 * block.ffn2(block.activation(block.ffn1(modulate(block.norm2(x), shift2, scale2))))

    for block in network.blocks:
        object.__setattr__(block, "call", partial(call, block))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks dropout", description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64, help="examples in a batch (default: %(default)s)")
    parser.add_argument("--d-model", type=int, default=192, help="width (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="blocks (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=11, help="timed runs of each (default: %(default)s)")
    options = parser.parse_args(argv)

    import keras
    import tensorflow as tf

    from keras_vqdit.models.diffusion_transformer import DiffusionTransformer

    x = np.random.default_rng(0).normal(size=(options.batch, 7, 7, 16)).astype("float32")

    def training_step(rate, strip=False):
        network = DiffusionTransformer(options.d_model, 6, 4 * options.d_model, options.layers, rate)
        network.build(x.shape)
        if strip:
            without_dropout(network)
        network.compile("adamw", "mse", jit_compile=True)
        network.make_train_function()
        train, data = network.train_function, iter(tf.data.Dataset.from_tensors((x, x)).repeat())
        return lambda: keras.tree.map_structure(float, train(data))

    steps = {
        "no dropout at all": training_step(0.0, strip=True),
        "rate 0.0": training_step(0.0),
        "rate 0.1": training_step(0.1),
    }
    print(f"{processor()}; Keras {keras.__version__}, TensorFlow {tf.__version__}; XLA")
    runs = {title: partial(seconds_of, step) for title, step in steps.items()}
    return report(take_turns(runs, repetitions=options.repetitions), "no dropout at all")


if __name__ == "__main__":
    main()
