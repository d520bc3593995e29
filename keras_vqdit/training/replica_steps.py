"""The steps of a model under a `tf.distribute` strategy: programs of one replica, and what the replicas tell each other."""

import contextlib
import itertools
import math

import keras
from keras import ops

from keras_vqdit.layers.replicas import deferred_learning
from keras_vqdit.training.compilation import compile_function
from keras_vqdit.training.guard import FINE, all_finite, find_cause, steps_optimizer
from keras_vqdit.training.stateless_optimizer import stateless

# TensorFlow is imported where it is used: the package also runs where Keras has another backend and no TensorFlow.

SEED_FOLD = 7919  # times the number of a replica, it is added to the seeds


class ReplicaSteps:
    """Training, evaluation and prediction steps of a model on each replica.

    A step has two compiled programs, both functions of values alone. The first takes a replica's examples to losses,
    gradients and observations. Then the replicas talk, once: they add up one vector of all that is to be added, and gather
    what layers learn from. The second program, the same on every replica, lets layers learn and the optimizer step.

    Args:
        model: `DistributedModel`, made within the scope of its strategy.
    """

    def __init__(self, model):
        self.model = model
        self.programs = {}  # (name, variables) -> compiled program
        self.traced = {}  # name -> what was found when the program was traced
        self.learners = []  # the layers that learn after a training step
        self.begun = False  # the model, its metrics and its optimizer are built
        self.started = False  # layers that start from data have done so

    # === The function that `fit` and `evaluate` call ===

    def make_function(self, step_function, *, training):
        model, strategy = self.model, self.model.distribute_strategy

        def one_step(data):
            logs = strategy.run(step_function, args=(data,))
            # What all replicas counted, not the mean of what each did: one without examples has counted nothing.
            counted = model.get_metrics_result()
            return {
                name: counted[name] if name in counted else strategy.reduce("MEAN", value, axis=None)
                for name, value in logs.items()
            }

        def start_layers(data):
            fine = strategy.run(self._start_layers, args=(data,))
            return strategy.experimental_local_results(fine)[0]

        if not model.run_eagerly:
            one_step, start_layers = compile_function(one_step), compile_function(start_layers)
        one_step = model._autoconvert_optionals(one_step)

        def steps(iterator):
            logs = None
            for _, data in zip(range(model.steps_per_execution), iterator):
                if not self.begun:
                    self._begin(data)
                if training and not self.started:
                    self.started = bool(start_layers(data))
                logs = one_step(data)
            if logs is None:
                raise StopIteration
            return logs

        return steps

    def _begin(self, batch):
        """Build what is not built yet, as the batch has it."""
        import tensorflow as tf

        model, strategy = self.model, self.model.distribute_strategy
        local = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], batch)
        if model.optimizer is not None:
            _check_made_within_scope(model.optimizer.variables)
        with strategy.scope():
            model._symbolic_build(data_batch=local)
        _check_made_within_scope([*model.weights, *model.metrics_variables])
        self.begun = True

    def _start_layers(self, data):
        """Let layers that start from data do so, before the first step, from the first batch of all replicas.

        Returns:
            Whether it was finite: otherwise its step will be skipped, and they start from the next one.
        """
        import tensorflow as tf

        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        bad = ops.cast(ops.logical_not(all_finite(data)), "float32")
        fine = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, bad) == 0
        variables = [*self.model.trainable_variables, *self._state]

        def observe(values, x):  # compiled as the steps are, for XLA has random numbers of its own
            with keras.StatelessScope(list(zip(variables, values, strict=True))), deferred_learning() as notes:
                self.model(x, training=True)
            self.model._clear_losses()
            self.learners = [layer for layer, _ in notes]
            return [seen for _, seen in notes]

        observations = self._program("start", variables, observe)(local_values(variables), x)
        for layer, seen in zip(self.learners, observations, strict=True):
            if hasattr(layer, "start"):
                layer.start(
                    **{
                        key: value * ops.cast(fine, value.dtype) if key.endswith("weights") else value
                        for key, value in _join(seen).items()
                    }
                )
        return fine

    @contextlib.contextmanager
    def explain_lost_workers(self):
        """Say plainly that a worker is gone where TensorFlow tells of collective operations.

        Raises:
            ConnectionError: if another worker stopped answering; TensorFlow notices within half a minute.
        """
        import tensorflow as tf

        lost = (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
        )
        try:
            yield
        except (*lost, tf.errors.InternalError) as error:
            if not isinstance(self.model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
                raise
            raise ConnectionError(
                "Another worker stopped, or can not be reached any more, so this one stops too. Start all workers again: with "
                f"`training.Checkpoint` they go on where they were. TensorFlow says: {str(error).splitlines()[0]}"
            ) from error

    # === Steps of one replica ===

    def train(self, data):
        return self._step("train", data)

    def test(self, data):
        return self._step("test", data)

    def predict(self, data):
        if not self.model.built:
            raise ValueError(
                "The model must be built before `predict` under a strategy: train it, or call it on a batch"
            )
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        variables = [*self.model.trainable_variables, *self._state]

        def predict(values, x):
            # A replica without examples runs on one of zeros: some kernels of TensorFlow fail for none.
            count = ops.shape(keras.tree.flatten(x)[0])[0]
            x = keras.tree.map_structure(lambda one: _with_one(one, count), x)
            with keras.StatelessScope(list(zip(variables, values, strict=True))):
                outputs = self.model(x, training=False)
            return keras.tree.map_structure(lambda one: one[:count], outputs)

        return self._program("predict", variables, predict)(local_values(variables), x)

    @property
    def _state(self):
        return [*self.model.non_trainable_variables, *self.model.metrics_variables]

    def _program(self, name, variables, function):
        """A function of the values of these variables, compiled once; with other variables it is another function."""
        if self.model.run_eagerly:
            return function
        key = (name, *map(id, variables))
        if key not in self.programs:
            self.programs[key] = compile_function(function, jit_compile=bool(self.model.jit_compile))
        return self.programs[key]

    def _step(self, name, data):
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        training = name == "train"
        optimizer = self.model.optimizer if training else None
        trainable, state = self.model.trainable_variables, self._state
        if training:
            _check_optimizer(optimizer, trainable)
        trained = [*trainable, *optimizer.variables] if training else []
        loss_scale = optimizer.scale_loss(tf.constant(1.0)) if training else tf.constant(1.0)
        traced = self.traced.setdefault((name, *map(id, [*trained, *state])), _Traced())

        run = self._program(name, [*trained, *state], self._observe(training, trainable, state, traced))
        old_state = local_values(state)
        logs, sums, changes, observations = run(
            local_values(trainable), old_state, data, loss_scale, replica.replica_id_in_sync_group
        )
        sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        observations = [_join(seen) for seen in observations]

        update = self._program(f"{name} update", [*trained, *state], self._update(trainable, state, optimizer, traced))
        new_trained, new_state, new_logs = update(sums, changes, observations, local_values(trained), old_state)
        for variable, value in zip([*trained, *traced.written], [*new_trained, *new_state], strict=True):
            _assign_here(variable, value)
        return {**logs, **new_logs}

    def _observe(self, training, trainable, state, traced):
        """The first program: what one replica finds in its examples."""
        model = self.model
        num_replicas = model.distribute_strategy.num_replicas_in_sync
        folded = self._folded_seeds()
        kinds = _reductions(model, state)
        own_metrics = set(map(id, model.metrics_variables))

        def observe(trainable_values, state_values, data, loss_scale, replica_id):
            import tensorflow as tf

            # A replica's part of a mean is weighted by its number of examples: the last batch may be uneven, or leave it none.
            # With none it goes through the same motions with an example of zeros, which counts for nothing.
            empty = _first(data).shape[0] == 0
            if empty:
                data = keras.tree.map_structure(_one_of_zeros, data)
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            size = tf.constant(0.0) if empty else ops.cast(batch_size(x), "float32")
            begin = [
                value + ops.stack([ops.cast(replica_id * SEED_FOLD, value.dtype), ops.zeros((), value.dtype)])
                if id(variable) in folded
                else value
                for variable, value in zip(state, state_values, strict=True)
            ]
            mapping = [*zip(trainable, trainable_values, strict=True), *zip(state, begin, strict=True)]
            with tf.GradientTape() as tape:
                tape.watch(trainable_values)
                with keras.StatelessScope(mapping, collect_losses=True) as scope, deferred_learning() as notes:
                    y_pred = model(x, training=training)
                    loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
                    model._loss_tracker.update_state(loss * num_replicas, sample_weight=size)
                    logs = model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
                scaled = loss * loss_scale
            gradients = tape.gradient(scaled, trainable_values) if training else []
            model._clear_losses()

            sums = {"size": size}
            if training and empty:
                sums["bad loss"] = sums["bad data"] = size
            elif training:
                sums["bad loss"] = ops.cast(ops.logical_not(ops.isfinite(loss)), "float32")
                sums["bad data"] = ops.cast(ops.logical_not(all_finite(data)), "float32")
            for i, gradient in enumerate(gradients):
                if gradient is not None:
                    gradient = ops.cast(tf.convert_to_tensor(gradient), "float32")
                    sums[f"gradient {i}"] = ops.zeros_like(gradient) if empty else gradient * size
            traced.changed, changes = [], []
            for variable, old, first in zip(state, state_values, begin, strict=True):
                new = scope.get_current_value(variable)
                if new is None or new is first:
                    continue
                if id(variable) in folded:
                    new = new - first + old
                elif kinds.get(id(variable)):
                    part = ops.cast(new, "float32") * (size if kinds[id(variable)] == "mean" else 1.0)
                    sums[f"state {len(changes)}"] = ops.zeros_like(part) if empty else part
                elif empty and id(variable) in own_metrics:
                    new = old
                traced.changed.append(variable)
                changes.append(new)
            traced.names, traced.shapes = list(sums), [tuple(value.shape) for value in sums.values()]
            if training:
                self.learners = [layer for layer, _ in notes]
            flat = ops.concatenate([ops.reshape(value, (-1,)) for value in sums.values()])
            observations = [seen for _, seen in notes]
            if empty:
                observations = keras.tree.map_structure(
                    lambda value: None if value is None else value[:0], observations
                )
            return logs, flat, changes, observations

        return observe

    def _update(self, trainable, state, optimizer, traced):
        """The second program: what all replicas make of what they found, each for itself and all the same."""
        model = self.model
        num_replicas = model.distribute_strategy.num_replicas_in_sync
        kinds = _reductions(model, state)

        def update(flat, changes, observations, trained_values, state_values):
            import tensorflow as tf

            sums = _unflatten(flat, traced.names, traced.shapes)
            changes = list(changes)
            for i, variable in enumerate(traced.changed):
                kind = kinds.get(id(variable))
                if kind:
                    total = sums[f"state {i}"] / sums["size"] if kind == "mean" else sums[f"state {i}"]
                    changes[i] = ops.cast(total, changes[i].dtype)
            if optimizer is None:
                traced.written = traced.changed
                return [], changes, {}

            trainable_values, optimizer_values = trained_values[: len(trainable)], trained_values[len(trainable) :]
            # The losses of the replicas add up to the mean, each divided by their number.
            gradients = [
                ops.cast(sums[f"gradient {i}"] / sums["size"] * num_replicas, value.dtype)
                if f"gradient {i}" in sums
                else None
                for i, value in enumerate(trainable_values)
            ]
            cause = find_cause(sums["bad data"] == 0, sums["bad loss"] == 0, gradients)
            fine, steps = ops.equal(cause, FINE), steps_optimizer(cause, optimizer)

            old = dict(zip(map(id, state), state_values, strict=True))
            seen = {**old, **dict(zip(map(id, traced.changed), changes, strict=True))}
            mapping = [*((v, seen[id(v)]) for v in state), *zip(trainable, trainable_values, strict=True)]
            with keras.StatelessScope(mapping) as scope:
                for layer, observed in zip(self.learners, observations, strict=True):
                    layer.learn(**observed)  # before the optimizer, as on one device
            new = {id(variable): scope.get_current_value(variable) for variable in [*state, *trainable]}

            def step():
                with stateless(optimizer):
                    trained = optimizer.stateless_apply(
                        optimizer_values, gradients, [new[id(variable)] for variable in trainable]
                    )
                return [*trained[0], *trained[1]]

            if not trainable:
                trained = trained_values
            elif model.jit_compile:
                trained = [ops.where(steps, a, b) for a, b in zip(step(), trained_values, strict=True)]
            else:
                trained = tf.cond(steps, step, lambda: list(trained_values))

            # A step that is skipped leaves all as it was but the random numbers, which go on, and the count.
            written = [variable for variable in state if new[id(variable)] is not old[id(variable)]]
            final = {id(v): new[id(v)] if is_seed(v) else ops.where(fine, new[id(v)], old[id(v)]) for v in written}
            with keras.StatelessScope([(v, final.get(id(v), old[id(v)])) for v in state]) as scope:
                model.skips.update_state(cause)
                logs = model.get_metrics_result()
            traced.written = [*written, *model.skips.variables]
            values = [scope.get_current_value(variable) for variable in traced.written]
            return trained, values, logs

        return update

    def _folded_seeds(self):
        """The seeds that differ between replicas: all but those of layers that draw for all of them at once."""
        shared = {
            id(generator.state)
            for layer in self.model._flatten_layers()
            for generator in getattr(layer, "shared_seed_generators", ())
        }
        return {id(v) for v in self.model.non_trainable_variables if is_seed(v) and id(v) not in shared}


class _Traced:
    """What tracing the two programs of a step found out about their results."""

    changed = ()  # the variables that get new values from the first
    written = ()  # the variables that get new values from the second
    names, shapes = (), ()  # of the parts of the vector that the replicas add up


def is_seed(variable):
    return variable.name == "seed_generator_state"


def _reductions(model, state):
    """`"mean"` or `"sum"` for the variables that are reduced over the replicas; metrics are, when they are read."""
    own = set(map(id, model.metrics_variables))
    kinds = {id(v): v.aggregation for v in state if v.aggregation in ("mean", "sum") and id(v) not in own}
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):  # Keras does not say so itself
            kinds.update({id(variable): "mean" for variable in layer.non_trainable_variables})
    return kinds


def _first(x):
    return next(part for part in keras.tree.flatten(x) if part is not None)


def batch_size(x):
    """The number of examples in the first tensor of an input."""
    return ops.shape(_first(x))[0]


def _one_of_zeros(value):
    return None if value is None else ops.zeros((1, *value.shape[1:]), value.dtype)


def _unflatten(flat, names, shapes):
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    parts = [flat[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return {name: ops.reshape(part, shape) for name, part, shape in zip(names, parts, shapes, strict=True)}


def _check_made_within_scope(variables):
    """A variable of one device would be written by all replicas in turn."""
    import tensorflow as tf

    alone = [v.path for v in variables if not isinstance(v._value, tf.distribute.DistributedValues)]
    if alone:
        raise ValueError(
            "The model and its optimizer must be made, and the model compiled, within `strategy.scope()`. "
            f"Received: {len(alone)} variables made outside of it, such as {alone[0]!r}"
        )


def _check_optimizer(optimizer, trainable):
    """An optimizer that was built with other variables, as before layers were frozen, works on one device alone."""
    built = getattr(getattr(optimizer, "inner_optimizer", optimizer), "_trainable_variables", None) or trainable
    if len(built) != len(trainable):
        raise ValueError(
            f"Under a strategy the optimizer must be of the variables that train, {len(trainable)}: compile the model with a new "
            f"one after layers were frozen. Received: an optimizer of {len(built)} variables"
        )


def check_strategy(strategy):
    """Raise a ValueError for a strategy that is not supported."""
    import tensorflow as tf

    if not isinstance(strategy, (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)):
        raise ValueError(
            "The strategy must be a `MirroredStrategy` or a `MultiWorkerMirroredStrategy`; for one device use none. "
            f"Received: {type(strategy).__name__}"
        )


def check_no_strategy(model):
    """Raise a ValueError where a model is compiled within the scope of a strategy that it was not made in."""
    import tensorflow as tf

    if tf.distribute.has_strategy():
        raise ValueError(
            "The model must be made within `strategy.scope()`, as its optimizer and `compile`. "
            f"Received: {model.name!r}, made outside of it"
        )


def local_values(variables):
    """The values of variables now: on this replica, or, outside of all, on the first."""
    import tensorflow as tf

    return [tf.convert_to_tensor(variable.value) for variable in variables]


def to_numpy(variable):
    """The value of a variable outside of all replicas; a metric's is added up over them."""
    if keras.backend.backend() == "tensorflow":  # a variable of several workers is no tensor by itself
        variable = local_values([variable])[0]
    return ops.convert_to_numpy(variable)


def _assign_here(variable, value):
    """Assign to this replica's copy of a variable."""
    copy = variable._value
    copy = copy._get() if hasattr(copy, "_get") else copy
    copy.assign(value)


def _with_one(x, count):
    """An example of zeros where there are none."""
    import tensorflow as tf

    missing = tf.cast(tf.equal(count, 0), "int32")
    return tf.concat([x, tf.zeros(tf.concat([[missing], tf.shape(x)[1:]], axis=0), x.dtype)], axis=0)


def _join(observations):
    """The observations of all replicas, one after the other, in the order of the examples."""
    import tensorflow as tf

    replica, joined = tf.distribute.get_replica_context(), {}
    for name, value in observations.items():
        if value is not None:
            shape = value.shape[1:]
            value = replica.all_gather(value, axis=0)
            value = tf.ensure_shape(value, [None, *shape])  # which the gathering forgets
        joined[name] = value
    return joined
