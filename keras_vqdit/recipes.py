"""Training recipes: what the command line and the quickstart run, with settings that work on a CPU."""

import time

import keras
import numpy as np

from keras_vqdit import data
from keras_vqdit.checks import fits, number
from keras_vqdit.diffusion import RectifiedFlow
from keras_vqdit.metrics.classifier import features
from keras_vqdit.metrics.frechet import frechet_distance
from keras_vqdit.models.diffusion_transformer import DiffusionTransformer
from keras_vqdit.models.latent_diffusion import LatentDiffusion
from keras_vqdit.models.vqvae import VQVAE
from keras_vqdit.training import scope


def learning_rate_schedule(train, epochs, learning_rate, *, longest_warmup=200):
    """A short warm-up from 1 % of the learning rate, then a cosine back to it, over `epochs` of `train`."""
    learning_rate = number("learning_rate", learning_rate, above=0)
    steps = max(1, epochs * int(train.cardinality()))
    warmup = min(longest_warmup, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 100 if warmup else learning_rate,
        max(1, steps - warmup),
        alpha=0.01,
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def diffusion_optimizer(learning_rate):
    """Muon for the matrices of the transformer's blocks, Adam at a quarter of the learning rate for all else.

    Muon makes the update of a matrix orthogonal before it takes the step. In 1,200 steps of 32 digits the quickstart's
    transformer comes with it to a loss of 0.41 on unseen digits, with AdamW to 0.50; a step takes a fifth longer.

    References:
        - Jordan et al., [Muon](https://kellerjordan.github.io/posts/muon/); Liu et al., [Muon is Scalable for LLM
          Training](https://arxiv.org/abs/2502.16982)
    """
    return keras.optimizers.Muon(
        learning_rate,
        adam_lr_ratio=0.25,
        adam_beta_2=0.99,
        weight_decay=0.01,
        clipnorm=1.0,
        exclude_embeddings=True,
        exclude_layers=["final"],
    )


def train_tokenizer(
    train, test=None, *, epochs, size="digits", learning_rate=2e-3, verbose=1, callbacks=None, strategy=None, **options
):
    """Train a VQ-VAE on a data set of images.

    Args:
        train, test: data sets of `keras_vqdit.data.load`; `test` may be `None`.
        epochs: number of epochs.
        size: name of the architecture, see `VQVAE.from_size`.
        learning_rate: highest learning rate. Defaults to 0.002.
        verbose: as in `fit`.
        callbacks: as in `fit`.
        strategy: of `tf.distribute`. Defaults to `None`.
        **options: arguments of `VQVAE.from_size`, such as `num_embeddings`.

    Returns:
        Tuple of the tokenizer and a dict of the training curves.
    """
    schedule = learning_rate_schedule(train, epochs, learning_rate)
    with scope(strategy):
        tokenizer = VQVAE.from_size(size, input_shape=data.describe(train).image_shape, **options)
        tokenizer.compile(keras.optimizers.AdamW(schedule, weight_decay=0.0, clipnorm=1.0))
    history = tokenizer.fit(
        train, validation_data=test, epochs=epochs, shuffle=False, verbose=verbose, callbacks=callbacks
    )
    return tokenizer, history.history


def train_diffusion(
    train,
    tokenizer,
    *,
    epochs,
    d_model=192,
    num_heads=6,
    num_layers=6,
    process=None,
    learning_rate=8e-3,
    label_dropout=0.1,
    ema_decay=0.999,
    seed=None,
    verbose=1,
    callbacks=None,
    strategy=None,
):
    """Train a class-conditional latent diffusion transformer on the latents of a tokenizer, encoded once.

    Args:
        train: data set of `keras_vqdit.data.load`; labels, where it has them, become the condition.
        tokenizer: a trained `VQVAE` or `VAE`; it stays as it is.
        epochs: number of epochs.
        d_model, num_heads, num_layers: size of the transformer; its feed-forward layer has 4 d_model units.
        process: diffusion process. Defaults to `RectifiedFlow()`.
        learning_rate: highest learning rate, of `diffusion_optimizer`. Defaults to 0.008.
        label_dropout, ema_decay, seed: as in `LatentDiffusion`.
        verbose: as in `fit`.
        callbacks: as in `fit`.
        strategy: of `tf.distribute`, in whose scope the tokenizer was made or loaded. Defaults to `None`.

    Returns:
        Tuple of the model and a dict of the training curves.
    """
    check_images(tokenizer, train)
    info = data.describe(train)
    if "label" in info.shapes and info.num_classes is None:
        raise ValueError(
            'The number of classes must be known where the data have a "label": give a data set as `data.load` made it, not one '
            f"that was mapped since, or map the labels away. Received: {type(train).__name__} without `info`"
        )
    latents = data.encode_latents(train, tokenizer)
    schedule = learning_rate_schedule(latents, epochs, learning_rate)
    with scope(strategy):
        model = LatentDiffusion(
            tokenizer,
            DiffusionTransformer(d_model, num_heads, 4 * d_model, num_layers, num_classes=info.num_classes),
            process or RectifiedFlow(seed=seed),
            label_dropout=label_dropout,
            ema_decay=ema_decay,
            seed=seed,
        )
        model.compile(diffusion_optimizer(schedule))
    history = model.fit(latents, epochs=epochs, shuffle=False, verbose=verbose, callbacks=callbacks)
    return model, history.history


# === Measures ===


def to_arrays(dataset, key="image", limit=None):
    """All examples of one key of a data set in its own order, or the first `limit`, as one array."""
    dataset = dataset.in_order() if hasattr(dataset, "in_order") else dataset
    batches, count = [], 0
    for batch in dataset:
        batches.append(np.asarray(batch[key]))
        count += len(batches[-1])
        if limit and count >= limit:
            break
    return np.concatenate(batches)[:limit]


def measure_tokenizer(tokenizer, test):
    """How well a tokenizer restores images it has not seen, and how it uses its codebook.

    Returns:
        Dict of `psnr` (dB, from the mean squared error over the whole set, range 2), `mse`, `mse_over_variance`, `l1`,
        `codes_used` (fraction), `perplexity`, `num_embeddings`, and `counts`, an array (num_embeddings,).
    """
    check_images(tokenizer, test)
    squared = absolute = values = 0.0
    moments = np.zeros(2)
    counts = np.zeros(tokenizer.num_embeddings, "int64")
    for batch in test.in_order() if hasattr(test, "in_order") else test:
        images = np.asarray(batch[tokenizer.modality], "float64")
        codes = np.asarray(tokenizer.encode(batch[tokenizer.modality]))
        errors = np.asarray(tokenizer.decode(codes), "float64") - images
        squared, absolute, values = squared + np.sum(errors**2), absolute + np.sum(np.abs(errors)), values + images.size
        moments += np.sum(images), np.sum(images**2)
        counts += np.bincount(codes.ravel(), minlength=len(counts))
    mse, mean = squared / values, moments / values
    share = counts / counts.sum()
    return {
        "psnr": float(10 * np.log10(4 / max(mse, 1e-10))),
        "mse": float(mse),
        "mse_over_variance": float(mse / max(mean[1] - mean[0] ** 2, 1e-10)),
        "l1": float(absolute / values),
        "codes_used": float(np.mean(counts > 0)),
        "perplexity": float(np.exp(-np.sum(share * np.log(share + 1e-10)))),
        "num_embeddings": int(tokenizer.num_embeddings),
        "counts": counts,
    }


def measure_judge(classifier, test):
    """The fraction of the test images that a classifier gets right.

    Raises:
        ValueError: if it is not a classifier of such images.
    """
    info = data.describe(test)
    if "label" not in info.shapes:
        raise ValueError(f'The test data must have a "label". Received: features {sorted(info.shapes)}')
    images, labels = to_arrays(test), to_arrays(test, "label")
    expected = images.shape[1:], (info.num_classes,)
    received = tuple(tuple(getattr(classifier, name, None) or ())[1:] for name in ("input_shape", "output_shape"))
    if expected != received:
        raise ValueError(
            f"The judge must be a classifier from images of shape {expected[0]} to {expected[1][0]} classes. "
            f"Received: {type(classifier).__name__} {classifier.name!r} from {received[0]} to {received[1]}"
        )
    return float(np.mean(np.argmax(classifier.predict(images, batch_size=250, verbose=0), axis=-1) == labels))


def check_images(tokenizer, dataset):
    """Raise a ValueError where the images, or sounds, of a data set are not of the shape of a tokenizer's."""
    expected, received = getattr(tokenizer, "example_shape", None), data.describe(dataset).shapes
    modality = getattr(tokenizer, "modality", "image")
    received = received.get(modality)
    if expected is not None and (received is None or not fits(received, expected)):
        kind = "images" if modality == "image" else modality
        raise ValueError(
            f"The data must be {kind} of shape {tuple(expected)}, those of the tokenizer. Received: {received}"
        )


def check_classes(model, test):
    """Raise a ValueError where a model does not draw the classes of the test data."""
    classes = data.describe(test).num_classes
    if not model.num_classes or model.num_classes != (classes or model.num_classes):
        raise ValueError(
            f"The model must draw the classes of the test data, {classes}. Received: a model of {model.num_classes} classes"
        )


def measure_generation(model, classifier, test, *, num_samples=1000, batch_size=250, **generate):
    """Judge drawn examples by a classifier of real ones.

    Args:
        model: a class-conditional `LatentDiffusion`.
        classifier: of `keras_vqdit.metrics.train_classifier`.
        test: data set of real images, which the drawn ones are compared with.
        num_samples: how many to draw, the classes in turn. Defaults to 1000.
        batch_size: examples drawn at a time.
        **generate: arguments of `LatentDiffusion.generate`.

    Returns:
        Dict of `accuracy` (share recognised as the label that was asked for), `frechet_distance` (between the
        classifier's features of the drawn images and of the test images), `seconds`, `labels` and `images`.
    """
    check_classes(model, test)
    extract = features(classifier)
    labels = np.arange(num_samples) % model.num_classes
    begin = time.perf_counter()
    images = model.generate(labels, batch_size=batch_size, **generate)
    seconds = time.perf_counter() - begin
    predicted = np.argmax(classifier.predict(images, batch_size=250, verbose=0), axis=-1)
    real = extract.predict(to_arrays(test), batch_size=250, verbose=0)
    drawn = extract.predict(images, batch_size=250, verbose=0)
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "frechet_distance": float(frechet_distance(drawn, real)),
        "seconds": seconds,
        "labels": labels,
        "images": images,
    }
