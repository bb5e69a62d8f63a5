"""Benchmarks, which print ratios: ``python -m benchmarks.speed --help``, from the checkout."""
