#!/usr/bin/env python3
"""Contact sheet of what the mapper feeds the model: original beside augmented.

The command itself is ``smallobj_d2/commands/visualize.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.visualize import main

if __name__ == "__main__":
    sys.exit(main())
