#!/usr/bin/env python3
"""The report on what tools/reproduce.py has run so far, as Markdown and HTML.

The command itself is ``smallobj_d2/commands/report.py``.
"""

import sys

import _path  # noqa: F401

from smallobj_d2.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
