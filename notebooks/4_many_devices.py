# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many devices
#
# A training that fits one device moves to several by three lines. This notebook shows that nothing else changes with
# it, and how a long training survives what happens to long trainings:
#
# - what two replicas must share to train as one device does, and where stock Keras stops;
# - **exactness**, measured step by step: a VQ-VAE (k-means start, moving averages, restarts) and a diffusion
#   transformer on one device and on two;
# - batches that do not divide, and sample weights;
# - a training killed by `SIGKILL`, which goes on bit for bit;
# - a batch of NaN that changes nothing;
# - bfloat16 and float16: losses, memory, speed.
#
# It needs `pip install -e ".[notebooks]" jupyterlab`, no GPU and no network: TensorFlow makes two devices of one CPU.
# What is shown to be exact on these knows nothing of the kind of device; speed does, and is measured here for this CPU
# alone. Four minutes on two CPU cores, most of it XLA compiling.

# %% [markdown]
# ## Two devices out of one CPU
#
# The first thing a program does is to choose its devices, for TensorFlow fixes their number at its first computation.
# On a machine with GPUs leave the names out, `make_strategy("mirrored")`, or call `tf.distribute.MirroredStrategy()`
# yourself.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes on the machine

import gc
import logging
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_vqdit as kv

FAST = os.environ.get("KERAS_VQDIT_FAST") == "1"  # only for the tests of this notebook: skip it when you read
tf.get_logger().setLevel("WARNING")  # no note on each sum over the devices

strategy = kv.training.make_strategy("mirrored", ["cpu:0", "cpu:1"])
print("replicas:", strategy.num_replicas_in_sync)

# %% [markdown]
# The data: digits of MNIST, in a fixed order, so that both trainings see the same batches. 20 steps of 64 are enough
# to see errors grow, if they grow. XLA is on, as it is by default; the fast form of this notebook leaves it out, for
# compiling is what takes time.

# %%
STEPS, BATCH = (8, 32) if FAST else (20, 64)
XLA = not FAST

train, _ = kv.data.load("mnist_5k", batch_size=BATCH)
images = np.concatenate([batch["image"] for batch in train.in_order()])
few = images[: STEPS * BATCH]
print("images:", few.shape)

# %% [markdown]
# ## Why this needs work
#
# Keras compiles the step of *all* replicas into one program. XLA programs live on one device, so with
# `jit_compile=True` the second replica's weights are out of reach. Any model shows it, here one layer:

# %%
with strategy.scope():
    stock = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
    stock.compile("adam", "mse", jit_compile=True)
try:
    stock.fit(few, few[:, 0, 0], batch_size=BATCH, verbose=0)
    print("trained")
except tf.errors.InvalidArgumentError as error:
    reason = next(line for line in str(error).splitlines() if "located in device" in line)
    print("Stock Keras:", re.sub(r" \(defined @.*?\)", "", reason))

# %% [markdown]
# Without XLA stock Keras trains, and two things go wrong that no error tells. The layer below has both: it keeps a
# moving average of its data, as a codebook does, and draws a random number, as dropout and diffusion do. We read both
# copies of both values after every step.


# %%
def remembering(base, aggregation):
    """A model with a moving average of its data, and a random number."""

    class Remembering(base):
        def __init__(self):
            super().__init__()
            self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(1)
            self.seed_generator = keras.random.SeedGenerator(0)
            options = {"shape": (), "initializer": "zeros", "trainable": False}
            self.mean = self.add_weight(name="mean", aggregation=aggregation, **options)
            self.drawn = self.add_weight(name="drawn", **options)

        def call(self, x, training=False):
            if training:
                self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x))
                self.drawn.assign(keras.random.normal((), seed=self.seed_generator))
            return self.dense(self.flatten(x))

    return Remembering()


# %% [markdown]
# A variable under a strategy has a copy on each replica; `experimental_local_results` gives them all.


# %%
def copies(variable):
    """The value of a variable on each replica, as arrays."""
    return [np.asarray(copy) for copy in strategy.experimental_local_results(variable.value)]


class Copies(keras.callbacks.Callback):
    """Keep the copies of the moving average and of the random number after every step."""

    def on_train_begin(self, logs=None):
        self.means, self.drawn = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.means.append([float(copy) for copy in copies(self.model.mean)])
        self.drawn.append([float(copy) for copy in copies(self.model.drawn)])


# %% [markdown]
# Three trainings: stock Keras on one device, stock Keras on two replicas, and on two replicas a model of this
# package's base class, `kv.training.DistributedModel`, whose layer says how its average is reduced:
# `aggregation="mean"`.

# %%
seen = {}
for name, base, aggregation, where in [
    ("one device", keras.Model, "none", None),
    ("stock", keras.Model, "none", strategy),
    ("here", kv.training.DistributedModel, "mean", strategy),
]:
    with kv.training.scope(where):  # of `None` it is empty: one program for one device and for many
        model = remembering(base, aggregation)
        model.compile("adam", "mse", jit_compile=False)
    seen[name] = Copies()
    model.fit(few, few[:, 0, 0], batch_size=BATCH, shuffle=False, verbose=0, callbacks=[seen[name]])

for name, noted in seen.items():
    print(f"{name:>10} drew in step 1:", *(f"{value:+.4f}" for value in noted.drawn[0]))

# %% [markdown]
# In stock Keras both replicas drew *the same* number: half of the noise that a diffusion model should see is a copy of
# the other half. Here they differ. And the averages: in stock Keras each replica follows its own half of the data, and
# they wander apart, on either side of what one device has. Here both copies stay together, on it.

# %%
alone = np.array(seen["one device"].means)[:, 0]
away = {name: np.array(seen[name].means).T - alone for name in ("stock", "here")}
drift = {f"{name}, replica {i}": copy for name, pair in away.items() for i, copy in enumerate(pair)}
label = "moving average − that of one device"
kv.plotting.lines(
    drift, xlabel="step", ylabel=label, markers=False, title="The copies of one variable, in stock Keras and here"
)

# %% [markdown]
# An average of averages is the easy case, and `aggregation="mean"` would mend it in stock Keras without XLA, too. The
# rest is not a mean over replicas. This is what has to be equal between R replicas and one device with the whole
# batch, and why it is not so of itself:
#
# | | what goes wrong | what is done here |
# |---|---|---|
# | noise, times, dropout | a seed is mirrored: all replicas draw the same | a replica's number enters its seeds |
# | restarts of codes | must be the *same* draw everywhere, or codebooks differ | those seeds stay shared |
# | k-means start | each replica has its own part of the batch | vectors are gathered first, one k-means for all |
# | codebook | a mean of means ignores how many chose a code | counts and sums are added up, then divided |
# | perplexity | not linear: the mean of two perplexities is no perplexity | counts are added up, too |
# | loss, gradients | an uneven batch weighs some examples more | each part is weighted by its number of examples |
# | clipping, Muon, Adam | not linear: must see the gradient of the whole batch | the optimizer steps after the sum |
# | a NaN | one replica would skip the step, the other not | each tells if its part is finite; all skip, or none |
#
# Therefore a step is two compiled programs. The first, on each replica by itself, gives losses, gradients and what
# layers saw. Then the replicas talk once: they add up one vector and gather what codebooks learn from. The second
# program lets layers learn and the optimizer step, the same everywhere.

# %% [markdown]
# ## Three lines
#
# ```python
# strategy = kv.training.make_strategy("mirrored")                 # 1
# with strategy.scope():                                           # 2
#     tokenizer = kv.VQVAE.from_size("digits", num_embeddings=256)
#     tokenizer.compile("adam")                                    # 3: model, optimizer and `compile` within
# tokenizer.fit(train, epochs=12, shuffle=False)                   # as ever
# ```
#
# The batch is that of all devices together: with `batch_size=64` each of two replicas gets 32. So the learning rate,
# the number of steps and every other choice stay as they were, which is the point of exactness: what you tuned on one
# device holds on many.

# %% [markdown]
# ## Exactness
#
# A callback keeps the metrics and all weights after every step. `fit` logs the mean of the epoch so far; with the
# metrics reset before each batch, that is the loss of this step alone. The `logs` of a batch are of all replicas
# together, also where one of them had no example.


# %%
class Recorder(keras.callbacks.Callback):
    """Keep the metrics, the weights and the codebook of every step."""

    def on_train_begin(self, logs=None):
        self.metrics, self.weights, self.codebooks = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.metrics.append({name: float(value) for name, value in logs.items()})
        self.weights.append([keras.ops.convert_to_numpy(weight) for weight in self.model.weights])
        if hasattr(self.model, "vq"):
            self.codebooks.append([keras.ops.convert_to_numpy(self.model.vq.codebook)])

    @property
    def losses(self):
        return np.array([metrics["loss"] for metrics in self.metrics])


# %% [markdown]
# `difference` compares two lists of arrays: the largest difference in any of them, relative to the largest value of
# its array. Relative, because a count of 800 vectors and a bias of 0.001 round differently; to the largest value,
# because float32 rounds a sum to a fraction of its largest parts.


# %%
def difference(ones, others):
    """The largest difference of two lists of arrays, relative to the largest value of each array."""
    pairs = [
        (np.asarray(one, "float64"), np.asarray(other, "float64")) for one, other in zip(ones, others, strict=True)
    ]
    return max(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30) for one, other in pairs)


# %% [markdown]
# ### A VQ-VAE
#
# Small, with everything that could tell replicas apart: the codebook starts by k-means from the first batch, follows
# by moving averages, and a code whose count falls below a fifth of the mean is drawn anew (the default waits for a
# tenth: we want restarts within these few steps). The learning rate of 0.002 is that of the package's own training of
# digits.

# %%
SIZES = {"filters": (8, 16), "num_residual_blocks": (0, 0 if FAST else 1), "residual_filters": 8}


def make_tokenizer():
    quantizer = kv.VectorQuantizer(64, 4, codebook="ema", restart_threshold=0.2, seed=0)
    return kv.VQVAE.from_size("digits", num_embeddings=64, quantizer=quantizer, **SIZES)


def record(model, data, **options):
    """Train a model for an epoch, in the order of the data, and record it."""
    recorder = Recorder()
    model.fit(data, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[recorder], **options)
    return recorder


def train_on(strategy, make, data, **options):
    """A new model of `make`, trained on one device (`strategy=None`) or on replicas, and what was recorded."""
    keras.utils.set_random_seed(0)
    with kv.training.scope(strategy):
        model = make()
        model.compile(keras.optimizers.Adam(2e-3), jit_compile=XLA)
    return model, record(model, data, **options)


# %%
tokenizer, one = train_on(None, make_tokenizer, few)
tokenizer_on_two, two = train_on(strategy, make_tokenizer, few)
print("loss of the last step:", one.losses[-1], two.losses[-1])

# %% [markdown]
# ### A diffusion transformer
#
# Diffusion draws a time and noise for every example, and each replica draws its own. So two replicas do not see the
# numbers that one device sees, only numbers as good. To compare digit by digit we give times and noise with the data,
# under the keys `"t"` and `"noise"`.
#
# How close can two trainings be at all? The same training on *one* device with the examples of each batch in reverse
# order is the same in mathematics, and adds up its sums in another order: a control that shows what float32 alone
# does.

# %%
rng = np.random.default_rng(0)
injected = {
    "image": few,
    "noise": rng.normal(size=few.shape).astype("float32"),
    "t": rng.uniform(size=len(few)).astype("float32"),
}
turned = np.arange(len(few)).reshape(-1, BATCH)[:, ::-1].ravel()  # each batch back to front


def make_diffusion():
    network = kv.DiffusionTransformer(d_model=32, num_heads=2, dff=64, num_layers=1, patch_size=4)
    return kv.LatentDiffusion(None, network, seed=0)  # of the pixels themselves: no tokenizer


# %%
diffusion, one_again = train_on(None, make_diffusion, injected)
diffusion_on_two, two_again = train_on(strategy, make_diffusion, injected)
_, turned_round = train_on(None, make_diffusion, {key: value[turned] for key, value in injected.items()})
print("loss of the last step:", one_again.losses[-1], two_again.losses[-1], turned_round.losses[-1])

# %% [markdown]
# Now the differences over the steps. To have a measure, the figure also shows how much the same weights *change* in
# each step, that is, how much a step teaches. A single float32 number is rounded to 2⁻²⁴ of itself, 6·10⁻⁸: what is
# below that is drawn there.


# %%
def over_steps(ones, others):
    return np.maximum([difference(a, b) for a, b in zip(ones, others, strict=True)], 2.0**-24)


def curves(one, two, control=None):
    changes = [difference(after, before) for before, after in zip(one.weights, one.weights[1:])]
    found = {"change by a step": (np.arange(2, STEPS + 1), changes), "weights": over_steps(one.weights, two.weights)}
    if one.codebooks:
        found["codebook"] = over_steps(one.codebooks, two.codebooks)
    found["loss"] = over_steps([[loss] for loss in one.losses], [[loss] for loss in two.losses])
    if control is not None:
        found["weights: control"] = over_steps(one.weights, control.weights)
    return found


# %%
panels = {"VQ-VAE": curves(one, two), "Diffusion transformer": curves(one_again, two_again, turned_round)}
title = "Two replicas against one device"
kv.plotting.lines(panels, xlabel="step", ylabel="relative difference", log_y=True, markers=False, title=title)

# %% [markdown]
# Read the figure from above. What a step teaches is orders of magnitude larger than the difference between one device
# and two, and for the transformer that lies where the control lies: two replicas differ from one device as one device
# differs from itself when it adds in another order. Nothing blows up over the steps, although codes were drawn anew.
# To count those: codes that moved in one step farther than the whole codebook is wide (its standard deviation).

# %%
tables = [table for (table,) in one.codebooks]
moves = [np.abs(after - before).max(axis=1) > before.std() for before, after in zip(tables, tables[1:])]
print("codes drawn anew:", np.sum(moves))

# %% [markdown]
# It need not stay so for ever. Training amplifies rounding slowly, and a vector that lies between two codes can change
# its mind over the last bit. That is true of any change of the hardware, and no sign of a replica gone astray. That
# sign would be replicas that differ *from each other*, so we compare the copies of every variable of models and
# optimizers:

# %%
for name, model in [("VQ-VAE", tokenizer_on_two), ("transformer", diffusion_on_two)]:
    pairs = [copies(variable) for variable in [*model.variables, *model.optimizer.variables]]
    equal = sum(np.array_equal(*pair) for pair in pairs if len(pair) == 2)
    print(f"{name}: {len(pairs)} variables, copies equal bit for bit: {equal}")

# %% [markdown]
# ## Batches that do not divide, and sample weights
#
# Real data end in a batch that is smaller, and sometimes one replica has nothing to do: here the last batch has a
# single example. If replicas simply averaged their means, the examples of a small part would count more than the
# others. In numbers, for 5 examples on two replicas (3 and 2):

# %%
example_losses = np.array([1.0, 2.0, 3.0, 10.0, 20.0])
print("mean of the batch:", example_losses.mean())
print("mean of the replicas' means:", np.mean([example_losses[:3].mean(), example_losses[3:].mean()]))

# %% [markdown]
# So each replica's part is weighted by its number of examples; sample weights multiply the loss of each example before
# that. The same tokenizer, two full batches and one with a single example, weights from 0 to 2:

# %%
odd = 2 * BATCH + 1
weights = np.linspace(0, 2, odd, dtype="float32")
uneven, uneven_on_two = (
    train_on(where, make_tokenizer, few[:odd], sample_weight=weights) for where in (None, strategy)
)
print("examples   loss: one device, two replicas   perplexity: one device, two replicas")
for size, a, b in zip((BATCH, BATCH, 1), uneven[1].metrics, uneven_on_two[1].metrics, strict=True):
    print(f"{size:8} {a['loss']:18.7f} {b['loss']:13.7f} {a['perplexity']:24.5f} {b['perplexity']:13.5f}")
ends = [recorder.weights[-1] for _, recorder in (uneven, uneven_on_two)]
print(f"largest relative difference of the weights: {difference(*ends):.1e}")

# %% [markdown]
# The replica without an example takes part in everything that replicas do together, with a weight of zero. The metrics
# agree, too: `perplexity` comes from counts that are added up over the replicas.
#
# Only layers that look at other examples of the batch are another matter: `BatchNormalization` normalises by the
# examples of its own replica, as is Keras's default. The layers of this package treat each example by itself.

# %% [markdown]
# ## What it costs
#
# Two logical devices share the cores that one device has to itself, so do not expect a gain: at best two programs keep
# the cores busier than one does. They are for tests, before you rent the real thing. `kv.training.Throughput()` adds
# `samples_per_second` to the logs. The programs above are compiled already; we let them train in turns, so that other
# work on the machine meets all alike, and take the best epoch of each.


# %%
def speed(model, data):
    """Examples a second of one epoch, but for its first step."""
    throughput = kv.training.Throughput()
    history = model.fit(data, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[throughput])
    return history.history["samples_per_second"][0]


# %%
contestants = {"VQ-VAE": (tokenizer, tokenizer_on_two, few), "transformer": (diffusion, diffusion_on_two, injected)}
rounds = {name: [] for name in contestants}
for _ in range(1 if FAST else 6):
    for name, (on_one, on_two, data) in contestants.items():
        rounds[name].append((speed(on_one, data), speed(on_two, data)))
speeds = {name: dict(zip(("one device", "two replicas"), np.max(pairs, axis=0))) for name, pairs in rounds.items()}
title = "Two replicas on the cores of one device, tiny models"
kv.plotting.bars(speeds, xlabel="examples a second", format="{:,.0f}", title=title)

# %% [markdown]
# These models are tiny on purpose, so the bars show the price of talking: a step on replicas is two programs and an
# exchange instead of one program. (With other work on the machine we have seen the bars of the transformer change
# places: two programs get more of the cores than one.) The longer a step takes, the smaller is the share of that
# price; `python -m benchmarks devices` measures it with a model of more usual size. On GPUs of your own, measure with
# your own model before you believe anybody's number.

# %% [markdown]
# ## Resume after a kill
#
# Machines are preempted, processes run out of memory, cables are pulled. `kv.training.Checkpoint(folder, every=n)`
# saves all that training depends on every n steps: weights, optimizer, averages, codebook, random numbers, metrics,
# history, and the place in the data. *Start the same program again* and `fit` goes on: there is no other program for
# resuming.
#
# This is such a program. Besides training it writes the loss of each step to a file, so that we see what a process did
# before it died. (After a restart `fit` passes over the batches of the epoch that were trained before; the count of
# the optimizer tells them from real steps.)

# %%
PROGRAM = """
import logging, os, sys
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import keras_vqdit as kv

folder, losses, epochs, xla = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
logging.getLogger("keras_vqdit").addHandler(logging.StreamHandler(sys.stdout))

class Log(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.file = open(losses, "w")
    def on_train_batch_begin(self, batch, logs=None):
        self.before = int(self.model.optimizer.iterations)
        self.model.reset_metrics()
    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations)
        if step > self.before:
            print(step, logs["loss"], file=self.file, flush=True)

keras.utils.set_random_seed(0)
train, _ = kv.data.load("mnist_5k", batch_size=64)  # shuffled anew in every epoch
tokenizer = kv.VQVAE.from_size("digits", num_embeddings=64, filters=(8, 16), num_residual_blocks=0)
tokenizer.compile(keras.optimizers.Adam(2e-3), jit_compile=xla)
checkpoint = kv.training.Checkpoint(folder, every=25)
tokenizer.fit(train, epochs=epochs, verbose=0, shuffle=False, callbacks=[Log(), checkpoint])

variables = [*tokenizer.weights, *tokenizer.optimizer.variables]
np.savez(folder + "/final.npz", *map(keras.ops.convert_to_numpy, variables))
"""

# %% [markdown]
# The program runs in processes of its own. One is left in peace. Another one, which starts beside it, is killed in the
# middle of its second epoch, between two checkpoints, by `SIGKILL`: no handler runs, nothing is flushed, as when the
# power fails. The exact step depends on the moment; the result must not.

# %%
EPOCHS, KILL_AT = (2, 105) if FAST else (3, 105)
room = tempfile.TemporaryDirectory()
here = Path(room.name)
(here / "train.py").write_text(PROGRAM)


def command(folder, losses):
    return [sys.executable, "train.py", folder, losses, str(EPOCHS), str(XLA)]


def steps_of(file):
    """`(steps, losses)` that a process wrote."""
    path = here / file
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last line may be half a line
    return np.array([line.split() for line in lines], "float64").reshape(-1, 2).T


# %%
quiet = {"cwd": here, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
whole = subprocess.Popen(command("whole", "whole.txt"), **quiet)
doomed = subprocess.Popen(command("parts", "killed.txt"), **quiet)
while steps_of("killed.txt").shape[1] < KILL_AT and doomed.poll() is None:
    time.sleep(0.002)
doomed.kill()  # SIGKILL
print("the process ended with", doomed.wait(), "and left", *sorted(os.listdir(here / "parts")))

# %% [markdown]
# The name of a checkpoint says where training was: so many whole epochs, and so many steps of the next one. Now the
# same command again. What the package logs, the program prints:

# %%
again = subprocess.run(command("parts", "again.txt"), cwd=here, capture_output=True, text=True)
print(again.stdout.strip())
assert again.returncode == 0 and whole.wait() == 0

# %% [markdown]
# Both trainings are done. Compare all weights, the codebook and the optimizer at the end, and the losses of all steps:

# %%
finals = [
    [file[key] for key in file.files] for file in (np.load(here / name / "final.npz") for name in ("whole", "parts"))
]
equal = sum(np.array_equal(*pair) for pair in zip(*finals, strict=True))
print(f"{len(finals[0])} arrays of weights and optimizer, {equal} equal bit for bit")

all_steps, first, second = (steps_of(f"{name}.txt") for name in ("whole", "killed", "again"))
print(f"killed after step {first[0, -1]:.0f}, went on with step {second[0, 0]:.0f}")
expected = dict(all_steps.T)
print("losses that differ:", sum(expected[step] != loss for part in (first, second) for step, loss in part.T))
room.cleanup()

# %% [markdown]
# The steps between the last checkpoint and the kill were trained twice, and gave the same losses twice: on the right,
# where the two processes overlap. That is the price of a crash, at most `every` steps.

# %%
last, begin = first[0, -1], second[0, 0]
near = {
    name: part[:, np.abs(part[0] - last) <= 20]
    for name, part in (("whole", all_steps), ("first", first), ("second", second))
}
panels = {
    "All steps": {"never killed": tuple(all_steps), "killed": tuple(first), "started again": tuple(second)},
    "Near the kill": {
        "never killed": tuple(near["whole"]),
        "killed": tuple(near["first"]),
        "started again": tuple(near["second"]),
    },
}
kv.plotting.lines(
    panels,
    xlabel="step",
    ylabel="loss of the step",
    log_y=True,
    marks={"checkpoint": begin - 0.5, "SIGKILL": last + 0.5},
    title="A training that was killed goes on",
)

# %% [markdown]
# Bit for bit holds on one device. On several, sums may be added up in another order after a restart, so there
# `Checkpoint` promises no more than the figure of exactness shows: rounding. The order of the data goes on for data
# sets of `kv.data`, whose order is a function of the seed and the number of the epoch; Keras draws the order of bare
# arrays anew, and `Checkpoint` warns of it.

# %% [markdown]
# ## Guard rails
#
# One NaN in one batch is enough to ruin a model: it reaches every gradient, Adam's averages, and a codebook that never
# forgets it. A step whose loss or gradients are not finite therefore changes nothing, on any replica. To see it, go on
# to train the transformer on two replicas, with NaN in one pixel of one image. To do so twice from the same point, we
# keep its state: all variables of the model and its optimizer, which is what a checkpoint holds, too.


# %%
def state(model):
    """All that a model and its optimizer remember, as arrays: weights, averages, seeds, counts of steps."""
    return [keras.ops.convert_to_numpy(v) for v in [*model.variables, *model.optimizer.variables]]


def restore(model, arrays):
    with kv.training.scope(model.distribute_strategy):
        for variable, array in zip([*model.variables, *model.optimizer.variables], arrays, strict=True):
            variable.assign(array)


# %% [markdown]
# The package says what it does through `logging`; here we send that to the page.

# %%
logging.getLogger("keras_vqdit").addHandler(logging.StreamHandler(sys.stdout))

BAD = STEPS // 2  # the batch, counted from 0
holed = {key: value.copy() for key, value in injected.items()}
holed["image"][BAD * BATCH + 3, 14, 14] = np.nan

begin = state(diffusion_on_two)
hurt = record(diffusion_on_two, holed)
survivor = state(diffusion_on_two)
print("skipped steps:", diffusion_on_two.skipped_steps)

# %% [markdown]
# Is it bit for bit as if that batch had not been there? Once more from the same state, without the batch. Nothing may
# differ:

# %%
kept = np.delete(np.arange(len(few)), np.arange(BAD * BATCH, (BAD + 1) * BATCH))
restore(diffusion_on_two, begin)
spared = record(diffusion_on_two, {key: value[kept] for key, value in injected.items()})

equal = [np.array_equal(*pair) for pair in zip(survivor, state(diffusion_on_two), strict=True)]
print(f"{sum(equal)} of {len(equal)} variables are equal bit for bit")

# %% [markdown]
# What each step changed:

# %%
changes = [difference(after, before) for before, after in zip(hurt.weights, hurt.weights[1:])]
marks, label = {"NaN in the data": BAD + 1}, "relative change of the weights by the step"
curve = {"weights": (np.arange(2, STEPS + 1), changes)}
kv.plotting.lines(curve, xlabel="step", ylabel=label, marks=marks, title="A batch of NaN changes nothing")

# %% [markdown]
# If every step fails, going on is no help. After `max_skipped_steps` in a row (30 by default, for float16 needs some
# to find its scale; here 4) training ends with an error that says what was not finite:

# %%
diffusion_on_two.max_skipped_steps = 4
try:
    diffusion_on_two.fit({**injected, "noise": np.full_like(few, np.inf)}, batch_size=BATCH, shuffle=False, verbose=0)
except FloatingPointError as error:
    print(error)

# %% [markdown]
# ## Mixed precision
#
# `dtype="mixed_bfloat16"` or `"mixed_float16"`, for one model, or for all by `keras.config.set_dtype_policy`: layers
# compute in half precision, variables stay float32. bfloat16 has the range of float32 and 8 bits of precision; float16
# has 11 bits, and a range so small that gradients can vanish. So with float16 Keras wraps the optimizer: the loss is
# multiplied by a scale, gradients are divided by it, and a step whose gradients overflow is skipped and lowers the
# scale. Distances to codes, softmax, norms, noise schedules and losses are float32 under every policy of this package.
#
# A somewhat larger transformer, with the same seed and hence the same times and noise, in each precision; by XLA, and
# for comparison without. `get_memory_info` tells the most memory that TensorFlow's allocator handed out while it
# trained.

# %%
POLICIES = ("float32", "mixed_float16") if FAST else ("float32", "mixed_bfloat16", "mixed_float16")
MIXED_STEPS, MIXED_BATCH, LAYERS = (6, 64, 1) if FAST else (150, 64, 2)
memory_info = tf.config.experimental.get_memory_info


class Timed(Recorder):
    """A `Recorder` of the metrics alone, and of when each step ended."""

    def on_train_begin(self, logs=None):
        self.metrics, self.times = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.metrics.append(dict(logs))
        self.times.append(time.perf_counter())


# %%
def train_in(policy, jit_compile, steps):
    """A transformer of pixels trained in a precision, what was recorded, and the peak of memory in MiB."""
    keras.utils.set_random_seed(0)
    network = kv.DiffusionTransformer(64, 2, 256, LAYERS, patch_size=4, num_classes=10, dtype=policy)
    model = kv.LatentDiffusion(None, network, seed=0, dtype=policy)
    model.compile(keras.optimizers.Adam(2e-3), jit_compile=jit_compile)
    data, _ = kv.data.load("mnist_5k", batch_size=MIXED_BATCH)
    gc.collect()  # or the memory of earlier models would be handed back while this one trains
    tf.config.experimental.reset_memory_stats("CPU:0")
    before, timed = memory_info("CPU:0")["current"], Timed()
    model.fit(data.repeat().take(steps), shuffle=False, verbose=0, callbacks=[timed])
    return model, timed, (memory_info("CPU:0")["peak"] - before) / 2**20


# %%
losses, peaks, trained = {}, {}, {}
for compiler, jit_compile in [("no XLA", False)] if FAST else [("XLA", True), ("no XLA", False)]:
    peaks[compiler] = {}
    for policy in POLICIES:
        steps = 6 if losses.keys() == set(POLICIES) else MIXED_STEPS  # the curves are wanted once
        model, timed, peaks[compiler][policy] = train_in(policy, jit_compile, steps)
        losses.setdefault(policy, timed.losses)
        trained[compiler, policy] = model
        kinds = ", ".join(sorted({variable.dtype for variable in model.trainable_variables}))
        optimizer = type(model.optimizer).__name__
        print(f"{compiler}, {policy}: variables {kinds}; {optimizer}; {model.skipped_steps} steps skipped")

# %% [markdown]
# The curves lie nearly on each other; only their difference, on the right, tells them apart. Compare it with how much
# the loss of float32 itself moves from one step to the next, which comes from the times and the noise that each batch
# draws.

# %%
exact = losses["float32"]
steps = np.arange(2, len(exact) + 1)
away = {"float32, to the step before": (steps, np.abs(np.diff(exact)) / exact[1:])}
away |= {
    policy: (steps, np.maximum(np.abs(losses[policy] - exact)[1:] / exact[1:], 2.0**-24)) for policy in POLICIES[1:]
}
for name, (_, values) in away.items():
    print(f"{name}: {np.median(values):.1e} in the median step")
panels, labels = {"The losses": losses, "Their difference": away}, ["loss of the step", "relative difference"]
kv.plotting.lines(panels, xlabel="step", ylabel=labels, log_y=True, markers=False, title="Mixed precision")

# %% [markdown]
# Memory is where half precision should pay first: what the forward pass leaves for the backward pass is half as large.
# Whether it is depends on who computes.

# %%
title = f"Memory by precision, batches of {MIXED_BATCH}"
kv.plotting.bars(peaks, xlabel="peak memory of training (MiB)", format="{:.0f}", title=title)

# %% [markdown]
# Without XLA TensorFlow keeps half-precision activations as they are, and the peak falls. By XLA it hardly moves,
# which suggests that XLA for CPUs computes in float32 and converts to and fro. And the time? Again in turns; of all
# steps we take the one that a tenth of them beat, for other work on the machine only ever slows a step.

# %%
data, _ = kv.data.load("mnist_5k", batch_size=MIXED_BATCH)
durations = {key: [] for key in trained}
for _ in range(1 if FAST else 10):
    for key, model in trained.items():
        timed = Timed()
        model.fit(data.take(5 if FAST else 9), shuffle=False, verbose=0, callbacks=[timed])
        durations[key] += list(1e3 * np.diff(timed.times))
times = {name: {policy: np.percentile(durations[name, policy], 10) for policy in POLICIES} for name in peaks}
label = "time of a step, 10th percentile (ms)"
kv.plotting.bars(times, xlabel=label, format="{:.0f}", title="Time of a step by precision")

# %% [markdown]
# Were half precision on this CPU what it is on hardware made for it, its bars would be at most half as long as those
# of float32. They are not: whether a CPU gains or loses depends on its instructions and on the compiler, and a
# measurement like this one tells. On a CPU mixed precision is for testing a program, or for memory.
#
# On a GPU or TPU with units for half precision both memory and time are what it is for, the more the larger the
# matrices are: a width of 64 as here is too small to tell. Expect little until you have measured it there, by the same
# few lines with `"GPU:0"`. Take bfloat16 where the hardware has it, for it needs no scale of the loss; float16 where
# it has not.

# %% [markdown]
# ## On the command line
#
# All of it, without a line of Python. Two GPUs of one machine, in bfloat16, with checkpoints every 200 steps;
# `--resume` goes on after a crash, and the checkpoints are deleted when the model is saved:
#
# ```sh
# keras-vqdit train tokenizer --strategy mirrored --devices gpu:0,gpu:1 --mixed-precision bfloat16 \
#     --checkpoint-every 200
# keras-vqdit train tokenizer --strategy mirrored --devices gpu:0,gpu:1 --mixed-precision bfloat16 \
#     --checkpoint-every 200 --resume
# ```
#
# To try that without GPUs: `--devices cpu:0,cpu:1`. All GPUs of one machine: leave `--devices` out. Several machines:
# the same command on each, which differ in the `index` of `TF_CONFIG` alone; `--out` must be in a folder that all of
# them share.
#
# ```sh
# TF_CONFIG='{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}' \
# keras-vqdit train diffusion --tokenizer saved_models/tokenizer.keras --strategy multiworker
# ```
#
# In Python that is `kv.training.make_strategy("multiworker")`, or `tf.distribute.MultiWorkerMirroredStrategy()`. On
# the JAX backend there is no scope: `keras.distribution.set_distribution(keras.distribution.DataParallel())` before
# the model is made does it.

# %% [markdown]
# ## All of it in one figure
#
# How many decimal digits of the losses agree, in the worst step, with a training on one device in float32 that nothing
# disturbs? float32 has 7.2 of them, 24 bits: a bar that long means that all steps agree bit for bit.


# %%
def digits(ones, others):
    worst = np.max(np.abs(np.subtract(ones, others)) / np.abs(ones))
    return 24 * np.log10(2) if worst == 0 else min(-np.log10(worst), 24 * np.log10(2))


agreement = {
    "VQ-VAE on two replicas": digits(one.losses, two.losses),
    "transformer on two replicas": digits(one_again.losses, two_again.losses),
    "uneven batches, sample weights": digits(uneven[1].losses, uneven_on_two[1].losses),
    "control: one device, batches reversed": digits(one_again.losses, turned_round.losses),
    "a batch of NaN": digits(np.delete(hurt.losses, BAD), spared.losses),
    "killed, started again": digits([expected[step] for step in second[0]], second[1]),
    **{policy.replace("_", " "): digits(exact, losses[policy]) for policy in POLICIES[1:]},
}
unit = "digits of the loss that agree (worst step)"
kv.plotting.bars(agreement, xlabel=unit, format="{:.1f}", title="How far losses agree (longer is better)")

# %% [markdown]
# ## Lessons learned
#
# - Three lines, a strategy and its scope around model, optimizer and `compile`, train on many devices; batch size,
#   learning rate and number of steps stay what they were, because the replicas train as one device with the whole
#   batch.
# - Exact means: as close as one device comes to itself when it adds in another order. Compare with such a control
#   before you call a difference a bug, or before you call it rounding.
# - What replicas must *not* share is noise; what they must share are the draws and the data of a codebook, the counts
#   of metrics, and the decision to skip a step. Copies that wander apart tell of a mistake.
# - Give `Checkpoint(folder, every=n)` to every training that is longer than your patience. After a kill the same
#   program goes on, bit for bit on one device; a crash costs at most n steps.
# - A batch that is not finite is skipped by all replicas together. Watch `skipped_steps`: one is luck, many are a bug
#   in the data.
# - Mixed precision moves the loss of the median step less than one batch differs from the next, and the variables stay
#   float32. What it saves depends on the hardware and the compiler: measure memory and time where you will train.
# - Two logical devices of one CPU bring no core that one does not have. They are how a program for many GPUs is tested
#   on a laptop.
