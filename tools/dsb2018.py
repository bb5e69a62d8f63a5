#!/usr/bin/env python3
"""The nuclei of the Data Science Bowl 2018 as COCO files, with the split that is used here.

The command itself is ``smallobj_d2/commands/dsb2018.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.dsb2018 import main

if __name__ == "__main__":
    sys.exit(main())
