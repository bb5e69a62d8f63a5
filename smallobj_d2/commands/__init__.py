"""What a user types: one module per command. The files under ``tools/`` call them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, which holds ``configs/`` and ``experiments/``."""
