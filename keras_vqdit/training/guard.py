"""Guard rails: a step whose loss or gradients are not finite changes nothing, and is counted."""

import logging

import keras
from keras import ops

logger = logging.getLogger("keras_vqdit")

# Causes: which gradient was not finite, by the number of its variable, or
FINE, LOSS, DATA = -1, -2, -3


class SkippedSteps(keras.metrics.Metric):
    """Counts the steps that were skipped. It is a metric so that every Keras trainer carries it from step to step.

    Evaluations between epochs reset metrics; these counts go on. They are no part of the logs.
    """

    def __init__(self, name="skipped_steps"):
        super().__init__(name=name)
        # Not `add_variable`: that is added up over replicas, and all replicas count alike.
        self.total, self.in_a_row, self.cause = (
            keras.Variable(keras.initializers.Constant(value), (), "int32", trainable=False, name=name)
            for name, value in (("total", 0), ("in_a_row", 0), ("cause", FINE))
        )

    def update_state(self, cause):
        skipped = ops.not_equal(cause, FINE)
        first = ops.logical_and(skipped, ops.equal(self.in_a_row, 0))
        self.cause.assign(ops.where(first, cause, self.cause.value))
        self.in_a_row.assign(ops.where(skipped, self.in_a_row.value + 1, 0))
        self.total.assign(self.total + ops.cast(skipped, "int32"))

    def reset_state(self):
        pass

    def result(self):
        return {}


def find_cause(data_finite, loss_finite, gradients):
    """Say what of a step is not finite.

    Args:
        data_finite, loss_finite: bool scalars.
        gradients: list of tensors, or None, one for each trainable variable.

    Returns:
        int32 scalar, `FINE`, `LOSS`, `DATA`, or the index of a gradient: the last one that is not finite, for gradients flow
        from the last layers to the first, and carry what is not finite with them.
    """
    known = [(i, g) for i, g in enumerate(gradients) if g is not None]
    cause = ops.convert_to_tensor(FINE, "int32")
    if known:
        bad = ops.stack([ops.logical_not(ops.all(ops.isfinite(g))) for _, g in known])
        indices = ops.convert_to_tensor([i for i, _ in known], "int32")
        cause = ops.max(ops.where(bad, indices, FINE))
    cause = ops.where(loss_finite, cause, LOSS)
    wrong = ops.not_equal(cause, FINE)
    return ops.where(ops.logical_and(wrong, ops.logical_not(data_finite)), DATA, cause)


def all_finite(data):
    """Whether all floats of a batch are finite."""
    finite = ops.convert_to_tensor(True)
    for leaf in keras.tree.flatten(data):
        if hasattr(leaf, "dtype") and keras.backend.is_float_dtype(keras.backend.standardize_dtype(leaf.dtype)):
            finite = ops.logical_and(finite, ops.all(ops.isfinite(leaf)))
    return finite


def steps_optimizer(cause, optimizer):
    """Whether the optimizer takes a step of this cause.

    One that scales the loss expects gradients to overflow: it leaves the weights alone by itself, and lowers its scale.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return ops.logical_and(ops.not_equal(cause, LOSS), ops.not_equal(cause, DATA))
    return ops.equal(cause, FINE)


class Watch:
    """Follows the counts of `SkippedSteps` while a model trains: warns once, and stops at last.

    It looks at the counts of the call before, so that the host need not wait for the device.
    """

    def __init__(self, model):
        self.model = model
        self.warned = False
        self.total = None  # of the call before
        self.pending = None

    def look(self, counts):
        """Take the values of `SkippedSteps`' variables after a call of the train function.

        Raises:
            FloatingPointError: after `max_skipped_steps` in a row.
        """
        counts, self.pending = self.pending, counts
        if counts is None:
            return
        total, in_a_row, cause = (int(count) for count in counts)
        skipped = in_a_row > 0 if self.total is None else total > self.total
        self.total = total
        scaled = isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer) and cause >= 0
        if skipped and not self.warned and not scaled:
            self.warned = True
            logger.warning(
                "A training step was skipped: %s. The model is as before; `skipped_steps` counts such steps",
                self.describe(cause),
            )
        if in_a_row >= self.model.max_skipped_steps:
            self.pending = None
            raise FloatingPointError(
                f"Training stopped after {in_a_row} steps in a row that were skipped, in the first of which "
                f"{self.describe(cause)}. None of them changed the model, and no checkpoint was harmed"
            )

    def look_at_last(self):
        """Look at the counts of the last calls, too."""
        self.look(None)
        self.look([ops.convert_to_numpy(count) for count in self.model.skips.variables])
        self.look(None)

    def describe(self, cause):
        if cause == DATA:
            return "the data were not finite (NaN or infinite values in the batch)"
        if cause == LOSS:
            return "the loss was not finite, of finite data"
        path = self.model.trainable_variables[cause].path
        return f"the gradient of {path!r} was not finite, of a finite loss (the last such layer, from which it spreads)"
