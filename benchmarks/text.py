"""Bits a character of Shakespeare: an autoregressive transformer against masked diffusion, of one size and budget.

Both are the same stack of blocks, with as many weights, on the same windows of characters, in the same order, for the same
number of steps with the same optimizer. Both give -log2 p(window) / length on the test windows, where nothing before a
window is known: the autoregressive model exactly, masked diffusion as an upper bound, estimated over several random masks
of each window.

Run: python -m benchmarks text --data-dir FOLDER [--steps 600]
"""

import argparse
import time

import keras
import numpy as np
from keras import layers, ops

from keras_vqdit import data
from keras_vqdit.layers.embeddings import sincos_position_embedding
from keras_vqdit.layers.transformer_block import TransformerBlock
from keras_vqdit.metrics.text import bits_per_token
from keras_vqdit.models.code_transformer import CodeEmbedding
from keras_vqdit.models.multimodal_diffusion import MultimodalDiffusion


class CausalTransformer(keras.Model):
    """The network of `CodeTransformer`, but each position predicts its own code from those before it.

    Args:
        num_embeddings: number K of codes. The row of the mask, K, stands before the first code.
        length: codes of an example.
        d_model, num_heads, dff, num_layers: as of `CodeTransformer`.

    Call arguments:
        codes: integers `(B, length)`.

    Returns:
        Logits `(B, length, K)`.
    """

    def __init__(self, num_embeddings, length, d_model, num_heads, dff, num_layers, **kwargs):
        super().__init__(**kwargs)
        self.num_embeddings = num_embeddings
        self.positions = sincos_position_embedding((length,), d_model).astype("float32")
        self.causal = np.tril(np.ones((1, length, length), bool))
        self.embedding = CodeEmbedding(d_model, num_embeddings)
        self.blocks = [TransformerBlock(d_model, num_heads, dff, rotary_grids=[(length,)]) for _ in range(num_layers)]
        self.final_norm = layers.LayerNormalization(epsilon=1e-6)
        self.final_dense = layers.Dense(num_embeddings, kernel_initializer="zeros")

    def call(self, codes):
        before = ops.pad(codes[:, :-1], ((0, 0), (1, 0)), constant_values=self.num_embeddings)
        x = self.embedding(before) + self.positions
        for block in self.blocks:
            x = block(x, mask=self.causal)
        return self.final_dense(self.final_norm(x))


def optimizer(learning_rate, steps):
    """AdamW with a warm-up and a cosine to zero."""
    warmup = max(steps // 10, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.1 * learning_rate, max(steps - warmup, 1), warmup_target=learning_rate, warmup_steps=warmup
    )
    return keras.optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0)


def train_autoregressive(train, test, sizes, *, steps, learning_rate, verbose):
    """`(bits a character, model)`."""
    tokenizer = train.info.text_tokenizer
    model = CausalTransformer(tokenizer.num_embeddings, tokenizer.max_length, **sizes)
    model.compile(optimizer(learning_rate, steps), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train, test = (d.map(lambda batch: (batch["text"], batch["text"])) for d in (train, test))
    model.fit(train.repeat(), steps_per_epoch=steps, epochs=1, verbose=verbose, shuffle=False)
    return bits_per_token(model.evaluate(test, verbose=0)), model


def train_diffusion(train, test, sizes, *, steps, learning_rate, verbose, rounds=10):
    """`(bits a character, model)`; the bound is the mean over `rounds` random times and masks of each test window."""
    # One modality needs no marginals, and the schedule of the learning rate averages as well as an average does.
    model = MultimodalDiffusion({"text": train.info.text_tokenizer}, **sizes, hidden_rate=0.0, ema_decay=None, seed=0)
    model.compile(optimizer(learning_rate, steps))
    model.fit(train.repeat(), steps_per_epoch=steps, epochs=1, verbose=verbose, shuffle=False)
    return bits_per_token(model.evaluate(test.repeat(rounds), verbose=0, return_dict=True)["text_loss"]), model


def unigram_bits(train, test):
    """Bits a character where only the frequencies of the characters are known."""
    codes = train.info.text_tokenizer.num_embeddings
    counts, tally = (
        np.bincount(np.concatenate([np.ravel(batch["text"]) for batch in part]), minlength=codes)
        for part in (train, test)
    )
    share = (counts + 1) / np.sum(counts + 1)
    return float(-np.sum(tally / tally.sum() * np.log2(share)))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks text", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", help="folder of the TFDS data sets (default: TFDS's own)")
    parser.add_argument("--steps", type=int, default=600, help="steps of each (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="windows in a batch (default: %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="characters of a window (default: %(default)s)")
    parser.add_argument("--d-model", type=int, default=128, help="width (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="attention heads (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="blocks (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="highest (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    train, test = data.load(
        "tiny_shakespeare",
        data_dir=options.data_dir,
        text_length=options.length,
        batch_size=options.batch,
        seed=options.seed,
    )
    sizes = {
        "d_model": options.d_model,
        "num_heads": options.heads,
        "dff": 4 * options.d_model,
        "num_layers": options.layers,
    }
    budget = {"steps": options.steps, "learning_rate": options.learning_rate, "verbose": 2}
    print(f"{'characters alone':26}{unigram_bits(train, test):6.3f} bits a character")
    for title, run in (("autoregressive", train_autoregressive), ("masked diffusion, at most", train_diffusion)):
        keras.utils.set_random_seed(options.seed)
        train.set_epoch(0)
        begin = time.perf_counter()
        bits, model = run(train, test, sizes, **budget)
        seconds = time.perf_counter() - begin
        print(f"{title:26}{bits:6.3f} bits a character, {model.count_params():,} weights, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
