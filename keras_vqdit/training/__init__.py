"""How models train and run: compilation by the active backend."""

from keras_vqdit.training.compilation import compile_function
from keras_vqdit.training.distributed_model import DistributedModel

__all__ = ["DistributedModel", "compile_function"]
