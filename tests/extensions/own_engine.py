"""An engine: torchvision's, which says when it is done."""

import logging

from smallobj_d2.engines import ENGINES, torchvision
from smallobj_d2.engines.torchvision import MAPPERS, build_train_loader, view

__all__ = ["MAPPERS", "build_train_loader", "main", "view"]


def main(cfg, resume=False, eval_only=False, overwrite=False):
    """Train and evaluate in this process; the table row in process 0, None in others."""
    row = torchvision.main(cfg, resume, eval_only, overwrite)
    logging.getLogger("smallobj_d2").info("done: %s", row)
    return row


ENGINES.add("own", __name__)  # --engine own
