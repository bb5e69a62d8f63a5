#!/usr/bin/env python3
"""Rerun the paper's tables: all runs that are missing, and the rest of those that were cut off.

The command itself is ``smallobj_d2/commands/reproduce.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
