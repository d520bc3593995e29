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
# # Diffusion transformers: drawing with latents
#
# The last notebook ended with a tokenizer that restores digits but cannot draw one: somebody has to know how the 49 positions of an
# image belong together. Here a **diffusion transformer** learns it, from 4,000 digits, on two CPU cores. You
#
# - see **schedules** and **targets** as pictures, and why they are not all the same;
# - look into the transformer: what **adaLN-zero** does at the first step, and after training;
# - train on **latents** with `fit`, and compare targets on the same budget;
# - measure **samplers**, and the grid of **steps × guidance**;
# - watch a digit arise, as an **animation**;
# - ask whether the model **copies**, by the nearest neighbours among its training images.
#
# You need `pip install -e ".[notebooks]" jupyterlab`. It takes seven minutes on two cores.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes on the machine

import keras
import numpy as np

import keras_vqdit as kv

FAST = os.environ.get("KERAS_VQDIT_FAST") == "1"  # only for the tests of this notebook: skip it when you read

train, test = kv.data.load("mnist_5k", batch_size=64)
test_images, test_labels = kv.recipes.to_arrays(test), kv.recipes.to_arrays(test, "label")
train_images = kv.recipes.to_arrays(train)
if FAST:
    train, test = train.take(12), test.take(4)

# %% [markdown]
# ## Latents
#
# The tokenizer comes with the package: a VQ-VAE with 512 codes, trained on MNIST. `encode_latents` gives what its encoder says
# *before* it is rounded to codes, normalised to mean 0 and variance 1 by statistics that are saved with its weights. That matters:
# the noise of the diffusion process has variance 1, and the signal should be as loud. (The tokenizer has seen all digits of this
# notebook, which are among the 60,000 that MNIST has for training. The transformer will see 4,000 of them, and is measured on the
# others.)

# %%
tokenizer = kv.VQVAE.from_preset("mnist_tokenizer")
z = np.asarray(tokenizer.encode_latents(test_images))
print(f"latents {z.shape}, mean {z.mean():+.3f}, standard deviation {z.std():.3f}")

kv.plotting.reconstructions(test_images, tokenizer.decode_latents(z), title="Latents decoded: as good as it can get")

# %% [markdown]
# ## Schedules: how fast an image drowns
#
# A process mixes data and noise, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$. In this package $t = 0$ is data and $t = 1$ is noise,
# for every process. What differs is how fast the signal goes.

# %%
processes = {
    "linear": kv.GaussianDiffusion("linear"),
    "cosine": kv.GaussianDiffusion("cosine"),
    "sigmoid": kv.GaussianDiffusion("sigmoid"),
    "rectified flow": kv.RectifiedFlow(),
}
t = np.linspace(0.002, 0.998, 250).astype("float32")
levels = {name: [np.asarray(level) for level in process.alpha_sigma(t)] for name, process in processes.items()}
kv.plotting.lines(
    {
        "Signal": {name: (t, alpha) for name, (alpha, _) in levels.items()},
        "Signal-to-noise ratio": {name: (t, 20 * np.log10(alpha / sigma)) for name, (alpha, sigma) in levels.items()},
    },
    xlabel="time t (0 is data, 1 is noise)",
    ylabel=["signal level α", "20 log₁₀(α/σ) (dB)"],
    markers=False,
    title="Four schedules",
)

# %%
times = np.linspace(0, 1, 9).astype("float32")
noise = np.random.default_rng(0).normal(size=test_images[:1].shape).astype("float32")
digit = test_images[3:4]
rows = {
    name: np.concatenate([np.asarray(process.add_noise(digit, t[None], noise)) for t in times])
    for name, process in processes.items()
}
kv.plotting.image_grid(
    rows, column_labels=[f"{t:.2f}" for t in times], xlabel="time t", title="One digit, one noise, four schedules"
)

# %% [markdown]
# With the linear schedule nothing can be seen for the last third of the time: a network trained there learns from pure noise, and a
# sampler wastes its steps. Cosine and rectified flow spread the loss of the signal over the whole time. Look at the end of the
# right panel, too: the linear and the sigmoid schedule stop at about −44 dB, which is not nothing. A model that has always seen a
# trace of the mean at $t = 1$ is asked to start from noise that has none (`zero_terminal_snr=True` mends that).
#
# ## Targets: what the network is asked
#
# The network sees $x_t$ and may predict the noise $\varepsilon$, the clean example $x_0$, or a mix of both:
# $v = \alpha\varepsilon - \sigma x_0$, or the velocity $\varepsilon - x_0$ of the rectified flow. Given $x_t$, one can be computed
# from another. As questions they are different, as you see in the pictures. (The first row is of the cosine schedule, as noise,
# clean and v are asked with it; the flow sees a mixture of its own.)

# %%
v, flow = kv.GaussianDiffusion("cosine", "v"), processes["rectified flow"]


def over_time(function):
    return np.concatenate([np.asarray(function(t[None])) for t in times])


kv.plotting.image_grid(
    {
        "what it sees, x_t": over_time(lambda t: v.add_noise(digit, t, noise)),
        "noise": over_time(lambda t: noise + 0 * t[0]),
        "clean": over_time(lambda t: digit + 0 * t[0]),
        "v": over_time(lambda t: v.target(digit, noise, t)),
        "velocity": over_time(lambda t: flow.target(digit, noise, t)),
    },
    column_labels=[f"{t:.2f}" for t in times],
    xlabel="time t",
    title="The same question, asked four ways",
)

# %% [markdown]
# `v` glides from noise to the negative of the digit: at each time it asks for what cannot be read off $x_t$. The noise target asks
# near $t = 1$ for what the input already is. That looks easy, and is the trap: the clean estimate is then
# $(x_t - \sigma\hat\varepsilon)/\alpha$, where $\hat\varepsilon$ is what the network says, so an error of the network is multiplied
# by $\sigma/\alpha$.

# %%
alpha, sigma = levels["cosine"]
kv.plotting.lines(
    {
        "noise": (t := np.linspace(0.002, 0.998, 250), sigma / alpha),
        "clean": (t, np.ones_like(t)),
        "v": (t, sigma),
        "velocity (of the flow)": (t, levels["rectified flow"][1]),
    },
    xlabel="time t (0 is data, 1 is noise)",
    ylabel="error of the clean estimate / error of the prediction",
    log_y=True,
    markers=False,
    title="What an error of the network does to the estimate",
)

# %% [markdown]
# ## The network: adaLN-zero
#
# `DiffusionTransformer` is the DiT of Peebles and Xie. Each of the 49 latents is a token. Time and class are embedded, added, and
# turned by one layer a block into six vectors: a shift and a scale before attention and before the feed-forward layer, and a *gate*
# behind each. Shift and scale take the place of the constants of layer normalisation, which so becomes *adaptive*: adaLN. The layer
# that makes them starts at zero, hence the rest of the name. So at the first step every gate is closed: the block is the identity,
# the depth of the network costs nothing, and training opens the gates where they help.

# %%
keras.utils.set_random_seed(0)


def new_network():
    return kv.DiffusionTransformer(d_model=96, num_heads=3, dff=384, num_layers=2 if FAST else 4, num_classes=10)


network = new_network()
output = np.asarray(network({"x": z[:8], "t": np.full(8, 0.5, "float32"), "label": test_labels[:8]}))
x = np.random.default_rng(0).normal(size=(8, 49, 96)).astype("float32")
condition = np.random.default_rng(1).normal(size=(8, 96)).astype("float32")
change = np.abs(np.asarray(network.blocks[0](x, condition)) - x).max()
print(
    f"{network.count_params():,} weights; at the start its output is {np.abs(output).max()}, and a block changes {change}"
)

# %% [markdown]
# ## Training on latents
#
# The tokenizer is frozen, so latents need to be computed only once: `encode_latents` turns the data set of images into one of
# latents. The rest is Keras. Three choices:
#
# - **Optimizer.** [Muon](https://kellerjordan.github.io/posts/muon/), which makes the update of a matrix nearly orthogonal, for the
#   matrices of the blocks, Adam for all else (`recipes.diffusion_optimizer`); on budgets as small as this one it needs fewer steps
#   than AdamW. With a warm-up, and a cosine down to 1 %.
# - **Label dropout.** One example in ten is trained without its label, so that one network knows both what a digit looks like and
#   what a *three* looks like. Guidance needs the two.
# - **Average of the weights.** `generate` uses a moving average (`ema_decay`), which smooths out the last steps.

# %%
latents = kv.data.encode_latents(train, tokenizer)


def fit(process, epochs):
    keras.utils.set_random_seed(0)
    model = kv.LatentDiffusion(tokenizer, new_network(), process, ema_decay=0.99, seed=0)
    schedule = kv.recipes.learning_rate_schedule(latents, epochs, 8e-3)
    model.compile(kv.recipes.diffusion_optimizer(schedule), jit_compile=not FAST)
    history = model.fit(latents, epochs=epochs, shuffle=False, verbose=0)
    return model, history.history


model, history = fit(kv.RectifiedFlow(seed=0), 1 if FAST else 16)
kv.plotting.training_curves(history, title="Rectified flow on latents")

# %% [markdown]
# The curve looks as if training was over after a third of the time. That deceives: much of the loss is noise that nobody can
# predict, and what is left above it decides how the samples look. Split the loss by time. Near $t = 0$ the velocity asks for noise
# that is hardly there, and most of its variance of 1 remains; near $t = 1$ for a digit that is hardly there, of which the network
# can tell the average of its class. That is a good deal of it.
#
# (Called with a dict that holds times and noise as well, the model uses those instead of drawing its own, and returns its losses.)

# %%
z_test = np.asarray(tokenizer.encode_latents(test_images[:256]))
label = test_labels[:256]
noise_test = np.random.default_rng(0).normal(size=z_test.shape).astype("float32")
grid = np.linspace(0.02, 0.98, 3 if FAST else 13).astype("float32")
by_time = []
for time in grid:
    t = np.full(256, time, "float32")
    by_time.append(float(np.mean(model({"latents": z_test, "label": label, "t": t, "noise": noise_test})["loss"])))
kv.plotting.lines(
    {
        "trained": (grid, by_time),
        "a network that says 0": (grid, np.full(len(grid), np.mean((noise_test - z_test) ** 2))),
    },
    xlabel="time t (0 is data, 1 is noise)",
    ylabel="mean squared error of the velocity",
    title="Loss on unseen digits, by time",
)

# %% [markdown]
# What became of the gates? Their mean size over time, for each block, here for the label 0.

# %%
labels = np.zeros(len(grid), "int32")
condition = model.network.time_embedding(model.process.network_time(grid)) + model.network.label_embedding(labels)
gates = {"Attention": {}, "Feed-forward": {}}
for i, block in enumerate(model.network.blocks):
    parts = np.split(np.abs(np.asarray(block.modulation(keras.ops.silu(condition)))), 6, axis=-1)  # gates: 2 and 5
    gates["Attention"][f"block {i + 1}"] = (grid, parts[2].mean(axis=-1))
    gates["Feed-forward"][f"block {i + 1}"] = (grid, parts[5].mean(axis=-1))
kv.plotting.lines(
    gates, xlabel="time t (0 is data, 1 is noise)", ylabel="mean |gate|", title="adaLN-zero after training"
)

# %% [markdown]
# Blocks 3 and 4 attend about twice as much as blocks 1 and 2, and the feed-forward layers are open widest near the data: the
# condition really does drive the network differently at each time.
#
# ## A judge
#
# Looking at samples is necessary and not enough. A small classifier of real digits says two things about drawn ones: whether it
# recognises the digit that was asked for (**fidelity**), and how far the distribution of its features is from that of real digits
# (the **Fréchet distance**, which also notices a lack of variety). It is trained for half a minute, and never sees a drawn digit.
# Mind what it can not say: "none of the ten". It calls a blob by the digit that it is least unlike, and drawn digits are more
# typical than written ones, so that it may recognise more of them than of real ones. That is why you want the distance too, and
# your own eyes.

# %%
judge_data = kv.data.load("mnist_5k", batch_size=128)[0]
judge, accuracy = kv.metrics.train_classifier(
    judge_data.take(8) if FAST else judge_data, test, num_classes=10, epochs=1 if FAST else 6, jit_compile=not FAST
)
features = kv.metrics.features(judge)
real = features.predict(test_images, batch_size=250, verbose=0)
print(f"the judge recognises {accuracy:.1%} of the test digits")

SAMPLES = 20 if FAST else 200
asked = np.arange(SAMPLES) % 10


def measure(model, **options):
    """Share of the drawn digits that are recognised, and their Fréchet distance to real ones."""
    drawn = model.generate(asked, seed=0, verbose=0, **options)
    right = np.mean(judge.predict(drawn, batch_size=250, verbose=0).argmax(axis=-1) == asked)
    distance = kv.metrics.frechet_distance(features.predict(drawn, batch_size=250, verbose=0), real)
    return float(right), float(distance)


# %% [markdown]
# ## Targets on the same budget
#
# Now the question from above can be measured: a quarter of the training each, twenty steps of the same sampler, no guidance. The
# first two differ in the target alone. The flow brings its own schedule, and its own distribution of times in training, which come
# more often from the middle.

# %%
candidates = {
    "noise, cosine": kv.GaussianDiffusion("cosine", "noise", seed=0),
    "v, cosine": kv.GaussianDiffusion("cosine", "v", seed=0),
    "velocity, rectified flow": kv.RectifiedFlow(seed=0),
}
if FAST:
    candidates = {"v, cosine": candidates["v, cosine"]}
targets = {name: measure(fit(process, 1 if FAST else 4)[0]) for name, process in candidates.items()}
kv.plotting.bars(
    {name: 100 * right for name, (right, _) in targets.items()},
    xlabel=f"recognised as the digit that was asked for (% of {SAMPLES})",
    format="{:.1f} %",
    title="Three targets after a quarter of the training",
)

# %%
kv.plotting.bars(
    {name: distance for name, (_, distance) in targets.items()},
    xlabel="Fréchet distance to real digits, in the judge's features (less is better)",
    title="Three targets after a quarter of the training",
)

# %% [markdown]
# The noise target is clearly the worst of the three, above all by the distance. v and the flow are too close for 200 samples of one
# training to tell them apart. We go on with the flow, whose formulas are the simplest.
#
# ## Samplers
#
# A sampler walks from noise to data along the times it is given. Every sampler of the package takes every process, for it asks for
# nothing but α and σ:
#
# | | order | |
# |---|---|---|
# | `ddpm` | 1 | random: fresh noise at each step |
# | `ddim`, `euler` | 1 | one and the same rule, of two schools: along the present prediction |
# | `dpmpp_2m` | 2 | from the last two predictions |
# | `heun` | 2 | goes there, looks, and takes the mean of both directions |
#
# What they cost is network evaluations: Heun takes two a step (but one in the last), the others one. So compare at the same number
# of evaluations, without guidance.

# %%
samplers = {"ddpm": 1, "ddim": 1, "euler": 1, "dpmpp_2m": 1, "heun": 2}
budgets = (4, 8, 16, 32)
if FAST:
    samplers, budgets = {"dpmpp_2m": 1, "heun": 2}, (4,)
curves = {
    name: (budgets, [measure(model, sampler=name, num_steps=budget // cost)[1] for budget in budgets])
    for name, cost in samplers.items()
}
kv.plotting.lines(
    curves,
    xlabel="network evaluations",
    ylabel="Fréchet distance (less is better)",
    log_x=True,
    log_y=True,
    title="Five samplers at the same cost",
)

# %% [markdown]
# Two families. The *deterministic* samplers are nearly done after four to eight evaluations, whatever their order. The lines
# between data and noise are straight by construction; what a sampler follows is their average, which need not be, but is nearly so
# here. So there is little to gain from a better rule for the next step, and 200 samples of one seed do not tell the small
# differences among them from chance. They follow the network faithfully, with its errors. *DDPM* adds fresh noise at each step.
# With four steps that is too much, and it is the worst; from eight on it is the best, for it corrects errors of the steps before.
# (200 samples and one seed: at a guidance of 1.5, on all of MNIST, DPM-Solver++ was as good with 20 steps as DDPM with 250; at 2
# DDPM comes 7 % closer, says `docs/results.md`. It is what `generate` uses by itself.)
#
# ## Steps × guidance
#
# Classifier-free guidance goes beyond the conditional prediction, away from the unconditional one:
# $\hat x = x_{\text{without}} + w\,(x_{\text{with}} - x_{\text{without}})$. A weight of 1 is no guidance. More weight makes digits
# more typical of their class, and all alike in the end. Two tables by DPM-Solver++, one for each side of that trade:

# %%
steps, weights = ((3,), (1.0, 2.0)) if FAST else ((3, 5, 10, 20), (1.0, 1.5, 2.0, 3.0))
grid = np.array([[measure(model, num_steps=n, guidance_scale=w) for w in weights] for n in steps])
axes = {"row_labels": steps, "column_labels": weights, "xlabel": "guidance", "ylabel": "steps"}
kv.plotting.heatmap(100 * grid[..., 0], **axes, unit="recognised (%)", format="{:.1f}", title="Fidelity")

# %%
kv.plotting.heatmap(grid[..., 1], **axes, unit="Fréchet distance", format="{:.2f}", title="Distance to real digits")

# %% [markdown]
# The best column is not the same in both: guidance makes almost every digit right, and then drives the distribution away from that
# of real digits. Choose it by the distance if you want the variety of real data, and by fidelity if each single image has to be
# right. In the column without guidance fewer steps look *better* to the judge: a sampler that takes few steps stays near the
# average of the class, which is easy to recognise. Only with three steps does the distance tell. Ten steps are enough in every
# column.
#
# ## How a digit arises
#
# `return_trajectory=True` keeps every state, decoded. Below, the states themselves are noise for a surprisingly long time; then the
# clean *estimates*: what the network believes at each step that it will be in the end.

# %%
drawn, trajectory = model.generate(
    range(10), num_steps=20, guidance_scale=1.5, seed=1, verbose=0, return_trajectory=True
)
kv.plotting.animation(trajectory["noisy"], trajectory["times"], columns=5, title="States")

# %%
kv.plotting.trajectory(
    trajectory["clean"][:, :5], trajectory["times"][:-1], row_labels=range(5), title="What it believes it will become"
)

# %% [markdown]
# The first estimate is the average of all that may still come, and guidance pushes it on. (In pixels it would be a blur; here the
# codebook snaps it to strokes, which makes a digit of it, plain or garbled.) Then the large strokes are settled, and what is
# individual comes last. For good or ill: loops and extra strokes are decided late.
#
# ## Where the network looks
#
# `attention_scores` gives the weights of every block. For the marked position of a three, half-way:

# %%
position, half = 17, np.array([0.5], "float32")
three = np.asarray(tokenizer.encode_latents(drawn[3:4]))
noisy, _, _ = model.process(three, t=half)
scores = model.network.attention_scores({"x": noisy, "t": model.process.network_time(half), "label": np.array([3])})
kv.plotting.attention_maps(
    scores[:, 0], (7, 7), query=position, image=drawn[3], title="Where the marked position looks"
)

# %% [markdown]
# In the first layer one head looks around the position, and two look far away from it. In the last layer all three look at the
# position and at its neighbours along the stroke.
#
# ## Does it copy?
#
# A model with hundreds of thousands of weights could remember 4,000 digits. Take what it draws, and look for the nearest training
# image, in pixels and in the features of the judge.

# %%
train_features = features.predict(train_images, batch_size=250, verbose=0)


def nearest(queries, bank):
    """Index of the nearest row of `bank` for each query, and the distance."""
    queries, bank = (np.reshape(x, (len(x), -1)).astype("float64") for x in (queries, bank))
    squared = (queries**2).sum(1)[:, None] - 2 * queries @ bank.T + (bank**2).sum(1)
    return squared.argmin(axis=1), np.sqrt(np.maximum(squared.min(axis=1), 0))


by_pixels, _ = nearest(drawn, train_images)
by_features, _ = nearest(features.predict(drawn, verbose=0), train_features)
kv.plotting.image_grid(
    {
        "drawn": drawn,
        "nearest, pixels": train_images[by_pixels],
        "nearest, features": train_images[by_features],
    },
    title="What it draws, and the nearest of its 4,000 training images",
)

# %% [markdown]
# They are alike, as digits are. How near is too near? Two yardsticks: *test* digits, which are as far from the training images as
# something new should be, and training images that went through the tokenizer, which is what a copy would look like.

# %%
more = model.generate(np.arange(20 if FAST else 200) % 10, num_steps=20, guidance_scale=1.5, seed=2, verbose=0)
copies = np.asarray(tokenizer.decode(tokenizer.encode(train_images[: len(more)])))
distances = {
    "copies (training images, restored)": nearest(copies, train_images)[1],
    "drawn": nearest(more, train_images)[1],
    "test digits, restored": nearest(tokenizer.decode(tokenizer.encode(test_images[: len(more)])), train_images)[1],
}
share = 100 * (np.arange(len(more)) + 0.5) / len(more)
kv.plotting.lines(
    {name: (np.sort(values), share) for name, values in distances.items()},
    xlabel="distance to the nearest training image (Euclidean, pixels in [-1, 1])",
    ylabel="share of the images below it (%)",
    markers=False,
    title="Does it copy?",
)

# %% [markdown]
# If the curve of the drawn digits lay on that of the copies, the model would have memorised. It lies on that of the test digits:
# what it draws is as new as new handwriting is.
#
# And the figure to take home, not without failures: some are another digit than the one that was asked for, which no seed of ours
# has been chosen to avoid.

# %%
everything = model.generate(np.repeat(np.arange(10), 10), num_steps=20, guidance_scale=1.5, seed=0, verbose=0)
kv.plotting.image_grid(everything, row_labels=range(10), title="A hundred digits that nobody wrote", ylabel="asked for")

# %% [markdown]
# ## Lessons learned
#
# - **Normalise the latents.** The process adds noise of variance 1, so the signal should have variance 1; the tokenizer keeps the
#   statistics with its weights.
# - **Ask a question whose errors stay small.** With v and the flow's velocity an error of the network is at most as large in the
#   clean estimate; noise prediction multiplies it where the signal is weak.
# - **adaLN-zero starts as nothing**, and opens its gates where they help: depth is free at the start.
# - **A flat loss curve is not the end.** Much of the loss cannot be learnt. Judge drawn samples instead, and save a judge for it.
# - **Few steps are enough** for a deterministic sampler on a rectified flow; from eight on DDPM did better here, without guidance.
# - **Guidance trades variety for fidelity.** Look at both tables before you choose.
# - **Look for copies**, with yardsticks for what new and copied would look like.
