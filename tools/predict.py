#!/usr/bin/env python3
"""What a trained model finds in your images: COCO JSON, and pictures with categories and scores.

The command itself is ``smallobj_d2/commands/predict.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
