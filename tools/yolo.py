#!/usr/bin/env python3
"""Datasets with YOLO's labels to COCO format, and back.

The command itself is ``smallobj_d2/commands/yolo.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.yolo import main

if __name__ == "__main__":
    sys.exit(main())
