#!/usr/bin/env python3
"""Section 3 for any dataset: Table 2, pictures, and whether the augmentation will help.

The command itself is ``smallobj_d2/commands/analyze.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.analyze import main

if __name__ == "__main__":
    sys.exit(main())
