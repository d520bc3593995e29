"""Normal, uniform and Gumbel noise, a pure function of a seed: the same eagerly, compiled and on every backend, up to rounding.

On TensorFlow `keras.random.normal` gives other numbers inside XLA than outside, and is some twenty times slower in an
XLA program for the CPU, which repeats the scrambling of the seed for every element. Here element i depends on the
seed and on i alone, so an example's noise does not depend on the size of its batch either.
"""

import math

import keras
from keras import ops

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key, counter):
    """Threefry-2x32 of 20 rounds, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).

    Args:
        key: pair of int32 scalars.
        counter: pair of int32 tensors of one shape.

    Returns:
        Pair of int32 tensors of that shape, whose 32 bits each are random.
    """
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(5):
        for distance in ROTATIONS[i % 2]:
            a = a + b
            b = a ^ (ops.left_shift(b, distance) | _shift_right(b, 32 - distance))
        a, b = a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + (i + 1)
    return a, b


def standard_normal(shape, seed):
    """Standard normal noise by the method of Box and Muller.

    Args:
        shape: tuple of integers, or of scalar integer tensors where a size is dynamic.
        seed: an integer, a scalar integer tensor, a pair of such, or a `keras.random.SeedGenerator` (which moves on). A third
            number n beside a pair gives the noise of the examples n, n + 1, … of a larger batch.

    Returns:
        float32 tensor.

    Example:

    >>> from keras_vqdit.diffusion.noise import standard_normal
    >>> tuple(standard_normal((2, 3), seed=0).shape)
    (2, 3)
    """
    return _numbers(shape, seed, _box_muller)


def uniform(shape, seed):
    """Uniform noise between 0 and 1, both exclusive; arguments as of `standard_normal`.

    Returns:
        float32 tensor of multiples of 2⁻²⁴, less half of that, as far as float32 has them, from 2⁻²⁵ to 1 - 2⁻²⁴.
    """
    return _numbers(shape, seed, lambda u, v: (u, v))


def gumbel(shape, seed):
    """Standard Gumbel noise, in float32; arguments as of `standard_normal`. Lower precision cuts its tail off."""
    return -ops.log(-ops.log(uniform(shape, seed)))


def _numbers(shape, seed, transform):
    size, example = math.prod(shape), math.prod(shape[1:])
    first = seed[2] if isinstance(seed, (tuple, list)) and len(seed) == 3 else 0
    if isinstance(first, int) and first == 0 or isinstance(example, int) and example % 2 == 0:
        pairs = transform(*_uniform_pairs(seed, ops.arange((size + 1) // 2, dtype="int32") + first * (example // 2)))
        return ops.reshape(ops.reshape(ops.stack(pairs, axis=-1), (-1,))[:size], shape)
    element = ops.arange(size, dtype="int32") + first * example  # an example may begin in the middle of a pair
    even, odd = transform(*_uniform_pairs(seed, element // 2))
    return ops.reshape(ops.where(element % 2 == 0, even, odd), shape)


def _uniform_pairs(seed, index):
    """The two numbers of each pair `index`, see `_fraction`."""
    return tuple(map(_fraction, threefry(_key(seed), (index, ops.zeros_like(index)))))


def _fraction(bits):
    """The upper 24 of 32 random bits as a number between 0 and 1: never 0, nor 1, to which float32 would round the largest."""
    return ops.minimum((ops.cast(_shift_right(bits, 8), "float32") + 0.5) * 2.0**-24, 1 - 2.0**-24)


def _box_muller(u, v):
    radius, angle = ops.sqrt(-2.0 * ops.log(u)), 2 * math.pi * v
    return radius * ops.cos(angle), radius * ops.sin(angle)


def _shift_right(bits, distance):
    """Shift that fills with zeros; that of signed integers fills with the sign."""
    return ops.right_shift(bits, distance) & ((1 << (32 - distance)) - 1)


def _key(seed):
    """Two int32 scalars of whatever may be a seed."""
    if isinstance(seed, keras.random.SeedGenerator):
        seed = seed.next()
    elif not isinstance(seed, (tuple, list)) and len(getattr(seed, "shape", ())) == 0:
        seed = (seed, 0)
    return tuple(_int32(seed[i]) for i in range(2))


def _int32(number):
    if isinstance(number, int):
        number = (number + 2**31) % 2**32 - 2**31  # the same 32 bits
    return ops.cast(number, "int32")
