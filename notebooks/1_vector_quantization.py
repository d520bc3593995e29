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
# # Vector quantization: images as a few integers
#
# A *tokenizer* turns an image into a small grid of integers, its **codes**, and back. Everything else in this package is built on
# top of that: a transformer that draws codes draws images, and with other tokenizers sound and text. Here you
#
# - go from an **autoencoder** to a **VAE** to a **VQ-VAE** on the same network, and see what each gives up and gains;
# - watch a codebook **collapse**, and measure one by one what cures it: moving averages, a k-means start, restarts of dead codes,
#   the rotation trick;
# - **look inside**: code maps, the usage of the codebook, its shape in the plane;
# - choose the **size of the codebook** by a curve rather than by habit.
#
# You need `pip install -e ".[notebooks]" jupyterlab`: the data are 5,000 digits of MNIST that come with a package. Everything runs
# on two CPU cores in five minutes.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes on the machine

import keras
import numpy as np
from IPython.display import Markdown

import keras_vqdit as kv

FAST = os.environ.get("KERAS_VQDIT_FAST") == "1"  # only for the tests of this notebook: skip it when you read
EPOCHS = 1 if FAST else 8

train, test = kv.data.load("mnist_5k", batch_size=64)
images = kv.recipes.to_arrays(test)  # float32 (1000, 28, 28, 1) in [-1, 1]
if FAST:
    train, test = train.take(12), test.take(12)

kv.plotting.image_grid(images[:20], rows=2, title="Digits that no model below is trained on")

# %% [markdown]
# ## An autoencoder: everything through a bottleneck
#
# The encoder makes 7 × 7 positions of 4 numbers out of 28 × 28 pixels; the decoder makes pixels out of them. A position sees a
# neighbourhood of a few strokes, and stands for a patch of 4 × 4 pixels. Nothing but the squared error trains the two.
#
# The network is small on purpose: most of its work is done at 7 × 7, where a channel is cheap, so that a dozen trainings fit into
# this notebook. All models below have exactly this encoder and decoder.

# %%
SHAPE, DIM = (28, 28, 1), 4
NETWORK = {"filters": (16, 32), "kernel_sizes": (4, None), "num_residual_blocks": (0, 2)}


def new_encoder(channels=DIM):
    return kv.models.build_encoder(SHAPE, channels, **NETWORK)


def new_decoder():
    return kv.models.build_decoder(SHAPE, DIM, **NETWORK)


def fit(model):
    """The same budget for all: the same data, the same number of steps, the same optimizer."""
    model.compile(keras.optimizers.Adam(2e-3), jit_compile=not FAST)
    return model.fit(train, validation_data=test, epochs=EPOCHS, shuffle=False, verbose=0).history


def psnr(restored):
    return float(10 * np.log10(4 / np.mean((np.asarray(restored) - images) ** 2)))  # dB, of a range of 2


# %% [markdown]
# A plain autoencoder is ordinary Keras: two models in a row. It wants pairs of input and target, so the data set of dicts is
# mapped.

# %%
keras.utils.set_random_seed(0)
autoencoder = keras.Sequential([new_encoder(), new_decoder()])
autoencoder.compile(keras.optimizers.Adam(2e-3), loss="mse", jit_compile=not FAST)
pairs = train.map(lambda batch: (batch["image"], batch["image"]))
autoencoder.fit(pairs, epochs=EPOCHS, shuffle=False, verbose=0)

restored = autoencoder.predict(images, verbose=0)
kv.plotting.reconstructions(images, restored, title="Autoencoder: 196 real numbers an image")

# %% [markdown]
# Quality is told as the peak signal-to-noise ratio, PSNR: the mean squared error on a logarithmic scale, where half the error is 3
# dB more. The bottom row tells where it errs: along the edges of strokes, where a fraction of a pixel decides. That pattern will
# stay with us, as it does not come from the code but from the squared error, which prefers a soft edge to one in the wrong place.
#
# 196 real numbers are a lot, though: in float32 more than 6,000 bits, for an image that PNG packs into about 2,000. And nothing has
# told the encoder *where* in the space of latents it may put images, so nobody knows where to draw new ones from.
#
# ## A VAE: a known distribution, paid for in bits
#
# A variational autoencoder encodes an image as a Gaussian at each position and is charged the Kullback-Leibler divergence
# $\mathrm{KL}(q(z|x) \,\|\, \mathcal N(0, 1))$: the nats it costs to say $z$ to somebody who expects standard normal noise. So the
# divergence *is* a number of bits, and the weight in the loss sets the exchange rate between bits and errors. With a Gaussian
# observation of standard deviation $s$, $-\log p(x|z) = D \cdot \mathrm{MSE} / (2 s^2) + \mathrm{const}$ for $D$ values. Times
# $2 s^2 / D$, the bound on the likelihood is the mean squared error plus the divergence at a weight of $2 s^2 / D$. We believe in
# errors of about $s = 0.15$ of a range of 2, so

# %%
weight = 2 * 0.15**2 / np.prod(SHAPE)
keras.utils.set_random_seed(0)
vae = kv.VAE(new_encoder(2 * DIM), new_decoder(), latent_dim=DIM, kl_weight=weight, seed=0)
vae_history = fit(vae)
nats = vae(images)[1]
vae_bits = float(np.mean(nats)) / np.log(2)
noisy, mean = psnr(vae(images, training=True)[0]), psnr(vae(images)[0])
print(
    f"weight {weight:.1e}: {vae_bits:.0f} bits an image; {noisy:.1f} dB from drawn latents, {mean:.1f} dB from their mean"
)

# %% [markdown]
# The bits pay for *drawn* latents, so the first of the two qualities is the one that belongs to them. And mind what they are:
# nobody can write these bits into a file without a trick (bits-back coding). They are a bound, not a format.
#
# ## A VQ-VAE: integers
#
# Vector quantization replaces each latent $z$ by the nearest of $K$ vectors $e_1, …, e_K$, the **codebook**, and keeps the number
# of it. An image is then 49 integers, at most $49 \log_2 K$ bits. What it takes:
#
# 1. *Lookup.* $k = \arg\min_j \|z - e_j\|^2$, ties to the lowest.
# 2. *A gradient past the lookup*, which has none. The straight-through estimator pretends that it was not there; the **rotation
#    trick** (the default here) makes $e_k$ out of $z$ by a rotation and a scaling, held constant. The gradient goes back by the
#    transpose of both: it keeps its angle to the code, so that different latents of one cell get different gradients.
# 3. *Codes that follow the latents*: by gradient, or by moving averages of the latents that chose them (the default).
# 4. *A commitment loss* $\beta \|z - \mathrm{sg}[e_k]\|^2$, so that latents do not wander off faster than codes follow.
#    $\mathrm{sg}[\cdot]$ passes a value on and no gradient; $\beta = 0.25$. Its mean is the `quantization_loss` of the logs.
#
# The layer is `kv.VectorQuantizer`, and `kv.VQVAE` puts it between encoder and decoder.


# %%
def new_vqvae(num_embeddings=256, **options):
    keras.utils.set_random_seed(0)
    quantizer = kv.VectorQuantizer(num_embeddings, DIM, seed=0, **options)
    return kv.VQVAE(new_encoder(), new_decoder(), num_embeddings, DIM, quantizer=quantizer)


vqvae = new_vqvae()
vqvae_history = fit(vqvae)
kv.plotting.training_curves(vqvae_history, title="VQ-VAE with 256 codes")

# %% [markdown]
# `codebook_usage` and `perplexity` are counted over the whole epoch, not over its last batch. The perplexity is the number of codes
# that would give the same entropy if all were equally frequent: the number of codes that *count*.
#
# First, is it what we said? The lookup of one batch by hand, in NumPy:

# %%
z = np.asarray(vqvae.encoder(images[:100]), "float64")  # (100, 7, 7, 4)
codebook = np.asarray(vqvae.vq.codebook, "float64")  # (256, 4)
distances = ((z[..., None, :] - codebook) ** 2).sum(axis=-1)  # (100, 7, 7, 256)
by_hand = distances.argmin(axis=-1)
codes = np.asarray(vqvae.encode(images[:100]))
print(f"codes {codes.shape} {codes.dtype}, the same by hand: {np.mean(codes == by_hand):.2%}")
print(codes[0])

# %% [markdown]
# And the three side by side. The VQ-VAE's bits are counted twice: with a fixed length for each code, and by the entropy of their
# frequencies, which a compressor could reach.

# %%
measured = kv.recipes.measure_tokenizer(vqvae, kv.data.load("mnist_5k", batch_size=250)[1])
rows = [
    ("autoencoder", "196 floats", f"{196 * 32:,}", psnr(restored)),
    ("VAE", "196 floats, drawn", f"{vae_bits:,.0f}", noisy),
    (
        "VQ-VAE",
        "49 codes of 256",
        f"{49 * 8:,}; {49 * np.log2(measured['perplexity']):,.0f} by entropy",
        measured["psnr"],
    ),
]
table = "| model | latents | bits an image | PSNR (dB) |\n|---|---|---|---|\n"
Markdown(table + "\n".join(f"| {name} | {what} | {bits} | {quality:.1f} |" for name, what, bits, quality in rows))

# %% [markdown]
# Most of what the autoencoder stores is of no use to its decoder: an order of magnitude fewer bits cost a decibel or two. The VAE
# is a strong compressor, too; what the VQ-VAE has over it is that its bits are *there*: integers in a file, classes for a softmax.
#
# Can any of them *draw*? Sample the latents from what each model knows of them: a Gaussian of the right variance for the
# autoencoder, the prior for the VAE, codes by their frequency for the VQ-VAE.

# %%
rng = np.random.default_rng(0)
latents = autoencoder.layers[0].predict(images, verbose=0)
noise = latents.mean(axis=0) + latents.std(axis=0) * rng.normal(size=(10, *latents.shape[1:]))
share = measured["counts"] / measured["counts"].sum()
draws = {
    "autoencoder": autoencoder.layers[1].predict(noise.astype("float32"), verbose=0),
    "VAE": np.asarray(vae.generate(10, seed=0)),
    "VQ-VAE": np.asarray(vqvae.decode(rng.choice(256, (10, 7, 7), p=share).astype("int32"))),
}
kv.plotting.image_grid(draws, title="Latents drawn position by position: strokes, but no digits")

# %% [markdown]
# None of them, and none should. Each position is drawn without a look at the others, so you get pieces of strokes that do not join.
# What is missing is a model of how the 49 positions belong **together**, and that is a job for a transformer. The next notebook
# does it with the latents before they are rounded, the third with the codes themselves. For such a model it matters a great deal
# *what* it has to predict. A code is one of $K$ classes, with a softmax that can say "one of these two"; and the codes have thrown
# away what the eye would not miss.
#
# ## Collapse, and what cures it
#
# The published recipe trains the codebook by gradient from a random start. Codes that are nobody's nearest get no gradient, so they
# never move, so they stay nobody's nearest. Meanwhile the encoder learns to live with the few that are. We take the cures one at a
# time, each on top of the one before, all on the same budget:
#
# | | what changes | why it should help |
# |---|---|---|
# | as published | gradient, straight-through, random start | |
# | + moving averages | a code *is* the mean of the latents that chose it | moves at its own pace, without a learning rate |
# | + k-means start | codes start at the centres of the first batch's latents | a random start is far from where latents are |
# | + restarts | a code that hardly anybody chooses is drawn anew from the batch | the encoder moves on; codes are left behind |
# | + rotation | the gradient is turned from code to latent | latents of one cell get different gradients |

# %%
plain = {"codebook": "gradient", "gradient": "straight_through", "kmeans_init": False, "restart_threshold": None}
recipes = {
    "as published": plain,
    "+ moving averages": {**plain, "codebook": "ema"},
    "+ k-means start": {"gradient": "straight_through", "restart_threshold": None},
    "+ restarts": {"gradient": "straight_through"},
    "+ rotation": {},  # the defaults
}
if FAST:
    recipes = {name: recipes[name] for name in ("as published", "+ rotation")}

K = 512
cures, models = {}, {}
for name, options in recipes.items():
    models[name] = new_vqvae(K, **options)
    cures[name] = fit(models[name])
kv.plotting.lines(
    {
        "Codes that count": {name: history["val_perplexity"] for name, history in cures.items()},
        "Quality": {name: -10 * np.log10(np.array(h["val_reconstruction_loss"]) / 4) for name, h in cures.items()},
    },
    xlabel="epoch",
    ylabel=["perplexity on test images (codes)", "PSNR on test images (dB)"],
    title=f"A codebook of {K}, with one cure after the other",
)

# %% [markdown]
# The left panel is the disease: of 512 codes some dozens count, until restarts bring the dead ones back. The right panel is what it
# costs, which is less than you may fear, and the reason why a collapse goes unnoticed: the encoder learns to live with what it has.
# Rotation is the exception among the cures: with it more codes count here, at a cost of 0.2 dB, on one seed and a small budget. It
# is the package's default for the sake of the first; measure it on your own data.
#
# To see *how* the codes are used, rank them by frequency. A healthy codebook falls off gently; in a collapsed one ten codes have
# most of the positions, the others ever fewer, and at the end come those that nobody chose.

# %%
whole_test = kv.data.load("mnist_5k", batch_size=250)[1]
results = {name: kv.recipes.measure_tokenizer(model, whole_test) for name, model in models.items()}
first, last = list(results)[0], list(results)[-1]
kv.plotting.codebook_usage(results[first]["counts"], title=first.capitalize())

# %%
kv.plotting.codebook_usage(results[last]["counts"], title="With all cures")

# %% [markdown]
# Where do the dead codes lie? In the plane of the latents' two largest principal components, grey dots are latents of 300 test
# images, and crosses are codes that none of the 1,000 chose. They sit in the middle of the latents, where there are none: there
# they started, and there they stay.

# %%


def projection(name, title):
    model = models[name]
    latents = np.asarray(model.encoder(images[:300])).reshape(-1, DIM)
    return kv.plotting.codebook_projection(
        model.vq.codebook, counts=results[name]["counts"], vectors=latents, title=title
    )


projection(first, "As published")

# %%
projection(last, "With all cures")

# %% [markdown]
# ## Reading the codes
#
# A code is a small piece of stroke. The map below each digit shows its 49 numbers; the same number at two places is much the same
# piece. (A colour is no more than the name of a code: neighbouring numbers have nothing in common.) Mind the background: 62 % of
# the patches are black all over, and yet they have many different codes, for the encoder sees beyond its patch and can say what
# lies next to it, and restarts put codes where most latents are. In the collapsed codebook a few codes have nearly all of the
# background.

# %%
codes = np.asarray(models[last].encode(images[:6]))
kv.plotting.code_maps(codes, images=images[:6], num_embeddings=K, columns=6, title="Digits and their codes")

# %% [markdown]
# What does a code stand for? Collect the places where it is chosen, and average the real images there, each with a margin of one
# position around it. From the most frequent code to the rarest:

# %%
all_codes = np.asarray(models[last].encode(images))
padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), constant_values=-1.0)


def mean_patch(code):
    places = np.argwhere(all_codes == code)  # example, row, column
    return np.mean([padded[n, 4 * y : 4 * y + 12, 4 * x : 4 * x + 12] for n, y, x in places], axis=0)


ranked = np.argsort(results[last]["counts"])[::-1]
ranked = ranked[results[last]["counts"][ranked] > 0]
shown = ranked[np.linspace(0, len(ranked) - 1, 48).astype(int)]
kv.plotting.image_grid(
    np.stack([mean_patch(code) for code in shown]),
    rows=4,
    title="Mean of the images where a code is chosen, from the most frequent to the rarest",
)

# %% [markdown]
# The frequent ones are background, and background with the end of a stroke at the margin. The rare ones are pieces of strokes, each
# at an angle and an offset of its own: an alphabet of handwriting that nobody designed.
#
# ## How large should the codebook be?
#
# Four times as many codes are two bits more a position. More codes restore better, but each is seen more rarely in training, and
# the model that has to predict them faces more classes. So train a ladder of sizes and look for the bend.

# %%
sizes = (16, 256) if FAST else (4, 16, 64, 256, 1024)
ladder = {}
for size in sizes:
    model = vqvae if size == 256 else new_vqvae(size)
    if size != 256:
        fit(model)
    ladder[size] = (model, kv.recipes.measure_tokenizer(model, whole_test))

x = np.array(sizes)
quality = np.array([measures["psnr"] for _, measures in ladder.values()])
perplexity = np.array([measures["perplexity"] for _, measures in ladder.values()])
kv.plotting.lines(
    {"Quality": {"PSNR": (x, quality)}, "Use": {"perplexity": (x, 100 * perplexity / x)}},
    xlabel="size of the codebook (codes)",
    ylabel=["PSNR on test images (dB)", "codes that count (% of all)"],
    log_x=True,
    title="Codebooks of several sizes, on the same budget",
)

# %% [markdown]
# Read it so: as long as the curve on the left climbs by much for each step, bits are what is missing. Where it bends, the network
# or the length of the training is, and a larger codebook only makes the second stage harder. What the right panel lacks of 100 %
# comes of uneven use, and costs less than it seems: 64 % of 1,024 codes are 9.4 of 10 bits. Only codes that are never chosen are
# wasted.
#
# Here the curve bends at 64 codes, and a model that has to predict the codes is well served by 64, as in the third notebook. Where
# nobody predicts them, because diffusion draws the latents before rounding, a large codebook costs nothing but its training: the
# preset of the second notebook has 512.
#
# The last figure is the whole notebook in one: the same digits through fewer and fewer bits.

# %%
final = {"original": images[:10]}
for size, (model, _) in reversed(ladder.items()):
    final[f"{size} codes, {49 * np.log2(size):.0f} bits"] = np.asarray(model(images[:10])[0])
kv.plotting.image_grid(final, title="The same digits through codebooks of several sizes")

# %% [markdown]
# ## Lessons learned
#
# - **Quantization is cheap.** Going from 196 floats to 49 integers costs some decibels and saves more than nine tenths of the bits.
# - **A tokenizer does not draw.** Latents drawn independently are pieces of strokes; the joint distribution is the second stage's
#   job.
# - **Watch the perplexity over a whole epoch, on unseen data.** The loss alone does not show a collapse: the encoder hides it by
#   living with fewer codes.
# - **Restarts cure a collapse.** Codes have to be where the latents are, and the encoder moves on: what starts well, dies later. Up
#   to restarts every cure adds 0.2 to 0.4 dB; with rotation more codes count here, at a cost of 0.2 dB, on one seed and a small
#   budget. `kv.VectorQuantizer` has all of them on by default.
# - **Choose the size by the bend.** Then give the second stage as few classes as the eye accepts: fewer codes are learnt faster.
# - **For your own images** give `kv.VQVAE` an encoder and decoder of your own, and plot what you saw here: `reconstructions`,
#   `codebook_usage`, `codebook_projection` and `code_maps` of `keras_vqdit.plotting` take arrays and nothing else.
