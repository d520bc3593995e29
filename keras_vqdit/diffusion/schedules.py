"""Noise schedules and time spacings: tiny functions of float64 NumPy, cast to float32 where they are used."""

import numpy as np

# === Noise schedules: betas of T steps ===


def linear_betas(num_timesteps):
    """Linear schedule of DDPM (2006.11239), 1e-4 to 0.02 for 1,000 steps, rescaled for any other number of them."""
    scale = 1000 / num_timesteps
    return np.minimum(np.linspace(scale * 1e-4, scale * 0.02, num_timesteps), 0.999)


def cosine_betas(num_timesteps, max_beta=0.999):
    """Cosine schedule (2102.09672), eq. 17."""
    t = np.arange(num_timesteps + 1) / num_timesteps
    alpha_bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def sigmoid_betas(num_timesteps):
    """Sigmoid schedule of GeoDiff (2203.02923): betas rise from 1e-4 to 0.02 along a sigmoid over [-6, 6]."""
    scale = 1000 / num_timesteps
    rise = 1 / (1 + np.exp(-np.linspace(-6, 6, num_timesteps)))
    return np.minimum(scale * (1e-4 + rise * (0.02 - 1e-4)), 0.999)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas, "sigmoid": sigmoid_betas}


def zero_terminal_snr(betas):
    """Rescale betas so that the last step holds no signal, and the first one stays (2305.08891), algorithm 1."""
    root = np.sqrt(np.cumprod(1 - np.asarray(betas, "float64")))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


def min_snr_weight(alpha_bar, gamma, prediction):
    """Min-SNR-gamma weight of the squared error of a prediction (2303.09556), section 3.4.

    With `SNR = alpha_bar / (1 - alpha_bar)`: `min(SNR, gamma)` for the clean example, over `SNR` for the noise, over
    `SNR + 1` for v. A step without signal weighs nothing.

    Args:
        alpha_bar: float64 array of squared signal levels in [0, 1].
        gamma: where the signal-to-noise ratio is capped; the paper takes 5.
        prediction: `"noise"`, `"clean"` or `"v"`.

    Returns:
        float64 array of the shape of `alpha_bar`.
    """
    signal, noise = np.asarray(alpha_bar, "float64"), 1 - np.asarray(alpha_bar, "float64")
    capped = np.minimum(signal, gamma * noise)  # min(SNR, gamma) / (SNR + 1)
    if prediction == "v":
        return capped
    if prediction == "noise":
        return np.divide(capped, signal, out=np.zeros_like(signal), where=signal > 0)
    return np.divide(capped, noise, out=np.full_like(noise, gamma), where=noise > 0)


# === Times ===


def shift_times(t, shift):
    """Move times towards noise, as larger inputs need (2403.03206), eq. 23: `shift t / (1 + (shift - 1) t)`."""
    return shift * t / (1 + (shift - 1) * t)


def leading_indices(num_steps, num_timesteps):
    """Every `T // N`-th index from 1 on, as DDIM's code does; does not start from pure noise."""
    return 1 + np.arange(num_steps)[::-1] * (num_timesteps // num_steps)


def trailing_indices(num_steps, num_timesteps):
    """Every `T / N`-th index from T down, which starts from pure noise (2305.08891), table 2."""
    return np.round(num_timesteps - np.arange(num_steps) * (num_timesteps / num_steps)).astype(int)


def linspace_indices(num_steps, num_timesteps):
    """Evenly from T to 1, both included."""
    return 1 + np.round(np.linspace(num_timesteps - 1, 0, num_steps)).astype(int)


SPACINGS = {"leading": leading_indices, "trailing": trailing_indices, "linspace": linspace_indices}
