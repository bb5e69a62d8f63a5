"""A COCO instance JSON of any size: its objects as arrays, its records on demand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallobj_d2.analysis.objects import objects_of
from smallobj_d2.datasets.coco import dataset_of, read_coco
from smallobj_d2.datasets.reading import without_gc
from smallobj_d2.datasets.records import PackedRecords


class CocoFile(Sequence[dict[str, Any]]):
    """The dataset dicts of `smallobj_d2.datasets.coco.load_coco`, equal and in the same order.

    They are packed, as loaders pack them: COCO's training set takes 0.5 GB that way.

    Args:
        json_file: annotations in COCO's instance format.
        image_root: folder that ``file_name`` are relative to.

    Attributes:
        images: a dict per image: ``file_name``, ``height``, ``width``, ``image_id``.
        objects: all objects, as arrays.
        repaired: how many annotations lacked something that was filled in, by what it was.
        findings: what `datasets.check` found.

    Raises:
        SmallObjError: as `load_coco`.
    """

    def __init__(self, json_file: str | Path, image_root: str | Path) -> None:
        with without_gc():
            checked = read_coco(json_file)
            self.findings = checked.findings
            data = dataset_of(checked, str(image_root))
            del checked
            self.repaired = data.repaired
            self.images = [{k: v for k, v in r.items() if k != "annotations"} for r in data.records]
            self.objects = objects_of(data.records)
            self._records = PackedRecords(data.records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return self._records[index]
