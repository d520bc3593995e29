"""Any to any: one masked diffusion transformer over the codes of several modalities, such as images, sound and text."""

import itertools

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import number
from keras_vqdit.diffusion import MaskedDiffusion
from keras_vqdit.diffusion.noise import uniform
from keras_vqdit.models.code_transformer import CodeTransformer
from keras_vqdit.models.coding import INVALID, UNKNOWN, Coding, but_first
from keras_vqdit.models.filling import Filling
from keras_vqdit.models.generative_model import GenerativeModel
from keras_vqdit.saving import Endpoint

RESERVED = {"loss", "sample_weight", "seed", "num_steps"}  # other keys of what a model takes or returns


@keras.saving.register_keras_serializable("keras_vqdit")
class MultimodalDiffusion(Coding, Filling, GenerativeModel):
    """A masked diffusion model over the codes of several modalities: trained by `fit`, it generates any of them from any other.

    Each modality has a tokenizer, which is frozen, and in training a time of its own: at t = 0 all of its codes are seen by
    the network as a condition, at t = 1 none is, and the modality is ignored. So one network learns every conditional, every
    marginal and the joint distribution. The loss of a modality bounds -log p(its codes | what is left of the others), in nats
    a code; `fit` minimises the weighted mean over the modalities, and logs `loss` and one `NAME_loss` for each.

    Batches are dicts. Of a modality they hold data (floats, which are encoded anew each time) or its codes (integers), made
    once by `keras_vqdit.data.encode_codes`. A modality that is missing, as a whole, for some examples (`"has_NAME"`, bool (B,)),
    or in single codes (-1), is masked and trains nothing. The loss of an example is NaN where data are not finite or codes out of
    range, so that `fit` skips the step and says so.

    A moving average of the network's weights (`ema_transformer`) is kept while training, and is what `evaluate`, `generate` and
    `score` use.

    Args:
        tokenizers: dict of names of modalities and tokenizers: `VQVAE`, `AudioTokenizer`, `TextTokenizer`, or
            others with `encode(x)`, `decode(codes)`, `num_embeddings`, `code_shape` and, of residual codes, `num_levels`. Those
            that are Keras layers take float data, others texts or codes. Names are without "/", and none of the other keys of a
            batch or of endpoints: `"loss"`, `"sample_weight"`, `"seed"`, `"num_steps"`, `"has_…"`.
        d_model: width of the transformer.
        num_heads: attention heads; must divide `d_model`.
        dff: width of the feed-forward networks. Defaults to `4 * d_model`.
        num_layers: number of blocks.
        rate: dropout rate. Defaults to 0.
        process: the diffusion process. Defaults to `MaskedDiffusion()`.
        weights: dict of the weights of modalities in the loss. Defaults to 1 for each.
        hidden_rate: probability that an example trains without a modality: with all of it masked, as guidance and the marginals
            need. Defaults to 0.1.
        pair_rate: probability that an example trains one modality given all of one other, and nothing else (or, by `hidden_rate`,
            given nothing at all): what most tasks ask for, and times of their own seldom give where a third modality tells the
            same. A number is shared by all pairs; a dict `{given: {wanted: rate}}` says how often each is, which is worth it
            where one is harder to learn. Drawn among the pairs that an example has. Defaults to 0.
        ema_decay: decay of the moving average of the weights, with a warm-up; `None` keeps none. Defaults to 0.999.
        seed: integer for the hiding of modalities. Defaults to `None`.

    Call arguments:
        inputs: dict of any of the modalities: data as their tokenizers take them, or codes, int32 `(B, *code_shape)`; optionally
            `"has_NAME"` (B,) and `"sample_weight"` (B,). Other keys are ignored.
        training: the moving average learns, and modalities are hidden, in training only.

    Returns:
        Dict of `"loss"` (B,), and for each modality `"NAME_loss"` (B,), in nats a code of those that train, and `"NAME_present"`
        (B,), the share of its codes that do, by which the mean that is logged as `NAME_loss` is weighted: 0 where the example
        lacks the modality or trains without it. In training `"loss"` counts nothing for these, so it is less than in evaluation.

    Raises:
        TypeError: if a tokenizer or the process is none.
        ValueError: if an argument has an impossible value, the data hold none of the modalities, or shapes do not fit.

    Example:

    ```python
    import numpy as np
    import keras_vqdit as kv

    images = np.random.default_rng(0).uniform(-1, 1, (20, 28, 28, 1)).astype("float32")
    captions = ["a seven", "a nine"] * 10
    text = kv.TextTokenizer.train(captions, max_length=8)
    tokenizers = {"image": kv.VQVAE.from_size("digits"), "text": text}  # the first of them not trained yet
    model = kv.MultimodalDiffusion(tokenizers, d_model=32, num_heads=2, num_layers=1)
    model.compile("adamw")
    model.fit({"image": images, "text": captions}, batch_size=10, verbose=0)
    drawn = model.generate({"text": ["a seven"]}, want=["image"], num_steps=4, seed=0, verbose=0)
    drawn["image"].shape  # (1, 28, 28, 1)
    ```

    References:
        - [Simple and Effective Masked Diffusion Language Models](https://arxiv.org/abs/2406.07524)
        - [One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale](https://arxiv.org/abs/2303.06555), of times
          of their own
        - [MaskGIT](https://arxiv.org/abs/2202.04200)
    """

    def __init__(
        self,
        tokenizers,
        d_model,
        num_heads,
        dff=None,
        num_layers=6,
        rate=0.0,
        *,
        process=None,
        weights=None,
        hidden_rate=0.1,
        pair_rate=0.0,
        ema_decay=0.999,
        seed=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if not isinstance(tokenizers, dict) or not tokenizers:
            raise TypeError(f"`tokenizers` must be a dict of names and tokenizers. Received: {tokenizers!r}")
        for name in tokenizers:
            if not isinstance(name, str) or not name or "/" in name or name in RESERVED or name.startswith("has_"):
                raise ValueError(
                    "Names of modalities must be str, without /, not begin with has_, and be none of "
                    f"{', '.join(sorted(RESERVED))}. Received: {name!r}"
                )
        modalities = {name: _described(name, one) for name, one in sorted(tokenizers.items())}
        if process is not None and not isinstance(process, MaskedDiffusion):
            raise TypeError(f"`process` must be a MaskedDiffusion. Received: process={process!r}")
        unknown = sorted(set(weights or {}) - set(modalities))
        if unknown:
            raise ValueError(f"`weights` must be of modalities among {sorted(modalities)}. Received: {unknown}")
        number("hidden_rate", hidden_rate, 0, below=1)
        self.tokenizers = {name: tokenizers[name] for name in modalities}
        self.modalities = tuple(modalities)
        self.shares = {name: number(f"weights: {name}", (weights or {}).get(name, 1.0), 0) for name in modalities}
        if not sum(self.shares.values()):
            raise ValueError("`weights` must not all be 0")
        self.process = MaskedDiffusion() if process is None else process
        self.hidden_rate, self.seed = hidden_rate, seed
        self.pairs = _pairs(pair_rate, self.modalities)
        self.pair_rate = _copied(pair_rate)
        self.seed_generator = keras.random.SeedGenerator(seed)
        dff = 4 * d_model if dff is None else dff
        network = CodeTransformer(
            modalities, d_model, num_heads, dff, num_layers, rate, dtype=self.dtype_policy, name="transformer"
        )
        self.keep_average(network, ema_decay)
        self.trackers = [keras.metrics.Mean(name=f"{name}_loss") for name in modalities]
        self.build_average()
        self.built = True
        self.freeze_parts()

    @property
    def tokenizers_in_use(self):
        return [one for one in self.tokenizers.values() if isinstance(one, keras.layers.Layer)]

    @property
    def mask_codes(self):
        """The code that stands for a mask, of each modality."""
        return {name: one["num_embeddings"] for name, one in self.transformer.modalities.items()}

    @property
    def code_shapes(self):
        """The shape of an example's codes, of each modality."""
        return {name: one["shape"] for name, one in self.transformer.modalities.items()}

    @property
    def levels(self):
        """The number of residual levels of those modalities that have them."""
        found = {name: one["num_levels"] for name, one in self.transformer.modalities.items()}
        return {name: levels for name, levels in found.items() if levels is not None}

    def build(self, input_shape=None):
        pass  # the constructor has built all there is

    # === Training ===

    def call(self, inputs, training=None):
        if training:
            self.update_average()
        codes = self.codes(inputs)
        roles = self._roles(codes) if training else {}
        noisy, hidden = {}, {}
        for name in self.modalities:
            noisy[name], *hidden[name] = self._add_noise(name, codes[name], *roles.get(name, (None, None)))
        network = self.transformer if training else self.network
        logits = network(noisy, training=training)
        outputs, total = {}, 0.0
        for name in self.modalities:
            masked, t, share = hidden[name]
            known = ops.maximum(codes[name], 0)
            loss = self.process.loss(
                logits[name],
                known,
                masked,
                t,
                num_levels=self.levels.get(name),
                weighting=None if training else "bound",
            )
            invalid = ops.any(codes[name] == INVALID, axis=but_first(codes[name]))
            loss = ops.where(invalid, float("nan"), loss)
            outputs[f"{name}_loss"] = loss / ops.where(share > 0, share, 1.0)
            outputs[f"{name}_present"] = share
            total = total + self.shares[name] * loss
        return {"loss": total / sum(self.shares.values()), **outputs}

    def _roles(self, codes):
        """For each modality, which of the examples train with all of it given, and which with all of it hidden."""
        there = {name: ops.any(codes[name] >= 0, axis=but_first(codes[name])) for name in self.modalities}  # (B,) each
        batch = ops.shape(there[self.modalities[0]])[0]
        draws = uniform((1 + len(self.pairs) + len(self.modalities), batch), self.seed_generator)
        hides = {name: draws[-1 - i] < self.hidden_rate for i, name in enumerate(self.modalities)}
        if not self.pairs:
            return {name: (ops.zeros_like(one), one) for name, one in hides.items()}
        # Of several exponential variables one is the first in proportion to its rate.
        waits = -ops.log(draws[1 : 1 + len(self.pairs)]) / np.array([*self.pairs.values()], "float32")[:, None]
        possible = ops.stack([there[given] & there[wanted] for given, wanted in self.pairs])
        chosen = ops.argmin(ops.where(possible, waits, float("inf")), axis=0)
        in_pairs = (draws[0] < sum(self.pairs.values())) & ops.any(possible, axis=0)
        roles = {}
        for name in self.modalities:
            ends = np.array([[end == name for end in pair] for pair in self.pairs])  # (pairs, 2)
            is_given, is_wanted = (in_pairs & ops.take(ends[:, i], chosen, axis=0) for i in (0, 1))
            given = is_given & ~hides[name]
            roles[name] = given, ~is_wanted & (hides[name] | (in_pairs & ~is_given))
        return roles

    def _add_noise(self, name, codes, given=None, hidden=None):
        """Codes with masks, which of them are to be predicted, the times, and the share of the codes that train."""
        mask, levels = self.mask_codes[name], self.levels.get(name)
        noisy, masked, t = self.process(ops.maximum(codes, 0), mask_code=mask, num_levels=levels)
        known = trains = codes >= 0
        if given is not None:
            given, hidden = (ops.reshape(one, (-1, *(1,) * (len(codes.shape) - 1))) for one in (given, hidden))
            noisy = ops.where(given, ops.maximum(codes, 0), noisy)
            known = known & ~hidden
            # What is given or hidden on top of its time trains nothing: its bound holds for times that were drawn evenly.
            trains = known & ~given
        share = ops.mean(ops.cast(trains, "float32"), axis=but_first(codes))
        return ops.where(known, noisy, mask), masked & trains, t, share

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if y_pred is not None:
            weight = x.get("sample_weight") if sample_weight is None and isinstance(x, dict) else sample_weight
            weight = 1.0 if weight is None else ops.cast(weight, "float32")
            for name, tracker in zip(self.modalities, self.trackers, strict=True):
                tracker.update_state(y_pred[f"{name}_loss"], sample_weight=weight * y_pred[f"{name}_present"])
        return loss

    # === Saving ===

    def endpoints(self):
        """What `saving.export` writes: `encode_NAME` and `decode_NAME` of tokenizers that are models, `denoise` and `sample`.

        `denoise` is one evaluation of the network, from codes of all modalities, some of them masks, to logits. `sample` fills
        in, by the confidence sampler, the codes that are -1; those that are the mask stay hidden.
        """
        found = {}
        for name, one in self.tokenizers.items():
            for kind, endpoint in one.endpoints().items() if hasattr(one, "endpoints") else ():
                if kind in ("encode", "decode"):
                    found[f"{kind}_{name}"] = endpoint
        codes = {name: ((None, *shape), "int32") for name, shape in self.code_shapes.items()}
        notes = {"mask_codes": self.mask_codes}
        for name, one in self.tokenizers.items():
            if not isinstance(one, keras.layers.Layer):
                notes[f"{name}_tokenizer"] = one.get_config()
                if hasattr(one, "about_codes"):
                    notes[f"{name}_codes"] = one.about_codes
        found["denoise"] = Endpoint(
            lambda **given: {f"{name}_logits": one for name, one in self.network(given, training=False).items()},
            codes,
            "codes, some of them masks, to the logits of each code",
            {name: (0, mask) for name, mask in self.mask_codes.items()},
            notes,
        )
        found["sample"] = Endpoint(
            self._sample,
            {**codes, "seed": ((2,), "int32"), "num_steps": ((), "int32")},
            "fills in codes that are -1; those that are masks stay hidden; seed: that of the drawing, and 0",
            {"num_steps": (1, 1000), **{name: (UNKNOWN, mask) for name, mask in self.mask_codes.items()}},
            notes,
        )
        return found

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        tokenizers = {name: serialize(one) for name, one in self.tokenizers.items()}
        for one in tokenizers.values():
            one.pop("compile_config", None)  # they train no more
        network = self.transformer.get_config()
        return {
            **super().get_config(),
            "tokenizers": tokenizers,
            **{name: network[name] for name in ("d_model", "num_heads", "dff", "num_layers", "rate")},
            "process": serialize(self.process),
            "weights": dict(self.shares),
            "hidden_rate": self.hidden_rate,
            "pair_rate": _copied(self.pair_rate),
            "ema_decay": self.ema_decay,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def made(one):
            return keras.saving.deserialize_keras_object(one, custom_objects=custom_objects)

        tokenizers = {name: made(one) for name, one in config["tokenizers"].items()}
        return cls(**{**config, "tokenizers": tokenizers, "process": made(config["process"])})


def _pairs(rate, modalities):
    """The rate of each pair of modalities, `(given, wanted)`, of those that have one above 0."""
    every = list(itertools.permutations(modalities, 2))
    if not isinstance(rate, dict):
        number("pair_rate", rate, 0, 1)
        return {pair: rate / len(every) for pair in every if rate}
    pairs = {}
    for given, rates in rate.items():
        if given not in modalities or not isinstance(rates, dict) or not {(given, one) for one in rates} <= set(every):
            raise ValueError(
                f"`pair_rate` must be a number, or a dict {{given: {{wanted: rate}}}} of two modalities among "
                f"{list(modalities)}. Received: pair_rate={rate}"
            )
        for wanted, one in rates.items():
            pairs[given, wanted] = number(f"pair_rate: {given} to {wanted}", one, 0, 1)
    if sum(pairs.values()) > 1 + 1e-6:
        raise ValueError(
            f"`pair_rate` must add up to at most 1. Received: {sum(pairs.values()):g}, of pair_rate={rate}"
        )
    return {pair: one for pair, one in pairs.items() if one}


def _copied(rate):
    """A rate of pairs of its own, in plain dicts: Keras tracks those that are attributes."""
    return {given: dict(rates) for given, rates in rate.items()} if isinstance(rate, dict) else rate


def _described(name, tokenizer):
    """What the network must know of a modality."""
    missing = [one for one in ("encode", "decode", "num_embeddings") if not hasattr(tokenizer, one)]
    if missing:
        raise TypeError(f'The tokenizer of "{name}" must have `{missing[0]}`. Received: {tokenizer!r}')
    if not getattr(tokenizer, "built", True) or not hasattr(tokenizer, "code_shape"):
        raise ValueError(f'The tokenizer of "{name}" must know the shape of its codes: train it, or call it on a batch')
    return {
        "num_embeddings": tokenizer.num_embeddings,
        "shape": tuple(tokenizer.code_shape),
        "num_levels": getattr(tokenizer, "num_levels", None),
    }
