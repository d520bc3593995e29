"""`python -m benchmarks NAME`: run one of the speed comparisons."""

import importlib
import sys

# name: (module, what it measures)
BENCHMARKS = {
    "dit": ("benchmarks.dit", "training step and forward pass of a diffusion transformer, against PyTorch eager"),
    "devices": ("benchmarks.devices", "training step without XLA, with it, and on two replicas; speed of the data"),
    "dropout": ("benchmarks.dropout", "a dropout rate of 0 against no dropout at all"),
    "lookup": ("benchmarks.lookup", "nearest-code lookup, against vector-quantize-pytorch"),
    "text": (
        "benchmarks.text",
        "masked diffusion of characters, against an autoregressive transformer (minutes; quality)",
    ),
    "audio": (
        "benchmarks.audio",
        "spoken digits at 2,000 bits a second, against a quantized spectrogram (quality, not speed)",
    ),
    "multimodal": (
        "benchmarks.multimodal",
        "any of image, speech and caption from any other, judged by classifiers (minutes; quality)",
    ),
    "fashion": (
        "benchmarks.fashion_protocol",
        "reconstruction of Fashion-MNIST through 256 codes (minutes; quality, not speed)",
    ),
}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in BENCHMARKS:
        importlib.import_module(BENCHMARKS[argv[0]][0]).main(argv[1:])
        return 0
    print("usage: python -m benchmarks NAME [OPTIONS]\n")
    for name, (_, purpose) in BENCHMARKS.items():
        print(f"  {name:12}{purpose}")
    print("\n`python -m benchmarks NAME --help` tells the options of each.")
    if not argv or argv[0] in ("-h", "--help"):
        return 0
    print(f"\nThere is no benchmark {argv[0]!r}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
