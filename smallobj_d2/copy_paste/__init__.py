"""Sections 4, 5.3 and 5.4: copy-paste of small objects, on numpy arrays and COCO annotations.

``CopyPaste`` composes four small rooms: `choose`, `jitter`, `place` and `blend`. It knows nothing
of a training framework.
"""

from smallobj_d2.copy_paste.bank import ObjectBank
from smallobj_d2.copy_paste.choose import STRATEGIES, SourceRule
from smallobj_d2.copy_paste.jitter import Jitter
from smallobj_d2.copy_paste.paste import CopyPaste, Paste, Plan

__all__ = ["STRATEGIES", "CopyPaste", "Jitter", "ObjectBank", "Paste", "Plan", "SourceRule"]
