#!/usr/bin/env python3
"""Compare runs by the size of what they find: AP, recall and gain, octave by octave.

The command itself is ``smallobj_d2/commands/compare.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
