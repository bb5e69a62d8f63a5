"""Proofs: the laws of copy-paste, fuzzing, kills, processes and memory.

Run them from the checkout, as in ``python -m proofs.fuzz --help``. Tests use them; they import
no test.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
