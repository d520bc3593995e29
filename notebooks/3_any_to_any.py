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
# # Any to any: images, speech and text in one model
#
# One transformer that draws what you write, says what it sees, and writes down what it hears. None of these tasks has
# a network or a loss of its own: all of them are questions to **one** distribution. Here you
#
# - see the idea: the **codes** of all modalities as one sequence, **masked** at times of their own;
# - **train** a small model of images and captions in a minute or two, and measure what decides whether it learns;
# - give the preset `multimodal_digits` **every task**, with pictures, spectrograms and players for what it says;
# - **retrieve** by likelihoods, and see why the prior must be subtracted;
# - choose **guidance and temperature** by a measurement instead of by taste;
# - look at **attention** across modalities, and add a **modality of your own** to a trained model.
#
# You need `pip install -e ".[notebooks]" jupyterlab`. Ten short takes of real speech lie beside this notebook, in
# `speech/`; nothing is downloaded. It takes nine minutes on two CPU cores.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes on the machine

import keras
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Audio, Markdown, display
from keras import ops

import keras_vqdit as kv

FAST = os.environ.get("KERAS_VQDIT_FAST") == "1"  # only for the tests of this notebook: skip it when you read
keras.utils.set_random_seed(0)

train, test = kv.data.load("mnist_5k", batch_size=64)
images, labels = kv.recipes.to_arrays(test), kv.recipes.to_arrays(test, "label")
by_digit = np.stack([images[labels == digit][:20] for digit in range(10)], axis=1)  # (20, 10, 28, 28, 1)
kv.plotting.image_grid({f"image {i}": by_digit[i] for i in range(3)}, title="Real digits")

# %% [markdown]
# ## 1. The idea: one sequence, many masks
#
# A *tokenizer* turns an image, a sound or a text into a few integers, its **codes**, and back. (How such tokenizers
# are trained is the subject of [notebook 1](1_vector_quantization.ipynb).) The preset that we use from section 3 on
# brings three of them:

# %%
model = kv.MultimodalDiffusion.from_preset("multimodal_digits")
rows = [
    f"| {name} | `{type(model.tokenizers[name]).__name__}` | {shape} | {model.mask_codes[name]} |"
    for name, shape in model.code_shapes.items()
]
table = "| modality | tokenizer | codes of an example | codes to choose from |\n|---|---|---|---|\n"
Markdown(table + "\n".join(rows))

# %% [markdown]
# Once everything is integers, nothing distinguishes a pixel from a sound but the embedding table it is looked up in.
# The codes of all three become **one sequence** of 48 + 49 + 8 = 105 positions (the four residual codes of a moment
# of sound share a position), and one transformer attends over all of it.
#
# What should it learn? To **fill in what is masked**. At time $t$ each code is replaced by a mask with probability
# $t$: at $t = 0$ everything is there, at $t = 1$ nothing is. Here is one image on its way, as the network sees it:

# %%
tokenizer, mask = model.tokenizers["image"], model.mask_codes["image"]
times = np.linspace(0, 1, 6, dtype="float32")
seven = np.repeat(by_digit[2, 7:8], 6, axis=0)
codes = ops.convert_to_numpy(tokenizer.encode(seven))
noise = np.broadcast_to(np.random.default_rng(0).uniform(size=(1, 7, 7)), codes.shape)
process = kv.MaskedDiffusion("linear")  # others: "cosine", "quadratic"
noisy, masked, _ = (ops.convert_to_numpy(one) for one in process(codes, times, noise, mask_code=mask))

hidden = np.kron(masked, np.ones((4, 4)))[..., None] > 0  # a code stands for 4 x 4 pixels
kv.plotting.code_maps(
    np.where(masked, -1, codes),
    images=np.where(hidden, np.float32(0), seven),
    num_embeddings=mask,
    title="One image at the times 0, 0.2, 0.4, 0.6, 0.8 and 1: codes that are masked are blank",
)

# %% [markdown]
# The network predicts every masked code from those that are left, and pays the cross entropy. Averaged over the time
# with the right weight, that is a **bound of the likelihood**, in nats:
#
# $$
# -\log p(x) \;\le\; \mathbb{E}_{t \sim U(0, 1),\ \text{masks}}\; \frac{m'(t)}{m(t)}
# \sum_{i\ \text{masked}} -\log p_\theta(x_i \mid x_{\text{left}})
# $$
#
# with $m(t)$ the probability of a mask, here $m(t) = t$. It is the cost of filling in the codes one at a time in a
# random order. So the loss is no heuristic: it ranks models, and below it will rank candidates.
#
# The step to many modalities is small: **each has a time of its own**. A modality at $t = 0$ is a condition; one at
# $t = 1$ is ignored; those in between are learnt. Every pair of times is some task:
#
# | time of the text | time of the image | what the network learns |
# |---|---|---|
# | 0 | from 1 to 0 | text → image |
# | from 1 to 0 | 0 | image → text |
# | 1 | from 1 to 0 | images, whatever the caption |
# | from 1 to 0, together | from 1 to 0, together | both at once, so that they belong together |
# | 0 | half of the codes | infilling, with a caption |
#
# So one network holds every conditional, every marginal and the joint distribution. Ask the preset for the likeliest
# code of every mask above, first with nothing else known, then with a caption:

# %%
blank = {name: np.full((6, *shape), model.mask_codes[name]) for name, shape in model.code_shapes.items()}
caption = {"text": model.tokenizers["text"].encode(["a handwritten seven"] * 6)}
rows = {"what is left": np.where(hidden, np.float32(0), seven)}
for name, known in {"guessed": {}, "guessed, given\n“a handwritten seven”": caption}.items():
    logits = model.network({**blank, "image": noisy, **known})["image"]  # (6, 7, 7, 64)
    guesses = np.where(masked, np.argmax(logits, axis=-1), codes)
    rows[name] = ops.convert_to_numpy(tokenizer.decode(guesses))
kv.plotting.image_grid(
    rows, column_labels=times.round(1), xlabel="time of the image", title="All masks guessed at once"
)

# %% [markdown]
# With half of the codes left, the others follow from their neighbours. With less, the caption decides what it is. At
# the right end nothing is left: without a caption the guess is a blur of all digits, and even with one it is a
# smeared seven, for each position takes its own likeliest code without knowing what the others take. That is why a
# sampler goes in **steps**: it keeps the guesses that the network is surest of, and asks again.
#
# ## 2. Train one yourself
#
# A small one: images and English captions. We take the preset's image tokenizer, with 64 codes, and train the text
# tokenizer here: byte pairs, merged until nearly every word is one code.

# %%
templates = len(kv.data.captions_of(7))
captions = [kv.data.captions_of(digit) for digit in range(10)]  # ten lists of eight
text = kv.TextTokenizer.train(sum(captions, []), "bpe")
print(captions[7])
print(f"{text.code_shape[0]} codes at most:", text.encode(captions[7][:3]).tolist())

# %% [markdown]
# An *example* is an image with a caption of its digit. `to_paired_dataset` takes a bank of each, and draws a caption
# for every image anew in each epoch. We will train twice: with **one** caption a digit, and with all **eight**, and
# everything else the same. It should not matter much, should it?

# %%
codes = {"train": kv.data.encode_codes(train, tokenizer), "test": kv.data.encode_codes(test, tokenizer)}
banks = {part: (kv.recipes.to_arrays(one, "codes"), kv.recipes.to_arrays(one, "label")) for part, one in codes.items()}


def pairs(part, count, batch_size):
    """Batches of image codes and text codes, each image with one of `count` captions of its digit."""
    texts = text.encode([caption for several in captions for caption in several[:count]])
    image_codes, image_labels = banks[part]
    info = kv.data.DatasetInfo("captioned", size=None, batch_size=batch_size, shapes={}, shuffle=part == "train")
    return kv.data.to_paired_dataset(
        {"image": image_codes, "text": texts},
        {"image": image_labels, "text": np.repeat(np.arange(10), count)},
        info,
    )


# %% [markdown]
# The model is a `keras.Model` like any other. The choices:
#
# - *A small network*: 64 wide and 3 blocks deep is enough for 55 positions. Twice the width costs three times the
#   time.
# - *Pairs*: `pair_rate` has half of the examples train text given the whole image and nothing else, and three in ten
#   the image given the text. The rest has times of its own. Describing gets more, for it is the harder one: the
#   caption names the class, where the image has to be understood.
# - *Muon* (`kv.recipes.diffusion_optimizer`) with a short warm-up and a cosine.

# %%
SIZE = {"d_model": 32, "num_heads": 2, "num_layers": 1} if FAST else {"d_model": 64, "num_heads": 4, "num_layers": 3}
PAIRS = {"image": {"text": 0.5}, "text": {"image": 0.3}}


def fit(one, data, validation, epochs, learning_rate=1.5e-2):
    """Train, and return the curves."""
    data = data.take(2) if FAST else data
    rates = kv.recipes.learning_rate_schedule(data, epochs, learning_rate, longest_warmup=100)
    one.compile(kv.recipes.diffusion_optimizer(rates), run_eagerly=FAST)
    return one.fit(data, validation_data=validation, epochs=epochs, shuffle=False, verbose=0).history


small, curves = {}, {}
for count in (1,) if FAST else (1, templates):
    keras.utils.set_random_seed(0)
    name = f"{count} caption{'s' if count > 1 else ''} a digit"
    process = kv.MaskedDiffusion("linear", seed=0)
    tokenizers = {"image": tokenizer, "text": text}
    small[name] = kv.MultimodalDiffusion(tokenizers, **SIZE, process=process, pair_rate=PAIRS, hidden_rate=0.05, seed=0)
    curves[name] = fit(small[name], pairs("train", count, 64), pairs("test", count, 250), epochs=1 if FAST else 12)
kv.plotting.training_curves(curves, title="Training on 4,000 images: nats a code")

# %% [markdown]
# Validation is the bound, training is not: there the pairs count, too. In `loss` training is much lower, for codes
# that are given or hidden add nothing to the mean; the losses of images and of text, each over what it has to
# predict, lie close together. A network that knows nothing pays $\ln 64 = 4.2$ nats for a code of an image. The
# losses of *text* can not be compared between the rows, for eight captions are harder to foretell than one; nor do
# they tell whether the digit is right, which is one code of six. For that we need a judge: a small classifier of real
# images.

# %%
judge, accuracy = kv.metrics.train_classifier(
    *((part.take(4) if FAST else part) for part in kv.data.load("mnist_5k", batch_size=64)),
    num_classes=10,
    epochs=1 if FAST else None,
    jit_compile=False if FAST else "auto",
)
print(f"The judge recognises {100 * accuracy:.1f} % of 1,000 real digits that it has not seen")


def seen(drawn):
    """The digits that the judge sees in images."""
    return np.argmax(judge.predict(drawn, batch_size=250, verbose=0), axis=-1)


# %% [markdown]
# Text → image is judged by it. Image → text is judged by choosing among ten captions, one a digit, by their
# likelihood, for images that the transformer has not seen. Chance is 10 % for both.

# %%
rounds = 1 if FAST else 20
asked = [captions[digit][0] for digit in range(10)]  # "a handwritten zero" and so on, which both have seen
digits = np.tile(np.arange(10), rounds)
unseen = by_digit[:rounds].reshape(-1, 28, 28, 1)
found, drawn = {}, {}
for name, one in small.items():
    drawn[name] = kv.tasks.text_to_image(
        one,
        asked * max(1, rounds // 2),
        num_steps=2 if FAST else 16,
        guidance_scale=3,
        temperature=0.7,
        seed=0,
        verbose=0,
    )
    told = kv.tasks.classify(one, {"image": unseen}, asked, num_samples=1 if FAST else 4)
    found[name] = {
        "text to image": 100 * np.mean(seen(drawn[name]) == digits[: len(drawn[name])]),
        "image to text": 100 * np.mean(told == digits),
    }
kv.plotting.bars(
    found, xlabel="the right digit (%); chance is 10 %", format="{:.0f}", title="After 12 epochs of 4,000 images"
)

# %% [markdown]
# Both break down with eight wordings: drawing to a third, describing to a fifth, where chance is a tenth. The model
# has learnt what captions are like, and has hardly begun to connect them to images. We think that the reason is the
# signal. With one caption a digit, all codes but one are always the same, so whatever the loss still costs **is** the
# digit. With eight, the digit sits at several places, as a word or a numeral, among codes that are uncertain for
# reasons of their own: the gradient that says "look at the image" is drowned by the one that says "a caption that
# begins with *the* goes on with *digit*". The preset took 80 minutes and fifteen times the images to learn both, in
# three languages.
#
# So for a first model of your own: **few codes, few ways to say the same, pairs**. Here is what the better one draws.
# The digits are there, and the hand is shaky.

# %%
best = next(iter(small))
kv.plotting.image_grid(
    drawn[best][: 10 * min(3, rounds)],
    columns=10,
    column_labels=[one.replace(" ", "\n") for one in asked],
    title=f"Drawn by the small model ({best})",
)

# %% [markdown]
# ## 3. Every task
#
# From here on the preset, trained on 60,000 images of MNIST, 2,250 spoken digits and captions in three languages. Its
# card says how to draw, and with which result on *test* data:

# %%
DRAW = {**model.card["generate"], "seed": 0, "verbose": 0}
if FAST:
    DRAW["num_steps"] = 1
shares = {key: value for key, value in model.card["metrics"]["test"].items() if "_to_" in key}
print("It draws with", model.card["generate"])
kv.plotting.bars(
    {key.replace("_", " "): 100 * share for key, share in sorted(shares.items(), key=lambda item: -item[1])},
    xlabel="recognised as what was given (%), of 500 test examples",
    format="{:.1f}",
    title="What the model card says",
)

# %% [markdown]
# That is a measurement on unseen data, by classifiers of real images and real speech. Ours below is smaller, and in
# one respect easier: the embedded digits are among MNIST's *training* images, so the preset has seen them. The speech
# has not been seen: one take of each digit, from the takes that were kept for testing (though the voices are known).
#
# The sound tokenizer wants 6,144 samples, 0.77 s: a shorter take gets silence on both sides.


# %%
def read_take(digit):
    sound, rate = kv.data.read_wav(f"speech/{digit}.wav")
    sound = sound[:6144]
    before = (6144 - len(sound)) // 2
    sound = np.pad(sound, (before, 6144 - len(sound) - before))
    return (sound / np.abs(sound).max())[:, None]


takes = np.stack([read_take(digit) for digit in range(10)])  # (10, 6144, 1)
RATE = model.tokenizers["audio"].sample_rate
restored = model.decode("audio", ops.convert_to_numpy(model.tokenizers["audio"].encode(takes)))
kv.plotting.spectrograms(
    {"real take": takes, "from its codes": restored},
    RATE,
    columns=3,
    labels=["“zero”", "“one”", "“two”"],
    title="Speech, and what is left of it in 192 codes",
)

# %% [markdown]
# No drawn speech can sound better than the lower row: it is the tokenizer's limit, at 2,000 bits a second. Listen to
# the difference, a "three":

# %%
display(Markdown("real:"), Audio(takes[3, :, 0], rate=RATE), Markdown("from its codes:"))
display(Audio(restored[3, :, 0], rate=RATE))

# %% [markdown]
# ### Text → image
#
# Each task is one function of `kv.tasks`. All ten digits in three languages, with another wording for each language:

# %%
wordings = {"English": ("en", 0), "German": ("de", 1), "Chinese": ("zh", 2)}
written = {name: [kv.data.captions_of(d, code)[n] for d in range(10)] for name, (code, n) in wordings.items()}
drawn = {name: kv.tasks.text_to_image(model, texts, **DRAW) for name, texts in written.items()}
for name, texts in written.items():
    right = np.sum(seen(drawn[name]) == np.arange(10))
    print(f"{name}, such as “{texts[7]}”: the judge recognises {right} of 10")
kv.plotting.image_grid(drawn, column_labels=range(10), xlabel="digit that the caption names", title="Text → image")

# %% [markdown]
# The model has never been told that *sieben*, *seven* and *七* are the same. It knows because the images are.
#
# ### Text → speech

# %%
said = [written[name][digit] for digit, name in enumerate(("English", "German") * 5)]
spoken = kv.tasks.text_to_speech(model, said, **DRAW)
kv.plotting.spectrograms(spoken[:5], RATE, columns=5, labels=said[:5], title="Text → speech: the first five")

# %%
for digit in (3, 8):
    display(Markdown(f"“{said[digit]}”:"), Audio(spoken[digit, :, 0], rate=RATE))

# %% [markdown]
# A German caption gets English speech, for there is no other in the data: what is said is the *digit*.
#
# ### Speech → text
#
# The real takes first. Then, as a measurement, what the model itself hears in the speech that it has just made. That
# is no independent judge, but it is the one whose mistakes you can hear for yourself.


# %%
def heard(sounds):
    """The digits that the model writes down for sounds; None for none."""
    return [kv.data.digit_of(one) for one in kv.tasks.speech_to_text(model, sounds, **DRAW)]


def share(told, digits):
    return np.mean([one == digit for one, digit in zip(told, digits, strict=True)])


transcripts = kv.tasks.speech_to_text(model, takes, **DRAW)
for digit in range(10):
    print(f"take of {digit}: {transcripts[digit]}")
print(f"right in {share(map(kv.data.digit_of, transcripts), range(10)):.0%} of the real takes")
print(f"right in {share(heard(spoken), range(10)):.0%} of the speech drawn above")

# %% [markdown]
# The language of the caption is left to chance, as it should be: nothing in the sound tells it.
#
# ### Speech → image
#
# Five handwritten versions of each take. A seed is all that differs.

# %%
versions = 1 if FAST else 5
drawn = {f"seed {seed}": kv.tasks.speech_to_image(model, takes, **{**DRAW, "seed": seed}) for seed in range(versions)}
right = np.mean([seen(row) == np.arange(10) for row in drawn.values()])
kv.plotting.image_grid(
    drawn,
    column_labels=range(10),
    xlabel="digit that the take says",
    title=f"Speech → image: the judge recognises {right:.0%}",
)

# %% [markdown]
# ### Image → text

# %%
ten = by_digit[0]
described = kv.tasks.image_to_text(model, ten, **DRAW)
table = "\n".join(f"| {digit} | {one} |" for digit, one in enumerate(described))
right = share(map(kv.data.digit_of, described), range(10))
Markdown(f"| an image of | is described as |\n|---|---|\n{table}\n\nThe right digit: {right:.0%}")

# %% [markdown]
# ### Image → speech, direct and in words first
#
# Every modality that is drawn becomes a condition for the next one, so the model can be made to *think in words*:
# `through="text"` draws a caption of the image, then speech given image and caption. In a caption one code names the
# digit. In speech 192 codes have to agree on it, a dozen of which are drawn in each step, without knowing of one
# another. So it is decided more safely in words, for 16 more steps.

# %%
count = 1 if FAST else 4
several = by_digit[:count].reshape(-1, 28, 28, 1)
digits = np.tile(np.arange(10), count)
direct = kv.tasks.image_to_speech(model, several, **DRAW)
thought = kv.tasks.image_to_speech(model, several, through="text", **DRAW)
kv.plotting.bars(
    {"direct": 100 * share(heard(direct), digits), 'through="text"': 100 * share(heard(thought), digits)},
    xlabel=f"images whose digit the model hears in its own speech (% of {len(digits)})",
    format="{:.0f}",
    title="Image → speech",
)

# %%
display(Markdown("An image of 5, through a caption:"), Audio(thought[5, :, 0], rate=RATE))

# %% [markdown]
# ### All at once
#
# Nothing is given. The text is drawn first, then an image for it, then speech for both; the order is that of `want`,
# and from few codes to many is a good one.

# %%
joint = kv.tasks.sample_jointly(model, 10, want=["text", "image", "audio"], **DRAW)
named = [kv.data.digit_of(one) for one in joint["text"]]
agree = np.mean([a == b == c for a, b, c in zip(named, seen(joint["image"]), heard(joint["audio"]), strict=True)])
print(*joint["text"], sep="; ")
kv.plotting.image_grid(
    joint["image"],
    rows=1,
    column_labels=["?" if one is None else one for one in named],
    xlabel="digit that the text names",
    title=f"Drawn together: text, image and speech are the same digit in {agree:.0%}",
)

# %% [markdown]
# ### Infilling
#
# A part of an image is given, the rest is drawn: alone, in words first, or with a caption that *you* choose. A mask
# is `True` where to draw.

# %%
lower = np.repeat(np.arange(28)[:, None] >= 16, 28, axis=1)  # rows of four pixels are rows of codes
some = ten[[3, 5, 7, 9, 4, 0, 8]]
three = {"text": ["the digit 3"] * len(some)}
rows = {"real": some}
for name, region in {"lower": lower, "upper": ~lower}.items():
    rows[f"{name} part hidden"] = np.where(region[..., None], np.float32(0), some)
    rows[f"{name} part drawn"] = kv.tasks.infill_image(model, some, region, **DRAW)
    rows[f"{name} part drawn,\ngiven “the digit 3”"] = kv.tasks.infill_image(model, some, region, given=three, **DRAW)
kv.plotting.image_grid(rows, title="Infilling, without and with a caption")

# %% [markdown]
# The caption pulls where the strokes leave a choice, and the strokes win where they do not. How many images keep
# their digit? Alone; with `through="text"`, where the model chooses the caption by itself; and with the right
# caption.

# %%
several = by_digit[: 1 if FAST else 3].reshape(-1, 28, 28, 1)
digits = np.tile(np.arange(10), len(several) // 10)
kept = {}
for name, region in {"lower part drawn": lower, "upper part drawn": ~lower}.items():
    options = {"alone": {}, "in words first": {"through": "text"}}
    options["with the right caption"] = {"given": {"text": [captions[digit][1] for digit in digits]}}
    kept[name] = {
        how: 100 * np.mean(seen(kv.tasks.infill_image(model, several, region, **one, **DRAW)) == digits)
        for how, one in options.items()
    }
kv.plotting.bars(kept, xlabel="images that keep their digit (%)", format="{:.0f}", title="What infilling keeps")

# %% [markdown]
# The right caption makes up for most of what is hidden. One that the model makes up itself can only put into words
# what it makes of the rest: that settles the choice before the first code is drawn, but adds no knowledge.
#
# ### Completing text, and classifying
#
# A text is continued from where it ends; with an image or a sound beside it, it has to go with that. To classify is
# to ask for the likeliest of several texts, in whatever words you like.

# %%
begun = ["a handwritten", "the digit", "die Ziffer", "数字"]
alone = kv.tasks.complete_text(model, begun, **DRAW)
beside = kv.tasks.complete_text(model, begun, given={"image": ten[[4] * 4]}, **DRAW)
table = "\n".join(f"| {a} | {b} | {c} |" for a, b, c in zip(begun, alone, beside, strict=True))
Markdown(f"| begun | completed | completed beside an image of 4 |\n|---|---|---|\n{table}")

# %%
candidates = {language: [kv.data.captions_of(d, language)[1] for d in range(10)] for language in ("en", "de", "zh")}
samples = {"num_samples": 1 if FAST else 4}
digits = np.tile(np.arange(10), 1 if FAST else 4)
rows = {}
for texts in candidates.values():
    told = kv.tasks.classify(model, {"image": by_digit[: len(digits) // 10].reshape(-1, 28, 28, 1)}, texts, **samples)
    spoken_digits = kv.tasks.classify(model, {"audio": takes}, texts, **samples)
    rows[f"“{texts[7]}”" if texts[7].isascii() else "Chinese: digit 7"] = {
        "images": 100 * np.mean(told == digits),
        "takes": 100 * np.mean(spoken_digits == np.arange(10)),
    }
kv.plotting.bars(rows, xlabel="the right digit (%)", format="{:.0f}", title="Classification with candidates such as …")

# %% [markdown]
# ## 4. Retrieval, and why the prior is subtracted
#
# `kv.tasks.retrieve` ranks candidates for a query. `model.score` bounds $\log p(\text{candidate} \mid \text{query})$
# for every pair. But some candidates are likely whatever the query is: a plain image in a usual hand beats an unusual
# one for every caption. What the query says *for* a candidate is
#
# $$\log p(\text{candidate} \mid \text{query}) - \log p(\text{candidate}),$$
#
# the pointwise mutual information. Both bounds use the same times and masks, so that most of their noise cancels,
# too.

# %%
sets = 1 if FAST else 3
samples = {"num_samples": 1 if FAST else 8}


def score(given, want, number):
    """Scores (10, 10) of ten candidates for ten queries, one a digit, without and with the prior subtracted."""
    ten = {"image": by_digit[number], "audio": takes, "text": [captions[d][number + 1] for d in range(10)]}
    with_prior = model.score({given: ten[given]}, {want: ten[want]}, seed=number, **samples)
    prior = model.score({}, {want: ten[want]}, seed=number, **samples)
    return {"log p(candidate | query)": with_prior, "log p(candidate | query) − log p(candidate)": with_prior - prior}


directions = [("text", "image"), ("image", "text"), ("audio", "image"), ("text", "audio")]
scores = {
    (given, want): [score(given, want, number) for number in range(sets)]
    for given, want in (directions[:2] if FAST else directions)
}
axes = {"column_labels": range(10), "xlabel": "image of", "unit": "nats", "format": "{:.0f}"}
queries = [captions[digit][1] for digit in range(10)]
kv.plotting.heatmap(
    scores["text", "image"][0]["log p(candidate | query)"],
    row_labels=queries,
    **axes,
    title="log p(image | caption): the columns outshine the diagonal",
)

# %%
kv.plotting.heatmap(
    scores["text", "image"][0]["log p(candidate | query) − log p(candidate)"],
    row_labels=queries,
    **axes,
    title="log p(image | caption) − log p(image): the diagonal",
)

# %% [markdown]
# The same for speech as the query:

# %%
pair = ("text", "image") if FAST else ("audio", "image")
kv.plotting.heatmap(
    scores[pair][0]["log p(candidate | query) − log p(candidate)"],
    row_labels=[f"take of {digit}" for digit in range(10)],
    **axes,
    title="log p(image | speech) − log p(image)",
)

# %% [markdown]
# How often is the best candidate the right one (`recall_at_k` with $k = 1$; chance is 10 %)? The third bar is what
# the card has of test images and other takes, with the prior subtracted, but half as many masks (`num_samples`).

# %%
card = model.card["metrics"]["test"]["recall_at_1"]
recall = {}
for (given, want), several in scores.items():
    found = {name: 100 * np.mean([kv.metrics.recall_at_k(one[name], 1) for one in several]) for name in several[0]}
    recall[f"{given} → {want}"] = {**found, "model card": 100 * card[f"{given} -> {want}"]}
kv.plotting.bars(
    recall,
    xlabel=f"recall@1 (%), {sets} sets of ten candidates",
    format="{:.0f}",
    title="Retrieval: what subtracting the prior does",
)

# %% [markdown]
# Where the candidates are captions, all of them are about as likely as one another, and the prior hardly matters. For
# images it decides, and for speech it is everything: without it the same take wins for every caption. Speech is
# probably also where few masks cost most (ten takes for three sets are few, besides): its bound is a sum over 192
# codes, and the few nats that tell the digit stand against the hundreds that tell the voice.
#
# The mean of the diagonal looks like an estimate of the **mutual information** of two modalities. Is it? A digit of
# ten holds $\log_2 10 = 3.3$ bits, and there is nothing else to tell, so 3.3 bits is the most that any pair can
# share:

# %%
for (given, want), several in scores.items():
    nats = np.mean([np.diag(one["log p(candidate | query) − log p(candidate)"]) for one in several])
    print(f"{given} tells about {want}: {kv.metrics.bits_per_token(nats):.1f} bits")

# %% [markdown]
# Three of the four are more than there is to tell, and the two directions of images and text, which should be equal,
# are not: both terms are bounds, and their slack differs. The network is worse at images without a caption than with
# one, and what it loses there is counted as information. So use such differences to **rank**, where the slack of a
# query's candidates is much the same, and not as an amount.
#
# ## 5. Guidance and temperature
#
# **Guidance** draws from logits that are pushed away from what the network would say without the condition:
# $\ell = \ell_\varnothing + s\,(\ell_c - \ell_\varnothing)$, with $\ell_c$ the logits with the condition and
# $\ell_\varnothing$ those without; $s = 1$ is the model's own distribution. **Temperature** scales the randomness of
# each code. More of the one and less of the other buy fidelity and pay in variety, so measure both: fidelity by the
# judge, variety by the mean distance between images of the same digit, in percent of what it is between real ones.

# %%
guidances, temperatures = ((1, 3), (0.8,)) if FAST else ((1, 1.5, 3, 6), (0.2, 0.8, 1.4))
copies = 2 if FAST else 5


def variety(rows):
    """Mean distance between images of one digit, of images (copies, 10, H, W, C)."""
    flat = rows.reshape(len(rows), 10, -1)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1)  # (copies, copies, 10)
    return distances.sum(axis=(0, 1)).mean() / (len(rows) * (len(rows) - 1))


restored = model.decode("image", ops.convert_to_numpy(tokenizer.encode(by_digit.reshape(-1, 28, 28, 1))))
real = variety(restored.reshape(-1, 10, 28, 28, 1))
fidelity, diversity = np.zeros((2, len(guidances), len(temperatures)))
examples = {}
texts, digits = asked * copies, np.tile(np.arange(10), copies)
for i, guidance in enumerate(guidances):
    for j, temperature in enumerate(temperatures):
        options = {**DRAW, "guidance_scale": guidance, "temperature": temperature}
        drawn = kv.tasks.text_to_image(model, texts, **options)
        fidelity[i, j] = 100 * np.mean(seen(drawn) == digits)
        diversity[i, j] = 100 * variety(drawn.reshape(copies, 10, 28, 28, 1)) / real
        examples[guidance, temperature] = drawn
axes = {"row_labels": guidances, "column_labels": temperatures, "xlabel": "temperature", "ylabel": "guidance"}
kv.plotting.heatmap(
    fidelity, **axes, unit="recognised (%)", format="{:.0f}", title="Fidelity: the digit that was asked for"
)

# %%
kv.plotting.heatmap(
    diversity,
    **axes,
    unit="% of the variety of real images",
    format="{:.0f}",
    title="Variety among images of one digit",
)

# %% [markdown]
# The same captions in two opposite corners, hot without guidance, and cold with much of it:

# %%
corners = [(guidances[0], temperatures[-1]), (guidances[-1], temperatures[0])]
kv.plotting.image_grid(
    np.concatenate([examples[corner][:20] for corner in corners]),
    columns=10,
    row_labels=[f"guidance {s}, temperature {t}" for s, t in corners for _ in range(2)],
    column_labels=range(10),
    xlabel="digit that was asked for",
    title="Two corners of the maps",
)

# %% [markdown]
# Read the two maps together, and take the setting with the most variety among those that are recognised as often as
# you need: if all have to be right, 3 and 1.4 here; if 98 % will do, 1.5 and 1.4. (The 3 and 0.8 of the card are for
# all tasks; these maps say nothing of speech.) A cooler temperature or a little guidance buys nearly all of the
# fidelity; cold and a guidance of 3 cost variety and buy little. Cold does not end in ten clichés here, because the
# confidence sampler has a second source of chance: the order in which the codes are filled in (`noise`). With 50
# images a cell, two percent is one image, so do not read more out of neighbours. (The variety of real images is
# measured after the tokenizer, for no drawn image can differ in what the codes leave out.)
#
# ## 6. Where does an image look?
#
# `attention_scores` of the network gives the weights of every block, over the one sequence of all positions. We draw
# an image from nothing, so all of its codes are masked, and ask how the attention of its 49 positions is shared out
# among the modalities, layer by layer: given a caption, given speech, and given both.

# %%
known = {
    "text": model.tokenizers["text"].encode(asked),
    "audio": ops.convert_to_numpy(model.tokenizers["audio"].encode(takes)),
}
blank = {name: np.full((10, *shape), model.mask_codes[name]) for name, shape in model.code_shapes.items()}
grids = model.transformer.modalities  # in the order of the sequence
lengths = [int(np.prod(one["shape"][:-1] if one["num_levels"] else one["shape"])) for one in grids.values()]
ends = np.cumsum(lengths)
places = {name: np.arange(end - length, end) for name, end, length in zip(grids, ends, lengths, strict=True)}


def looks(**given):
    """Attention of the masked image's positions: (layers, N), the mean over examples, heads and positions."""
    scores = ops.convert_to_numpy(model.network.attention_scores({**blank, **given}))  # (layers, B, heads, N, N)
    return scores[:, :, :, places["image"]].mean(axis=(1, 2, 3))


panels = {}
for title, names in {"given a caption": ["text"], "given speech": ["audio"], "given both": ["text", "audio"]}.items():
    weights = looks(**{name: known[name] for name in names})
    panels[title] = {
        f"at {'speech' if name == 'audio' else name}": 100 * weights[:, where].sum(axis=1)
        for name, where in places.items()
    }
kv.plotting.lines(
    panels, xlabel="layer", ylabel="share of the attention (%)", title="Where the positions of a masked image look"
)

# %%
evenly = {name: f"{100 * length / sum(lengths):.0f} %" for name, length in zip(grids, lengths, strict=True)}
print("Attention that looks everywhere alike:", evenly)

# %% [markdown]
# The condition is read **early**. In the first layer the eight codes of a caption get several times the share of
# their number, and from the second on next to nothing. Masked positions are looked at, too, for a mask is a code like
# any other: so the left panel, where speech is masked, is the control of the middle one. What speech gets beyond that
# it gets in the first layer, and a little in the third. The upper layers look at the image alone. There the image's
# own masks pass on what they have read, and agree on strokes.
#
# And *which* of the eight codes? The first layer, a row for each head:

# %%
scores = ops.convert_to_numpy(model.network.attention_scores({**blank, "text": known["text"]}))[0]  # (B, heads, N, N)
weights = scores[:, :, places["image"]].mean(axis=(0, 2))[:, places["text"]]  # (heads, 8)
kv.plotting.heatmap(
    100 * weights,
    row_labels=[f"head {i + 1}" for i in range(len(weights))],
    column_labels=["a", "hand…", "seven …", *["end"] * 5],
    xlabel="code of the caption, “a handwritten seven” and its like",
    unit="share of the attention (%)",
    format="{:.1f}",
    title="Where in the caption a masked image looks, in layer 1",
)

# %% [markdown]
# At the digit, as it should, for the other codes are the same for all ten; and one head does nearly all of it.
#
# ## 7. A modality of your own
#
# What `MultimodalDiffusion` asks of a tokenizer: `encode` gives int32 codes `(B, *code_shape)` below
# `num_embeddings`, `decode` takes them. That is all. Here is one for a *number*: the **ink** of an image, its mean
# pixel, in eight bins that are equally frequent. A Keras layer takes floats in [-1, 1].


# %%
@keras.saving.register_keras_serializable("notebook")
class InkTokenizer(keras.layers.Layer):
    modality, num_embeddings, code_shape = "ink", 8, (1,)

    def __init__(self, edges, **kwargs):  # nine numbers: the borders of the bins
        super().__init__(**kwargs)
        self.edges, self.built = [float(edge) for edge in edges], True

    def encode(self, x):  # (B, 1) floats -> (B, 1) codes
        return ops.sum(ops.cast(x[..., None] > np.float32(self.edges[1:-1]), "int32"), axis=-1)

    def decode(self, codes):
        return ops.take(np.float32(np.add(self.edges[1:], self.edges[:-1]) / 2), codes)

    def get_config(self):
        return {**super().get_config(), "edges": self.edges}


# %% [markdown]
# To add it to the small model of section 2, make a model of three modalities, and take over the layers that both
# have: a transformer does not mind a longer sequence. (`reset_average` starts the moving average, which `generate`
# uses, from these weights.) What is new is one embedding and one output. Then train a little more, with the weight on
# the images: text and ink are one code that matters each, and would otherwise have as much to say as 49.

# %%
data = {part: kv.recipes.to_arrays(one.in_order()) for part, one in {"train": train, "test": test}.items()}
ink = {part: one.mean(axis=(1, 2, 3))[:, None] for part, one in data.items()}  # (N, 1)
inked = {}
for part, (image_codes, image_labels) in banks.items():
    texts = text.encode([captions[digit][0] for digit in image_labels])
    inked[part] = {"image": image_codes, "text": texts, "ink": ink[part][: len(image_codes)]}

old = small[best].network
three = kv.MultimodalDiffusion(
    {"image": tokenizer, "text": text, "ink": InkTokenizer(np.quantile(ink["train"], np.linspace(0, 1, 9)))},
    **SIZE,
    process=kv.MaskedDiffusion("linear", seed=0),
    weights={"image": 1.0, "text": 0.1, "ink": 0.1},
    seed=0,
)
for layer in three.transformer.layers:
    if layer.name in {one.name for one in old.layers}:
        layer.set_weights(old.get_layer(layer.name).get_weights())
three.reset_average()

# %%
epochs = 1 if FAST else 8
examples = {name: one[:128] for name, one in inked["train"].items()} if FAST else inked["train"]
rates = keras.optimizers.schedules.CosineDecay(1e-2, epochs * (len(examples["image"]) // 64))
three.compile(kv.recipes.diffusion_optimizer(rates), run_eagerly=FAST)
history = three.fit(examples, validation_data=inked["test"], batch_size=64, epochs=epochs, verbose=0)
bound = three.evaluate(inked["test"], batch_size=250, verbose=0, return_dict=True)
print({name: f"{value:.2f} nats a code" for name, value in bound.items()})

# %% [markdown]
# Now there are tasks that nobody has written a function for; `generate` takes any modalities on either side. Draw
# each digit with four amounts of ink, and measure the ink of what was drawn.

# %%
amounts = np.quantile(ink["train"], [0.06, 0.35, 0.65, 0.94]).astype("float32")
given = {"text": asked * 4, "ink": np.repeat(amounts, 10)[:, None]}
options = {"num_steps": 2 if FAST else 16, "guidance_scale": 3, "temperature": 0.5, "seed": 0, "verbose": 0}
drawn = three.generate(given, ["image"], **options)["image"]
got = drawn.mean(axis=(1, 2, 3)).reshape(4, 10).mean(axis=1)
right = np.mean(seen(drawn) == np.tile(np.arange(10), 4))
kv.plotting.image_grid(
    drawn,
    columns=10,
    row_labels=[f"asked for {one:.2f},\ngot {mean:.2f}" for one, mean in zip(amounts, got, strict=True)],
    column_labels=range(10),
    xlabel="digit that the caption names",
    ylabel="mean pixel, from −1 to 1",
    title=f"A caption and an amount of ink → image; {right:.0%} recognised",
)

# %% [markdown]
# The amount is followed roughly; the two lightest rows come out alike, and blobs among the darkest count as
# recognised, for the judge has to call them something. And the way back: how much ink does an image have, as the
# model says, given its codes alone?

# %%
guess = three.generate({"image": inked["test"]["image"][::20]}, ["ink"], **options)["ink"]
correlation = np.corrcoef(guess[:, 0], ink["test"][::20, 0])[0, 1]
print(f"Ink of {len(guess)} test images, as the model tells it: correlation with the truth {correlation:.2f}")

# %% [markdown]
# ## 8. Once around
#
# Caption → image → speech → caption. At each station only the last thing made is known, nothing of what came before;
# on the way from image to speech, the model says in words what it sees.

# %%
begin = [written[("English", "German")[digit % 3 == 1]][digit] for digit in range(10)]
painted = kv.tasks.text_to_image(model, begin, **DRAW)
voiced = kv.tasks.image_to_speech(model, painted, through="text", **DRAW)
ended = kv.tasks.speech_to_text(model, voiced, **DRAW)
for start, end in zip(begin, ended, strict=True):
    print(f"{start} → image → speech → {end}")
print(f"The same digit as at the start: {share(map(kv.data.digit_of, ended), range(10)):.0%}")
display(Audio(voiced[4, :, 0], rate=RATE))

# %% [markdown]
# Three of them as pictures: two that came back, and one that was lost on the way.

# %%
levels = ops.convert_to_numpy(kv.layers.LogSpectrogram(256, 32)(voiced))  # (10, time, frequency)
decibels = (levels - 1) * 40 / np.log(10)  # the layer gives half the natural logarithm, plus 1
extent, limits = (0, voiced.shape[1] / RATE, 0, RATE / 2000), {"vmin": decibels.min(), "vmax": decibels.max()}
shown = [4, 5, 7]
figure, axes = plt.subplots(len(shown), 4, figsize=(9, 5.6), width_ratios=[0.9, 1, 2.2, 0.9], layout="constrained")
for row, digit in zip(axes, shown, strict=True):
    end = ended[digit] if max(ended[digit], default="") < "一" else f"(in Chinese)\n{kv.data.digit_of(ended[digit])}"
    for axis, words in ((row[0], begin[digit]), (row[3], end)):
        axis.text(0.5, 0.5, words.replace(" ", "\n"), ha="center", va="center", fontsize=13)
        axis.set_axis_off()
    row[1].imshow(painted[digit, :, :, 0], cmap="gray")
    row[1].set(xticks=[], yticks=[])
    drawn = row[2].imshow(decibels[digit].T, cmap="cividis", origin="lower", aspect="auto", extent=extent, **limits)
    row[2].set(ylabel="frequency (kHz)", xlabel="time (s)" if digit == shown[-1] else None)
for axis, title in zip(axes[0], ("caption", "→ image", "→ speech", "→ caption"), strict=True):
    axis.set_title(title)
figure.colorbar(drawn, ax=axes[:, 2], label="level (dB)", shrink=0.6)
figure.suptitle("Once around: each station knows nothing but the one before", fontsize=14)
plt.show()

# %% [markdown]
# ## Lessons learned
#
# - **One objective, every task.** Codes of all modalities in one sequence, masked at times of their own:
#   conditionals, marginals and the joint distribution come out of the same training, and new questions need no new
#   model.
# - **What is hard is to look at the condition.** With one wording a digit, twelve epochs teach drawing and much of
#   describing; with eight, little of either. Few codes, few wordings and `pair_rate` decide what a small budget buys.
# - **Think in words.** From image to speech, a detour through eight codes of text beats the direct way to 192 codes:
#   `through="text"`.
# - **Rank by what the query adds.** Without subtracting the prior, retrieval of images and speech ranks plainness.
# - **Guidance and temperature buy fidelity with variety**, up to a point. Draw the two maps for your model before you
#   choose; the card is the place to write the choice down.
# - **Judge by something else than the model**: a classifier of real images is trained in half a minute. Where there
#   is none, going round (caption → image → speech → caption) finds what is broken, but not what is broken
#   consistently.
# - **A new modality is a tokenizer of ten lines**, and can be added to a trained model.
