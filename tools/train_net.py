#!/usr/bin/env python3
"""Train and evaluate, with Detectron2's own flags.

The command itself is ``smallobj_d2/commands/train_net.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.train_net import main

if __name__ == "__main__":
    sys.exit(main())
