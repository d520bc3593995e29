"""What a model of several modalities draws and scores: `generate` and `score`, on checked arguments and compiled programs."""

import math
import random

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import integer, number, one_of, positive_integer
from keras_vqdit.diffusion.noise import uniform
from keras_vqdit.diffusion.unmasking import SAMPLERS, fill_in
from keras_vqdit.models.generation import check_options, equal_batches, seed_pair, values_of
from keras_vqdit.training import compile_function

LARGEST = 1000  # scale of guidance, temperature, or noise: float32 must hold logits that are multiplied by it
MOST_STEPS = 10_000


class Filling:
    """The part of `MultimodalDiffusion` that draws and scores."""

    def generate(
        self,
        given=None,
        want=None,
        *,
        fill=None,
        num_samples=None,
        num_steps=16,
        sampler="confidence",
        guidance_scale=1.0,
        temperature=1.0,
        top_p=1.0,
        together=False,
        seed=None,
        batch_size=64,
        return_codes=False,
        jit_compile="auto",
        verbose="auto",
        **sampler_options,
    ):
        """Draw modalities, given others or nothing, or complete what is there in part.

        Args:
            given: dict of modalities and what is known: data `(B, …)`, codes `(B, *code_shape)` of integers, of which -1 are
                unknown, or for text a list of texts. Defaults to `None`, nothing.
            want: list of the modalities to draw, in this order: each is drawn given those before it. Defaults to `None`, all that
                are not given. Of one that is given, too, a part is drawn anew: a text is continued; others need `fill`.
            fill: dict of modalities and bool masks, `True` where to draw anew, of the spatial shape of the data (`(H, W)` or
                `(B, H, W)` for images, a code is drawn where any pixel of it is), or of the grid of the codes. What it leaves out
                stays, code by code. Defaults to `None`.
            num_samples: how many, where nothing is given. Defaults to 1.
            num_steps: steps of the sampler for each modality, an integer up to 10,000 or a dict of them. Defaults to 16.
            sampler: `"confidence"` or `"ancestral"`, see `keras_vqdit.diffusion.fill_in`. Defaults to `"confidence"`.
            guidance_scale: strength of classifier-free guidance, on the logits, by all that is known when a modality is drawn:
                others, and of itself what `fill` leaves, or a text begins with. 1 is off; from -1000 to 1000. Defaults to 1.
            temperature: of the codes that are drawn, a number up to 1000 or a dict of them; 0 takes the likeliest. Defaults to 1.
            top_p: draw among the likeliest codes of this probability only. Defaults to 1, all.
            together: draw all modalities at once instead of one after another. Defaults to `False`.
            seed: integer. The same seed gives the same result. Defaults to `None`, a random one.
            batch_size: at most so many at a time. Defaults to 64.
            return_codes: return codes instead of data. Defaults to `False`.
            jit_compile: compile by XLA. `"auto"` does so where the model was compiled with `jit_compile=True`.
            verbose: 0 is silent, 1 shows a progress bar. `"auto"` is 1.
            **sampler_options: of the sampler's step: `noise` of `"confidence"`.

        Returns:
            Dict of the wanted modalities: float32 arrays in [-1, 1], a list of texts for text; with `return_codes` int32 arrays.

        Raises:
            ValueError: if a modality is unknown, shapes do not fit, or nothing is left to be drawn.
            TypeError: if the sampler has no such option.

        Example:

        ```python
        drawn = model.generate({"text": ["a handwritten seven"]}, want=["image", "audio"], seed=0)
        half = np.arange(28)[:, None] >= np.full(28, 14)  # the lower half
        restored = model.generate({"image": images}, want=["image"], fill={"image": half}, seed=0)["image"]
        ```
        """
        given, fill = ({} if one is None else one for one in (given, fill))
        codes, count = self.known_codes(given, num_samples)
        want = self._wanted(want, given)
        one_of("sampler", sampler, tuple(SAMPLERS))
        check_options(sampler, SAMPLERS[sampler], sampler_options, but=("num_levels",))
        number("top_p", top_p, above=0, high=1)
        guidance_scale = number("guidance_scale", guidance_scale, -LARGEST, LARGEST)
        sampler_options = {name: number(name, value, 0, LARGEST) for name, value in sampler_options.items()}
        steps = {name: positive_integer("num_steps", n) for name, n in self._each("num_steps", num_steps, want, 16)}
        number("num_steps", max(steps.values()), 1, MOST_STEPS)
        heat = self._each("temperature", temperature, want, 1.0)
        heat = {name: number("temperature", value, 0, LARGEST) for name, value in heat}
        batch_size = positive_integer("batch_size", batch_size)
        seed = random.randrange(2**30) if seed is None else integer("seed", seed)
        self._make_room(codes, want, given, fill)
        guides = [name for name in codes if np.any(codes[name] != self.mask_codes[name])]
        if guidance_scale != 1.0 and not guides and (together or len(want) == 1):
            raise ValueError(f"Guidance needs something given, to guide by. Received: guidance_scale={guidance_scale}")
        self.check_average()
        jit_compile = self.compiles(jit_compile)
        if together and len({*steps.values()}) + len({*heat.values()}) > 2:
            raise ValueError("Modalities that are drawn together must have the same `num_steps` and `temperature`")
        stages = [tuple(want)] if together else [(name,) for name in want]
        batches = equal_batches(count, batch_size)
        bar = keras.utils.Progbar(
            len(stages) * len(batches), verbose=1 if verbose == "auto" else int(verbose), unit_name="part"
        )
        for stage in stages:
            by = tuple(guides) if guidance_scale != 1.0 else ()
            options = {"top_p": float(top_p), **sampler_options}
            run = self._program(
                ("fill", stage, by, sampler, jit_compile, *sorted(options.items())),
                lambda *a, stage=stage, by=by, options=options: self._fill(stage, by, sampler, options, *a),
                jit_compile,
            )
            for rows, kept in batches:
                batch = {name: ops.convert_to_tensor(one[rows]) for name, one in codes.items()}
                scalars = (guidance_scale, float(heat[stage[0]]), steps[stage[0]], seed_pair(seed, rows[0]))
                filled = run(self._values(), batch, *map(ops.convert_to_tensor, scalars))
                for name in stage:
                    codes[name][rows[:kept]] = ops.convert_to_numpy(filled[name])[:kept]
                bar.add(1)
            guides.extend(name for name in stage if name not in guides)
        return {name: codes[name] if return_codes else self.decode(name, codes[name], batch_size) for name in want}

    def score(self, given, candidates, *, num_samples=16, seed=0, batch_size=256, jit_compile="auto"):
        """Bound the log-likelihood of each candidate given each example: for ranking, classification and retrieval.

        The bound is an average over times and masks, the same for all pairs, so that candidates are compared on equal terms.

        Args:
            given: dict of modalities, as of `generate`, B examples. An empty dict scores without a condition.
            candidates: dict of one modality, with C candidates.
            num_samples: number of times, spread evenly over [0, 1], each with masks of its own. Defaults to 16.
            seed: integer for the masks. Defaults to 0.
            batch_size: evaluations of the network at a time. Defaults to 256.
            jit_compile: as of `generate`.

        Returns:
            float32 array `(B, C)`, in nats: the sum over the candidate's codes. B is 1 where nothing is given.

        Raises:
            ValueError: if there is not one modality of candidates, or it is also given.

        Example:

        ```python
        captions = [f"the digit {digit}" for digit in range(10)]
        digits = model.score({"image": images}, {"text": captions}).argmax(axis=1)  # a classifier
        ```
        """
        if not isinstance(candidates, dict) or len(candidates) != 1:
            raise ValueError(f"`candidates` must be a dict of one modality. Received: {candidates!r:.80}")
        name = next(iter(candidates))
        given = {} if given is None else given
        if isinstance(given, dict) and name in given:
            raise ValueError(f'Candidates must be of a modality that is not given. Received: "{name}" in both')
        choices = self.known_codes(candidates, None)[0][name]
        if np.any(choices == self.mask_codes[name]):
            raise ValueError("Candidates must have no unknown codes")
        known, count = self.known_codes(given, None)
        num_samples, batch_size = (
            positive_integer("num_samples", num_samples),
            positive_integer("batch_size", batch_size),
        )
        seed = integer("seed", seed)
        self.check_average()
        jit_compile = self.compiles(jit_compile)
        run = self._program(("score", name, jit_compile), lambda *arguments: self._bound(name, *arguments), jit_compile)
        offset = np.asarray(uniform((1,), (seed, 0)))
        times = ((np.arange(num_samples) + offset) / num_samples).astype("float32")
        noise = ops.convert_to_numpy(uniform((num_samples, *choices.shape[1:]), (seed, 1)))
        shape = (count, len(choices), num_samples)
        bounds = np.zeros(math.prod(shape), "float32")
        for index, kept in equal_batches(len(bounds), batch_size):
            example, candidate, sample = np.unravel_index(index, shape)
            codes = {key: ops.convert_to_tensor(one[example]) for key, one in known.items()}
            arguments = (choices[candidate], times[sample], noise[sample])
            values = run(self._values(), codes, *map(ops.convert_to_tensor, arguments))
            bounds[index[:kept]] = ops.convert_to_numpy(values)[:kept]
        return bounds.reshape(shape).mean(axis=-1)

    # === Arguments ===

    def _wanted(self, want, given):
        want = want if want is None or isinstance(want, (list, tuple, dict)) else [want]
        want = [name for name in self.modalities if name not in given] if want is None else list(want)
        if not want or any(name not in self.modalities for name in want) or len(set(want)) < len(want):
            raise ValueError(
                f"`want` must list modalities among {list(self.modalities)}, each once, at least one. Received: want={want}"
            )
        return want

    def _each(self, argument, value, want, default):
        """A setting of each wanted modality, where it is one for all or a dict: pairs."""
        if not isinstance(value, dict):
            return [(name, value) for name in want]
        if not set(value) <= set(self.modalities):
            raise ValueError(
                f"`{argument}` must be of modalities among {list(self.modalities)}. Received: {argument}={value}"
            )
        return [(name, value.get(name, default)) for name in want]

    def _make_room(self, codes, want, given, fill):
        """Mask what shall be drawn of what is given."""
        if not isinstance(fill, dict) or not set(fill) <= set(want) & set(given):
            said = sorted(fill) if isinstance(fill, dict) else type(fill).__name__
            raise ValueError(f"`fill` must be a dict of modalities that are given and wanted. Received: {said}")
        for name in want:
            mask, before = self.mask_codes[name], codes[name]
            if name in fill:
                codes[name] = np.where(self._fill_mask(name, fill[name], len(before)), mask, before)
            elif name in given and not isinstance(self.tokenizers[name], keras.layers.Layer):
                codes[name] = np.where(np.cumsum(before == 0, axis=1) > 0, mask, before)  # from the end of the text on
            room = np.any((codes[name] == mask).reshape(len(before), -1), axis=1)
            if not np.any(room):
                raise ValueError(
                    f'"{name}" is known already: leave it out of `given`, or of `want`, or say by `fill` what to draw anew'
                )
            if name in given and name not in fill and not np.all(room):
                raise ValueError(
                    f'"{name}" must leave room for more. Received: all codes known in example {np.argmin(room)}'
                )

    def _fill_mask(self, name, mask, count):
        """A mask of pixels, samples or codes as one of codes `(B, *code_shape)`."""
        mask = np.asarray(mask)
        levels = name in self.levels
        grid = self.code_shapes[name][:-1] if levels else self.code_shapes[name]
        data = tuple(getattr(self.tokenizers[name], "example_shape", (*grid, 1))[:-1])
        rank = len(grid)
        spatial = mask.shape[mask.ndim - rank :] if mask.ndim >= rank else None
        batch_fits = mask.shape[: mask.ndim - rank] in ((), (1,), (count,))
        if mask.dtype != bool or spatial not in (grid, data) or not batch_fits:
            raise ValueError(
                f'`fill` of "{name}" must be bool, of shape {data} or {grid}, with or without a batch of {count}. '
                f"Received: {mask.dtype}, shape={mask.shape}"
            )
        mask = np.broadcast_to(mask, (count, *spatial))
        if spatial != grid:
            if any(whole % size for size, whole in zip(grid, spatial, strict=True)):
                raise ValueError(
                    f'`fill` of "{name}" must be of shape {grid}, that of the codes: {data} is no multiple of it. '
                    f"Received: shape={mask.shape[1:]}"
                )
            parts = [part for size, whole in zip(grid, spatial, strict=True) for part in (size, whole // size)]
            mask = mask.reshape(count, *parts).any(axis=tuple(range(2, 2 * rank + 1, 2)))
        return mask[..., None] if levels else mask

    # === Programs ===

    def _program(self, key, function, jit_compile):
        programs = self.__dict__.setdefault("_programs", {})
        if key not in programs:
            programs[key] = compile_function(function, jit_compile=jit_compile)
        return programs[key]

    def _values(self):
        return [values_of(self.network.trainable_variables), values_of(self.network.non_trainable_variables)]

    def _fill(self, want, by, sampler, options, values, codes, scale, temperature, num_steps, seeds):
        """Fill in the masks of the wanted modalities; a function of values."""
        shapes, masks = self.code_shapes, self.mask_codes

        shown = {name: codes[name] != masks[name] for name in by}  # of a modality that is drawn in part, what is known

        def predict(flat):
            codes = {name: ops.minimum(one, masks[name]) for name, one in flat.items()}  # hidden ones are masks + 1
            codes = {name: ops.reshape(one, (-1, *shapes[name])) for name, one in codes.items()}
            if by:  # one forward pass of 2B, not two of B
                null = {**codes, **{name: ops.where(shown[name], masks[name], codes[name]) for name in by}}
                codes = {name: ops.concatenate([one, null[name]]) for name, one in codes.items()}
            logits, _ = self.network.stateless_call(*values, codes, training=False)
            found = {}
            for name in want:
                one = ops.reshape(logits[name], (-1, math.prod(shapes[name]), masks[name]))
                if by:
                    conditional, unconditional = ops.split(one, 2)
                    one = unconditional + scale * (conditional - unconditional)
                found[name] = one
            return found

        flat = {name: ops.reshape(one, (-1, math.prod(shapes[name]))) for name, one in codes.items()}
        wanted = {name: masks[name] for name in want}
        filled = fill_in(
            sampler, predict, self.process, flat, wanted, num_steps,
            seed=seeds[0], first_example=seeds[1], levels=self.levels, temperature=temperature, **options,
        )  # fmt: skip
        return {name: ops.reshape(filled[name], (-1, *shapes[name])) for name in want}

    def _bound(self, name, values, codes, candidates, t, noise):
        """The bound at given times and masks, in nats; a function of values."""
        levels = self.levels.get(name)
        noisy, masked, t = self.process(candidates, t, noise, mask_code=self.mask_codes[name], num_levels=levels)
        logits, _ = self.network.stateless_call(*values, {**codes, name: noisy}, training=False)
        loss = self.process.loss(logits[name], candidates, masked, t, num_levels=levels, weighting="bound")
        return -math.prod(self.code_shapes[name]) * loss

    def _sample(self, *, seed, num_steps, **codes):
        """The endpoint `sample`: what is -1 is filled in, what is a mask stays hidden."""
        found = {}
        for name, mask in self.mask_codes.items():
            stays = ops.where(codes[name] == mask, mask + 1, codes[name])  # is not to be filled in
            found[name] = ops.where(codes[name] < 0, mask, stays)
        options = {"top_p": 1.0}
        values = self._values()
        filled = self._fill(self.modalities, (), "confidence", options, values, found, 1.0, 1.0, num_steps, seed)
        return {name: ops.minimum(filled[name], mask) for name, mask in self.mask_codes.items()}
