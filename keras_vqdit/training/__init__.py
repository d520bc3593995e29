"""How models train and run: compilation by the active backend."""

from keras_vqdit.training.compilation import compile_function

__all__ = ["compile_function"]
