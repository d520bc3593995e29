"""Let the optimizers of Keras work on values, under TensorFlow too."""

import contextlib
import types

from keras import ops


@contextlib.contextmanager
def stateless(optimizer):
    """Within this block `optimizer.stateless_apply` works under TensorFlow and its strategies.

    The TensorFlow half of Keras's optimizers writes to variables, and merges replicas; it makes way for the general one.
    """
    optimizers = [optimizer]
    while hasattr(optimizers[-1], "inner_optimizer"):
        optimizers.append(optimizers[-1].inner_optimizer)
    classes = type(optimizer).__mro__
    special, general = (next(c for c in classes if c.__name__ == name) for name in ("TFOptimizer", "BaseOptimizer"))
    of_tensorflow = special._backend_update_step
    special._backend_update_step = general._backend_update_step  # optimizers such as Nadam call it as `super()`
    for one in optimizers:
        for name in vars(special):
            replaced = getattr(type(one), name, None) is vars(special)[name] and hasattr(general, name)
            if replaced and not name.startswith("__") and name not in ("add_variable_from_reference", "_clip_by_norm"):
                one.__dict__[name] = types.MethodType(getattr(general, name), one)
        one.__dict__["_var_key"] = lambda variable: variable._value._unique_id
        one.__dict__["_backend_apply_gradients"] = types.MethodType(_apply_gradients, one)
    try:
        yield
    finally:
        special._backend_update_step = of_tensorflow
        for one in optimizers:
            for name in vars(special):
                if not name.startswith("__"):
                    one.__dict__.pop(name, None)
            one.__dict__.pop("_backend_apply_gradients", None)


def _apply_gradients(optimizer, gradients, variables):
    """What an optimizer does with gradients, without conditions that write to variables: those are lost among values."""

    def update(gradients):
        gradients = optimizer._clip_gradients(gradients)
        optimizer._apply_weight_decay(variables)
        optimizer._backend_update_step(gradients, variables, optimizer.learning_rate)

    def restore_unless(condition, changed, before):
        for variable, old in zip(changed, before, strict=True):
            variable.assign(ops.where(condition, variable.value, old))

    steps = optimizer.gradient_accumulation_steps
    if steps:
        complete = ops.equal((optimizer._iterations + 1) % steps, 0)
        slots = [optimizer._accumulated_gradients[optimizer._get_variable_index(v)] for v in variables]
        sums = [gradient + slot.value for gradient, slot in zip(gradients, slots, strict=True)]
        changed = [*variables, *optimizer.variables]
        before = [variable.value for variable in changed]
        update([total / steps for total in sums])
        restore_unless(complete, changed, before)
        for slot, total in zip(slots, sums, strict=True):
            slot.assign(ops.where(complete, ops.zeros_like(total), total))
    else:
        update(gradients)

    if optimizer.use_ema:
        trainable = optimizer._trainable_variables
        optimizer._update_model_variables_moving_average(trainable)
        if optimizer.ema_overwrite_frequency:
            due = ops.equal((optimizer.iterations + 1) % optimizer.ema_overwrite_frequency, 0)
            before = [variable.value for variable in trainable]
            optimizer._overwrite_model_variables_with_average_value(trainable)
            restore_unless(due, trainable, before)
