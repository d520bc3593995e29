"""Comparisons of speed and quality, each in one run: `python -m benchmarks --help`."""
