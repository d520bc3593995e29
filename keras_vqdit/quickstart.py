"""The main job from nothing: train a tokenizer and a diffusion transformer on digits, draw new ones, and judge them."""

import dataclasses
import importlib.metadata
import os
import platform
import time
from pathlib import Path

import keras
import numpy as np

from keras_vqdit import data, plotting, recipes
from keras_vqdit.metrics.classifier import train_classifier
from keras_vqdit.saving import check_writable, save_json, save_model


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long each part trains, and how the digits are drawn."""

    judge_epochs: int
    tokenizer_epochs: int
    diffusion_epochs: int
    batch_size: int = 32
    d_model: int = 96
    num_layers: int = 4
    num_embeddings: int = 512
    num_heads: int = 3
    num_samples: int = 1000
    num_steps: int = 20
    guidance_scale: float = 1.5
    sampler: str = "dpmpp_2m"


JUDGE_BATCH = 128
# Of the data; the models are under the licence of this package.
LICENCES = {"mnist_5k": "CC BY-SA 3.0", "mnist": "CC BY-SA 3.0", "fashion_mnist": "MIT"}
BUDGETS = {
    # Only shows that everything runs.
    "fast": Budget(
        1, 1, 1, batch_size=128, d_model=48, num_layers=2, num_heads=2, num_embeddings=64, num_samples=50, num_steps=5
    ),
    # For the 4,000 embedded digits.
    "quick": Budget(14, 12, 16, num_embeddings=256, num_samples=500),
    # For the 60,000 of MNIST.
    "full": Budget(9, 8, 6, batch_size=64, d_model=128, num_layers=6, num_heads=4),
}


def run(out, *, dataset="mnist_5k", data_dir=None, download=False, image_size=None, budget="quick", seed=0, verbose=1):
    """Train, draw, judge, and leave models, figures and a metrics file behind.

    Args:
        out: folder for the results. Older results of the same names are replaced, each when its new one is complete.
        dataset: what `data.load` takes, with labels.
        data_dir: folder of TensorFlow Datasets, if `dataset` is one.
        download: let TensorFlow Datasets download what is not in `data_dir`.
        image_size: height and width that images are brought to, as in `data.load`.
        budget: a name in `BUDGETS`, or a `Budget`.
        seed: integer. The same seed gives the same result on the same machine.
        verbose: 1 shows progress bars, 2 a line an epoch, 0 nothing.

    Returns:
        Dict of the metrics, as in `metrics.json`.

    Raises:
        ValueError: if there is no such budget, or the data have no labels.
        OSError: if `out` can not be written to.
    """
    if isinstance(budget, str) and budget not in BUDGETS:
        raise ValueError(f"`budget` must be one of {', '.join(BUDGETS)}, or a `Budget`. Received: budget={budget!r}")
    name, budget = (budget, BUDGETS[budget]) if isinstance(budget, str) else ("custom", budget)
    out = Path(out)
    check_writable(out / "metrics.json")
    keras.utils.set_random_seed(seed)
    seconds = {}

    def say(title):
        if verbose:
            print(f"\n{title}", flush=True)

    def load(batch_size):
        return data.load(
            dataset, batch_size=batch_size, data_dir=data_dir, download=download, image_size=image_size, seed=seed
        )

    train, test = load(budget.batch_size)
    sizes = [data.describe(part).size for part in (train, test)]
    if name == "fast":
        say(
            "The fast budget shows that everything runs. Its models learn next to nothing: what they draw shows nothing yet."
        )
    say(f"1/4  The judge: a classifier of real images ({sizes[0]} to train, {sizes[1]} to test)")
    with timed(seconds, "judge"):
        judge, judge_accuracy = train_classifier(
            load(JUDGE_BATCH)[0], test, epochs=budget.judge_epochs, seed=seed, verbose=verbose
        )
    save_model(judge, out / "judge.keras")

    say(f"2/4  The tokenizer: a VQ-VAE with {budget.num_embeddings} codes")
    with timed(seconds, "tokenizer"):
        tokenizer, tokenizer_curves = recipes.train_tokenizer(
            train, test, epochs=budget.tokenizer_epochs, num_embeddings=budget.num_embeddings, verbose=verbose
        )
    save_model(tokenizer, out / "tokenizer.keras")

    say("3/4  The diffusion transformer, on the tokenizer's latents")
    with timed(seconds, "diffusion"):
        model, diffusion_curves = recipes.train_diffusion(
            train,
            tokenizer,
            epochs=budget.diffusion_epochs,
            d_model=budget.d_model,
            num_heads=budget.num_heads,
            num_layers=budget.num_layers,
            seed=seed,
            verbose=verbose,
        )
    save_model(model, out / "diffusion.keras")

    say(f"4/4  New images, {budget.num_steps} steps of {budget.sampler}; {budget.num_samples} of them are judged")
    drawing = {
        "num_steps": budget.num_steps,
        "sampler": budget.sampler,
        "guidance_scale": budget.guidance_scale,
        "seed": seed,
        "verbose": verbose,
    }
    drawn = recipes.measure_generation(model, judge, test, num_samples=budget.num_samples, **drawing)
    seconds["drawing"] = drawn["seconds"]
    restored = recipes.measure_tokenizer(tokenizer, test)

    figures = draw_figures(out, model, tokenizer, test, restored["counts"], tokenizer_curves, diffusion_curves, drawing)
    metrics = {
        "dataset": dataset if isinstance(dataset, str) else "arrays",
        "budget": {"name": name, **dataclasses.asdict(budget)},
        "seed": seed,
        "tokenizer": {key: value for key, value in restored.items() if key != "counts"},
        "generation": {
            "accuracy": drawn["accuracy"],
            "judge_test_accuracy": judge_accuracy,
            "frechet_distance": drawn["frechet_distance"],
            "num_samples": budget.num_samples,
        },
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
        "versions": {
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "python": platform.python_version(),
            **(
                {"tensorflow": importlib.metadata.version("tensorflow")}
                if keras.backend.backend() == "tensorflow"
                else {}
            ),
        },
        "command": f"python -m keras_vqdit quickstart{said(name, dataset, image_size, seed)}",
        "hardware": hardware(),
    }
    save_json(metrics, out / "metrics.json")
    write_presets(out / "presets", metrics, tokenizer, model, data.describe(test).class_names)
    if verbose:
        files = [
            *(out / f"{part}.keras" for part in ("judge", "tokenizer", "diffusion")),
            out / "metrics.json",
            *(out / "presets" / part for part in ("tokenizer", "diffusion")),
            *figures,
        ]
        print(table(metrics))
        print("\n".join(f"  {path}" for path in files))
    return metrics


def write_presets(out, metrics, tokenizer, model, class_names=None):
    """Save both models as presets, `out/tokenizer` and `out/diffusion`, with cards that tell how they came about."""
    budget = metrics["budget"]
    known = metrics["dataset"] in LICENCES
    name = Path(metrics["dataset"]).name  # of a folder or a file
    shared = {
        "data": {"name": name, "licence": LICENCES.get(metrics["dataset"], "that of the data")},
        "licence": "Apache-2.0" if known else "that of whoever trained it",
        "command": metrics["command"],
        "seconds": metrics["seconds"],
        "hardware": metrics["hardware"],
        "versions": metrics["versions"],
    }
    size = "x".join(map(str, tokenizer.example_shape[:-1]))
    tokens = "x".join(map(str, tokenizer.latent_shape[:-1]))
    about = f"VQ-VAE of {name}: images of {size} to {tokens} codes of {budget['num_embeddings']}"
    tokenizer.save_to_preset(
        out / "tokenizer", {"description": about, "metrics": {"test": metrics["tokenizer"]}, **shared}
    )
    drawing = {key: budget[key] for key in ("num_steps", "guidance_scale", "sampler")}
    names = {"class_names": [str(name) for name in class_names]} if class_names else {}
    about = f"Diffusion transformer of {name}, {model.num_classes} classes: images of {size}"
    model.save_to_preset(
        out / "diffusion",
        {
            "description": about,
            "metrics": {"drawn": {**metrics["generation"], **drawing, "seed": metrics["seed"]}},
            **names,
            **shared,
        },
    )


def said(budget, dataset, image_size, seed):
    """The options of the command that does the same."""
    options = {
        "dataset": None if dataset == "mnist_5k" else Path(dataset).name if isinstance(dataset, str) else "YOUR_DATA",
        "image-size": image_size,
        "budget": None if budget == "quick" else budget,
        "seed": seed,
    }
    text = "".join(f" --{key} {value}" for key, value in options.items() if value is not None)
    return text + (" --download" if dataset in LICENCES and dataset != "mnist_5k" else "")


def hardware():
    """The machine, in words."""
    try:
        with open("/proc/cpuinfo") as file:
            found = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        found = platform.processor()
    return f"{os.cpu_count()} cores of {found or platform.machine()}"


def draw_figures(out, model, tokenizer, test, counts, tokenizer_curves, diffusion_curves, drawing):
    """Draw and save every figure; returns their paths."""
    originals = recipes.to_arrays(test, limit=8)
    restored = np.asarray(tokenizer.decode(tokenizer.encode(originals)))
    classes = model.num_classes
    grid = model.generate(np.repeat(np.arange(classes), 10), **{**drawing, "verbose": 0})
    _, trajectory = model.generate(np.arange(classes), return_trajectory=True, **{**drawing, "verbose": 0})
    paths = {
        name: out / f"{name}.png"
        for name in (
            "tokenizer_curves",
            "diffusion_curves",
            "reconstructions",
            "codebook_usage",
            "samples",
            "trajectory",
        )
    }
    plotting.training_curves(tokenizer_curves, title="Tokenizer", path=paths["tokenizer_curves"])
    plotting.training_curves(diffusion_curves, title="Diffusion transformer", path=paths["diffusion_curves"])
    plotting.reconstructions(originals, restored, path=paths["reconstructions"])
    plotting.codebook_usage(counts, path=paths["codebook_usage"])
    names = [str(name) for name in data.describe(test).class_names or range(classes)]
    title = (
        f"Drawn images, {drawing['num_steps']} steps of {drawing['sampler']}, guidance {drawing['guidance_scale']:g}"
    )
    plotting.image_grid(grid, row_labels=names, title=title, path=paths["samples"])
    title = "From noise to image: the latents on their way, decoded"
    plotting.trajectory(
        trajectory["noisy"], trajectory["times"], row_labels=names, title=title, path=paths["trajectory"]
    )
    return list(paths.values())


def table(metrics):
    """The metrics as a table for people."""
    tokenizer, generation, seconds = metrics["tokenizer"], metrics["generation"], metrics["seconds"]
    rows = [
        (
            "Reconstruction of unseen images",
            f"{tokenizer['psnr']:.2f} dB PSNR",
            f"MSE/variance {tokenizer['mse_over_variance']:.4f}",
        ),
        (
            "Codes used on the whole test split",
            f"{tokenizer['codes_used']:.1%} of {tokenizer['num_embeddings']}",
            f"perplexity {tokenizer['perplexity']:.1f}",
        ),
        (
            f"Drawn images recognised ({generation['num_samples']})",
            f"{generation['accuracy']:.1%}",
            f"judge on real test images: {generation['judge_test_accuracy']:.1%}",
        ),
        ("Fréchet distance, judge's features", f"{generation['frechet_distance']:.2f}", ""),
        (
            "Time",
            f"{sum(seconds.values()):.0f} s",
            ", ".join(f"{key} {value:.0f}" for key, value in seconds.items()),
        ),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join(["", rule, *lines, rule])


class timed:
    """Adds the seconds of a block to a dict."""

    def __init__(self, seconds, key):
        self.seconds, self.key = seconds, key

    def __enter__(self):
        self.begin = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.key] = time.perf_counter() - self.begin
