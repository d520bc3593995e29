"""How models train and run: compilation by the active backend, replicas, guard rails, checkpoints."""

from keras_vqdit.training.callbacks import TensorBoard, Throughput
from keras_vqdit.training.checkpoint import Checkpoint
from keras_vqdit.training.compilation import compile_function
from keras_vqdit.training.distributed_model import DistributedModel
from keras_vqdit.training.strategies import make_strategy, scope

__all__ = ["Checkpoint", "DistributedModel", "TensorBoard", "Throughput", "compile_function", "make_strategy", "scope"]
