"""Metrics: Keras metrics over a whole epoch, and functions of arrays."""

from keras_vqdit.metrics.classifier import build_classifier, features, train_classifier
from keras_vqdit.metrics.codebook import CodebookPerplexity, CodebookUsage
from keras_vqdit.metrics.frechet import frechet_distance, kernel_distance
from keras_vqdit.metrics.image import PSNR

__all__ = [
    "PSNR",
    "CodebookPerplexity",
    "CodebookUsage",
    "build_classifier",
    "features",
    "frechet_distance",
    "kernel_distance",
    "train_classifier",
]
