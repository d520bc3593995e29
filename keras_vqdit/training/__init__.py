"""How models train and run: compilation by the active backend, replicas, guard rails, checkpoints."""

from keras_vqdit.training.checkpoint import Checkpoint
from keras_vqdit.training.compilation import compile_function
from keras_vqdit.training.distributed_model import DistributedModel

__all__ = ["Checkpoint", "DistributedModel", "compile_function"]
