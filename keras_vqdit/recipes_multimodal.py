"""Training and judging of the multimodal digits: any of image, sound and caption from any other."""

import time

import numpy as np

from keras_vqdit import data, tasks
from keras_vqdit.checks import positive_integer
from keras_vqdit.data.captions import captions_of, digit_of
from keras_vqdit.diffusion import MaskedDiffusion
from keras_vqdit.models.multimodal_diffusion import MultimodalDiffusion
from keras_vqdit.recipes import check_images, diffusion_optimizer, learning_rate_schedule, to_arrays
from keras_vqdit.training import scope

SIZES = {"d_model": 128, "num_heads": 4, "num_layers": 6}


def train_multimodal(
    train,
    test,
    tokenizers,
    *,
    epochs,
    d_model=None,
    num_heads=None,
    num_layers=None,
    learning_rate=8e-3,
    schedule="cosine",
    pair_rate=0.5,
    start=None,
    seed=None,
    verbose=1,
    callbacks=None,
    strategy=None,
    **options,
):
    """Train a `MultimodalDiffusion` on the codes of a data set, encoded once.

    Args:
        train, test: data sets of `keras_vqdit.data.load`, such as those of "multimodal_digits"; `test` may be `None`.
        tokenizers: dict of trained tokenizers, by modality. For text that is codes already, `train.info.text_tokenizer`.
        epochs: number of epochs.
        d_model, num_heads, num_layers: size of the transformer. Default: 128, 4 and 6, or that of `start`.
        learning_rate: highest learning rate, of `recipes.diffusion_optimizer`. Defaults to 0.008.
        schedule: of `MaskedDiffusion`, which trains by the mean of the masked codes. Defaults to `"cosine"`, which dwells on many
            masks; `"linear"` learns faster at first.
        pair_rate, seed: as in `MultimodalDiffusion`. By default half of the examples train in pairs, all pairs alike.
        start: a trained `MultimodalDiffusion` of the same modalities, from whose averaged weights training starts. Defaults to
            `None`, from random ones.
        verbose, callbacks: as in `fit`.
        strategy: of `tf.distribute`. Defaults to `None`.
        **options: further arguments of `MultimodalDiffusion`, such as `dff`. Otherwise text counts twice, by `weights`. A
            `process` goes before `schedule`.

    Returns:
        Tuple of the model and a dict of the training curves.

    Raises:
        TypeError: if `start` is none.
        ValueError: if an argument has an impossible value, the data do not fit the tokenizers, or `start` has another size or
            other modalities.

    Example:
        ```python
        captions = kv.data.captions.caption_tokenizer("bpe")  # a code for each word
        train, test = kv.data.load("multimodal_digits", data_dir=folder, text_tokenizer=captions)
        tokenizers = {"image": images, "audio": sounds, "text": captions}
        model, history = train_multimodal(train, test, tokenizers, epochs=5)
        ```
    """
    epochs = positive_integer("epochs", epochs)
    for tokenizer in tokenizers.values():
        if hasattr(tokenizer, "example_shape"):
            check_images(tokenizer, train)
    options = {
        **_sizes({"d_model": d_model, "num_heads": num_heads, "num_layers": num_layers}, start),
        "process": MaskedDiffusion(schedule, weighting="masked", seed=seed),
        "weights": {"text": 2.0} if "text" in tokenizers else None,
        "pair_rate": pair_rate,
        **options,
    }
    with scope(strategy):
        model = MultimodalDiffusion(tokenizers, seed=seed, **options)
        if start is not None:
            start_from(model, start)
    codes = data.encode_codes(train, tokenizers)
    held_out = None if test is None else data.encode_codes(test, tokenizers)
    with scope(strategy):
        rates = learning_rate_schedule(codes, epochs, learning_rate, longest_warmup=100)
        model.compile(diffusion_optimizer(rates))
    history = model.fit(
        codes, validation_data=held_out, epochs=epochs, shuffle=False, verbose=verbose, callbacks=callbacks
    )
    return model, history.history


def _sizes(sizes, start):
    """The sizes of the network: those that are given, those of `start`, or the defaults."""
    if start is None:
        return {name: SIZES[name] if size is None else size for name, size in sizes.items()}
    if not isinstance(start, MultimodalDiffusion):
        raise TypeError(f"`start` must be a MultimodalDiffusion. Received: {start!r}")
    others = {name: getattr(start.transformer, name) for name in (*sizes, "dff", "rate")}
    for name, size in sizes.items():
        if size not in (None, others[name]):
            raise ValueError(f"`{name}` must be that of `start`, {others[name]}, or None. Received: {name}={size!r}")
    return others


def start_from(model, other):
    """Give a model the averaged weights of another one.

    Raises:
        ValueError: if the modalities differ.
    """
    own, others = model.transformer.modalities, other.transformer.modalities
    if own != others:
        raise ValueError(f"`start` must have the modalities {own}. Received: {others}")
    other.check_average()
    model.transformer.set_weights(other.network.get_weights())
    model.reset_average()


def measure_multimodal(model, test, image_judge, speech_judge, *, num_samples=500, seed=0, **generate):
    """Judge every task of the multimodal digits by classifiers of real data.

    Args:
        model: a `MultimodalDiffusion` of "image", "audio" and "text".
        test: data set "multimodal_digits" for testing, of `keras_vqdit.data.load`.
        image_judge: of `metrics.train_classifier`.
        speech_judge: of `metrics.train_speech_classifier`.
        num_samples: examples of each task. Defaults to 500.
        seed: integer. Defaults to 0.
        **generate: arguments of `MultimodalDiffusion.generate`, such as `num_steps`.

    Returns:
        Dict of the shares of what is recognised as it should be: `text_to_image`, `image_to_text` and their like;
        `joint` (all three tell the same digit), `infilled` (the lower half of an image drawn anew), `classified` (images, by
        `score` of ten captions); `image_to_speech_through_text` and `infilled_through_text`, where a caption is drawn first; of
        the real data `image_judge` and `speech_judge`; and `seconds`.
    """
    options = {"seed": seed, "verbose": 0, **generate}
    begin = time.perf_counter()
    real = {name: to_arrays(test, name, limit=num_samples) for name in ("image", "audio", "text", "label")}
    label = real.pop("label")

    def told(name, values):
        """The digits that drawn or real data tell; -1 for none."""
        if name == "text":
            return np.array([-1 if (digit := digit_of(text)) is None else digit for text in values])
        judge = image_judge if name == "image" else speech_judge
        return np.argmax(judge.predict(values, batch_size=250, verbose=0), axis=-1)

    found = {
        "image_judge": np.mean(told("image", real["image"]) == label),
        "speech_judge": np.mean(told("audio", real["audio"]) == label),
    }
    spoken = {"image": "image", "audio": "speech", "text": "text"}
    for given in spoken:
        for want in spoken:
            if want != given:
                drawn = model.generate({given: real[given]}, [want], **options)[want]
                found[f"{spoken[given]}_to_{spoken[want]}"] = np.mean(told(want, drawn) == label)
    joint = model.generate(num_samples=num_samples, want=["text", "image", "audio"], **options)
    digits = [told(name, values) for name, values in joint.items()]
    found["joint"] = np.mean((digits[0] == digits[1]) & (digits[0] == digits[2]) & (digits[0] >= 0))
    height, width = real["image"].shape[1:3]
    lower = np.repeat((np.arange(height) >= height // 2)[:, None], width, axis=1)
    for name, through in (("infilled", ()), ("infilled_through_text", "text")):
        filled = tasks.infill_image(model, real["image"], lower, through=through, **options)
        found[name] = np.mean(told("image", filled) == label)
    said = tasks.image_to_speech(model, real["image"], through="text", **options)
    found["image_to_speech_through_text"] = np.mean(told("audio", said) == label)
    captions = [captions_of(digit)[0] for digit in range(10)]
    scores = model.score({"image": real["image"]}, {"text": captions}, num_samples=4, seed=seed)
    found["classified"] = np.mean(scores.argmax(axis=1) == label)
    return {**{name: float(share) for name, share in found.items()}, "seconds": time.perf_counter() - begin}
