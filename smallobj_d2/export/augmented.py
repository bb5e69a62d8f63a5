"""Section 5.1's offline copies: the draws of a config as a COCO-format dataset on disk.

What is written is the first epoch of the config's stream of draws. The draw at position ``k`` gets
the pastes that training with the same config and seed gives it, so a framework that knows nothing
of this project trains on the same images. Draws that show an original are links to its file, and
only images in which something was pasted are written, without loss.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import yaml
from tqdm import tqdm

from smallobj_d2.augmentation import DrawAugmentation, build_augmentation
from smallobj_d2.datasets.coco import dataset_info, load_dataset, register_from_config
from smallobj_d2.datasets.images import in_order, read_rgb
from smallobj_d2.datasets.reading import parse_json
from smallobj_d2.datasets.records import PackedRecords
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.export.folder import claimed
from smallobj_d2.files import link, remove_leftovers, writing
from smallobj_d2.sampling import Draw, Stream
from smallobj_d2.training_set import training_data

_FORMAT = 1  # raise it whenever the same recipe would give other files

_PNG_COMPRESSION = 3  # half the time of the default, and a tenth more bytes
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

Entry = dict[str, Any]
"""An image or an annotation of a COCO JSON."""


@dataclass
class Summary:
    """What a dataset on disk holds."""

    json_file: Path
    image_root: Path
    original: int = 0
    """Images that are as they were: links."""
    augmented: int = 0
    pastes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Copies that were wanted and not placed, by reason; see `Plan.left_out`."""
    skipped: list[str] = field(default_factory=list)
    """Images that could not be read, where SMALLOBJ.UNREADABLE_IMAGES is "skip"."""
    written: int = 0
    """Augmented images that this call wrote; the others were there."""


@dataclass(frozen=True)
class _Task:
    """One draw of a small-object image, and the file that it gets if something is pasted."""

    record: Entry
    target: Path


@dataclass
class _Copy:
    """The augmented copy of one draw."""

    annotations: list[int | Entry]
    """A number stands for the annotation at that place of the record, as it was."""
    pastes: int
    left_out: dict[str, int]
    """See `Plan.left_out`."""
    written: bool


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
        workers: processes; None for one per core.
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
    name = cfg.DATASETS.TRAIN[0]
    dataset, info = load_dataset(name), dataset_info(name)
    records, factors = training_data(cfg, lambda _: dataset.records)
    source = _Source(info.json_file, info.image_root)
    stream = Stream(factors, cfg.SEED)
    recipe = _recipe(cfg, source, len(stream))
    folder = Path(out)
    summary = Summary(folder / "annotations.json", folder / "images")
    with claimed(folder, recipe):
        augmentation = build_augmentation(cfg, cfg.SEED, records, read_rgb, progress=progress)
        writer = _Writer(source, dataset.category_ids, summary, cfg, augmentation)
        draws = [stream[k] for k in range(len(stream))]
        writer.write(PackedRecords(records), draws, workers, progress)
        trained_on = {r["image_id"] for r in records}
        for record in dataset.records:
            if record["image_id"] not in trained_on:
                writer.add_original(record)
        writer.finish(recipe)
    return summary


# --- The original dataset


class _Source:
    """A COCO JSON as it is on disk, so that what is not changed stays as it was."""

    def __init__(self, json_file: Path, image_root: Path) -> None:
        self.root = image_root
        content = json_file.read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.data: dict[str, Any] = parse_json(content)
        self.images: dict[int, Entry] = {i["id"]: i for i in self.data["images"]}
        self.by_id: dict[int, Entry] = {a.get("id"): a for a in self.data["annotations"]}
        ids = [*self.images, *self.by_id]
        if len(self.by_id) < len(self.data["annotations"]) or not all(
            isinstance(i, int) for i in ids
        ):
            raise SmallObjError(
                f"{json_file}: an offline copy needs whole numbers as ids of images and of "
                "annotations, no two of the same."
            )


def _recipe(cfg: Any, source: _Source, draws: int) -> dict[str, Any]:
    """All that the files depend on."""
    settings = yaml.safe_load(cfg.SMALLOBJ.dump())
    for elsewhere in ("DATASETS", "IMPORTS", "MAPPER", "SIZE_LIMITS"):
        settings.pop(elsewhere)
    return {
        "generator": "smallobj_d2.offline",
        "format": _FORMAT,
        "source_sha256": source.sha256,
        "seed": cfg.SEED,
        "draws": draws,
        "smallobj": settings,
    }


# --- The new dataset


class _Writer:
    """Puts images and annotations together, in the order of the draws."""

    def __init__(
        self,
        source: _Source,
        category_ids: list[int],
        summary: Summary,
        cfg: Any,
        augmentation: DrawAugmentation | None,
    ) -> None:
        self.source, self.category_ids, self.summary = source, category_ids, summary
        self.augmentation = augmentation
        self.skip = cfg.SMALLOBJ.UNREADABLE_IMAGES == "skip"
        self.seed = cfg.SEED
        self.images: list[Entry] = []
        self.annotations: list[Entry] = []
        self.next_image = max(source.images, default=0) + 1
        self.next_annotation = max(source.by_id, default=0) + 1
        self.kept: set[int] = set()
        self.taken = {i["file_name"] for i in source.images.values()}

    def write(
        self, records: PackedRecords, draws: list[Draw], workers: int | None, progress: bool
    ) -> None:
        """Write all draws of an epoch."""
        bar = tqdm(draws, unit="img", desc="draws", disable=None if progress else True)
        tasks = self._tasks(records, draws)
        with closing(_in_order(self.augmentation, tasks, workers)) as copies:
            for draw in bar:
                record = records[draw.index]
                try:
                    copy = next(copies)() if self._may_be_augmented(record) else None
                    if copy is None:
                        self.add_original(record, draw)
                    else:
                        self._add_copy(record, draw, copy)
                except UnreadableImage as e:
                    if not self.skip:
                        raise
                    self.summary.skipped.append(str(e))

    def _tasks(self, records: PackedRecords, draws: list[Draw]) -> Iterator[_Task]:
        for draw in draws:
            record = records[draw.index]
            if self._may_be_augmented(record):
                name = self._file_name(record["image_id"], draw, ".png")
                yield _Task({**record, "draw": draw}, self.summary.image_root / name)

    def _may_be_augmented(self, record: Entry) -> bool:
        augmentation = self.augmentation
        return augmentation is not None and augmentation.may_augment(record["annotations"])

    def _file_name(self, image_id: int, draw: Draw, suffix: str) -> str:
        name = Path(self.source.images[image_id]["file_name"])
        new = str(name.with_name(f"{name.stem}_draw{draw.position}{suffix}"))
        if new in self.taken:
            raise SmallObjError(f"The name {new} is taken by an image of the original dataset.")
        return new

    def add_original(self, record: Entry, draw: Draw | None = None) -> None:
        """Add an image as it was; without a draw, one that training leaves out."""
        image_id = record["image_id"]
        entry = dict(self.source.images[image_id])
        own = self.source.root / entry["file_name"]
        first = image_id not in self.kept
        if not first and draw is not None:
            entry["id"] = self.next_image + draw.position
            entry["file_name"] = self._file_name(image_id, draw, own.suffix)
        link(own, self.summary.image_root / entry["file_name"])
        self.kept.add(image_id)
        if draw is not None:
            entry["draw"] = self._origin(image_id, draw)
        self.images.append(entry)
        for annotation in record["annotations"]:
            new = self._as_it_was(annotation)
            self._add_annotation(new, entry["id"], new["id"] if first else None)
        self.summary.original += 1

    def _add_copy(self, record: Entry, draw: Draw, copy: _Copy) -> None:
        image_id = record["image_id"]
        entry = dict(self.source.images[image_id])
        entry["id"] = self.next_image + draw.position
        entry["file_name"] = self._file_name(image_id, draw, ".png")
        entry["draw"] = self._origin(image_id, draw)
        self.images.append(entry)
        for annotation in copy.annotations:
            if isinstance(annotation, int):
                new = self._as_it_was(record["annotations"][annotation])
            else:
                new = _as_coco(annotation, self.category_ids)
                if paste := new.get("copy_paste"):
                    if "image" not in paste:  # it is copied within its image
                        source = record["annotations"][paste["source"]]["id"]
                        paste = {**paste, "image": image_id, "source": source}
                    new["copy_paste"] = {**paste, "position": draw.position, "seed": self.seed}
            self._add_annotation(new, entry["id"], None)
        self.summary.augmented += 1
        self.summary.pastes += copy.pastes
        self.summary.left_out.update(copy.left_out)
        self.summary.written += copy.written

    def _origin(self, image_id: int, draw: Draw) -> dict[str, int]:
        return {"image": image_id, "position": draw.position, "seed": self.seed}

    def _as_it_was(self, annotation: Entry) -> Entry:
        """An annotation as the original JSON has it, with what pycocotools cannot do without."""
        raw = self.source.by_id[annotation["id"]]
        return {"iscrowd": annotation["iscrowd"], "area": annotation["area"], **raw}

    def _add_annotation(self, annotation: Entry, image_id: int, number: int | None) -> None:
        if number is None:
            number = self.next_annotation
            self.next_annotation += 1
        self.annotations.append({**annotation, "id": number, "image_id": image_id})

    def finish(self, recipe: dict[str, Any]) -> None:
        """Write the JSON, last of all."""
        remove_leftovers(self.summary.image_root, recursive=True)  # of a call that was killed
        data = self.source.data
        info = data.get("info")
        content = {
            **data,
            "info": {**(info if isinstance(info, dict) else {}), "recipe": recipe},
            "images": sorted(self.images, key=lambda i: i["id"]),
            "annotations": self.annotations,
        }
        with writing(self.summary.json_file) as temporary:
            temporary.write_text(json.dumps(content))


def _as_coco(annotation: Entry, category_ids: list[int]) -> Entry:
    """An annotation of a dataset dict as the JSON has it; undoes what `load_coco` does."""
    new = {k: v for k, v in annotation.items() if k != "bbox_mode"}
    new["category_id"] = category_ids[annotation["category_id"]]
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
        new["segmentation"] = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
    if annotation.get("keypoints"):
        new["keypoints"] = [
            k if i % 3 == 2 else k - 0.5 for i, k in enumerate(annotation["keypoints"])
        ]
    return new


# --- Work shared out among processes

_augmentation: DrawAugmentation | None = None


def _in_order(
    augmentation: DrawAugmentation | None, tasks: Iterable[_Task], workers: int | None
) -> Generator[Callable[[], _Copy | None], None, None]:
    """The copies of all tasks, in their order; each is a function that returns it, or raises."""
    workers = workers or len(os.sched_getaffinity(0))
    if augmentation is None:
        return
    if workers == 1:
        for task in tasks:
            yield partial(_copy, augmentation, task)
        return
    pool = ProcessPoolExecutor(
        workers,
        # Not forked: a fork of a process with threads may wait for ever for a lock.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(augmentation,),
    )
    # No more in memory than keeps them all busy.
    with closing(in_order(pool, _work, tasks, 8 * workers)) as copies:
        for _, copy in copies:
            yield copy.result


def _start_worker(augmentation: DrawAugmentation) -> None:
    global _augmentation
    _augmentation = augmentation
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to deal with
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """Leave when the parent is gone, however it went."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _work(task: _Task) -> _Copy | None:
    if _augmentation is None:
        raise AssertionError("the worker was not started by _start_worker")
    return _copy(_augmentation, task)


def _is_whole_png(path: Path) -> bool:
    """Whether a file has the end of a PNG, which a crash of the machine may have lost."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:  # it is not there, or shorter
        return False


def _copy(augmentation: DrawAugmentation, task: _Task) -> _Copy | None:
    """Augment one draw and write its image, unless it is there; None if it shows the original."""
    record = task.record
    plan = augmentation.plan(record)
    if plan is None or not plan.pasted:
        return None
    missing = not _is_whole_png(task.target)
    if missing:
        image = read_rgb(record)
        augmentation.copy_paste.composite(image, plan)
        ok, data = cv2.imencode(
            ".png", image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION]
        )
        if not ok:
            raise SmallObjError(f"OpenCV could not encode {task.target}.")
        with writing(task.target) as temporary:
            temporary.write_bytes(data.tobytes())
    places = {id(a): i for i, a in enumerate(record["annotations"])}
    annotations = [places.get(id(a), a) for a in plan.annotations]
    return _Copy(annotations, plan.pasted, plan.left_out, missing)
