"""Lets the proofs run from a clone, whether the package is installed or not."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
