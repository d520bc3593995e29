"""Keras layers, one concept a file."""

from keras_vqdit.layers.attention import MultiHeadAttention
from keras_vqdit.layers.convolution import Downsample, ResidualBlock, Upsample, depth_to_space, space_to_depth
from keras_vqdit.layers.embeddings import LabelEmbedding, TimeEmbedding, sincos_position_embedding
from keras_vqdit.layers.latent_statistics import LatentStatistics
from keras_vqdit.layers.nearest_code import nearest_codes
from keras_vqdit.layers.patches import patchify, unpatchify
from keras_vqdit.layers.quantizer import Quantizer
from keras_vqdit.layers.residual_quantizer import ResidualQuantizer
from keras_vqdit.layers.spectrogram import InverseSpectrogram, LogSpectrogram, istft, stft
from keras_vqdit.layers.transformer_block import TransformerBlock
from keras_vqdit.layers.vector_quantizer import VectorQuantizer

__all__ = [
    "Downsample",
    "InverseSpectrogram",
    "LabelEmbedding",
    "LatentStatistics",
    "LogSpectrogram",
    "MultiHeadAttention",
    "Quantizer",
    "ResidualBlock",
    "ResidualQuantizer",
    "TimeEmbedding",
    "TransformerBlock",
    "Upsample",
    "VectorQuantizer",
    "depth_to_space",
    "istft",
    "nearest_codes",
    "patchify",
    "sincos_position_embedding",
    "space_to_depth",
    "stft",
    "unpatchify",
]
