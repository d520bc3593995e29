"""How a conditional diffusion model draws: checked conditions, and a compiled program that runs a chunk of steps."""

import inspect
import math

import numpy as np
from keras import ops

from keras_vqdit.checks import number, positive_integer
from keras_vqdit.diffusion import guide, interval_scale
from keras_vqdit.diffusion.noise import standard_normal
from keras_vqdit.diffusion.samplers import SAMPLERS, sample, start
from keras_vqdit.training import compile_function


class CompiledSampler:
    """A sampler with classifier-free guidance as one compiled program, which runs any number of steps.

    The schedule, the weights, the conditions, the guidance scale and the seed are arguments of the program: another number of
    steps or newly trained weights need no new one. Shapes do.

    Args:
        process: the diffusion process.
        sampler: a name in `keras_vqdit.diffusion.SAMPLERS`.
        null_conditions: function that makes the unconditional twin of conditions, or `None`: no guidance.
        interval: times within which guidance is on.
        rescale: share of the rescaled guidance.
        jit_compile: compile by XLA.
        options: dict of options of the sampler's step.
    """

    def __init__(self, process, sampler, null_conditions, interval, rescale, jit_compile, options):
        if sampler not in SAMPLERS:
            raise ValueError(
                f"`sampler` must be one of {', '.join(map(repr, SAMPLERS))}. Received: sampler={sampler!r}"
            )
        check_options(sampler, SAMPLERS[sampler], options)
        # All of this is told here, not while tracing.
        if not isinstance(interval, tuple) or len(interval) != 2:
            raise ValueError(
                f"`guidance_interval` must be a pair (low, high). Received: guidance_interval={interval!r}"
            )
        interval_scale(1.0, 0.0, interval)
        number("guidance_rescale", rescale, 0, 1)
        if "eta" in options:
            number("eta", options["eta"], 0, 1)
        if options.get("clip") is not None:
            clip = options["clip"]
            if not isinstance(clip, tuple) or len(clip) != 2 or not clip[0] < clip[1]:
                raise ValueError(f"`clip` must be a pair (low, high), or None. Received: clip={clip!r}")
        self.process, self.sampler, self.null_conditions = process, sampler, null_conditions
        self.interval, self.rescale, self.options = interval, rescale, options
        self._network = None
        self._program = compile_function(self._steps, jit_compile=jit_compile)

    def __call__(self, network, noise, conditions, times, scale, seed, first_example, chunk, progress):
        """Run all steps, `chunk` of them at a time.

        Args:
            network: layer that predicts from a dict `{"x", "t", **conditions}`, the same one in every call.
            noise: the state at `times[0]`, (B, …).
            conditions: dict of arrays (B, …).
            times: decreasing NumPy array (num_steps + 1,).
            scale: guidance scale.
            seed: integer, for samplers that draw noise.
            first_example: number of the first example of this batch among all of the seed.
            chunk: number of steps between two reports.
            progress: its `add` is told how many steps are done.

        Returns:
            List of the tuples (state, clean estimate) after each chunk, headed by `(noise, None)`.
        """
        self._network = network
        num_steps = len(times) - 1
        padded = np.zeros(2 ** math.ceil(math.log2(num_steps + 1)), "float32")  # few lengths, few traces
        padded[: num_steps + 1] = times
        tensor = ops.convert_to_tensor
        weights = [values_of(network.trainable_variables), values_of(network.non_trainable_variables)]
        fixed = [
            {key: tensor(value) for key, value in conditions.items()},
            tensor(padded),
            tensor(scale, "float32"),
        ]
        seeds = tensor(seed_pair(seed, first_example))
        x = tensor(noise)
        memory = start(x)
        states = [(x, None)]
        for first in range(0, num_steps, chunk):
            last = min(first + chunk, num_steps)
            steps = tensor([first, last], "int32")
            x, clean, memory = self._program(weights, x, memory, *fixed, steps, seeds)
            states.append((x, clean))
            progress.add(last - first)
        return states

    def draw(self, network, noise, conditions, times, scale, steps, seeds):
        """Run steps within the program of another; arguments as in `__call__`, of tensors."""
        self._network = network
        weights = [values_of(network.trainable_variables), values_of(network.non_trainable_variables)]
        return self._steps(weights, noise, start(noise), conditions, times, scale, steps, seeds)[0]

    def _steps(self, weights, x, memory, conditions, times, scale, steps, seeds):
        def predict(x, t, conditions):
            t = ops.broadcast_to(self.process.network_time(t), (ops.shape(x)[0],))
            outputs, _ = self._network.stateless_call(*weights, {"x": x, "t": t, **conditions}, training=False)
            return outputs

        def denoise(x, t):
            if self.null_conditions is None:
                return self.process.denoised(x, predict(x, t, conditions), t)
            # One forward pass of 2B, not two of B.
            null = self.null_conditions(conditions)
            both = {key: ops.concatenate([conditions[key], null[key]]) for key in conditions}
            conditional, unconditional = ops.split(predict(ops.concatenate([x, x]), t, both), 2)
            scale_t = interval_scale(scale, t, self.interval)
            prediction, fraction = guide(self.process, conditional, unconditional, scale_t, phi=self.rescale)
            return self.process.to_clean(x, prediction, t), fraction

        return sample(
            self.sampler, denoise, self.process, x, times,
            first=steps[0], last=steps[1], memory=memory, seed=seeds[0], first_example=seeds[1], **self.options,
        )  # fmt: skip


class ExportedSampler:
    """A sampler as a pure function of tensors: `num_steps`, `guidance_scale`, `seed` and conditions to examples.

    Args:
        model: a built `LatentDiffusion`.
        sampler: a name in `keras_vqdit.diffusion.SAMPLERS`.
        interval, rescale: of the guidance.
        options: dict of options of the sampler's step.

    Attributes:
        inputs: name -> `(shape, dtype)` of what it takes besides conditions.
        ranges: name -> lowest and highest value.
    """

    MAX_STEPS = 250

    def __init__(self, model, sampler, interval, rescale, options):
        self.model = model
        interval = tuple(interval) if isinstance(interval, list) else interval
        settings = {"interval": interval, "rescale": rescale, "jit_compile": False, "options": options}
        self.plain, self.guided = (
            CompiledSampler(model.process, sampler, null, **settings) for null in (None, model._null_conditions)
        )
        most = min(self.MAX_STEPS, getattr(model.process, "num_timesteps", self.MAX_STEPS))
        self.times = np.zeros((most, most + 1), "float32")  # a row for each number of steps
        for steps in range(1, most + 1):
            self.times[steps - 1, : steps + 1] = model.process.times(steps)
        self.inputs = {"seed": ((2,), "int32"), "num_steps": ((), "int32"), "guidance_scale": ((), "float32")}
        self.ranges = {"num_steps": (1, most)}
        self.counted = not model.num_classes and not model._reads_context
        if self.counted:
            self.inputs["num_samples"] = ((), "int32")
            self.ranges["num_samples"] = (1, 2**20)

    def __call__(self, *, seed, num_steps, guidance_scale, num_samples=None, **conditions):
        model = self.model
        conditions = {"label" if key == "labels" else key: value for key, value in conditions.items()}
        count = num_samples if self.counted else ops.shape(next(iter(conditions.values())))[0]
        noise = standard_normal((count, *model.latent_shape), (seed[0], 0, seed[1]))
        times = ops.take(ops.convert_to_tensor(self.times), num_steps - 1, axis=0)
        steps = ops.stack([0, num_steps])

        def run(sampler):
            return sampler.draw(model.network, noise, conditions, times, guidance_scale, steps, seed)

        if self.counted:
            latents = run(self.plain)
        else:  # twice the work only where it is asked for
            latents = ops.cond(guidance_scale == 1.0, lambda: run(self.plain), lambda: run(self.guided))
        return {model.modality: model._finish(latents)}


def check_conditions(model, labels, num_samples, context, context_mask):
    """The conditions of `generate` as NumPy arrays (B, …), completed by the null label, and the number B of examples.

    Raises:
        ValueError: if they do not fit the model's transformer, or each other.
    """
    conditions, sizes = {}, {}
    if labels is not None:
        if not model.num_classes:
            raise ValueError(f"`labels` must be None, for the transformer has no classes. Received: labels={labels}")
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu" or labels.ndim > 1 or not labels.size:
            raise ValueError(f"`labels` must be an integer or a sequence of integers. Received: labels={labels!r}")
        if labels.min() < 0 or labels.max() >= model.num_classes:
            raise ValueError(f"`labels` must be from 0 to {model.num_classes - 1}. Received: labels={labels.tolist()}")
        if labels.ndim:
            sizes["labels"] = len(labels)
    reads_context = getattr(model.transformer, "context_dim", None) is not None
    if reads_context != (context is not None):
        raise ValueError(
            f"`context` must be {'an array (B, S, D)' if reads_context else 'None'}, for the transformer reads "
            f"{'one' if reads_context else 'none'}. Received: context of type {type(context).__name__}"
        )
    if context_mask is not None and context is None:
        raise ValueError("`context_mask` must come with a `context`. Received: context=None")
    if reads_context:
        context = np.asarray(context, "float32")
        if context.ndim != 3 or not context.size or context.shape[-1] != model.transformer.context_dim:
            raise ValueError(
                f"`context` must be of shape (B, S, context_dim={model.transformer.context_dim}), and not empty. "
                f"Received: shape={context.shape}"
            )
        if not np.all(np.isfinite(context)):
            raise ValueError("`context` must be finite. Received: NaN or infinite values")
        mask = np.ones(context.shape[:2], "bool") if context_mask is None else np.asarray(context_mask, "bool")
        if mask.shape != context.shape[:2]:
            raise ValueError(f"`context_mask` must be of shape {context.shape[:2]}. Received: shape={mask.shape}")
        conditions.update(context=context, context_mask=mask)
        sizes["context"] = len(context)
    if num_samples is not None:
        sizes["num_samples"] = positive_integer("num_samples", num_samples)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Labels, context and `num_samples` must agree on the number of examples. Received: {sizes}")
    count = next(iter(sizes.values()), 1)
    if model.num_classes:
        label = model.num_classes if labels is None else labels.astype("int32")
        conditions["label"] = np.broadcast_to(np.int32(label), (count,))
    return conditions, count


def plural(conditions):
    """Conditions by the names that `generate` has for them."""
    return {"labels" if key == "label" else key: value for key, value in conditions.items()}


def values_of(variables):
    return [variable.value for variable in variables]


def check_options(sampler, step, options, but=()):
    """Raise a TypeError unless all options are those of a sampler's step, keyword arguments other than `but`."""
    known = [one.name for one in inspect.signature(step).parameters.values() if one.kind is one.KEYWORD_ONLY]
    known = [name for name in known if name not in but]
    if not set(options) <= set(known):
        raise TypeError(f"Options of the sampler {sampler!r} are {known}. Received: {sorted(options)}")


def equal_batches(count, batch_size):
    """The rows of `count` examples in batches of one size, at most `batch_size`, so that one program serves all of them.

    Returns:
        List of `(rows, kept)`: int64 array of indices, those of the last batch filled up with the last example; and how many of
        them are not filled up.
    """
    size = math.ceil(count / math.ceil(count / batch_size))  # none of which is filled up much
    begins = range(0, count, size)
    return [(np.minimum(np.arange(begin, begin + size), count - 1), min(size, count - begin)) for begin in begins]


def seed_pair(seed, first_example):
    """The seed of a batch, int32 `(2,)`: any integer, by its last 32 bits, and the number of the first example."""
    return np.array([seed % 2**32, first_example], "uint32").astype("int32")
