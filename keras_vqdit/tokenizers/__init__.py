"""Tokenizers: what turns one modality into integer codes and back. Of images, sound and video `VQVAE` is one."""

from keras_vqdit.tokenizers.text import TextTokenizer

__all__ = ["TextTokenizer"]
