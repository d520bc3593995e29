"""Diffusion processes, samplers and guidance: mathematics without trainable weights."""

from keras_vqdit.diffusion.flow import RectifiedFlow
from keras_vqdit.diffusion.gaussian import GaussianDiffusion
from keras_vqdit.diffusion.guidance import classifier_free, guide, interval_scale, rescale
from keras_vqdit.diffusion.masked import MaskedDiffusion
from keras_vqdit.diffusion.noise import standard_normal
from keras_vqdit.diffusion.process import DiffusionProcess
from keras_vqdit.diffusion.samplers import (
    SAMPLERS,
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    euler_step,
    heun_step,
    sample,
)
from keras_vqdit.diffusion.schedules import (
    cosine_betas,
    linear_betas,
    shift_times,
    sigmoid_betas,
    zero_terminal_snr,
)
from keras_vqdit.diffusion.unmasking import ancestral_step, confidence_step, fill_in

__all__ = [
    "SAMPLERS",
    "DiffusionProcess",
    "GaussianDiffusion",
    "MaskedDiffusion",
    "RectifiedFlow",
    "ancestral_step",
    "classifier_free",
    "confidence_step",
    "cosine_betas",
    "ddim_step",
    "ddpm_step",
    "dpmpp_2m_step",
    "euler_step",
    "fill_in",
    "guide",
    "heun_step",
    "interval_scale",
    "linear_betas",
    "rescale",
    "sample",
    "shift_times",
    "sigmoid_betas",
    "standard_normal",
    "zero_terminal_snr",
]
