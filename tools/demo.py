#!/usr/bin/env python3
"""The whole job on synthetic scenes: look at the augmentation, train on the CPU, read AP_S.

The command itself is ``smallobj_d2/commands/demo.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
