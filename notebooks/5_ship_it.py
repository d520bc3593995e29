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
# # Ship it
#
# A model is worth something where it runs: in a server, on a phone, in the hands of somebody who has never heard of
# this package. This notebook takes a trained diffusion model of handwritten digits there.
#
# - **Presets**: what comes with the package, a preset of your own, damaged files, and files of strangers.
# - **SavedModel**: digits drawn by a fresh process that has TensorFlow alone.
# - **LiteRT and ONNX**: one file per endpoint, a sampler of your own in ten lines of NumPy, and weights of 8 bits.
# - **Numbers**: latency, file size, cold start and memory of each runtime, measured here.
# - **Serving**: batches, fixed shapes, warm-up, what to pin, and what must go along.
#
# It needs `pip install -e ".[notebooks]" jupyterlab`; what is not installed is left out. It trains nothing and
# downloads nothing. It takes four minutes on two CPU cores.

# %%
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes on the machine

import keras
import numpy as np
import tensorflow as tf
from IPython.display import Markdown

import keras_vqdit as kv

FAST = os.environ.get("KERAS_VQDIT_FAST") == "1"  # only for the tests of this notebook: skip it when you read

# %% [markdown]
# Every runtime below gets **one thread**. A server answers several requests at once, so what counts is what one core
# can do; and threads that wait for each other are the first to suffer when something else runs on the machine, which
# would make the comparison a measurement of that something. Set `THREADS` to the number of your cores to see what a
# single user gets. All files go to a temporary folder.

# %%
THREADS = 1
tf.config.threading.set_intra_op_parallelism_threads(THREADS)
tf.config.threading.set_inter_op_parallelism_threads(THREADS)

workplace = tempfile.TemporaryDirectory()
os.chdir(workplace.name)  # all paths below are relative to it
keras.utils.set_random_seed(0)

print(f"{os.cpu_count()} CPU cores ({platform.machine()}), of which each runtime uses {THREADS}")
print(f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras {keras.__version__}")


# %% [markdown]
# ## 1. What shipping can mean
#
# | form | who can run it | written by | what it holds |
# |---|---|---|---|
# | preset | this package | `model.save_to_preset(folder)` | configuration, weights, checksums, a model card |
# | `.keras` file | this package; training goes on | `model.save(path)` | configuration, weights and optimizer |
# | SavedModel | TensorFlow alone | `kv.saving.export(model, folder)` | all endpoints, the whole sampler among them |
# | LiteRT | its interpreter, on phones too | `kv.saving.export(…, format="litert")` | a `.tflite` file per endpoint |
# | ONNX | ONNX Runtime: C++, Java, JavaScript | `kv.saving.export(…, format="onnx")` | an `.onnx` file per endpoint |
#
# The first two are **configuration and weights**: the receiver has the package, which builds the model anew and fills
# it. They can be inspected and trained on. The other three are **programs**: graphs with the weights inside. They run
# without the package and without Keras, and go on doing what the model did when it was exported, whatever becomes of
# the code that made it.
#
# How to choose:
#
# - Somebody shall *use or fine-tune it in Python*: a **preset**. *You* go on training tomorrow: a **`.keras` file**,
#   which alone keeps the optimizer.
# - A *TensorFlow server* is there already, or nobody wants to write a sampler: a **SavedModel**.
# - A *phone*, or *no TensorFlow* on the server: **LiteRT** or **ONNX**. You write the loop of the sampler; it has ten
#   lines, see below.

# %% [markdown]
# ## 2. Presets
#
# `kv.presets()` lists what comes with the package: names and model cards.

# %%
rows = [
    f"| `{name}` | {card.get('description', '')} | {card.get('licence', '?')} |" for name, card in kv.presets().items()
]
Markdown("\n".join(["| preset | description | licence |", "|---|---|---|", *rows]))

# %% [markdown]
# A name is all that `from_preset` needs. The **card** says what users should know: the data and their licence, how
# the model was trained, and what was measured.

# %%
model = kv.LatentDiffusion.from_preset("mnist_diffusion")
print(json.dumps({key: model.card[key] for key in ("description", "metrics", "data", "licence", "command")}, indent=1))

# %% [markdown]
# `generate` draws, here with the number of steps and the guidance that the card's metrics were measured with.

# %%
settings = {"num_steps": 20, "guidance_scale": 1.5}
digits = model.generate(labels=list(range(10)) * 3, seed=0, verbose=0, **settings)
kv.plotting.image_grid(digits, columns=10, column_labels=range(10), title="Digits drawn by the preset mnist_diffusion")

# %% [markdown]
# The diffusion model brings its tokenizer along (`model.tokenizer`). `mnist_tokenizer` is the same tokenizer alone,
# for those who want codes and draw nothing: 784 pixels become 49 integers, and come back.

# %%
tokenizer = kv.VQVAE.from_preset("mnist_tokenizer")
codes = keras.ops.convert_to_numpy(tokenizer.encode(digits[:6]))
same = np.array_equal(codes, keras.ops.convert_to_numpy(model.tokenizer.encode(digits[:6])))
print(f"The tokenizer inside the diffusion model gives the same codes: {same}")
for name in ("mnist_tokenizer", "mnist_diffusion"):
    files = kv.saving.find_preset(name).iterdir()
    print(f"{name}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")
restored = keras.ops.convert_to_numpy(tokenizer.decode(codes))
kv.plotting.code_maps(
    codes, images=restored, num_embeddings=512, columns=6, title="Codes of six digits, and what they decode to"
)

# %% [markdown]
# ### A preset of your own
#
# Any trained model of the package can be saved as a preset. Give it a card: a model without one is a riddle in a
# year. Nothing in it is compulsory, but data, licence, command and metrics are what everybody asks for first.
# `"generate"` holds the settings that the command line draws with.

# %%
source = model.card
if FAST:  # a network of one layer, untrained: it is exported and compiled in a fraction of the time
    model = kv.LatentDiffusion(tokenizer, kv.DiffusionTransformer(32, 2, 64, 1, num_classes=10), ema_decay=None)
    model.build({"image": (None, 28, 28, 1), "label": (None,)})

card = {
    "description": "Handwritten digits, 28 x 28 pixels, one of ten classes",
    "data": source["data"],
    "licence": source["licence"],
    "intended use": "teaching",
    "generate": settings,
}
model.save_to_preset("my_digits", card)

for path in sorted(Path("my_digits").iterdir()):
    print(f"{path.name:<20}{path.stat().st_size / 1e6:8.3f} MB")
print(Path("my_digits/metadata.json").read_text())

# %% [markdown]
# Four files: `config.json` says how to build the model, `model.weights.h5` what to fill it with, `metadata.json` the
# checksums of both, and `model_card.json` is yours. Loaded back, the model must draw the same digits, and "the same"
# can be checked to the last bit:

# %%
again = kv.LatentDiffusion.from_preset("my_digits")
first, second = (one.generate(labels=range(10), seed=7, verbose=0, **again.card["generate"]) for one in (model, again))
print("Same digits, bit for bit:", np.array_equal(first, second))

# %% [markdown]
# ### Damaged files
#
# A disk, a download or a colleague's editor changes one byte among millions. Without checksums, the model would load,
# and draw something slightly wrong for ever. Here one bit of the weights is flipped:

# %%
shutil.copytree("my_digits", "damaged")
weights = bytearray(Path("damaged/model.weights.h5").read_bytes())
weights[len(weights) // 2] ^= 1
Path("damaged/model.weights.h5").write_bytes(weights)

try:
    kv.LatentDiffusion.from_preset("damaged")
except ValueError as error:
    print(error)

# %% [markdown]
# ### Files of strangers
#
# A checksum guards against accidents, not against malice: whoever changes a file can change its checksum, too. What
# happens then? Two attacks. The first is a `.keras` file with a `Lambda` layer, which carries Python code that runs
# as soon as the file is loaded carelessly. Here the code is harmless:

# %%
inputs = keras.Input((28, 28, 1))
trap = keras.Model(inputs, keras.layers.Lambda(lambda x: print("Your files are mine!") or x)(inputs))
trap.save("trap.keras")

print("\nloaded without Keras's safe mode:")
keras.saving.load_model("trap.keras", safe_mode=False)
print("\nloaded by kv.saving.load_model:")
try:
    kv.saving.load_model("trap.keras")
except ValueError as error:
    print(error)

# %% [markdown]
# (The first line of the output is from our own call of the layer.) Keras's safe mode, its default, would refuse this
# file as well. The package goes further: a configuration may name only classes from a list, none of which runs code
# or reads files from a configuration, and those that your own program has registered; it can never name a module to
# import.
#
# The second attack is a small file that asks for a large machine: a codebook of sixteen million codes, with checksums
# that are right.

# %%
shutil.copytree("my_digits", "greedy")
config, metadata = Path("greedy/config.json"), Path("greedy/metadata.json")
config.write_text(config.read_text().replace('"num_embeddings": 512', '"num_embeddings": 16000000'))
text, about = config.read_bytes(), json.loads(metadata.read_text())
about["files"]["config.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
metadata.write_text(json.dumps(about))

begin = time.perf_counter()
try:
    kv.LatentDiffusion.from_preset("greedy")
except ValueError as error:
    print(f"Refused after {time.perf_counter() - begin:.1f} s: {error}")

# %% [markdown]
# Sizes are compared before any memory is taken. So a preset or `.keras` file from anywhere can be tried without fear;
# what it *draws* is still the stranger's choice. (An exported program is another matter: a SavedModel is a graph with
# all of TensorFlow's operations, files among them. Run only those that you trust.)

# %% [markdown]
# ## 3. SavedModel: TensorFlow alone
#
# `export` writes all endpoints of the model into one SavedModel, with the card. `inspect` tells what a file or folder
# holds without loading it, and how to call it, in lines that can be copied. (On the command line: `keras-vqdit
# export` and `keras-vqdit inspect`.)

# %%
exported = kv.saving.export(model, "savedmodel", card=card)
print("\n".join(kv.saving.inspect("savedmodel")))

# %% [markdown]
# Now the proof: a program that knows TensorFlow and NumPy, run in a **fresh process**. Where Keras is installed,
# `import tensorflow` imports it too, for the sake of `tf.keras`, whether or not anybody uses that. So it is not
# enough to look at what has been imported in the end. The program forbids both packages at its very beginning
# instead: a `None` in `sys.modules` makes every import of that name fail, by whomever.

# %%
PROGRAM = """
import sys

sys.modules["keras"] = sys.modules["keras_vqdit"] = None  # whoever imports them fails

import numpy as np
import tensorflow as tf

model = tf.saved_model.load("savedmodel")  # keep it: it owns the weights
image = model.signatures["sample"](
    labels=tf.range(10),
    seed=tf.constant([7, 0]),  # the seed of `generate`, and the number of the first digit
    num_steps=tf.constant(20),
    guidance_scale=tf.constant(1.5),
)["image"]
np.save("alone.npy", image.numpy())

assert sys.modules["keras"] is None and sys.modules["keras_vqdit"] is None
assert not [name for name in sys.modules if name.startswith(("keras.", "keras_vqdit.", "tf_keras"))]
print("drawn without Keras:", image.shape)
"""
Path("alone.py").write_text(PROGRAM)
done = subprocess.run([sys.executable, "alone.py"], capture_output=True, text=True)
print(done.stdout if done.returncode == 0 else done.stderr[-500:])

# %% [markdown]
# Neither this package nor Keras was there. Are these the digits that the live model draws from the same seed?

# %%
live = model.generate(labels=range(10), seed=7, verbose=0, **settings)
alone = np.load("alone.npy")
largest = np.abs(alone - live).max()
print(f"Largest difference of a pixel: {largest:.1e}, where white is 1 and black is -1")

kv.plotting.image_grid(
    {"model.generate": live, "TensorFlow alone": alone, "difference × 300,000": (alone - live) * 300_000},
    column_labels=range(10),
    title="Seed 7: drawn by the live model, and by a process without it",
)

# %% [markdown]
# The same digits. What differs is the last digit of a float32: TensorFlow rearranges the exported graph as a whole,
# and sums that are taken in another order are rounded in another way. It takes a magnifying glass to see it; grey is
# no difference.
#
# A SavedModel **checks what it is given**, so that a wrong request is an error and not a strange picture:

# %%
served = tf.saved_model.load("savedmodel")
sample = served.signatures["sample"]


def draw_saved(labels, first=0, num_steps=20):
    """Digits of seed 7 from the SavedModel, the first one being number `first` of that seed."""
    given = {"labels": np.int32(labels), "seed": [7, first], "num_steps": num_steps, "guidance_scale": 1.5}
    return sample(**{name: tf.constant(value) for name, value in given.items()})["image"].numpy()


for wrong in ({"labels": [12]}, {"labels": [1], "num_steps": 1000}):
    try:
        draw_saved(**wrong)
    except tf.errors.InvalidArgumentError as error:
        print(wrong, "->", next(line for line in error.message.splitlines() if "must be" in line)[:120])

# %% [markdown]
# ## 4. LiteRT and ONNX: no TensorFlow
#
# These two get a file for each endpoint but `sample`: they run the network, and the loop around it, some ten lines,
# is written in the language of the application. A format whose converter is not installed is left out, here and in
# all that follows.

# %%
formats = {"litert": True, "onnx": importlib.util.find_spec("tf2onnx") is not None}
for name, available in formats.items():
    if not available:
        print(f'{name}: the converter is not installed: pip install "keras_vqdit[onnx]"')
        continue
    begin = time.perf_counter()
    kv.saving.export(model, name, card=card, format=name)
    sizes = {path.name: f"{path.stat().st_size / 1e6:.2f} MB" for path in sorted(Path(name).iterdir())}
    print(f"{name}, written in {time.perf_counter() - begin:.0f} s: {sizes}")

# %% [markdown]
# Each runtime becomes a function from an endpoint's name to a callable of NumPy arrays, so that all of them can be
# used, compared and timed alike. LiteRT has its own package, `ai_edge_litert`; where it is not installed TensorFlow's
# interpreter, its predecessor, reads the same files.

# %%
HAS_LITERT = importlib.util.find_spec("ai_edge_litert") is not None


def litert(name):
    """An endpoint in LiteRT."""
    if HAS_LITERT:
        from ai_edge_litert.interpreter import Interpreter
    else:
        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's announces that it will go
        return Interpreter(f"litert/{name}.tflite", num_threads=THREADS).get_signature_runner()


def onnx(name, folder="onnx", threads=THREADS):
    """An endpoint in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(f"{folder}/{name}.onnx", options)
    outputs = [one.name for one in session.get_outputs()]
    return lambda **given: dict(zip(outputs, session.run(outputs, given), strict=True))


# %% [markdown]
# The live model and the SavedModel in the same form. `model.endpoints()` gives the functions that were exported; run
# directly they are *eager*, compiled by XLA they are the fastest that Keras has.


# %%
def numpy_in_and_out(function):
    """A function of named arrays, of one of named tensors."""

    def run(**given):
        found = function(**{name: tf.constant(value) for name, value in given.items()})
        return {name: np.asarray(value) for name, value in found.items()}

    return run


def eager(name):
    return numpy_in_and_out(model.endpoints()[name].function)


def xla(name):
    return numpy_in_and_out(kv.training.compile_function(model.endpoints()[name].function, jit_compile=True))


def saved(name):
    return numpy_in_and_out(served.signatures[name])


# %% [markdown]
# All that there is on this machine, in one dictionary: runtime, endpoint, function.

# %%
ENDPOINTS = ("encode", "decode", "denoise", "decode_latents")
makers = {"Keras, eager": eager, "Keras, XLA": xla, "SavedModel": saved}
if HAS_LITERT or hasattr(tf, "lite"):
    makers["LiteRT"] = litert
if formats["onnx"] and importlib.util.find_spec("onnxruntime"):
    makers["ONNX Runtime"] = onnx
else:
    print('ONNX Runtime is not installed: pip install "keras_vqdit[onnx]"')
runtimes = {runtime: {name: make(name) for name in ENDPOINTS} for runtime, make in makers.items()}
print("LiteRT is run by", "ai_edge_litert" if HAS_LITERT else "TensorFlow's interpreter")

# %% [markdown]
# Do they compute the same? The encoder chooses the nearest code, so its answers are integers and should be equal;
# `denoise` gives floats, whose largest difference from the eager model is in the table. The noisy latents stand for a
# request in the middle of a drawing.

# %%
rng = np.random.default_rng(0)


def request(count):
    """Inputs for each endpoint, for so many examples."""
    return {
        "encode": {"image": digits[np.arange(count) % len(digits)]},
        "decode": {"codes": rng.integers(0, 512, (count, 7, 7), "int32")},
        "denoise": {
            "x": rng.normal(size=(count, 7, 7, 4)).astype("float32"),
            "t": np.full(count, 0.5, "float32"),
            "label": (np.arange(count) % 10).astype("int32"),
        },
    }


given = request(10)
expected = {name: runtimes["Keras, eager"][name](**given[name]) for name in given}
lines = ["| runtime | codes that differ, of 490 | largest difference of `denoise` |", "|---|---|---|"]
for runtime, run in runtimes.items():
    wrong = np.sum(run["encode"](**given["encode"])["codes"] != expected["encode"]["codes"])
    error = np.abs(run["denoise"](**given["denoise"])["clean"] - expected["denoise"]["clean"]).max()
    lines.append(f"| {runtime} | {wrong} | {error:.1e} |")
Markdown("\n".join(lines))

# %% [markdown]
# Not all of them *check* the same. XLA, LiteRT and ONNX have no assertions, so what the live model and the SavedModel
# refuse is computed there without a word. Times are from 0 to 1; which of them answer for a time of 500?

# %%
wrong = {**given["denoise"], "t": np.full(10, 500.0, "float32")}
for runtime, run in runtimes.items():
    try:
        run["denoise"](**wrong)
        print(f"{runtime:<14} answers, whatever that may mean")
    except (ValueError, tf.errors.InvalidArgumentError):
        print(f"{runtime:<14} refuses")

# %% [markdown]
# So check requests yourself where the runtime does not: the card has `minimum` and `maximum` of every input that has
# them.
#
# ### A sampler of your own
#
# `denoise` tells, of a noisy latent `x` at time `t`, which clean latent it expects. The card lists the `levels` of
# twenty steps: `x` is `alpha · clean + sigma · noise`. A step keeps the noise that `x` holds, and mixes it with the
# clean estimate anew, at the next, lower level:
#
# `x ← alpha' · clean + sigma' · (x − alpha · clean) / sigma`
#
# Guidance asks twice, with the label and with `no_label`, and goes on from the second answer beyond the first; one
# batch of twice the size holds both questions. This is all, and it is NumPy:

# %%
denoise_card = exported["signatures"]["denoise"]
levels = {name: np.array(values, "float32") for name, values in denoise_card["levels"].items()}


def draw(run, labels, noise, guidance_scale=1.5):
    t, alpha, sigma = levels["t"], levels["alpha"], levels["sigma"]
    both = np.concatenate([labels, np.full(len(labels), denoise_card["no_label"])]).astype("int32")
    x = noise
    for i in range(len(t) - 1):
        times = np.full(len(both), t[i])
        clean, unlabelled = np.split(run["denoise"](x=np.concatenate([x, x]), t=times, label=both)["clean"], 2)
        clean = unlabelled + guidance_scale * (clean - unlabelled)
        x = alpha[i + 1] * clean + sigma[i + 1] * (x - alpha[i] * clean) / sigma[i]
    return run["decode_latents"](latents=x)["image"]


# %% [markdown]
# Drawn in ONNX Runtime, or the last runtime that there is. This sampler is of first order, where `generate` and
# `sample` use DPM-Solver++ of second order, and its noise is NumPy's: so these are other digits than those of seed 7,
# of the same kind.

# %%
last = list(runtimes)[-1]
noise = rng.normal(size=(30, 7, 7, 4)).astype("float32")
drawn = draw(runtimes[last], list(range(10)) * 3, noise)
kv.plotting.image_grid(drawn, columns=10, column_labels=range(10), title=f"Drawn by {last}, by a sampler of ten lines")

# %% [markdown]
# ### Weights of 8 bits
#
# ONNX Runtime can store the matrices of the transformer as 8-bit integers and multiply in integers. One call does it,
# without data and without training; whether the model endures it has to be looked at. The decoder stays as it is: it
# is small.

# %%
if "ONNX Runtime" in runtimes:
    from onnxruntime.quantization import quantize_dynamic

    Path("int8").mkdir()
    logging.disable(logging.WARNING)  # it recommends a preparation that these files do not need
    quantize_dynamic("onnx/denoise.onnx", "int8/denoise.onnx")
    logging.disable(logging.NOTSET)
    runtimes["ONNX, 8 bits"] = {**runtimes["ONNX Runtime"], "denoise": onnx("denoise", "int8")}
    sizes = [Path(folder, "denoise.onnx").stat().st_size / 1e6 for folder in ("onnx", "int8")]
    clean = runtimes["ONNX, 8 bits"]["denoise"](**given["denoise"])["clean"]
    error = np.sqrt(np.mean((clean - expected["denoise"]["clean"]) ** 2) / np.var(expected["denoise"]["clean"]))
    print(f"{sizes[0]:.2f} MB -> {sizes[1]:.2f} MB, relative error of the clean estimate {100 * error:.1f} %")

# %% [markdown]
# Now the same noise through all of them, by the sampler above. Rows that look alike are what you hope for: with
# float32 a row can differ from another in few pixels, where two codes are nearly as near and rounding decides. The
# last row shows what 8 bits change.

# %%
rows = {runtime: draw(run, range(10), noise[:10]) for runtime, run in runtimes.items()}
for runtime, images in rows.items():
    changed = 100 * np.mean(np.abs(images - rows["Keras, eager"]) > 0.1)
    print(f"{runtime:<14} pixels that differ visibly from the eager model's (by more than 0.1): {changed:.2f} %")
kv.plotting.image_grid(rows, column_labels=range(10), title="One noise, one sampler, all runtimes")

# %% [markdown]
# ## 5. What it costs
#
# ### Latency
#
# How the time is taken matters more than the table. Each call gets its arrays and gives back arrays, as a server
# would. First calls compile and allocate, so they do not count (they come below). The runtimes take turns: each round
# times every one once, so that whatever else the machine does at that moment disturbs all of them, and the **median**
# of the rounds ignores the disturbed ones. In its turn a runtime is called twice, and the second call is timed: the
# first one gets its weights back into the cache, out of which the runtime before has pushed them.

# %%
ROUNDS, SAMPLE_ROUNDS = (1, 1) if FAST else (25, 5)


def latencies(calls, rounds, turns=2):
    """Median time of each of several functions without arguments, in ms: of the last of so many calls in a turn."""
    for call in calls.values():
        call()  # compiles, allocates
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(turns):
                begin = time.perf_counter()
                call()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: float(np.median(taken)) for name, taken in times.items()}


# %% [markdown]
# One example at a time, then 32. With 8 bits only `denoise` is another file. For `sample`, ten digits by twenty steps
# with guidance, Keras with XLA runs `generate` and the SavedModel its own `sample`; for the others the sampler of ten
# lines runs the loop. It is long enough to warm itself up.

# %%
ONE, MANY = 1, 32
table = {}
for count in (ONE, MANY):
    given = request(count)
    for name, arrays in given.items():
        chosen = [runtime for runtime in runtimes if name == "denoise" or "8 bits" not in runtime]
        calls = {runtime: lambda run=runtimes[runtime][name], arrays=arrays: run(**arrays) for runtime in chosen}
        table[f"{name}, {count}"] = latencies(calls, ROUNDS)

calls = {runtime: lambda run=run: draw(run, range(10), noise[:10]) for runtime, run in runtimes.items()}
calls["Keras, XLA"] = lambda: model.generate(labels=range(10), seed=7, jit_compile=True, verbose=0, **settings)
calls["SavedModel"] = lambda: draw_saved(np.arange(10))
table["sample"] = latencies(calls, SAMPLE_ROUNDS, turns=1)

# %% [markdown]
# The table:

# %%
lines = [
    f"Latency in ms, on {THREADS} of {os.cpu_count()} CPU cores ({platform.machine()}),",
    f"median of {ROUNDS} rounds, of `sample` {SAMPLE_ROUNDS}",
    "",
    "| runtime | " + " | ".join(table) + " |",
    "|---" * (1 + len(table)) + "|",
]
for runtime in runtimes:
    cells = (f"{column[runtime]:,.1f}" if runtime in column else "as above" for column in table.values())
    lines.append(f"| {runtime} | " + " | ".join(cells) + " |")
Markdown("\n".join(lines))

# %% [markdown]
# The same as bars. The axis is logarithmic, each thick line ten times as much as the one before, and has no zero: read
# the numbers rather than the lengths.

# %%
LATENCY = "latency (ms, logarithmic; less is better)"
kv.plotting.bars(
    {name: table[f"{name}, {ONE}"] for name in ("encode", "decode", "denoise")},
    xlabel=LATENCY,
    log=True,
    format="{:.3g}",
    title="One example at a time",
)

# %% [markdown]
# With many examples the runtimes move closer to each other:

# %%
kv.plotting.bars(
    {name: table[f"{name}, {MANY}"] for name in ("encode", "decode", "denoise")},
    xlabel=LATENCY,
    log=True,
    format="{:,.1f}",
    title=f"{MANY} examples at a time",
)

# %% [markdown]
# And the whole drawing, what a user waits for:

# %%
kv.plotting.bars(
    table["sample"], xlabel=LATENCY, log=True, format="{:,.0f}", title="Ten digits drawn in twenty steps, with guidance"
)

# %% [markdown]
# How to read this:
#
# - Read **ratios** within a column before milliseconds: whatever else runs on the machine, and which machine it is,
#   changes all of them, and their order far less.
# - **Eager** pays for Python at every operation, which a single example feels most. Do not serve a bare
#   `model.tokenizer.encode(x)`: wrap it in `tf.function` once, or export it.
# - For **one example** the fixed cost of a call counts: compare the runtimes at `encode` and `decode`, where little
#   is computed. LiteRT and ONNX Runtime were made to have little of it.
# - For **many** the arithmetic counts, and the compiled float32 runtimes come closer to each other: they all multiply
#   the same matrices.
# - **8 bits** concern `denoise` alone, and with it `sample`; the tokenizer runs in float32 as before.
#
# ### Size, cold start, memory
#
# A function in the cloud, or an app, pays for other things: how much has to be installed, how long it takes from an
# empty process to the first answer, and how much memory that process needs. Each way of running `denoise` gets a
# process of its own, with these lines:

# %%
LITERT = "from ai_edge_litert.interpreter import Interpreter" if HAS_LITERT else "import tensorflow as tf\n"
LITERT += "" if HAS_LITERT else "Interpreter = tf.lite.Interpreter"
SAVED = (
    "model = tf.saved_model.load('savedmodel')",
    "model.signatures['denoise'](**{name: tf.constant(value) for name, value in given.items()})",
)
LOAD = "session = onnxruntime.InferenceSession('{}/denoise.onnx')"
children = {  # imports, loading, the first answer
    "Keras, XLA": (
        "import keras_vqdit as kv, tensorflow as tf",
        "model = kv.LatentDiffusion.from_preset('my_digits')\n"
        "run = tf.function(model.endpoints()['denoise'].function, jit_compile=True, autograph=False)",
        "run(**{name: tf.constant(value) for name, value in given.items()})",
    ),
    "SavedModel": ("import tensorflow as tf", *SAVED),
    "SavedModel, Keras forbidden": ("import sys; sys.modules['keras'] = None; import tensorflow as tf", *SAVED),
    "LiteRT": (LITERT, "run = Interpreter('litert/denoise.tflite').get_signature_runner()", "run(**given)"),
    "ONNX Runtime": ("import onnxruntime", LOAD.format("onnx"), "session.run(['clean'], given)"),
    "ONNX, 8 bits": ("import onnxruntime", LOAD.format("int8"), "session.run(['clean'], given)"),
}

# %% [markdown]
# The peak of the memory is Linux's `VmHWM`; elsewhere the table shows 0.

# %%
TIMED = """
import os, time
begin = time.perf_counter()
{}
imported = time.perf_counter()
import numpy as np
given = dict(x=np.zeros((1, 7, 7, 4), "float32"), t=np.full(1, 0.5, "float32"), label=np.full(1, 7, "int32"))
{}
loaded = time.perf_counter()
{}
answered = time.perf_counter()
status = open("/proc/self/status").read() if os.path.exists("/proc/self/status") else "VmHWM: 0"
print(imported - begin, loaded - imported, answered - loaded, int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def cold_start(parts):
    """Seconds to import, to load and to the first answer, and peak memory in MiB, of a fresh process."""
    done = subprocess.run([sys.executable, "-c", TIMED.format(*parts)], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()[-4:]]


starts = {}
for _ in range(1 if FAST else 3):
    for runtime, parts in children.items():
        if runtime.removesuffix(", Keras forbidden") in runtimes and not (FAST and "Keras" in runtime):
            starts.setdefault(runtime, []).append(cold_start(parts))
starts = {runtime: np.median(taken, axis=0) for runtime, taken in starts.items()}

# %% [markdown]
# What has to be installed, without what that needs in turn (NumPy, above all), and the files of the model: of LiteRT
# and ONNX only `denoise` and `decode_latents`, which is what drawing needs.


# %%
def installed(*names):
    """Size of installed packages in MB."""
    files = [file.locate() for name in names for file in importlib.metadata.files(name) or ()]
    return sum(file.stat().st_size for file in files if file.exists()) / 1e6


def size(*paths):
    files = [file for path in map(Path, paths) for file in (path.rglob("*") if path.is_dir() else [path])]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


needs = {
    "Keras, XLA": (("tensorflow", "keras"), ("my_digits",)),
    "SavedModel": (("tensorflow", "keras"), ("savedmodel",)),
    "SavedModel, Keras forbidden": (("tensorflow",), ("savedmodel",)),
    "LiteRT": (
        ("ai-edge-litert" if HAS_LITERT else "tensorflow",),
        ("litert/denoise.tflite", "litert/decode_latents.tflite"),
    ),
    "ONNX Runtime": (("onnxruntime",), ("onnx/denoise.onnx", "onnx/decode_latents.onnx")),
    "ONNX, 8 bits": (("onnxruntime",), ("int8/denoise.onnx", "onnx/decode_latents.onnx")),
}

# %% [markdown]
# All of it in a table; the cold start is the sum of import, loading and the first answer.

# %%
costs = {
    runtime: {"files (MB)": size(*needs[runtime][1]), "runtime (MB)": installed(*needs[runtime][0])}
    | dict(zip(("import (s)", "load (s)", "first answer (s)", "memory (MiB)"), found, strict=True))
    for runtime, found in starts.items()
}
for cost in costs.values():
    cost["cold start (s)"] = cost["import (s)"] + cost["load (s)"] + cost["first answer (s)"]
columns = list(next(iter(costs.values())))
lines = ["| runtime | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
for runtime, cost in costs.items():
    whole = ("runtime (MB)", "memory (MiB)")
    cells = (f"{cost[column]:,.0f}" if column in whole else f"{cost[column]:,.2f}" for column in columns)
    lines.append(f"| {runtime} | " + " | ".join(cells) + " |")
Markdown("\n".join(lines))

# %% [markdown]
# The cold start as bars. Again the axis is logarithmic:

# %%
kv.plotting.bars(
    {runtime: 1000 * cost["cold start (s)"] for runtime, cost in costs.items()},
    xlabel="time to the first answer (ms, logarithmic)",
    log=True,
    format="{:,.0f}",
    title="Cold start: from an empty process to the first answer",
)

# %% [markdown]
# Importing TensorFlow takes seconds before any file is read, and a part of that is Keras, imported along. Who serves
# a SavedModel can forbid it, as above, and start sooner. XLA compiles at the first answer: that is the price of the
# program which the latency table shows afterwards. It is paid once by a server that stays up, and each time by a
# function that wakes up for one request.
#
# ## 6. Serving
#
# ### Batches
#
# Collect requests and answer them together? It pays as long as the time per example falls. One `denoise` at growing
# batch sizes:

# %%
sizes = (1, 8, 32) if FAST else (1, 2, 4, 8, 16, 32, 64)
fresh = xla("denoise")
first_calls, calls = [], {}
for count in sizes:
    arrays = request(count)["denoise"]
    begin = time.perf_counter()
    fresh(**arrays)
    first_calls.append(1e3 * (time.perf_counter() - begin))
    for runtime in list(runtimes)[1:]:  # all but eager
        run = fresh if runtime == "Keras, XLA" else runtimes[runtime]["denoise"]
        calls[runtime, count] = lambda run=run, arrays=arrays: run(**arrays)
taken = latencies(calls, 1 if FAST else 9)

# %% [markdown]
# The same divided by the number of examples:

# %%
kv.plotting.lines(
    {runtime: (sizes, [taken[runtime, count] / count for count in sizes]) for runtime in list(runtimes)[1:]},
    xlabel="batch size",
    ylabel="time per example (ms)",
    log_x=True,
    title="One evaluation of the network, by the size of the batch",
)

# %% [markdown]
# Where a curve has become flat, a larger batch only makes the first user wait for the last one. (On a GPU, measure
# again: it has far more to fill.)
#
# ### Fixed shapes for XLA
#
# XLA compiles a program for **each shape** it meets. The run above recorded the first call at each batch size; beside
# it are the later ones:

# %%
kv.plotting.bars(
    {
        f"batch of {count}": {"first call": first / 1000, "later calls": taken["Keras, XLA", count] / 1000}
        for count, first in zip(sizes, first_calls, strict=True)
        if count in (1, 8, 32)
    },
    xlabel="denoise, Keras with XLA (s, logarithmic)",
    log=True,
    format="{:.2g}",
    title="A new batch size is a new program",
)

# %% [markdown]
# So a server that compiles fixes a few sizes, and pads each request to the next one. Padding must not change an
# answer. Here it does not: what is drawn for an example depends on the seed and on the example's number, not on its
# neighbours. For the same reason a large drawing can be split: `seed=[7, 16]` goes on where sixteen digits of
# `seed=[7, 0]` end.

# %%
SIZES = (1, 4, 16)


def serve(labels, first=0):
    """Digits of seed 7 for any number of labels, drawn in batches of few sizes."""
    count = min(len(labels), SIZES[-1])
    padded = np.zeros(next(size for size in SIZES if size >= count), "int32")
    padded[:count] = labels[:count]
    images = draw_saved(padded, first)[:count]
    return np.concatenate([images, serve(labels[count:], first + count)]) if len(labels) > count else images


labels = np.arange(23) * 7 % 10
difference = np.abs(serve(labels) - draw_saved(labels)).max()
print(f"23 digits as 16 + 7 padded to 16, against one batch of 23: largest difference {difference:.1e}")

# %% [markdown]
# ### Warm-up
#
# `sample` of the SavedModel takes any size without compiling anew, so it needs no padding. But it, too, is slow once:
# TensorFlow optimises a graph when it is called for the first time. A server should draw something for nobody
# **before** it tells the load balancer that it is ready.

# %%
again = tf.saved_model.load("savedmodel")
for count in (1, 1, 4, 4, 16, 16):
    begin = time.perf_counter()
    given = {"labels": np.zeros(count, "int32"), "seed": [7, 0], "num_steps": 20, "guidance_scale": 1.5}
    again.signatures["sample"](**{name: tf.constant(value) for name, value in given.items()})
    print(f"batch of {count:>2}: {time.perf_counter() - begin:5.2f} s")

# %% [markdown]
# ### Threads
#
# All of the above ran with one thread. Do more help? If a call with all cores is not far faster, threads wait, for
# each other or for a core that somebody else has, and several workers with one thread each serve more requests.

# %%
if "ONNX Runtime" in runtimes:
    arrays = request(MANY)["denoise"]
    counts = sorted({1, os.cpu_count()})
    for count in counts:
        run = onnx("denoise", threads=count)
        spent = latencies({"denoise": lambda run=run: run(**arrays)}, ROUNDS)["denoise"]
        print(f"denoise of {MANY} in ONNX Runtime, {count} thread{'s' * (count > 1)}: {spent:.0f} ms")

# %% [markdown]
# ### What to pin, and what goes along
#
# The exported folder says itself what it was made with and what it is. Pin the **runtime** (`tensorflow`,
# `onnxruntime` or `ai-edge-litert`, to the version that you have measured), keep the **preset** from which everything
# can be exported again, and store a **request with its answer** beside the file: a new runtime that answers otherwise
# shows in a test rather than to a customer. The **licence** of the data and of the weights, and the **card**, are in
# `model_card.json`; ship the folder, not a file picked out of it.

# %%
shipped = json.loads(Path("savedmodel/model_card.json").read_text())
for key in ("description", "data", "licence", "intended use", "exported_with"):
    print(f"{key}: {shipped[key]}")

# %% [markdown]
# ## Everything at a glance
#
# The last figure puts all costs on one scale: each number is a multiple of the best in its column, so that 1 is the
# best and 10 is ten times as much. The columns that matter are those of *your* case.

# %%
aspects = {title: table[title] for title in table if title.startswith(("denoise", "sample"))}
rows = [runtime for runtime in costs if runtime in runtimes]
for title, key in (("files", "files (MB)"), ("installed", "runtime (MB)"), ("cold start", "cold start (s)")):
    aspects[title] = {runtime: cost[key] for runtime, cost in costs.items()}
if min(cost["memory (MiB)"] for cost in costs.values()) > 0:
    aspects["memory"] = {runtime: cost["memory (MiB)"] for runtime, cost in costs.items()}
values = np.array([[column[runtime] for column in aspects.values()] for runtime in rows])
kv.plotting.heatmap(
    values / values.min(axis=0),
    row_labels=rows,
    column_labels=list(aspects),
    format="{:.1f}",
    log=True,
    unit="multiple of the best",
    title="Cost as a multiple of the best",
)

# %% [markdown]
# ## Lessons learned
#
# - **Presets and `.keras` files are models, exports are programs.** Keep the first to go on, give away the second to
#   those who only run it.
# - **The export draws what the model draws.** The seed is an input, and a process without Keras makes the same digits
#   up to the last digit of float32.
# - **Files can be checked before they are believed**: checksums find accidents; lists of classes and sizes stop what
#   is not an accident. That holds for presets and `.keras` files, not for exported programs.
# - **Without TensorFlow you write the loop**, and it has ten lines: `denoise`, a mix, the next level.
# - **Measure in your own setting**: warmed up, in turns, the median, at your batch size and number of threads.
#   Latency, cold start and size need not have the same winner.
# - **Serve few shapes, warm them up, pin the runtime, keep the preset, and let licence and card go along.**
