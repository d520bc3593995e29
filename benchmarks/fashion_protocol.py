"""Fashion-MNIST through 7 x 7 codes out of 256: a fixed small auto-encoder and budget, so that quantizers can be compared.

The protocol: convolutional auto-encoder of 16 and 32 channels, 1,000 steps of 256 images in [-1, 1], AdamW with learning rate
3e-4 and weight decay 0.01, mean absolute error, scored on the 10,000 test images. The encoder and decoder are those of the
autoencoder example of vector-quantize-pytorch (3 x 3 convolutions, max-pooling, nearest-neighbour up-sampling, GELU), whose
reference figures it was made for; only the quantizer is free.

Run: python -m benchmarks fashion --data-dir FOLDER [--quantizer ema|none]
"""

import argparse
import time

import keras
import numpy as np
from keras import layers, ops

from keras_vqdit import data
from keras_vqdit.layers.vector_quantizer import VectorQuantizer
from keras_vqdit.models.vqvae import VQVAE

DIM = 32
# L1, PSNR (dB), share of the codes used, perplexity: the figures to beat.
REFERENCE = {"none": (0.0950, 19.96, None, None), "ema": (0.1195, 18.41, 1.0, 185.5)}


def convolution(filters):
    """A 3 x 3 convolution that starts as PyTorch's do, with which the reference figures were made."""
    uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    return layers.Conv2D(filters, 3, padding="same", kernel_initializer=uniform)


def build_encoder():
    """28 x 28 x 1 to 7 x 7 x 32."""
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            convolution(16),
            layers.MaxPooling2D(),
            layers.Activation("gelu"),
            convolution(DIM),
            layers.MaxPooling2D(),
        ],
        name="encoder",
    )


def build_decoder():
    """7 x 7 x 32 to 28 x 28 x 1, clipped to [-1, 1]."""
    return keras.Sequential(
        [
            layers.Input((7, 7, DIM)),
            layers.UpSampling2D(),
            convolution(16),
            layers.Activation("gelu"),
            layers.UpSampling2D(),
            convolution(1),
            Clip(),
        ],
        name="decoder",
    )


@keras.saving.register_keras_serializable("benchmarks")
class Clip(layers.Layer):
    """Clip to the range of the images."""

    def call(self, x):
        return ops.clip(x, -1.0, 1.0)


def build(quantizer, *, num_embeddings=256, seed=0, **options):
    """The protocol's model: with an EMA codebook (`quantizer="ema"`), or without a quantizer (`"none"`), the bound.

    Args:
        quantizer: `"ema"` or `"none"`.
        num_embeddings: number of codes. Defaults to 256.
        seed: integer for the quantizer.
        **options: further arguments of `VectorQuantizer`.

    Returns:
        A model that is ready to train.
    """
    if quantizer == "none":
        model = keras.Sequential([build_encoder(), build_decoder()])
    else:
        vq = VectorQuantizer(num_embeddings, DIM, seed=seed, **options)
        model = VQVAE(build_encoder(), build_decoder(), num_embeddings, DIM, quantizer=vq)
    # The gradient of max-pooling is slow in XLA on a CPU.
    model.compile(keras.optimizers.AdamW(3e-4, weight_decay=0.01), loss="mae", jit_compile=False)
    return model


def measure(model, images, batch_size=500):
    """L1, PSNR, share of the codes used and their perplexity, over all `images`."""
    absolute = squared = 0.0
    counts = None
    for begin in range(0, len(images), batch_size):
        x = images[begin : begin + batch_size]
        if isinstance(model, VQVAE):
            codes = model.encode(x)
            restored = model.decode(codes)
            tally = np.bincount(ops.convert_to_numpy(codes).ravel(), minlength=model.num_embeddings)
            counts = tally if counts is None else counts + tally
        else:
            restored = model(x, training=False)
        error = ops.convert_to_numpy(restored).astype("float64") - x
        absolute, squared = absolute + np.abs(error).sum(), squared + (error**2).sum()
    scores = {"l1": absolute / images.size, "psnr": 10 * np.log10(4 * images.size / squared)}
    if counts is not None:
        share = counts[counts > 0] / counts.sum()
        scores |= {"codes_used": np.mean(counts > 0), "perplexity": np.exp(-np.sum(share * np.log(share)))}
    return scores


def run(data_dir, *, quantizer="ema", steps=1000, batch_size=256, seed=0, verbose=2, **options):
    """Train by the protocol, and measure.

    Returns:
        Dict of `l1`, `psnr`, `codes_used`, `perplexity` and `seconds`.
    """
    keras.utils.set_random_seed(seed)
    train, test = data.load("fashion_mnist", data_dir=data_dir, batch_size=batch_size, seed=seed)
    images = np.concatenate([np.asarray(batch["image"]) for batch in test.in_order()])
    model = build(quantizer, seed=seed, **options)
    if quantizer == "none":
        train = train.map(lambda batch: (batch["image"], batch["image"]))
    begin = time.perf_counter()
    model.fit(train.repeat(), steps_per_epoch=steps, epochs=1, verbose=verbose)
    seconds = time.perf_counter() - begin
    return {**measure(model, images), "seconds": seconds}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks fashion", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", help="folder of the TFDS data sets (default: TFDS's own)")
    parser.add_argument("--quantizer", choices=["ema", "none"], default="ema", help="none: the bound")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    scores = run(arguments.data_dir, quantizer=arguments.quantizer, steps=arguments.steps, seed=arguments.seed)
    l1, psnr, used, perplexity = REFERENCE[arguments.quantizer]
    print(f"{'':12}{'L1':>10}{'PSNR':>10}{'used':>10}{'perplexity':>12}{'seconds':>10}")
    for name, row in [
        ("reference", (l1, psnr, used, perplexity, None)),
        ("this run", tuple(scores.values())),
    ]:
        if len(row) < 5:
            row = (*row[:2], None, None, row[2])
        cells = [f"{v:.{d}f}" if v is not None else "–" for v, d in zip(row, (4, 2, 3, 1, 0), strict=True)]
        print(f"{name:12}" + "".join(f"{c:>{w}}" for c, w in zip(cells, (10, 10, 10, 12, 10), strict=True)))


if __name__ == "__main__":
    main()
