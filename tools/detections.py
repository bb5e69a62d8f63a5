#!/usr/bin/env python3
"""Contact sheet of what trained models found: the annotations, and each run's detections.

The command itself is ``smallobj_d2/commands/detections.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.detections import main

if __name__ == "__main__":
    sys.exit(main())
