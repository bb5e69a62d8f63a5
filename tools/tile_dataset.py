#!/usr/bin/env python3
"""A dataset of large images, cut into tiles for training; polygons and RLE stay what they are.

The command itself is ``smallobj_d2/commands/tile_dataset.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.tile_dataset import main

if __name__ == "__main__":
    sys.exit(main())
