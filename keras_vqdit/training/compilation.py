"""Compilation of plain functions by the active Keras backend."""

import keras


def compile_function(function, *, jit_compile=False):
    """Compile a function of tensors: `tf.function`, `jax.jit`, or, on PyTorch, the function itself.

    Args:
        function: pure function of (nested) tensors. What it reads besides its arguments is frozen on JAX, so weights
            must be arguments: see `keras.Layer.stateless_call`.
        jit_compile: whether TensorFlow compiles with XLA. JAX always does. Defaults to `False`.

    Returns:
        The compiled function; it is traced again for arguments of other shapes.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # Nothing is written for AutoGraph, whose rewriting takes seconds.
        compiled = tf.function(function, jit_compile=jit_compile, autograph=False)
        # Batches of another size and other options are traced anew on purpose: no reason for TensorFlow's warning.
        compiled._omit_frequent_tracing_warning = True
        return compiled
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function
