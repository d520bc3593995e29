"""How a gradient passes a quantizer: the value is the code, the gradient belongs to the vector."""

from keras import ops


def straight_through(z, q):
    """Return the value of `q` with the gradient of `z`.

    The value is `q` to the last bit, which `z + stop_gradient(q - z)` is not.
    """
    return ops.stop_gradient(q) + (z - ops.stop_gradient(z))


def rotation_trick(z, q, epsilon=1e-6):
    r"""Return the value of `q` with the gradient of the rotation and scaling that turns `z` into `q`.

    With ẑ, q̂ the unit vectors and r = (ẑ + q̂)/‖ẑ + q̂‖ the output is λRz, where λ = ‖q‖/‖z‖ and
    R = I − 2rrᵀ + 2q̂ẑᵀ are constants, so a gradient g becomes λRᵀg: the angle between gradient and code is the
    angle between the encoder's gradient and its vector. Where ‖z‖, ‖q‖ or ‖ẑ + q̂‖ is below `epsilon` there is no
    such rotation, and the gradient passes straight through.

    Args:
        z: vectors `(..., D)`, float32.
        q: their codes `(..., D)`, float32.
        epsilon: what counts as zero length. Default: 1e-6.

    Returns:
        Vectors `(..., D)`, equal to `q` to the last bit. No gradient reaches `q`.

    References:
        [Restructuring Vector Quantization with the Rotation Trick](https://arxiv.org/abs/2410.06424)
    """
    fixed_z, q = ops.stop_gradient(z), ops.stop_gradient(q)
    z_norm, q_norm = _norm(fixed_z), _norm(q)  # (..., 1)
    z_hat = fixed_z / ops.maximum(z_norm, epsilon)
    q_hat = q / ops.maximum(q_norm, epsilon)
    r = z_hat + q_hat
    r_norm = _norm(r)
    r = r / ops.maximum(r_norm, epsilon)
    ratio = q_norm / ops.maximum(z_norm, epsilon)
    rotated = ratio * (z - 2.0 * r * _dot(r, z) + 2.0 * q_hat * _dot(z_hat, z))  # 2410.06424, section 4.2
    possible = ops.minimum(ops.minimum(z_norm, q_norm), r_norm) > epsilon
    return straight_through(ops.where(possible, rotated, z), q)


def _dot(a, b):
    return ops.sum(a * b, axis=-1, keepdims=True)


def _norm(x):
    return ops.sqrt(_dot(x, x))
