"""What a `MultimodalDiffusion` of images, sound and text is asked for: each task is one call of `generate` or `score`.

The tasks expect the modalities `"image"`, `"audio"` and `"text"`, as far as they use them. For other names, and for several
modalities at once, call `generate` and `score` yourself.
"""

import numpy as np

__all__ = [
    "classify",
    "complete_text",
    "image_to_speech",
    "image_to_text",
    "infill_image",
    "retrieve",
    "sample_jointly",
    "speech_to_image",
    "speech_to_text",
    "text_to_image",
    "text_to_speech",
]

DATA = {  # modality -> (what examples of it are called, what they are)
    "image": ("images", "float32 `(B, H, W, C)` in [-1, 1]"),
    "audio": ("audio", "float32 `(B, T, 1)` in [-1, 1], at the sample rate of the model's tokenizer"),
    "text": ("texts", "list of B texts"),
}


# === One modality from another ===


def _translation(name, source, target, summary):
    """The task that draws one modality, given one other."""
    (argument, described), (_, result) = DATA[source], DATA[target]

    def task(model, given, *, through=(), **generate):
        return model.generate({source: given}, want=_way(through, target), **generate)[target]

    task.__name__ = task.__qualname__ = name
    task.__doc__ = f"""{summary}

    Args:
        model: a `MultimodalDiffusion` of (at least) `"{source}"` and `"{target}"`.
        given: {argument}, {described}; or their codes.
        through: modality, or several, to draw on the way: each is drawn given what is known so far, and left out of the result.
            Between images and speech, `"text"` may help. Defaults to none.
        **generate: further arguments of `MultimodalDiffusion.generate`, such as `num_steps`, `guidance_scale`, `temperature`,
            `seed` and `verbose`.

    Returns:
        One result for each example: {result}. With `return_codes=True` int32 codes.

    Raises:
        ValueError: if the model has no such modality, or what is given does not fit its tokenizer.

    Example:

    ```python
    model = kv.MultimodalDiffusion.from_preset("multimodal_digits")
    {target} = kv.tasks.{name}(model, {argument}, guidance_scale=2.0, seed=0)
    ```
    """
    return task


text_to_image = _translation("text_to_image", "text", "image", "Draw an image of each text.")
image_to_text = _translation("image_to_text", "image", "text", "Describe each image.")
speech_to_image = _translation("speech_to_image", "audio", "image", "Draw an image of what each recording says.")
image_to_speech = _translation("image_to_speech", "image", "audio", "Say what each image shows.")
text_to_speech = _translation("text_to_speech", "text", "audio", "Speak each text.")
speech_to_text = _translation("speech_to_text", "audio", "text", "Write down what each recording says.")


def _way(through, target):
    """The modalities to draw, one after another, up to the one that is asked for."""
    return [*([through] if isinstance(through, str) else through), target]


# === From nothing, or from a part ===


def sample_jointly(model, num_samples=1, **generate):
    """Draw all modalities, given nothing, so that they belong together.

    Args:
        model: a `MultimodalDiffusion`.
        num_samples: how many. Defaults to 1.
        **generate: further arguments of `MultimodalDiffusion.generate`, such as `want`, the order in which they are drawn.

    Returns:
        Dict of the modalities: float32 arrays in [-1, 1], of text a list of texts.

    Raises:
        ValueError: if an argument has an impossible value.

    Example:

    ```python
    drawn = kv.tasks.sample_jointly(model, 8, want=["text", "image", "audio"], seed=0)
    ```
    """
    return model.generate(num_samples=num_samples, **generate)


def infill_image(model, images, mask, *, given=None, through=(), **generate):
    """Draw a part of each image anew, so that it goes with the rest.

    What stays is the codes of the rest: it looks as the tokenizer reconstructs it.

    Args:
        model: a `MultimodalDiffusion` of (at least) `"image"`.
        images: float32 `(B, H, W, C)` in [-1, 1], or their codes.
        mask: bool, `True` where to draw anew, `(H, W)` or `(B, H, W)`, or of the grid of the codes. A code is drawn where any
            pixel of it is.
        given: dict of further modalities that the images shall go with, as of `generate`. Defaults to `None`, none.
        through: modality, or several, to draw first, given what is left of the images: with `"text"` the model says what they
            show, and draws the rest of that. Defaults to none.
        **generate: further arguments of `MultimodalDiffusion.generate`.

    Returns:
        float32 array `(B, H, W, C)` in [-1, 1].

    Raises:
        ValueError: if the mask does not fit the images, or is nowhere `True`.

    Example:

    ```python
    lower = np.repeat(np.arange(28)[:, None] >= 14, 28, axis=1)
    drawn = kv.tasks.infill_image(model, images, lower, seed=0)
    ```
    """
    given = {**(given or {}), "image": images}
    return model.generate(given, want=_way(through, "image"), fill={"image": mask}, **generate)["image"]


def complete_text(model, texts, *, given=None, **generate):
    """Continue each text.

    Args:
        model: a `MultimodalDiffusion` of (at least) `"text"`.
        texts: list of B beginnings, each shorter than the tokenizer's `max_length`.
        given: dict of further modalities that the texts shall go with, as of `generate`. Defaults to `None`, none.
        **generate: further arguments of `MultimodalDiffusion.generate`.

    Returns:
        List of B texts, which begin as they did.

    Raises:
        ValueError: if a text has no room for more.

    Example:

    ```python
    kv.tasks.complete_text(model, ["a handwritten"], seed=0)  # such as ['a handwritten four']
    ```
    """
    return model.generate({**(given or {}), "text": texts}, want=["text"], **generate)["text"]


# === Which of several ===


def retrieve(model, queries, candidates, *, subtract_prior=True, **score):
    """Rank candidates of one modality for each query of others, the best first.

    Args:
        model: a `MultimodalDiffusion`.
        queries: dict of modalities, B examples, as of `generate`. Several modalities of one query are used together.
        candidates: dict of one other modality, C candidates.
        subtract_prior: subtract log p(candidate) from log p(candidate | query), which tells how much the query says for it:
            without, plain images, say, are likelier than others for every query. Defaults to `True`.
        **score: further arguments of `MultimodalDiffusion.score`, such as `num_samples`.

    Returns:
        Tuple of the ranking, int64 `(B, C)`, indices of the candidates, best first, and of equal ones the first; and the scores,
        float32 `(B, C)`, in nats, in the order of the candidates.

    Raises:
        ValueError: if there is not one modality of candidates, or it is also that of queries, or there is no query, and the
            prior is subtracted.

    Example:

    ```python
    ranking, scores = kv.tasks.retrieve(model, {"text": ["the digit 7"]}, {"image": images})
    best = images[ranking[0, 0]]
    ```
    """
    if subtract_prior and not queries:
        raise ValueError("`queries` must hold at least one modality: without, all that is known is the prior")
    scores = model.score(queries, candidates, **score)
    if subtract_prior:  # of the same times and masks, so that most of their noise cancels
        scores = scores - model.score({}, candidates, **score)
    return np.argsort(-scores, axis=1, kind="stable"), scores


def classify(model, given, candidates, **options):
    """Tell which of several texts, such as one a class, describes each example best.

    Args:
        model: a `MultimodalDiffusion`.
        given: dict of modalities, B examples, as of `generate`.
        candidates: list of C texts; or a dict of one modality, as of `retrieve`.
        **options: further arguments of `retrieve`, such as `num_samples`.

    Returns:
        int64 array `(B,)`: the index of the best candidate.

    Raises:
        ValueError: as of `retrieve`.
        TypeError: if `candidates` is one text.

    Example:

    ```python
    digits = kv.tasks.classify(model, {"image": images}, [f"the digit {digit}" for digit in range(10)])
    ```
    """
    if isinstance(candidates, str):
        raise TypeError(f"`candidates` must be a list of texts. Received: {candidates!r}")
    candidates = candidates if isinstance(candidates, dict) else {"text": candidates}
    return retrieve(model, given, candidates, **options)[0][:, 0]
