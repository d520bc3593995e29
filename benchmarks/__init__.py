"""Speed comparisons, each in one run with an independent implementation: `python -m benchmarks --help`."""
