#!/usr/bin/env python3
"""``smallobj predict``, in a clone that is not installed."""

import sys

import _path  # noqa: F401

from smallobj_d2.__main__ import run

if __name__ == "__main__":
    sys.exit(run("predict"))
