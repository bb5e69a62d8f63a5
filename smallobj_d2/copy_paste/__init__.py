"""Sections 4, 5.3 and 5.4: copy-paste of small objects, on numpy arrays and COCO annotations.

``CopyPaste`` composes four small modules: `choose`, `jitter`, `place` and `blend`. It knows nothing
of a training framework.
"""

from smallobj_d2.copy_paste.bank import ObjectBank
from smallobj_d2.copy_paste.choose import STRATEGIES, Candidate, Candidates, SourceRule
from smallobj_d2.copy_paste.jitter import Jitter
from smallobj_d2.copy_paste.paste import CopyPaste, Paste, Plan
from smallobj_d2.copy_paste.sources import SameImage, Sources

__all__ = [
    "STRATEGIES",
    "Candidate",
    "Candidates",
    "CopyPaste",
    "Jitter",
    "ObjectBank",
    "Paste",
    "Plan",
    "SameImage",
    "SourceRule",
    "Sources",
]
