"""`tf.data` pipelines of images, sound and text: embedded digits, TensorFlow Datasets, folders, `.npz` files and arrays."""

from keras_vqdit.data.audio import read_wav, write_wav
from keras_vqdit.data.captions import captions_of, digit_of
from keras_vqdit.data.latents import encode_codes, encode_latents
from keras_vqdit.data.loading import load
from keras_vqdit.data.pairs import to_paired_dataset
from keras_vqdit.data.pipeline import DatasetInfo, describe

__all__ = [
    "DatasetInfo",
    "captions_of",
    "describe",
    "digit_of",
    "encode_codes",
    "encode_latents",
    "load",
    "read_wav",
    "to_paired_dataset",
    "write_wav",
]
