"""keras_vqdit: VQ-VAE tokenizers and diffusion transformers for Keras."""

import importlib

from keras_vqdit import diffusion, layers, metrics, models
from keras_vqdit.diffusion import GaussianDiffusion, RectifiedFlow
from keras_vqdit.layers import MultiHeadAttention, TransformerBlock, VectorQuantizer
from keras_vqdit.models import VAE, VQVAE, DiffusionTransformer, LatentDiffusion

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "VQVAE",
    "DiffusionTransformer",
    "GaussianDiffusion",
    "LatentDiffusion",
    "MultiHeadAttention",
    "RectifiedFlow",
    "TransformerBlock",
    "VectorQuantizer",
    "data",
    "diffusion",
    "layers",
    "metrics",
    "models",
    "plotting",
    "recipes",
    "saving",
    "training",
]

# Rooms that need TensorFlow or matplotlib, which not every backend comes with, are imported when they are first used.
_LAZY = ("data", "plotting", "recipes", "saving", "training")


def __getattr__(name):
    if name in _LAZY:
        return importlib.import_module(f"keras_vqdit.{name}")
    raise AttributeError(f"module 'keras_vqdit' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
