"""keras_vqdit: VQ-VAE tokenizers and diffusion transformers for Keras."""

import importlib
import os
import sys
from pathlib import Path

# TensorFlow reads this at its first operation. With it the CPU's allocator keeps the memory of a training step for the next
# one, where the default hands it back to the system each time: page faults were a quarter of a transformer's step.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")

# On the command line TensorFlow's notes on the machine would bury ours; errors come as exceptions all the same.
if sys.argv and (sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "keras-vqdit"):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_vqdit import diffusion, layers, metrics, models, saving, tasks, tokenizers
from keras_vqdit.diffusion import GaussianDiffusion, MaskedDiffusion, RectifiedFlow
from keras_vqdit.layers import MultiHeadAttention, ResidualQuantizer, TransformerBlock, VectorQuantizer
from keras_vqdit.models import (
    VAE,
    VQVAE,
    AudioTokenizer,
    DiffusionTransformer,
    ImageTokenizer,
    LatentDiffusion,
    MultimodalDiffusion,
)
from keras_vqdit.saving import presets
from keras_vqdit.tokenizers import TextTokenizer

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "VQVAE",
    "AudioTokenizer",
    "DiffusionTransformer",
    "GaussianDiffusion",
    "ImageTokenizer",
    "LatentDiffusion",
    "MaskedDiffusion",
    "MultiHeadAttention",
    "MultimodalDiffusion",
    "RectifiedFlow",
    "ResidualQuantizer",
    "TextTokenizer",
    "TransformerBlock",
    "VectorQuantizer",
    "data",
    "diffusion",
    "layers",
    "metrics",
    "models",
    "plotting",
    "presets",
    "recipes",
    "recipes_audio",
    "recipes_multimodal",
    "saving",
    "tasks",
    "tokenizers",
    "training",
]

# Rooms that need TensorFlow or matplotlib, or import one that does, are imported when they are first used.
_LAZY = ("data", "plotting", "recipes", "recipes_audio", "recipes_multimodal", "training")


def __getattr__(name):
    if name in _LAZY:
        return importlib.import_module(f"keras_vqdit.{name}")
    raise AttributeError(f"module 'keras_vqdit' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
