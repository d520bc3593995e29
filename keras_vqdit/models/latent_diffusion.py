"""Latent diffusion: a tokenizer, a diffusion process and a transformer meet here, and nowhere else."""

import math
import random

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import fits, integer, known_values, number, positive_integer
from keras_vqdit.diffusion import RectifiedFlow
from keras_vqdit.diffusion.noise import standard_normal
from keras_vqdit.diffusion.process import DiffusionProcess
from keras_vqdit.models.autoencoder import check_float
from keras_vqdit.models.generation import CompiledSampler, ExportedSampler, check_conditions, equal_batches, plural
from keras_vqdit.models.generative_model import GenerativeModel
from keras_vqdit.saving import Endpoint

CONDITIONS = ("label", "context", "context_mask")
# dtypes of what the transformer is built with
DTYPES = {"label": "int32", "context_mask": "bool"}
MAX_STEPS = 100_000


@keras.saving.register_keras_serializable("keras_vqdit")
class LatentDiffusion(GenerativeModel):
    """A diffusion model over the latents of a tokenizer: trained by `fit`, drawn from by `generate`.

    `call` makes one noised pass and returns the loss of each example, so `fit`, `evaluate`, callbacks and every Keras backend
    work as for any model. The tokenizer is frozen. A moving average of the transformer's weights (`ema_transformer`)
    is kept while training, and is what `evaluate` and `generate` use. Who sets the transformer's weights by hand after
    training (`load_weights`, `load_dit_weights`) calls `reset_average` then.

    `evaluate` draws times and noise anew, so its loss varies by a few percent from call to call; data with fixed `"t"`
    and `"noise"` make it exact, for a callback that compares epochs.

    Args:
        tokenizer: gives `encode_latents(x)` and `decode_latents(z)`, as `VQVAE` and `VAE` do. It is set to
            `trainable = False`. `None` means no tokenizer: diffusion of the data itself.
        transformer: the network, usually a `DiffusionTransformer`; a function of a dict `{"x", "t", "label", …}`.
        process: the diffusion process. Defaults to `RectifiedFlow()`.
        label_dropout: probability that an example is trained without its label and context, which classifier-free
            guidance needs. Defaults to 0.1.
        ema_decay: decay of the moving average of the weights. It warms up, `min(ema_decay, n / (n + 9))` in step n, so
            that a young average forgets the first steps. `None` keeps no average. Defaults to 0.999.
        modality: key of the data in a data set of dicts. Defaults to the tokenizer's, or `"image"`.
        seed: integer for the random dropping of conditions. Defaults to `None`.

    Call arguments:
        inputs: a batch of data in [-1, 1], `(B, H, W, C)`, `(B, T, C)` or `(B, F, H, W, C)`, or a dict, whose
            other keys are ignored, with
            - the modality (`"image"`), or `"latents"`, made once by `keras_vqdit.data.encode_latents`;
            - `"label"`: int32 (B,), where the transformer has classes;
            - `"context"` (B, S, D) and `"context_mask"` (B, S), where it has a context;
            - `"noise"` (as the latents) and `"t"` (B,), to inject what is otherwise drawn;
            - `"sample_weight"` (B,), the weight of each example's loss, as the argument of `fit` and `evaluate`.
        training: the moving average learns, and conditions are dropped, in training only.

    Returns:
        Dict of `"loss"`, float32 (B,), and `"denoised"`, the estimate of the clean latents.

    Raises:
        ValueError: if an argument has an impossible value, or the data lack what the transformer needs.

    Example:

    ```python
    import keras_vqdit as kv

    train, test = kv.data.load("mnist_5k")
    tokenizer = kv.VQVAE.from_size("digits")
    tokenizer.compile("adam")
    tokenizer.fit(train, epochs=10)

    network = kv.DiffusionTransformer(d_model=192, num_heads=6, dff=768, num_layers=6, num_classes=10)
    model = kv.LatentDiffusion(tokenizer, network)
    model.compile("adamw")
    model.fit(kv.data.encode_latents(train, tokenizer), epochs=30)
    images = model.generate(labels=range(10), num_steps=20, guidance_scale=2.0, seed=0)  # (10, 28, 28, 1)
    ```

    References:
        - [High-Resolution Image Synthesis with Latent Diffusion Models](https://arxiv.org/abs/2112.10752)
        - [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748)
        - [Classifier-Free Diffusion Guidance](https://arxiv.org/abs/2207.12598)
    """

    def __init__(
        self,
        tokenizer,
        transformer,
        process=None,
        *,
        label_dropout=0.1,
        ema_decay=0.999,
        modality=None,
        seed=None,
        **kwargs,
    ):
        # Autocast would round the moving average to half precision; the transformer casts for itself.
        super().__init__(autocast=False, **kwargs)
        for name in ("encode_latents", "decode_latents"):
            if tokenizer is not None and not hasattr(tokenizer, name):
                raise TypeError(
                    f"`tokenizer` must have a method `{name}`, or be None. Received: tokenizer={tokenizer!r}"
                )
        for name, value, kind in [
            ("tokenizer", tokenizer, keras.layers.Layer),
            ("transformer", transformer, keras.layers.Layer),
            ("process", process, DiffusionProcess),
        ]:
            if not isinstance(value, kind) and (value is not None or name == "transformer"):
                raise TypeError(f"`{name}` must be a {kind.__name__} (a Keras layer). Received: {name}={value!r}")
        number("label_dropout", label_dropout, 0, 1)
        self.tokenizer = tokenizer
        self.process = RectifiedFlow() if process is None else process
        if getattr(transformer, "learn_variance", False) != getattr(self.process, "learn_variance", False):
            raise ValueError(
                "`learn_variance` must be the same in the transformer and the process. Received: "
                f"transformer.learn_variance={getattr(transformer, 'learn_variance', False)}, "
                f"process.learn_variance={getattr(self.process, 'learn_variance', False)}"
            )
        self.label_dropout, self.seed = label_dropout, seed
        self.modality = modality or getattr(tokenizer, "modality", "image")
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.keep_average(transformer, ema_decay)
        self.latent_shape = None
        self._samplers = {}

    @property
    def num_classes(self):
        """Number of classes of the transformer, `None` if it knows no labels."""
        return getattr(self.transformer, "num_classes", None)

    @property
    def tokenizers_in_use(self):
        return [] if self.tokenizer is None else [self.tokenizer]

    # === Training ===

    def build(self, input_shape):
        if self.built:
            return
        shapes = input_shape if isinstance(input_shape, dict) else {self.modality: input_shape}
        if "latents" in shapes:
            self.latent_shape = tuple(shapes["latents"][1:])
            self._check_latent_shape()
        elif self.modality not in shapes:
            raise ValueError(
                f'The data must have a key "{self.modality}" or "latents". Received: keys {sorted(shapes)}'
            )
        elif self.tokenizer is None:
            self.latent_shape = tuple(shapes[self.modality][1:])
        else:
            self.latent_shape = tuple(self.tokenizer.compute_latent_shape(shapes[self.modality])[1:])
        self.transformer(self._symbolic_inputs(shapes))
        if self.ema_transformer is not None:
            self.ema_transformer(self._symbolic_inputs(shapes))
        self.build_average()
        super().build(input_shape)
        self.freeze_parts()

    def _check_latent_shape(self):
        """Latents that the tokenizer can not decode must not train for nothing."""
        example_shape = getattr(self.tokenizer, "example_shape", None)
        if example_shape is None:
            return
        expected = tuple(self.tokenizer.compute_latent_shape((None, *example_shape))[1:])
        if not fits(self.latent_shape, expected):
            raise ValueError(
                f"The latents must be of shape {expected}, those of the tokenizer. Received: {self.latent_shape}"
            )

    def _symbolic_inputs(self, shapes):
        """What the transformer is called with, as symbols: a call builds any layer, whether it defines `build` or not."""
        network_shapes = {"x": (None, *self.latent_shape), "t": (None,)}
        if self.num_classes:
            network_shapes["label"] = (None,)
        if self._reads_context and "context" in shapes:
            network_shapes["context"] = (None, *shapes["context"][1:])
            network_shapes["context_mask"] = network_shapes["context"][:-1]
        return {key: keras.KerasTensor(shape, DTYPES.get(key, "float32")) for key, shape in network_shapes.items()}

    def call(self, inputs, training=None):
        inputs = inputs if isinstance(inputs, dict) else {self.modality: inputs}
        x0 = ops.stop_gradient(self._clean_latents(inputs))  # (B, *latent_shape)
        x_t, noise, t = self.process(x0, t=inputs.get("t"), noise=inputs.get("noise"))
        conditions = self._conditions(inputs)
        if training:
            conditions = self._drop_conditions(conditions, ops.shape(x0)[0])
            self.update_average()
        network = self.transformer if training else self.network
        prediction = network({"x": x_t, "t": self.process.network_time(t), **conditions}, training=training)
        clean, _ = self.process.denoised(x_t, prediction, t)
        return {"loss": self.process.loss(prediction, x0, noise, t), "denoised": clean}

    def check_arrays(self, x):
        super().check_arrays(x)
        labels = x.get("label") if isinstance(x, dict) else None
        labels = known_values(labels) if self.num_classes and labels is not None else None
        if labels is None:
            return
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise ValueError(f"Labels must be integers (N,). Received: {labels.dtype}, shape={labels.shape}")
        if labels.size and not 0 <= labels.min() <= labels.max() <= self.num_classes:
            raise ValueError(
                f"Labels must be from 0 to {self.num_classes - 1}, or {self.num_classes} for no label. "
                f"Received: labels from {labels.min()} to {labels.max()}"
            )

    @property
    def _reads_context(self):
        return getattr(self.transformer, "context_dim", None) is not None

    def _clean_latents(self, inputs):
        if "latents" in inputs:
            return ops.cast(inputs["latents"], "float32")
        if self.modality not in inputs:
            raise ValueError(
                f'The data must have a key "{self.modality}" or "latents". Received: keys {sorted(inputs)}'
            )
        x = inputs[self.modality]
        return check_float(x) if self.tokenizer is None else ops.cast(self.tokenizer.encode_latents(x), "float32")

    def _conditions(self, inputs):
        """What of the inputs conditions the transformer."""
        conditions = {key: inputs[key] for key in CONDITIONS if inputs.get(key) is not None}
        if not self.num_classes:
            conditions.pop("label", None)
        elif "label" not in conditions:
            raise ValueError(
                f'The data must have a key "label", for the transformer has classes. Received: keys {sorted(inputs)}'
            )
        if not self._reads_context:
            conditions.pop("context", None)
            conditions.pop("context_mask", None)
        elif "context" in conditions:
            conditions.setdefault("context_mask", ops.ones(ops.shape(conditions["context"])[:2], dtype="bool"))
        else:
            raise ValueError(
                f'The data must have a key "context", for the transformer reads one. Received: keys {sorted(inputs)}'
            )
        return conditions

    def _drop_conditions(self, conditions, batch_size):
        if not self.label_dropout or not conditions:
            return conditions
        dropped = keras.random.uniform((batch_size,), dtype="float32", seed=self.seed_generator) < self.label_dropout
        null = self._null_conditions(conditions)
        return {
            key: value
            if key == "context"
            else ops.where(ops.expand_dims(dropped, -1) if key == "context_mask" else dropped, null[key], value)
            for key, value in conditions.items()
        }

    def _null_conditions(self, conditions):
        """The conditions that say nothing: the null label, and a context of which every position is masked."""
        null = {}
        if "label" in conditions:
            null["label"] = ops.full_like(ops.cast(conditions["label"], "int32"), self.num_classes)
        if "context" in conditions:
            null["context"] = conditions["context"]
            null["context_mask"] = ops.zeros(ops.shape(conditions["context"])[:2], dtype="bool")
        return null

    # === Drawing ===

    def generate(
        self,
        labels=None,
        *,
        num_samples=None,
        num_steps=20,
        sampler="dpmpp_2m",
        guidance_scale=1.0,
        guidance_interval=(0.0, 1.0),
        guidance_rescale=0.0,
        context=None,
        context_mask=None,
        seed=None,
        batch_size=256,
        return_trajectory=False,
        jit_compile="auto",
        verbose="auto",
        **sampler_options,
    ):
        """Draw new examples.

        Args:
            labels: a class, or one for each example, (B,). `None` draws without a label.
            num_samples: how many, where neither labels nor a context tell. Defaults to 1.
            num_steps: steps of the sampler; `"heun"` costs two evaluations a step. Defaults to 20.
            sampler: `"dpmpp_2m"`, `"heun"`, `"euler"`, `"ddim"` or `"ddpm"`, a name in `diffusion.SAMPLERS`. Defaults to
                `"dpmpp_2m"`.
            guidance_scale: strength of classifier-free guidance, 1 is off. Defaults to 1.
            guidance_interval: guidance is on for times in this range alone; 0 is data, 1 is noise. Defaults to all.
            guidance_rescale: share of the rescaling against over-saturation, 0 to 1. Defaults to 0.
            context, context_mask: context sequences (B, S, D), and which of their positions count (B, S).
            seed: integer. The same seed gives the same examples, whatever was drawn before. Defaults to `None`, a random one.
            batch_size: at most so many at a time. Changes nothing but speed and memory. Defaults to 256.
            return_trajectory: return also how the examples came to be. Defaults to `False`.
            jit_compile: compile the steps by XLA. `"auto"` does so where the model was compiled with `jit_compile=True`.
            verbose: 0 is silent, 1 shows a progress bar, 2 a line at the end. `"auto"` is 1.
            **sampler_options: options of the sampler's step, such as `eta` for `"ddim"`, and `clip`, the range (low, high) of the
                clean estimate, which without a tokenizer is (-1, 1).

        Returns:
            float32 NumPy array of examples in [-1, 1], (B, H, W, C) for images. With `return_trajectory`, a tuple of it and
            a dict: `"times"` (num_steps + 1,), the decoded states `"noisy"` (num_steps + 1, B, …) and the decoded clean
            estimates `"clean"` (num_steps, B, …).

        Raises:
            ValueError: if the model was never built, a name is unknown, or labels are out of range.
            TypeError: if the sampler has no such option.

        Example:

        ```python
        images = model.generate(labels=[3, 3, 7], num_steps=20, guidance_scale=2.0, seed=0)  # (3, 28, 28, 1)
        ```
        """
        if self.latent_shape is None:
            raise ValueError(
                "The model does not know the shape of its latents yet: train it, or call it on a batch, before `generate`."
            )
        conditions, count = check_conditions(self, labels, num_samples, context, context_mask)
        guidance_scale = number("guidance_scale", guidance_scale)
        if guidance_scale != 1.0 and labels is None and context is None:
            raise ValueError(
                f"Guidance needs labels or a context to guide to. Received: guidance_scale={guidance_scale}"
            )
        num_steps, batch_size = positive_integer("num_steps", num_steps), positive_integer("batch_size", batch_size)
        if num_steps > MAX_STEPS:
            raise ValueError(f"`num_steps` must be at most {MAX_STEPS}. Received: num_steps={num_steps}")
        self.check_average()
        times = self.process.times(num_steps)
        seed = random.randrange(2**30) if seed is None else integer("seed", seed)
        if self.tokenizer is None:
            sampler_options.setdefault("clip", (-1.0, 1.0))
        sampler_options = {
            name: tuple(value) if isinstance(value, (list, np.ndarray)) else value
            for name, value in sampler_options.items()
        }
        if isinstance(guidance_interval, (list, np.ndarray)):
            guidance_interval = tuple(guidance_interval)
        run = self._sampler(
            sampler,
            guidance_scale != 1.0,
            guidance_interval,
            guidance_rescale,
            self.compiles(jit_compile),
            **sampler_options,
        )
        chunk = 1 if return_trajectory else num_steps if not verbose else math.ceil(num_steps / 10)
        batches = equal_batches(count, batch_size)
        verbose = 1 if verbose == "auto" else int(verbose)
        bar = keras.utils.Progbar(num_steps * len(batches), verbose=verbose, unit_name="step")
        # The noise of an example does not depend on the size of the batches.
        noise = ops.convert_to_numpy(standard_normal((count, *self.latent_shape), (seed, 0)))
        results, noisy, clean = [], [], []
        for rows, keep in batches:
            batch = {key: value[rows] for key, value in conditions.items()}
            states = run(self.network, noise[rows], batch, times, guidance_scale, seed, rows[0], chunk, bar)
            results.append(self._decode(states[-1][0])[:keep])
            if return_trajectory:
                noisy.append(np.stack([self._decode(x)[:keep] for x, _ in states]))
                clean.append(np.stack([self._decode(estimate)[:keep] for _, estimate in states[1:]]))
        results = np.concatenate(results)
        if not return_trajectory:
            return results
        return results, {
            "times": times,
            "noisy": np.concatenate(noisy, axis=1),
            "clean": np.concatenate(clean, axis=1),
        }

    def _sampler(self, *key, **options):
        """The compiled sampler of these settings, kept for the next call."""
        key = (*key, *sorted(options.items()))
        if key not in self._samplers:
            sampler, guided, interval, rescale, jit_compile = key[:5]
            self._samplers[key] = CompiledSampler(
                self.process,
                sampler,
                self._null_conditions if guided else None,
                interval,
                rescale,
                jit_compile,
                options,
            )
        return self._samplers[key]

    def _decode(self, latents):
        return ops.convert_to_numpy(self._finish(latents))

    # === Saving ===

    def endpoints(self, sampler="dpmpp_2m", *, guidance_interval=(0.0, 1.0), guidance_rescale=0.0, **sampler_options):
        """What `saving.export` writes: those of the tokenizer, `denoise`, `decode_latents` and `sample`.

        `denoise` is one evaluation of the network, `decode_latents` makes data of what it gives in the end. `sample` runs the
        whole sampler; its `seed` is the pair of the seed of `generate` and the number of the first example, 0 unless a large
        drawing is made in parts.

        Args:
            sampler, guidance_interval, guidance_rescale, **sampler_options: as in `generate`.
        """
        if self.latent_shape is None:
            raise ValueError("The model must be built before it is exported: train it, or call it on a batch")
        self.check_average()
        if self.tokenizer is None:
            sampler_options.setdefault("clip", (-1.0, 1.0))
        settings = {"sampler": sampler, "guidance_interval": guidance_interval, "guidance_rescale": guidance_rescale}
        draw = ExportedSampler(self, sampler, guidance_interval, guidance_rescale, sampler_options)
        conditions, known = {}, {}
        if self.num_classes:
            conditions["label"], known["label"] = ((None,), "int32"), (0, self.num_classes)
        if self._reads_context:
            conditions["context"] = ((None, None, self.transformer.context_dim), "float32")
            conditions["context_mask"] = ((None, None), "bool")
        latents = ((None, *self.latent_shape), "float32")
        found = dict(self.tokenizer.endpoints()) if hasattr(self.tokenizer, "endpoints") else {}
        if self.tokenizer is not None:
            found["decode_latents"] = Endpoint(
                lambda latents: {self.modality: self._finish(latents)}, {"latents": latents},
                f"latents as denoise gives them to {self.modality}",
            )  # fmt: skip
        found["denoise"] = Endpoint(
            self._denoise, {"x": latents, "t": ((None,), "float32"), **conditions},
            "noisy latents to prediction and clean estimate", {"t": (0.0, 1.0), **known},
            {
                "process": type(self.process).__name__, "levels": self._levels(),
                **({"no_label": self.num_classes} if self.num_classes else {}),
            },
        )  # fmt: skip
        found["sample"] = Endpoint(
            draw, {**draw.inputs, **plural(conditions)}, "draws new examples; seed: that of `generate`, and 0",
            {**draw.ranges, **plural(known)}, settings,
        )  # fmt: skip
        return found

    def _levels(self, num_steps=20):
        """Times of a sampler with signal and noise level: `x_t = alpha x_0 + sigma noise`, for those who write their own."""
        times = self.process.times(num_steps)
        alpha, sigma = (ops.convert_to_numpy(level) for level in self.process.alpha_sigma(times))
        return {
            name: [round(float(v), 6) for v in values]
            for name, values in (("t", times), ("alpha", alpha), ("sigma", sigma))
        }

    def _finish(self, latents):
        """Data of drawn latents, float32 in [-1, 1]."""
        data = latents if self.tokenizer is None else self.tokenizer.decode_latents(latents)
        return ops.clip(ops.cast(data, "float32"), -1.0, 1.0)

    def _denoise(self, *, x, t, **conditions):
        prediction = self.network({"x": x, "t": self.process.network_time(t), **conditions}, training=False)
        clean, _ = self.process.denoised(x, prediction, t)
        return {"prediction": prediction, "clean": clean}

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        tokenizer = None if self.tokenizer is None else serialize(self.tokenizer)
        if isinstance(tokenizer, dict):
            tokenizer.pop("compile_config", None)  # it trains no more
        return {
            **super().get_config(),
            "tokenizer": tokenizer,
            "transformer": serialize(self.transformer),
            "process": serialize(self.process),
            "label_dropout": self.label_dropout,
            "ema_decay": self.ema_decay,
            "modality": self.modality,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in ("tokenizer", "transformer", "process"):
            if config[key] is not None:
                config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
        return cls(**config)
