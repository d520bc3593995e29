"""Metrics: Keras metrics over a whole epoch, and functions of arrays."""

from keras_vqdit.metrics.audio import griffin_lim, log_spectral_distance, si_sdr, spectral_convergence
from keras_vqdit.metrics.classifier import build_classifier, features, train_classifier
from keras_vqdit.metrics.codebook import CodebookPerplexity, CodebookUsage
from keras_vqdit.metrics.frechet import frechet_distance, kernel_distance
from keras_vqdit.metrics.image import PSNR
from keras_vqdit.metrics.retrieval import median_rank, recall_at_k, retrieval_ranks
from keras_vqdit.metrics.speech_classifier import LogMelSpectrogram, build_speech_classifier, train_speech_classifier
from keras_vqdit.metrics.text import bits_per_token, caption_scores, caption_tokens, cider

__all__ = [
    "PSNR",
    "CodebookPerplexity",
    "CodebookUsage",
    "LogMelSpectrogram",
    "bits_per_token",
    "build_classifier",
    "build_speech_classifier",
    "caption_scores",
    "caption_tokens",
    "cider",
    "features",
    "frechet_distance",
    "griffin_lim",
    "kernel_distance",
    "log_spectral_distance",
    "median_rank",
    "recall_at_k",
    "retrieval_ranks",
    "si_sdr",
    "spectral_convergence",
    "train_classifier",
    "train_speech_classifier",
]
