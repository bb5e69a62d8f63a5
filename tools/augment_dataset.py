#!/usr/bin/env python3
"""Section 5.1's offline copies: what training would draw, as a COCO-format dataset on disk.

The command itself is ``smallobj_d2/commands/augment_dataset.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.augment_dataset import main

if __name__ == "__main__":
    sys.exit(main())
