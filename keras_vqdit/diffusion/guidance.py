"""Guidance: a conditional and an unconditional prediction become one; never their learned variances."""

from keras import ops

from keras_vqdit.diffusion.process import expand_like


def classifier_free(conditional, unconditional, scale):
    """`u + scale (c - u)`, classifier-free guidance (2207.12598), eq. 6 with `scale = 1 + w`.

    Args:
        conditional, unconditional: predictions (B, ...).
        scale: 1 is off (and returns `conditional` bit for bit), 0 is unconditional; a number or a tensor () or (B,).

    Returns:
        float32 (B, ...).
    """
    conditional, unconditional = ops.cast(conditional, "float32"), ops.cast(unconditional, "float32")
    return conditional + (expand_like(scale, conditional) - 1) * (conditional - unconditional)


def interval_scale(scale, t, interval=(0.0, 1.0)):
    """The scale at time t, if guidance is on within an interval of times alone (2404.07724).

    Args:
        scale: guidance scale within the interval.
        t: times in [0, 1], 0 is data.
        interval: pair `(low, high)`, both included.

    Returns:
        float32 of the shape of t: `scale` within the interval, 1 outside.

    Raises:
        ValueError: if not `0 <= low <= high <= 1`.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"`interval` must be (low, high) with 0 <= low <= high <= 1. Received: interval={interval}")
    t = ops.cast(t, "float32")
    return ops.where((t >= low) & (t <= high), ops.cast(scale, "float32"), 1.0)


def rescale(guided, conditional, phi):
    """Give the guided prediction the spread of the conditional one, in part (2305.08891), eq. 15 and 16.

    Args:
        guided, conditional: predictions (B, ...).
        phi: share of the rescaled prediction, 0 is off; the paper takes 0.7.

    Returns:
        float32 (B, ...).
    """
    guided, conditional = ops.cast(guided, "float32"), ops.cast(conditional, "float32")
    axes = tuple(range(1, len(guided.shape)))
    std_conditional = ops.std(conditional, axis=axes, keepdims=True)
    std_guided = ops.std(guided, axis=axes, keepdims=True)
    factor = std_conditional / ops.maximum(std_guided, 1e-12)
    return guided * (phi * factor + (1 - phi))


def guide(process, conditional, unconditional, scale, *, phi=0.0):
    """Guide what a network returns: all channels of the prediction, while the variance stays the conditional one's.

    Args:
        process: the diffusion process, which knows where the variance is.
        conditional, unconditional: outputs of the network (B, ..., prediction_channels(C)).
        scale: guidance scale, see `classifier_free`.
        phi: see `rescale`.

    Returns:
        Tuple `(prediction, variance_fraction)` as of `process.split_prediction`.

    Example:

    ```python
    import numpy as np
    from keras_vqdit.diffusion import GaussianDiffusion, guide, interval_scale

    process = GaussianDiffusion(learn_variance=True)
    both = np.random.default_rng(0).normal(size=(8, 7, 7, 32))  # one forward pass of 2B, conditional first
    prediction, fraction = guide(process, both[:4], both[4:], interval_scale(3.0, 0.5, (0.2, 0.8)), phi=0.7)
    ```
    """
    conditional, fraction = process.split_prediction(conditional)
    unconditional, _ = process.split_prediction(unconditional)
    guided = classifier_free(conditional, unconditional, scale)
    return rescale(guided, conditional, phi), fraction
