"""Proofs: the laws of copy-paste, fuzzing, kills, processes and memory.

Run them from the checkout, as in ``python -m proofs.fuzz --help``. Tests use them; they import
no test.
"""

import json
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""

DEMO = ROOT / "configs" / "demo.yaml"

NARROW: dict[str, object] = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}
"""Overrides for a network that trains in seconds on a CPU."""


def datasets_of(folder: Path) -> str:
    """SMALLOBJ.DATASETS for scenes_train and scenes_val in a folder, as a word."""
    names = ("scenes_train", "scenes_val")
    return json.dumps(
        [[n, str(folder / n / "annotations.json"), str(folder / n / "images")] for n in names]
    )


def losses_of(engine: str, model: Any, batch: list[Any]) -> dict[str, Any]:
    """The losses of a batch, by name, of an engine's model that trains, on its device."""
    if engine == "detectron2":
        from detectron2.utils.events import EventStorage

        with EventStorage():
            return dict(model([copy(s) for s in batch]))
    from smallobj_d2.engines.torchvision.mapper import inputs_on

    return dict(model(*inputs_on(next(model.parameters()).device, batch)))


def words_of(opts: Mapping[str, object]) -> list[str]:
    """Overrides as words of a command line."""
    return [str(word) for pair in opts.items() for word in pair]
