"""Section 5.1's offline copies: the draws of a config as a COCO-format dataset on disk.

What is written is the first epoch of the config's stream of draws. The draw at position ``k`` gets
the pastes that training with the same config and seed gives it, so a framework that knows nothing
of this project trains on the same images. Draws that show an original are links to its file, and
only images in which something was pasted are written, without loss.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import yaml
from tqdm import tqdm

from smallobj_d2.augmentation import DrawAugmentation, build_augmentation
from smallobj_d2.copy_paste import Plan
from smallobj_d2.datasets.check import Checked
from smallobj_d2.datasets.coco import (
    CocoDataset,
    dataset_info,
    dataset_of,
    read_coco,
    register_from_config,
)
from smallobj_d2.datasets.images import in_order, read_rgb
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.export.folder import Entry, Exported, export, made_of
from smallobj_d2.files import link, writing
from smallobj_d2.sampling import Draw, Stream
from smallobj_d2.training_set import training_data

_FORMAT = 2  # raise it whenever the same recipe would give other files

_PNG_COMPRESSION = 3  # half the time of the default, and a tenth more bytes
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass
class Summary(Exported):
    """What a dataset on disk holds."""

    original: int = 0
    """Images that are as they were: links."""
    augmented: int = 0
    pastes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Copies that were wanted and not placed, by reason; see `Plan.left_out`."""
    written: int = 0
    """Augmented images that this call wrote; the others were there."""


def augment_dataset(
    cfg: Any, out: str | Path, *, workers: int | None = None, progress: bool = True
) -> Summary:
    """Write the first epoch of a config's draws to ``out/annotations.json`` and ``out/images``.

    The first draw that shows an image as it was keeps the ids and the file name of the original.
    Every other draw is a separate image: its id is the largest id of the original dataset plus 1
    plus the draw's position, its file ``<stem>_draw<position>``. Images that training leaves out,
    because they have nothing to learn from, are there as they were. The files are a function of the
    dataset, the config and the seed, whatever `workers` is. A call that was cut off leaves no JSON,
    and the next call continues where it stopped.

    Args:
        cfg: a config with ``SMALLOBJ``, one dataset in DATASETS.TRAIN, and a SEED that is not
            negative.
        out: a new folder, or one that a call with the same arguments has begun.
        workers: threads; None for one per core.
        progress: show a progress bar on a terminal.

    Raises:
        SmallObjError: if `out` holds something else, or an image cannot be read or written.
    """
    register_from_config(cfg)
    if len(cfg.DATASETS.TRAIN) != 1:
        raise SmallObjError(
            f"DATASETS.TRAIN names {len(cfg.DATASETS.TRAIN)} datasets; an offline copy is made of "
            "one. Say which with --dataset."
        )
    if cfg.SEED < 0:
        raise SmallObjError("SEED is negative; an offline copy needs one, such as SEED 0.")
    info = dataset_info(cfg.DATASETS.TRAIN[0])
    checked = read_coco(info.json_file)
    dataset = dataset_of(checked, str(info.image_root))
    records, factors = training_data(cfg, lambda _: dataset.records)
    stream = Stream(factors, cfg.SEED)
    settings = yaml.safe_load(cfg.SMALLOBJ.dump())
    for elsewhere in ("DATASETS", "IMPORTS", "MAPPER", "SIZE_LIMITS"):
        settings.pop(elsewhere)
    recipe = {
        "generator": "smallobj_d2.offline",
        "format": _FORMAT,
        **made_of(info.json_file, info.image_root, (i["file_name"] for i in checked.images)),
        "seed": cfg.SEED,
        "draws": len(stream),
        "smallobj": settings,
    }
    folder = Path(out)
    summary = Summary(folder / "annotations.json", folder / "images")
    with export(summary, recipe, checked.data) as (images, annotations):
        augmentation = build_augmentation(
            cfg, cfg.SEED, records, read_rgb, factors, progress=progress
        )
        writer = _Writer(
            cfg, checked, dataset, info.image_root, augmentation, summary, images, annotations
        )

        def work(draw: Draw) -> tuple[Plan, bool] | None:
            return writer.augment({**records[draw.index], "draw": draw})

        draws = tqdm(
            [stream[k] for k in range(len(stream))],
            unit="img",
            desc="draws",
            disable=not progress or None,
        )
        with closing(in_order(work, draws, workers)) as copies:
            for draw, copy in copies:
                with writer.may_skip():
                    writer.add(records[draw.index], draw, copy.result())
        trained_on = {r["image_id"] for r in records}
        for record in dataset.records:
            if record["image_id"] not in trained_on:
                with writer.may_skip():
                    writer.add(record)
        images.sort(key=lambda i: i["id"])
    return summary


class _Writer:
    """Puts images and annotations together, in the order of the draws."""

    def __init__(
        self,
        cfg: Any,
        checked: Checked,
        dataset: CocoDataset,
        image_root: Path,
        augmentation: DrawAugmentation | None,
        summary: Summary,
        images: list[Entry],
        annotations: list[Entry],
    ) -> None:
        # As they are on disk, so that what is not changed stays as it was.
        self.raw_images: dict[int, Entry] = {i["id"]: i for i in checked.images}
        self.raw_annotations: dict[int, Entry] = {a["id"]: a for a in checked.annotations}
        if not {int}.issuperset(map(type, [*self.raw_images, *self.raw_annotations])):
            raise SmallObjError(
                f"{checked.path}: an offline copy needs whole numbers as ids of images and of "
                "annotations."
            )
        self.category_ids, self.image_root = dataset.category_ids, image_root
        self.seed, self.skips = cfg.SEED, cfg.SMALLOBJ.UNREADABLE_IMAGES == "skip"
        self.augmentation, self.summary = augmentation, summary
        self.images, self.annotations = images, annotations
        self.next_image = max(self.raw_images, default=0) + 1
        self.next_annotation = max(self.raw_annotations, default=0) + 1
        self.kept: set[int] = set()
        self.read: set[int] = set()
        self.taken = {i["file_name"] for i in checked.images}

    @contextmanager
    def may_skip(self) -> Iterator[None]:
        """Note an image that cannot be read, where the config skips such images."""
        try:
            yield
        except UnreadableImage as e:
            if not self.skips:
                raise
            self.summary.skipped.append(str(e))

    def augment(self, record: Entry) -> tuple[Plan, bool] | None:
        """Write the image of a draw, unless it is there; None if the draw shows the original.

        That is read once, to see whether training could.

        Args:
            record: a dataset dict with its ``draw``.

        Returns:
            What is pasted, and whether the image had to be written.
        """
        plan = self.augmentation.plan(record) if self.augmentation else None
        if self.augmentation is None or plan is None or not plan.pasted:
            if record["image_id"] not in self.read:
                read_rgb(record)
                self.read.add(record["image_id"])
            return None
        name = self._file_name(record["image_id"], record["draw"], ".png")
        target = self.summary.image_root / name
        if _is_whole_png(target):
            return plan, False
        image = read_rgb(record)
        self.augmentation.copy_paste.composite(image, plan)
        how = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION]
        ok, data = cv2.imencode(".png", image[:, :, ::-1], how)
        if not ok:
            raise SmallObjError(f"OpenCV could not encode {target}.")
        with writing(target) as temporary:
            temporary.write_bytes(data.tobytes())
        return plan, True

    def _file_name(self, image_id: int, draw: Draw, suffix: str) -> str:
        name = Path(self.raw_images[image_id]["file_name"])
        new = str(name.with_name(f"{name.stem}_draw{draw.position}{suffix}"))
        if new in self.taken:
            raise SmallObjError(
                f"The name {new} is taken by an image of the original dataset. Rename that, or "
                "choose another SEED."
            )
        return new

    def add(
        self, record: Entry, draw: Draw | None = None, copy: tuple[Plan, bool] | None = None
    ) -> None:
        """Add the image of a draw; without a draw, one that training leaves out.

        Args:
            record: its dataset dict.
            draw: where in the stream it stands.
            copy: from `augment`; None for the original.
        """
        image_id = record["image_id"]
        origin = {} if draw is None else {"position": draw.position, "seed": self.seed}
        entry = dict(self.raw_images[image_id])
        own = self.image_root / entry["file_name"]
        first = copy is None and image_id not in self.kept
        if draw is not None and not first:
            entry["id"] = self.next_image + draw.position
            entry["file_name"] = self._file_name(image_id, draw, ".png" if copy else own.suffix)
        if draw is not None:
            entry["draw"] = {"image": image_id, **origin}
        if copy is None:
            link(own, self.summary.image_root / entry["file_name"])
            self.kept.add(image_id)
            self.summary.original += 1
        else:
            plan, written = copy
            self.summary.augmented += 1
            self.summary.pastes += plan.pasted
            self.summary.left_out.update(plan.left_out)
            self.summary.written += written
        self.images.append(entry)
        unchanged = {id(a) for a in record["annotations"]}
        for annotation in copy[0].annotations if copy else record["annotations"]:
            if id(annotation) in unchanged:  # with what pycocotools cannot do without
                raw = self.raw_annotations[annotation["id"]]
                new = {"iscrowd": annotation["iscrowd"], "area": annotation["area"], **raw}
            else:
                new = self._as_coco(annotation, record, origin)
            if not first:
                new["id"] = self.next_annotation
                self.next_annotation += 1
            self.annotations.append({**new, "image_id": entry["id"]})

    def _as_coco(self, annotation: Entry, record: Entry, origin: Entry) -> Entry:
        """An annotation of a dataset dict as the JSON has it; undoes what `load_coco` does."""
        new = {k: v for k, v in annotation.items() if k != "bbox_mode"}
        new["category_id"] = self.category_ids[annotation["category_id"]]
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
            new["segmentation"] = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
        if annotation.get("keypoints"):
            new["keypoints"] = [
                k if i % 3 == 2 else k - 0.5 for i, k in enumerate(annotation["keypoints"])
            ]
        if paste := new.get("copy_paste"):
            if "image" not in paste:  # it is copied within its image
                source = record["annotations"][paste["source"]]["id"]
                paste = {**paste, "image": record["image_id"], "source": source}
            new["copy_paste"] = {**paste, **origin}
        return new


def _is_whole_png(path: Path) -> bool:
    """Whether a file has the end of a PNG, which a crash of the machine may have lost."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:  # it is not there, or shorter
        return False
