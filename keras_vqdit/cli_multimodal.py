"""The commands of models of several modalities: `train multimodal`, `generate`, and one for each task."""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from keras_vqdit.cli import check_out, load_trained, model_argument, positive, rate, scale
from keras_vqdit.cli_files import SUFFIXES, WRITERS, files_of, kind_of, one_line, read, read_candidates, read_given
from keras_vqdit.saving import check_writable

CARD = "what the preset's card says, else"  # of the defaults of options
SAMPLING = ("num_steps", "sampler", "guidance_scale", "temperature")
REGIONS = ("top", "bottom", "left", "right")
# Options of `generate`, and their defaults, by the class of the model. The card of a preset may have others: `"generate"`.
OPTIONS = {
    "LatentDiffusion": {
        "num_steps": 20,
        "sampler": "dpmpp_2m",
        "guidance_scale": 1.5,
        "labels": None,
        "per_label": 5,
    },
    "MultimodalDiffusion": {
        "num_steps": 16,
        "sampler": "confidence",
        "guidance_scale": 1.0,
        "given": (),
        "want": None,
        "num_samples": 8,
        "temperature": 1.0,
    },
}


# === Commands ===


def train(arguments):
    """The command `train multimodal`."""
    from keras_vqdit import cli, data, saving, training
    from keras_vqdit.data.captions import caption_tokenizer
    from keras_vqdit.layers import MultiHeadAttention
    from keras_vqdit.models import VQVAE, AudioTokenizer, MultimodalDiffusion
    from keras_vqdit.recipes_multimodal import SIZES, train_multimodal
    from keras_vqdit.training.strategies import is_writer

    check_out(arguments.out, ".keras")
    strategy = cli.prepare_training(arguments)
    sizes = {name: getattr(arguments, name) for name in SIZES}
    with training.scope(strategy):
        if arguments.start is None:
            start, tokenizers = None, {"text": caption_tokenizer(arguments.text or "bpe")}
            for name, source, expected in (
                ("image", arguments.image_tokenizer, VQVAE),
                ("audio", arguments.audio_tokenizer or "speech_tokenizer", AudioTokenizer),
            ):
                tokenizers[name] = cli.read_model(source, expected)
                if tokenizers[name].modality != name:
                    received = tokenizers[name].modality
                    raise ValueError(f"--{name}-tokenizer must be of {name}. Received: a tokenizer of {received}")
            # Sizes that do not fit are told before the data are read.
            check = {**SIZES, **{name: size for name, size in sizes.items() if size is not None}}
            MultiHeadAttention(
                check["num_heads"], check["d_model"], rotary_grids=[tokenizers["image"].latent_shape[:-1]]
            )
        else:
            brought = ("audio_tokenizer", "text", *SIZES)
            given = [f"--{name.replace('_', '-')}" for name in brought if getattr(arguments, name) is not None]
            if given:
                raise ValueError(f"--start brings its tokenizers and sizes. Received: {', '.join(given)}")
            start = cli.read_model(arguments.start, MultimodalDiffusion)
            tokenizers = start.tokenizers
            if set(tokenizers) != {"image", "audio", "text"}:
                raise ValueError(f"--start must be a model of image, audio and text. Received: {sorted(tokenizers)}")
    train, test = data.load(
        "multimodal_digits",
        batch_size=arguments.batch_size,
        data_dir=arguments.data_dir,
        download=arguments.download,
        image_size=tokenizers["image"].example_shape[:2],
        channels=tokenizers["image"].example_shape[-1],
        audio_length=tokenizers["audio"].example_shape[0],
        text_tokenizer=tokenizers["text"],
        seed=arguments.seed,
    )
    model, history = train_multimodal(
        train,
        test,
        tokenizers,
        epochs=arguments.epochs,
        **sizes,
        learning_rate=arguments.learning_rate,
        schedule=arguments.schedule,
        pair_rate=arguments.pair_rate,
        start=start,
        seed=arguments.seed,
        verbose=arguments.verbose,
        callbacks=cli.training_callbacks(arguments),
        strategy=strategy,
    )
    if not is_writer(strategy):
        return
    cli.check_trained(model, history["loss"][-1], arguments.out)
    saving.save_model(model, arguments.out)
    cli.remove_checkpoints(arguments)
    cli.report({name: values[-1] for name, values in history.items() if name.endswith("loss")}, arguments.out)


def generate(arguments, model):
    """The command `generate` of a model that `load_trained` has read."""
    out = Path("drawn") if arguments.out is None else arguments.out
    given = read_given(model, arguments.given, arguments.num_samples)
    want = arguments.want
    wanted = [name for name in model.modalities if name not in given] if want is None else want
    check_drawn(out, [kind_of(model, name) for name in wanted if name in model.modalities], arguments.num_samples)
    files = {
        name: files_of(kind_of(model, name), out, name, arguments.num_samples)
        for name in wanted
        if name in model.modalities  # what is not, `generate` complains about
    }
    for paths in files.values():
        for path in paths:
            check_writable(path)
    drawn = model.generate(
        given, want, **sampling(arguments), **({} if given else {"num_samples": arguments.num_samples})
    )
    for name, data in drawn.items():
        WRITERS[kind_of(model, name)](files[name], data, model.tokenizers[name])
        for path in files[name]:
            print(f"wrote {path}")


def check_drawn(out, kinds, count):
    """Raise a ValueError where `out` is neither a folder nor the one file that is drawn."""
    if out.suffix not in (*SUFFIXES.values(), ".npz"):  # what other models write is no name of a folder either
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out must be a folder. Received: {out}, a file")
    elif [out.suffix] != [SUFFIXES[kind] for kind in kinds] or (count > 1 and kinds != ["text"]):
        raise ValueError(
            "--out must be a folder, or the file of the only thing that is drawn (--want with one name, --num-samples 1): "
            f"of an image .png, of sound .wav, of texts .txt. Received: {out}, of {count} x {', '.join(kinds)}"
        )


def infill(arguments):
    from keras_vqdit import plotting, tasks

    check_out(arguments.out, ".png")
    model = load_multimodal(arguments, "image")
    settle(arguments, model)
    given = read_given(model, arguments.given, arguments.num_samples, other_than="image")
    image = read(model, "image", arguments.image)
    mask = region_mask(arguments.region, image.shape[1:3])
    images = np.repeat(image, arguments.num_samples, axis=0)
    drawn = tasks.infill_image(model, images, mask, given=given, through=arguments.through, **sampling(arguments))
    shown = np.where(mask[..., None], np.float32(0), image)  # grey, where it is drawn anew
    plotting.image_grid(
        np.concatenate([image, shown, drawn]),
        rows=1,
        column_labels=["given", "kept", *range(1, len(drawn) + 1)],
        title=f"The {arguments.region} drawn anew",
        path=arguments.out,
    )
    print(f"wrote {arguments.out}")


def complete(arguments):
    from keras_vqdit import tasks

    model = load_multimodal(arguments, "text")
    settle(arguments, model)
    given = read_given(model, arguments.given, arguments.num_samples, other_than="text")
    texts = tasks.complete_text(model, [arguments.text] * arguments.num_samples, given=given, **sampling(arguments))
    table(("times", "text"), [(str(count), one_line(text)) for text, count in Counter(texts).most_common()])


def classify(arguments):
    ranking, scores, candidates = rank(arguments)
    odds = np.exp(scores - scores.max())
    shares = odds / odds.sum()
    rows = [(f"{shares[i]:.3f}", f"{scores[i]:.2f}", name) for i, name in enumerate(candidates)]
    table(("share", "nats", "candidate"), rows)
    print(f"best: {candidates[ranking[0]]}")


def retrieve(arguments):
    ranking, scores, candidates = rank(arguments)
    rows = [(str(place), f"{scores[i]:.2f}", candidates[i]) for place, i in enumerate(ranking, 1)]
    table(("rank", "nats", "candidate"), rows)


def rank(arguments):
    """The ranking and scores of the candidates for what is given, and their names."""
    from keras_vqdit import tasks

    model = load_multimodal(arguments)
    given = read_given(model, arguments.given)
    name, values = read_candidates(model, arguments.candidates)
    ranking, scores = tasks.retrieve(
        model,
        given,
        {name: values if isinstance(values[0], str) else np.concatenate(values)},
        subtract_prior=arguments.subtract_prior,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
    )
    return ranking[0], scores[0], [one_line(one.removeprefix(f"{name}=")) for one in arguments.candidates]


# === What they share ===


def load_multimodal(arguments, kind=None):
    """The model of `--model` or `--preset`, which must have a modality of the name `kind`."""
    from keras_vqdit.models import MultimodalDiffusion

    model = load_trained(arguments, MultimodalDiffusion)
    if kind is not None and kind not in model.modalities:
        raise ValueError(f'The model must have the modality "{kind}". Received: one of {list(model.modalities)}')
    return model


def region_mask(region, size):
    """Bool `(H, W)`, `True` in a half of the image."""
    row, column = np.indices(size)
    lower, right = row >= size[0] // 2, column >= size[1] // 2
    return {"top": ~lower, "bottom": lower, "left": ~right, "right": right}[region]


def table(head, rows):
    """Print rows of strings, numbers to the right and what is named to the left."""
    for *numbers, name in [head, *rows]:
        print("  ".join([*(f"{number:>8}" for number in numbers), name]))


# === Arguments ===


def settle(arguments, model):
    """Fill in the defaults of `generate`, those of the preset's card before others; complain about options of other models."""
    from keras_vqdit.diffusion import SAMPLERS
    from keras_vqdit.diffusion.unmasking import SAMPLERS as UNMASKING

    own = "MultimodalDiffusion" if hasattr(model, "modalities") else "LatentDiffusion"
    for options in OPTIONS.values():
        for name in options:
            if name not in OPTIONS[own] and getattr(arguments, name, None) is not None:
                known = ", ".join(f"--{one.replace('_', '-')}" for one in OPTIONS[own])
                raise ValueError(f"A {own} takes {known}. Received: --{name.replace('_', '-')}")
    chosen = getattr(model, "card", {}).get("generate")
    chosen = chosen if isinstance(chosen, dict) else {}
    defaults = {**OPTIONS[own], **{name: value for name, value in chosen.items() if name in SAMPLING}}
    if own == "MultimodalDiffusion" and not arguments.given and len(getattr(arguments, "want", None) or ()) == 1:
        defaults["guidance_scale"] = 1.0  # one modality, of nothing: there is nothing to guide by
    for name, default in defaults.items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, default)
    samplers = sorted(UNMASKING if own == "MultimodalDiffusion" else SAMPLERS)
    if arguments.sampler not in samplers:
        raise ValueError(f"--sampler of a {own} must be one of {', '.join(samplers)}. Received: {arguments.sampler}")


def sampling(arguments):
    """The arguments of `MultimodalDiffusion.generate` that all commands have."""
    return {name: getattr(arguments, name) for name in (*SAMPLING, "seed", "verbose")}


def add_commands(commands, add):
    """Add the commands of this file to those of `cli.build_parser`, by its function `add`."""
    for name, run, text in (
        ("infill", infill, "Draw a half of an image anew."),
        ("complete", complete, "Continue a text."),
        ("classify", classify, "Tell which of several texts describes an image or a sound best."),
        ("retrieve", retrieve, "Rank images, sounds or texts by how well they go with what is given."),
    ):
        command = add(commands, name, run, text)
        model_argument(command, "a .keras file of a MultimodalDiffusion")
        given_argument(command, required=name in ("classify", "retrieve"))
        if name in ("infill", "complete"):
            draw_arguments(command)
            continue
        command.add_argument(
            "--candidates", nargs="+", required=True, help="texts; or NAME=VALUE, as of --given, of one NAME"
        )
        command.add_argument(
            "--num-samples", type=positive, default=16, help="times, with masks of their own, that a score averages"
        )
        command.add_argument(
            "--subtract-prior",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="score how much likelier a candidate is than if nothing were given",
        )
    infilling, completing = commands.choices["infill"], commands.choices["complete"]
    infilling.add_argument("--image", type=Path, required=True, help="an image file")
    infilling.add_argument("--region", choices=REGIONS, default="bottom", help="what to draw anew")
    infilling.add_argument(
        "--through",
        type=names,
        metavar="NAMES",
        default=(),
        help="draw these first, such as text: what the image shows, in words",
    )
    infilling.add_argument("--out", type=Path, default=Path("infilled.png"), help="where to write the figure")
    completing.add_argument("--text", required=True, help="how the texts begin")


def pair_rate(text):
    """`"0.5"`, or `"image-text=0.4,text-image=0.1"` as a dict of dicts."""
    if "=" not in text:
        return float(text)
    rates = {}
    for part in text.split(","):
        pair, _, value = part.partition("=")
        given, dash, wanted = pair.strip().partition("-")
        if not dash or wanted in rates.get(given, ()):
            raise argparse.ArgumentTypeError(f"must look like 0.5 or image-text=0.4,text-image=0.1, not {text}")
        rates.setdefault(given, {})[wanted] = float(value)
    return rates


def train_arguments(command):
    from keras_vqdit.diffusion.masked import SCHEDULES
    from keras_vqdit.recipes_multimodal import SIZES

    command.add_argument("--data-dir", type=Path, help="folder of prepared TensorFlow Datasets")
    command.add_argument(
        "--download", action="store_true", help="let TensorFlow Datasets download and prepare what is not there"
    )
    beginning = command.add_mutually_exclusive_group(required=True)
    beginning.add_argument("--image-tokenizer", help="a .keras file of `train tokenizer`, or a preset")
    beginning.add_argument(
        "--start", help="a .keras file of this command, or a preset, whose tokenizers and weights training starts from"
    )
    command.add_argument(
        "--audio-tokenizer", help="a .keras file of an AudioTokenizer, or a preset; default: speech_tokenizer"
    )
    command.add_argument(
        "--text", choices=("bpe", "characters"), help="what the codes of captions are; default: bpe, byte pairs"
    )
    command.add_argument(
        "--out", type=Path, default=Path("saved_models/multimodal.keras"), help="where to save the model"
    )
    command.add_argument("--epochs", type=positive, default=10, help="number of epochs, passes over MNIST's images")
    command.add_argument("--batch-size", type=positive, default=64, help="examples in a batch")
    command.add_argument("--learning-rate", type=rate, default=8e-3, help="highest learning rate, of Muon")
    command.add_argument(
        "--schedule",
        choices=sorted(SCHEDULES),
        default="cosine",
        help="of masks: cosine dwells on many, linear learns faster at first",
    )
    command.add_argument(
        "--pair-rate",
        type=pair_rate,
        default=0.5,
        help="share of examples that train one modality given all of one other, and nothing else: a number, or of each pair, "
        "such as image-text=0.4,text-image=0.1",
    )
    for name, text in (
        ("d_model", "width of the transformer"),
        ("num_heads", "attention heads; must divide the width"),
        ("num_layers", "transformer blocks"),
    ):
        flag = f"--{name.replace('_', '-')}"
        command.add_argument(flag, type=positive, help=f"{text}; default: {SIZES[name]}, or that of --start")


def names(text):
    """Names of modalities, with commas between them."""
    return [name.strip() for name in text.split(",")]


def given_argument(command, required=False):
    command.add_argument(
        "--given",
        action="append",
        required=required,
        metavar="NAME=VALUE",
        help='what is known, such as text="a handwritten seven", image=FILE.png or audio=FILE.wav; may be repeated',
    )


def draw_arguments(command):
    from keras_vqdit.diffusion.unmasking import SAMPLERS

    command.add_argument("--num-samples", type=positive, help="how many to draw; default: 8")
    command.add_argument("--num-steps", type=positive, help=f"steps of the sampler; default: {CARD} 16")
    command.add_argument("--sampler", choices=sorted(SAMPLERS), help=f"which sampler; default: {CARD} confidence")
    command.add_argument("--guidance-scale", type=scale, help=f"guidance by what is known; 1 is off; default: {CARD} 1")
    command.add_argument(
        "--temperature", type=scale, help=f"of what is drawn; 0 takes the likeliest; default: {CARD} 1"
    )


def generate_arguments(command):
    """The options of `generate`, whose defaults depend on the model, see `settle`."""
    from keras_vqdit.diffusion import SAMPLERS
    from keras_vqdit.diffusion.unmasking import SAMPLERS as UNMASKING

    command.add_argument(
        "--num-steps",
        type=positive,
        help=f"steps of the sampler; default: {CARD} 20, of several modalities 16",
    )
    command.add_argument(
        "--sampler",
        choices=sorted({*SAMPLERS, *UNMASKING}),
        help=f"which sampler; default: {CARD} dpmpp_2m, and of several modalities, which have {' and '.join(sorted(UNMASKING))}, "
        "confidence",
    )
    command.add_argument(
        "--guidance-scale",
        type=scale,
        help=f"classifier-free guidance; 1 is off; default: {CARD} 1.5, and of several modalities 1",
    )
    several = command.add_argument_group("models of several modalities")
    given_argument(several)
    several.add_argument(
        "--want", type=names, metavar="NAMES", help="what to draw, such as image,audio; default: all the others"
    )
    several.add_argument("--num-samples", type=positive, help="how many to draw; default: 8")
    several.add_argument(
        "--temperature", type=scale, help=f"of what is drawn; 0 takes the likeliest; default: {CARD} 1"
    )
