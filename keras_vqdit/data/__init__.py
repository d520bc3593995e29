"""`tf.data` pipelines of embedded digits, TensorFlow Datasets, folders of images, `.npz` files and arrays."""

from keras_vqdit.data.latents import encode_codes, encode_latents
from keras_vqdit.data.loading import load
from keras_vqdit.data.pipeline import DatasetInfo, describe

__all__ = ["DatasetInfo", "describe", "encode_codes", "encode_latents", "load"]
