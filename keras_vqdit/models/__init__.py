"""Models: subclasses of `keras.Model`, trained by `fit`."""

from keras_vqdit.models.audio_tokenizer import AudioTokenizer, build_audio_decoder, build_audio_encoder
from keras_vqdit.models.backbones import build_decoder, build_encoder
from keras_vqdit.models.code_transformer import CodeTransformer
from keras_vqdit.models.diffusion_transformer import DiffusionTransformer
from keras_vqdit.models.dit_weights import dit_weights, load_dit_weights
from keras_vqdit.models.images import generate_images, transform_images
from keras_vqdit.models.latent_diffusion import LatentDiffusion
from keras_vqdit.models.multimodal_diffusion import MultimodalDiffusion
from keras_vqdit.models.spectral_loss import SpectralLoss
from keras_vqdit.models.vae import VAE
from keras_vqdit.models.vqvae import VQVAE

ImageTokenizer = VQVAE
"""`VQVAE` by another name, beside `AudioTokenizer` and `TextTokenizer`."""

__all__ = [
    "AudioTokenizer",
    "ImageTokenizer",
    "VAE",
    "VQVAE",
    "CodeTransformer",
    "DiffusionTransformer",
    "LatentDiffusion",
    "MultimodalDiffusion",
    "SpectralLoss",
    "build_audio_decoder",
    "build_audio_encoder",
    "build_decoder",
    "build_encoder",
    "dit_weights",
    "generate_images",
    "load_dit_weights",
    "transform_images",
]
