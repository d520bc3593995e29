"""The command line: `python -m keras_vqdit` or `keras-vqdit`."""

import argparse
import contextlib
import logging
import sys
from pathlib import Path

import keras
import numpy as np

from keras_vqdit.saving import check_writable

EPILOG = """\
From nothing to new digits (needs `pip install "keras_vqdit[digits]"`):

  keras-vqdit quickstart

By hand, a step at a time (with larger models, which take longer):

  keras-vqdit train tokenizer --dataset mnist_5k --epochs 12 --out saved_models/tokenizer.keras
  keras-vqdit reconstruct --model saved_models/tokenizer.keras --dataset mnist_5k --out reconstructions.png
  keras-vqdit train diffusion --tokenizer saved_models/tokenizer.keras --epochs 16 --out saved_models/digits.keras
  keras-vqdit generate --model saved_models/digits.keras --labels 0-9 --per-label 10 --out digits.png
  keras-vqdit evaluate --model saved_models/digits.keras --dataset mnist_5k

Images, sound and text from one another (needs `pip install "keras_vqdit[text]"`):

  keras-vqdit generate --preset multimodal_digits --given text="a handwritten seven" --want image,audio --out drawn
  keras-vqdit infill --preset multimodal_digits --image drawn/image-0.png --region top --out infilled.png
  keras-vqdit complete --preset multimodal_digits --text "a handwritten"
  keras-vqdit classify --preset multimodal_digits --given image=drawn/image-0.png --candidates "the digit 1" "the digit 7"
  keras-vqdit retrieve --preset multimodal_digits --given image=drawn/image-0.png --candidates text="seven" text="one"

Other data: `--dataset mnist --data-dir FOLDER` (any TensorFlow Datasets name), `--dataset pictures/ --image-size 32`
(a folder of images, a sub-folder a class), `--dataset images.npz`.
"""


def main(argv=None):
    """Run the command line; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        keras.utils.set_random_seed(arguments.seed)
        if arguments.verbose:
            show_log()
        arguments.run(arguments)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        print(f"keras-vqdit: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nkeras-vqdit: stopped; files that were there before are whole", file=sys.stderr)
        return 130
    return 0


# === Commands ===


def quickstart(arguments):
    from keras_vqdit.quickstart import run

    run(
        arguments.out,
        dataset=arguments.dataset,
        data_dir=arguments.data_dir,
        download=arguments.download,
        budget="fast" if arguments.fast else getattr(arguments, "budget", "quick"),
        image_size=arguments.image_size,
        seed=arguments.seed,
        verbose=arguments.verbose,
    )


def train_tokenizer(arguments):
    from keras_vqdit import recipes, saving
    from keras_vqdit.training.strategies import is_writer

    check_out(arguments.out, ".keras")
    strategy = prepare_training(arguments)
    train, test = load(arguments)
    options = {
        name: getattr(arguments, name) for name in ("num_embeddings", "embedding_dim") if getattr(arguments, name)
    }
    tokenizer, _ = recipes.train_tokenizer(
        train,
        test,
        epochs=arguments.epochs,
        size=arguments.size,
        learning_rate=arguments.learning_rate,
        verbose=arguments.verbose,
        callbacks=training_callbacks(arguments, examples=next(iter(test))),
        strategy=strategy,
        **options,
    )
    if not is_writer(strategy):
        return
    metrics = recipes.measure_tokenizer(tokenizer, test)
    check_trained(tokenizer, metrics["mse"], arguments.out)
    saving.save_model(tokenizer, arguments.out)
    remove_checkpoints(arguments)
    report(metrics, arguments.out)


def train_diffusion(arguments):
    from keras_vqdit import recipes, saving, training
    from keras_vqdit.diffusion import GaussianDiffusion, RectifiedFlow
    from keras_vqdit.models import VAE, VQVAE
    from keras_vqdit.training.strategies import is_writer

    check_out(arguments.out, ".keras")
    strategy = prepare_training(arguments)
    with training.scope(strategy):
        tokenizer = read_model(arguments.tokenizer, (VQVAE, VAE))
        if arguments.process == "flow":
            process = RectifiedFlow(seed=arguments.seed)
        else:
            process = GaussianDiffusion("cosine", "v", zero_terminal_snr=True, min_snr_gamma=5.0, seed=arguments.seed)
    train, _ = load(arguments, tokenizer)
    labels = range(train.info.num_classes) if train.info.num_classes else None
    model, history = recipes.train_diffusion(
        train,
        tokenizer,
        epochs=arguments.epochs,
        d_model=arguments.d_model,
        num_heads=arguments.num_heads,
        num_layers=arguments.num_layers,
        process=process,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        verbose=arguments.verbose,
        callbacks=training_callbacks(arguments, labels=labels),
        strategy=strategy,
    )
    if not is_writer(strategy):
        return
    check_trained(model, history["loss"][-1], arguments.out)
    saving.save_model(model, arguments.out)
    remove_checkpoints(arguments)
    report({"loss": history["loss"][-1]}, arguments.out)


def reconstruct(arguments):
    from keras_vqdit import plotting, recipes
    from keras_vqdit.models import VAE, VQVAE

    check_out(arguments.out, ".png")
    tokenizer = load_trained(arguments, (VQVAE, VAE))
    _, test = load(arguments, tokenizer)
    recipes.check_images(tokenizer, test)
    originals = recipes.to_arrays(test, limit=arguments.num_images)
    restored = tokenizer.decode(tokenizer.encode(originals))
    plotting.reconstructions(originals, np.asarray(restored), columns=len(originals), path=arguments.out)
    print(f"wrote {arguments.out}")


def generate(arguments):
    from keras_vqdit import cli_multimodal, plotting, saving
    from keras_vqdit.models import LatentDiffusion, MultimodalDiffusion

    if arguments.out is not None and arguments.out.suffix in (".gif", ".jpeg", ".jpg", ".pdf", ".svg", ".webp"):
        check_out(arguments.out, ".png", ".npz")  # before the model is read, which may want a folder
    model = load_trained(arguments, (LatentDiffusion, MultimodalDiffusion))
    cli_multimodal.settle(arguments, model)
    if isinstance(model, MultimodalDiffusion):
        cli_multimodal.generate(arguments, model)
        return
    arguments.out = Path("samples.png") if arguments.out is None else arguments.out
    check_out(arguments.out, ".png", ".npz")
    labels = None
    if model.num_classes:
        every = f"0-{model.num_classes - 1}"
        chosen = parse_labels(every if arguments.labels is None else arguments.labels, model.num_classes)
        labels = np.repeat(chosen, arguments.per_label)
    elif arguments.labels is not None:
        raise ValueError(f"{arguments.model or arguments.preset} was trained without labels: leave --labels out")
    images = model.generate(
        labels,
        num_samples=None if labels is not None else arguments.per_label,
        num_steps=arguments.num_steps,
        sampler=arguments.sampler,
        guidance_scale=arguments.guidance_scale if labels is not None else 1.0,
        seed=arguments.seed,
        verbose=arguments.verbose,
    )
    if str(arguments.out).endswith(".npz"):
        with saving.atomic_path(arguments.out) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, images=images, **({} if labels is None else {"labels": labels}))
    else:
        names = class_names(model) if model.num_classes else ()
        rows = [names[label] for label in chosen] if model.num_classes else None
        title = f"Drawn images, {arguments.num_steps} steps of {arguments.sampler}"
        plotting.image_grid(images, columns=arguments.per_label, row_labels=rows, title=title, path=arguments.out)
    print(f"wrote {arguments.out}")


def evaluate(arguments):
    from keras_vqdit import recipes, saving
    from keras_vqdit.metrics import train_classifier
    from keras_vqdit.models import VQVAE, LatentDiffusion

    model = load_trained(arguments, (VQVAE, LatentDiffusion))
    train, test = load(arguments, getattr(model, "tokenizer", model))
    if isinstance(model, VQVAE):
        report(recipes.measure_tokenizer(model, test))
        return
    recipes.check_classes(model, test)
    if arguments.judge:
        judge = saving.load_model(arguments.judge)
        accuracy = recipes.measure_judge(judge, test)
    else:
        print("Training the judge, a classifier of real images", flush=True)
        judge, accuracy = train_classifier(
            train, test, epochs=arguments.judge_epochs, seed=arguments.seed, verbose=arguments.verbose
        )
    measured = recipes.measure_generation(
        model,
        judge,
        test,
        num_samples=arguments.num_samples,
        num_steps=arguments.num_steps,
        sampler=arguments.sampler,
        guidance_scale=arguments.guidance_scale,
        seed=arguments.seed,
        verbose=arguments.verbose,
    )
    report({"judge_test_accuracy": accuracy, **measured})


def export(arguments):
    from keras_vqdit import saving
    from keras_vqdit.models import VAE, VQVAE, AudioTokenizer, LatentDiffusion, MultimodalDiffusion

    model = load_trained(arguments, (VQVAE, VAE, AudioTokenizer, LatentDiffusion, MultimodalDiffusion))
    card = saving.read_json(arguments.card) if arguments.card else None
    if arguments.format == "preset":
        if arguments.only is not None:
            raise ValueError("--only is of exports for others. Received: --format preset")
        model.save_to_preset(arguments.out, card)
    else:
        only = None if arguments.only is None else [name.strip() for name in arguments.only.split(",")]
        saving.export(model, arguments.out, format=arguments.format, card=card, only=only)
    print(f"wrote {arguments.out}")


def inspect(arguments):
    from keras_vqdit import saving

    for line in saving.inspect(arguments.path):
        print(line)


def list_presets(arguments):
    from keras_vqdit import saving

    for name, card in saving.presets().items():
        print(f"{name:<24}  {saving.short(card.get('description', ''))}".rstrip())


def class_names(model):
    """The names of the classes in the card of a preset, else their numbers."""
    names = model.card.get("class_names")
    if isinstance(names, list) and len(names) == model.num_classes and all(isinstance(name, str) for name in names):
        return [name[:40] for name in names]
    return [str(label) for label in range(model.num_classes)]


def read_model(path, expected):
    """A trained model: of a .keras file, or of a preset."""
    from keras_vqdit import saving

    return (saving.load_model if path.endswith(".keras") else saving.load_preset)(path, expected)


def load_trained(arguments, expected):
    """The model of `--model`, a .keras file, or of `--preset`, a name or a folder."""
    from keras_vqdit import saving

    if arguments.preset:
        model = saving.load_preset(arguments.preset, expected)
        data = model.card.get("data")
        name = data.get("name") if isinstance(data, dict) else None
        if isinstance(name, str) and name != getattr(arguments, "dataset", name):
            print(
                f"The preset was trained on {saving.short(name)}; these are data of {arguments.dataset}",
                file=sys.stderr,
            )
        return model
    return saving.load_model(arguments.model, expected)


# === Training ===


def prepare_training(arguments):
    """The strategy, precision and checkpoints that were asked for; before anything is computed."""
    from keras_vqdit import training

    devices = None if arguments.devices is None else arguments.devices.split(",")
    strategy = training.make_strategy(arguments.strategy, devices)
    if arguments.mixed_precision:
        keras.config.set_dtype_policy(f"mixed_{arguments.mixed_precision}")
    for option, folder in (("--tensorboard", arguments.tensorboard), ("--out", checkpoint_folder(arguments))):
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            raise NotADirectoryError(f"{option}: {folder} must be a folder, but is a file")
    folder = checkpoint_folder(arguments)
    found = any(folder.glob("epoch-*.npz"))
    if arguments.resume and not found:
        print(f"There are no checkpoints in {folder}: training begins anew", file=sys.stderr)
    if found and not arguments.resume:
        raise ValueError(
            f"{folder} holds the checkpoints of a training that did not end: --resume goes on from them; delete the folder to "
            "start anew"
        )
    return strategy


def checkpoint_folder(arguments):
    return arguments.out.with_name(f"{arguments.out.stem}-checkpoints")


def training_callbacks(arguments, **pictures):
    """The callbacks of a training; `pictures` are what TensorBoard shows."""
    from keras_vqdit import training

    checkpoint = training.Checkpoint(checkpoint_folder(arguments), every=arguments.checkpoint_every)
    callbacks = [training.Throughput(), checkpoint]
    if arguments.tensorboard:
        callbacks.append(training.TensorBoard(arguments.tensorboard, **pictures))
    return callbacks


def remove_checkpoints(arguments):
    """The model is saved: nothing is left to go on with."""
    folder = checkpoint_folder(arguments)
    for path in (*folder.glob("epoch-*.npz"), *folder.glob("damaged-epoch-*.npz")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's files may be there
        folder.rmdir()


def show_log():
    """Show what the package logs, such as what `jit_compile="auto"` chose."""
    logger = logging.getLogger("keras_vqdit")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)


# === Arguments ===


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that there are."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser():
    """The parser of all commands."""
    from keras_vqdit import cli_multimodal
    from keras_vqdit.models.backbones import SIZES

    parser = argparse.ArgumentParser(
        prog="keras-vqdit",
        description="Train VQ-VAE tokenizers and diffusion transformers, and draw from them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(parent, name, run, text):
        command = parent.add_parser(name, help=text, description=text, formatter_class=HelpFormatter)
        command.set_defaults(run=run)
        command.add_argument(
            "--seed", type=seed, default=0, help="the same seed gives the same result on the same machine"
        )
        command.add_argument(
            "--verbose", type=int, choices=(0, 1, 2), default=1, help="1 progress bars, 2 a line an epoch, 0 silence"
        )
        return command

    command = add(
        commands, "quickstart", quickstart, "Train on real digits, draw new ones, judge them: the whole tour."
    )
    data_arguments(command)
    command.add_argument(
        "--out", type=Path, default=Path("saved_models/quickstart"), help="folder for models, figures and metrics.json"
    )
    budget = command.add_mutually_exclusive_group()
    budget.add_argument(
        "--budget",
        choices=("fast", "quick", "full"),
        default=argparse.SUPPRESS,  # argparse takes a given option that equals its default for none
        help="fast: only shows that everything runs, its pictures show nothing yet; quick, the default: minutes on the "
        "embedded digits; full: for the whole of MNIST",
    )
    budget.add_argument("--fast", action="store_true", help="the same as --budget fast")

    train = commands.add_parser(
        "train",
        help="Train a tokenizer or a diffusion model, of one or several modalities.",
        description="Train a model.",
    )
    train = train.add_subparsers(title="what to train", required=True, metavar="MODEL")

    command = add(train, "tokenizer", train_tokenizer, "Train a VQ-VAE: images to grids of codes and back.")
    data_arguments(command)
    training_arguments(command)
    command.add_argument("--out", type=Path, default=Path("saved_models/tokenizer.keras"), help="where to save it")
    command.add_argument("--epochs", type=positive, default=12, help="number of epochs")
    command.add_argument("--batch-size", type=positive, default=32, help="images in a batch")
    command.add_argument("--learning-rate", type=rate, default=2e-3, help="highest learning rate")
    command.add_argument("--size", default="digits", choices=tuple(SIZES), help="architecture")
    command.add_argument("--num-embeddings", type=positive, help="number of codes; default: that of the size")
    command.add_argument("--embedding-dim", type=positive, help="length of a code vector; default: that of the size")

    command = add(train, "diffusion", train_diffusion, "Train a diffusion transformer on a tokenizer's latents.")
    data_arguments(command)
    training_arguments(command)
    command.add_argument("--tokenizer", required=True, help="a .keras file of `train tokenizer`, or a preset")
    command.add_argument(
        "--out", type=Path, default=Path("saved_models/diffusion.keras"), help="where to save the model"
    )
    command.add_argument("--epochs", type=positive, default=16, help="number of epochs")
    command.add_argument("--batch-size", type=positive, default=32, help="images in a batch")
    command.add_argument("--learning-rate", type=rate, default=8e-3, help="highest learning rate, of Muon")
    command.add_argument("--d-model", type=positive, default=192, help="width of the transformer")
    command.add_argument("--num-heads", type=positive, default=6, help="attention heads; must divide the width")
    command.add_argument("--num-layers", type=positive, default=6, help="transformer blocks")
    command.add_argument(
        "--process",
        choices=("flow", "gaussian"),
        default="flow",
        help="rectified flow, or Gaussian diffusion (cosine schedule, v-prediction, zero terminal SNR, min-SNR weights)",
    )

    command = add(
        train, "multimodal", cli_multimodal.train, "Train any to any: images, sound and captions of digits at once."
    )
    training_arguments(command)
    cli_multimodal.train_arguments(command)

    command = add(commands, "reconstruct", reconstruct, "Draw test images beside what a tokenizer makes of them.")
    data_arguments(command)
    model_argument(command, "a .keras file of `train tokenizer`")
    command.add_argument("--out", type=Path, default=Path("reconstructions.png"), help="where to write the figure")
    command.add_argument("--num-images", type=positive, default=10, help="number of images")

    command = add(commands, "generate", generate, "Draw new images, or images, sound and text from one another.")
    model_argument(command, "a .keras file of `train diffusion` or `train multimodal`")
    command.add_argument("--labels", help="classes, such as 7 or 0-9 or 1,3,5-7; default: all")
    command.add_argument("--per-label", type=positive, help="images a class; default: 5")
    command.add_argument(
        "--out",
        type=Path,
        help=".png for a figure, .npz for the arrays, and of several modalities a folder; default: samples.png or drawn",
    )
    cli_multimodal.generate_arguments(command)
    cli_multimodal.add_commands(commands, add)

    command = add(commands, "evaluate", evaluate, "Measure a tokenizer or a diffusion model on test data.")
    data_arguments(command)
    model_argument(command, "a .keras file of `train`")
    sampling_arguments(command)
    command.add_argument("--num-samples", type=positive, default=1000, help="images that are drawn and judged")
    command.add_argument("--judge", type=Path, help="a judge.keras of quickstart; default: one is trained")
    command.add_argument("--judge-epochs", type=positive, default=12, help="epochs of the judge")

    command = add(commands, "export", export, "Write a model for those who run it without this package.")
    model_argument(command, "a .keras file of `train`")
    command.add_argument("--out", type=Path, required=True, help="folder to write")
    command.add_argument(
        "--format",
        choices=("tf_saved_model", "litert", "onnx", "preset"),
        default="tf_saved_model",
        help="tf_saved_model: all endpoints, for TensorFlow alone; litert, onnx: encode, decode, denoise, decode_latents; "
        "preset: for this package",
    )
    command.add_argument("--only", help="endpoints to write, such as encode_image,denoise; default: all")
    command.add_argument(
        "--card",
        type=Path,
        help="a JSON file of what users should know: data, metrics, licence; default: that of the preset",
    )

    command = add(
        commands, "inspect", inspect, "Tell what a file or folder holds, and how to call it; nothing of it is executed."
    )
    command.add_argument("path", help="an export, a preset or its name, or a .keras file")

    add(commands, "presets", list_presets, "List the trained models that come with the package.")
    return parser


def data_arguments(command):
    command.add_argument(
        "--dataset",
        default="mnist_5k",
        help="mnist_5k (embedded), a TensorFlow Datasets name (with --data-dir), a folder of images, or an .npz file",
    )
    command.add_argument("--data-dir", type=Path, help="folder of prepared TensorFlow Datasets")
    command.add_argument(
        "--download", action="store_true", help="let TensorFlow Datasets download and prepare what is not there"
    )
    command.add_argument("--image-size", type=positive, help="height and width that images are brought to, in pixels")


def training_arguments(command):
    command.add_argument(
        "--strategy",
        choices=("none", "mirrored", "multiworker"),
        default="none",
        help="mirrored: all GPUs of this machine, or --devices; multiworker: the machines that TF_CONFIG lists",
    )
    command.add_argument("--devices", help="of --strategy mirrored, such as gpu:0,gpu:1 or cpu:0,cpu:1")
    command.add_argument("--mixed-precision", choices=("float16", "bfloat16"), help="compute in half precision")
    command.add_argument(
        "--resume", action="store_true", help="go on from the checkpoints that an unfinished training left beside --out"
    )
    command.add_argument("--checkpoint-every", type=positive, help="steps between checkpoints; default: an epoch")
    command.add_argument("--tensorboard", type=Path, help="folder for TensorBoard's logs; default: none")


def model_argument(command, text):
    model = command.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, help=text)
    model.add_argument("--preset", help="a name that `presets` lists, or the folder of a preset")


def sampling_arguments(command):
    from keras_vqdit.diffusion import SAMPLERS

    command.add_argument("--num-steps", type=positive, default=20, help="steps of the sampler")
    command.add_argument("--sampler", choices=sorted(SAMPLERS), default="dpmpp_2m", help="which sampler")
    command.add_argument("--guidance-scale", type=scale, default=1.5, help="classifier-free guidance; 1 is off")


def seed(text):
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {2**31 - 1}, not {text}")
    return value


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text}")
    return value


def rate(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text}")
    return value


def scale(text):
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, not {text}")
    return value


def parse_labels(text, num_classes):
    """`"7"`, `"0-9"` or `"1,3,5-7"` as a list of integers."""
    labels = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--labels must look like 7, 0-9 or 1,3,5-7. Received: {text!r}")
        first, last = int(first), int(last or first)
        if not first <= last < num_classes:
            raise ValueError(f"--labels must be from 0 to {num_classes - 1}, in rising ranges. Received: {text!r}")
        labels.extend(range(first, last + 1))
    return labels


def check_out(path, *suffixes):
    """Complain about a path before the work, not after it."""
    if path.suffix not in suffixes:
        raise ValueError(f"--out must end in {' or '.join(suffixes)}. Received: {path}")
    check_writable(path)


def check_trained(model, measure, path):
    """Keep what is there rather than replace it by a model that training has broken."""
    if model.diverged or not np.isfinite(measure):
        raise ValueError(
            f"Training ended with a loss that is not finite; {path} is left as it was. Try a lower --learning-rate"
        )


def load(arguments, tokenizer=None):
    """The data of the arguments, brought to the size of the tokenizer's images where no other is asked for."""
    from keras_vqdit import data

    size = arguments.image_size
    shape = getattr(tokenizer, "example_shape", None)
    if size is None and shape is not None and len(shape) == 3:
        size = shape[:2]
    train, test = data.load(
        arguments.dataset,
        batch_size=getattr(arguments, "batch_size", 100),
        data_dir=arguments.data_dir,
        download=arguments.download,
        image_size=size,
        seed=arguments.seed,
    )
    if arguments.verbose:
        shape = "x".join(map(str, train.info.image_shape))
        print(
            f"data: {train.info.name}, {train.info.size} images to train and {test.info.size} to test, {shape}",
            flush=True,
        )
    return train, test


MEASURES = {
    "psnr": "dB, reconstructions of unseen images; more is better",
    "mse": "mean squared error of reconstructions, for values in [-1, 1]",
    "mse_over_variance": "the same as a share of the images' variance; 1 is no better than a grey image",
    "l1": "mean absolute error of reconstructions",
    "codes_used": "share of the codes that the test images use",
    "perplexity": "effective number of codes, at most num_embeddings",
    "judge_test_accuracy": "share of real test images that the judge recognises",
    "accuracy": "share of drawn images that the judge recognises as the label asked for",
    "frechet_distance": "between drawn and real test images, in the judge's features; less is better",
    "loss": "of the last epoch",
    "seconds": "to draw the images",
}


def report(metrics, path=None):
    """Print the numbers among the metrics, and what they mean."""
    for key, value in metrics.items():
        if isinstance(value, (int, float)):
            print(f"{key:>20}  {value:<8.4g}  {MEASURES.get(key, '')}".rstrip())
    if path is not None:
        print(f"wrote {path}")
