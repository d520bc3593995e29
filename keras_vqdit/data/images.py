"""What an image may look like on its way in: value ranges, channels, sizes."""

import numpy as np

from keras_vqdit.checks import is_positive_integer

LUMA = np.array([0.299, 0.587, 0.114], "float32")  # ITU-R BT.601


def as_size(image_size):
    """Check `image_size`: None, an integer (square) or a pair. Returns None or `(height, width)`."""
    if image_size is None:
        return None
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2 or not all(map(is_positive_integer, size)):
        raise ValueError(
            "`image_size` must be a positive integer or a pair (height, width) of them. "
            f"Received: image_size={image_size!r}"
        )
    return tuple(int(s) for s in size)


def scale(images):
    """uint8 0..255 to float32 in [-1, 1]; float images, scaled already, pass. Arrays and tensors of TensorFlow."""
    if images.dtype != "uint8":
        return images
    if isinstance(images, np.ndarray):
        return images.astype("float32") / 127.5 - 1.0
    import tensorflow as tf

    return tf.cast(images, "float32") / 127.5 - 1.0


def without_alpha(image):
    """Lay an image `(…, C)` of uint8 with transparency (C of 2 or 4) on white; others pass."""
    channels = image.shape[-1]
    if channels not in (2, 4):
        return image
    alpha = image[..., -1:].astype("float32") / 255.0
    return np.round(image[..., :-1] * alpha + 255.0 * (1.0 - alpha)).astype("uint8")


def with_channels(images, channels):
    """Turn images `(…, C)` of 1 or 3 channels into 1 (luma) or 3 (repeated); None keeps them."""
    if channels is None or images.shape[-1] == channels:
        return images
    if images.shape[-1] == 1:
        return np.repeat(images, channels, axis=-1)
    gray = np.sum(images * LUMA, axis=-1, keepdims=True)
    return np.round(gray).astype("uint8") if images.dtype == np.uint8 else gray.astype(images.dtype)


def fit_to(images, size):
    """Scale images `(N, H, W, C)`, or one without N, so that they cover `size`, and cut what sticks out at the sides.

    Anti-aliased bicubic. NumPy or TensorFlow in, a TensorFlow tensor of the same dtype out.
    """
    import tensorflow as tf

    images = tf.convert_to_tensor(images)
    height, width = size
    shape = tf.cast(tf.shape(images)[-3:-1], "float32")
    ratio = tf.reduce_max(tf.constant([height, width], "float32") / shape)
    covering = tf.maximum(tf.cast(tf.round(shape * ratio), "int32"), size)
    resized = tf.image.resize(images, covering, method="bicubic", antialias=True)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    resized = resized[..., top : top + height, left : left + width, :]
    if images.dtype == tf.uint8:
        resized = tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), "uint8")
    else:
        resized = tf.clip_by_value(resized, -1.0, 1.0)
    return tf.ensure_shape(resized, (*images.shape[:-3], height, width, images.shape[-1]))


def prepare(images, size, channels):
    """Resize a whole array `(N, H, W, C)` where `size` asks for it, in chunks, and convert the channels."""
    images = with_channels(images, channels)
    if size is None or images.shape[1:3] == size:
        return images
    return np.concatenate([fit_to(images[i : i + 256], size).numpy() for i in range(0, len(images), 256)])
