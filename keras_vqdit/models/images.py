"""What a trained `VQVAE` does with images by itself: restore them from their codes, and turn one into another."""

import numpy as np
from keras import ops

from keras_vqdit.checks import fits, positive_integer


def generate_images(model, x, num_samples=10):
    """Generate images from the codes of others: each is encoded, quantized, and decoded from its codes alone.

    What the encoder says about an image is one grid of codes, so several samples of one image are equal. Images that are
    really new need codes that are drawn: see `LatentDiffusion`.

    Args:
        model: a `VQVAE`.
        x: images `(B, H, W, C)`, or `(B, H, W)` where the model has one channel, or a single one of these without `B`.
        num_samples: number of images: the first ones of `x`, and from its beginning again where there are fewer. Defaults
            to 10.

    Returns:
        List of `num_samples` float32 arrays `(H, W, C)`.

    Raises:
        TypeError: if the model has no codes.
        ValueError: if `x` are not the model's images, or `num_samples` is not positive.

    Example:

    ```python
    import numpy as np
    from keras_vqdit.models.images import generate_images
    from keras_vqdit.models.vqvae import VQVAE

    model = VQVAE.from_size("digits")
    images = generate_images(model, np.random.rand(10, 28, 28), num_samples=4)  # 4 of (28, 28, 1)
    ```
    """
    x = _as_batch("x", x, model, num_samples)
    x = x[np.arange(num_samples) % len(x)]
    return list(_array(model.decode(model.encode(x))))


def transform_images(model, x, y, num_samples=10):
    """Transform one image into another, step by step through the codebook.

    The latents move on a straight line from those of `x` to those of `y`; at each of `num_samples` places, ends included,
    they are quantized and decoded. The first image is thus `x` as its codes tell it, the last one `y`.

    Args:
        model: a `VQVAE`.
        x: image `(H, W, C)`, or `(H, W)` where the model has one channel, or a batch of these.
        y: image of the shape of `x`.
        num_samples: number of images on the way. Defaults to 10.

    Returns:
        List of `num_samples` float32 arrays: images `(H, W, C)`, or batches of them where `x` and `y` are batches of more
        than one.

    Raises:
        TypeError: if the model has no codes.
        ValueError: if `x` and `y` are not the model's images or differ in number, or `num_samples` is not positive.

    Example:

    ```python
    import numpy as np
    from keras_vqdit.models.images import transform_images
    from keras_vqdit.models.vqvae import VQVAE

    model = VQVAE.from_size("digits")
    images = transform_images(model, np.random.rand(28, 28), np.random.rand(28, 28))  # 10 of (28, 28, 1)
    ```
    """
    x, y = _as_batch("x", x, model, num_samples), _as_batch("y", y, model, num_samples)
    if len(x) != len(y):
        raise ValueError(f"`x` and `y` must be equally many images. Received: {len(x)} and {len(y)}")
    begin, end = model.encode_latents(x), model.encode_latents(y)
    images = []
    for share in np.linspace(0.0, 1.0, num_samples):
        step = _array(model.decode_latents((1.0 - share) * begin + share * end))
        images.append(step if len(x) > 1 else step[0])
    return images


def _array(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def _as_batch(name, x, model, num_samples):
    """Images of any of the accepted shapes as float32 `(B, H, W, C)`."""
    if not hasattr(model, "vq"):
        raise TypeError(
            f"`model` must be a VQVAE, or have its parts `encoder`, `vq` and `decoder`. Received: {model!r}"
        )
    positive_integer("num_samples", num_samples)
    x = np.asarray(x)
    received = x.shape
    if not x.size:
        raise ValueError(f"`{name}` must have at least one image. Received: {name}.shape={received}")
    x = x.astype("float32") if x.dtype.kind == "f" else x
    if not model.built:
        model(x[:1])
    shape = model.example_shape
    if shape[-1] == 1 and x.shape in (shape[:-1], (*x.shape[:1], *shape[:-1])):
        x = x[..., None]
    x = x[None] if x.ndim == len(shape) else x
    if not fits(x.shape[1:], shape):
        raise ValueError(f"`{name}` must be images of shape {shape}. Received: {name}.shape={received}")
    return x
