"""What a trained run finds in image files, as COCO JSON and as pictures.

Images are read, looked at and written one batch after the other, so that their number does not
matter; only their names are kept.
"""

import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.categories import classes_of
from smallobj_d2.datasets.check import THINNEST
from smallobj_d2.datasets.coco import categories_of, register_from_config
from smallobj_d2.datasets.images import SUFFIXES, Pixels, in_order, read_rgb
from smallobj_d2.datasets.reading import read_json
from smallobj_d2.engines import load_engine
from smallobj_d2.engines.folder import last_checkpoint, read_record
from smallobj_d2.engines.seed_and_device import settle_device
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.files import disk_errors, reading, writing
from smallobj_d2.visualization.detections import prediction_view
from smallobj_d2.visualization.sheets import draw

Result = dict[str, Any]
"""A detection in COCO's result format, without ``image_id``."""

Predict = Callable[[Sequence[Pixels]], list[list[Result]]]
"""Images, (H, W, 3) uint8 RGB, to the detections in each."""

_SHOWN_AS_THEY_ARE = (".jpeg", ".jpg", ".png")
_LEAST_WIDTH = 800  # of a picture, so that there is room for words


# --- The model of a run


@dataclass(frozen=True)
class TrainedRun:
    """A trained model as a function of images."""

    folder: Path
    """The run's OUTPUT_DIR."""
    weights: Path
    cfg: Any
    categories: Mapping[Any, str]
    """Names by the dataset's category id, in the order of the model's classes."""
    predictor: Predict
    """See `smallobj_d2.engines`."""

    def __call__(self, images: Sequence[Pixels], score: float = 0.0) -> list[list[Result]]:
        """Detections in images, the best first, in pixels of these images.

        Args:
            images: (H, W, 3) uint8 RGB each.
            score: leave out detections below. The model's own limit is
                ``MODEL.ROI_HEADS.SCORE_THRESH_TEST``.

        Returns:
            For each image COCO results with the dataset's category ids, and no ``image_id``.
        """
        ids = list(self.categories)
        return [
            [
                {k: v for k, v in r.items() if k != "image_id"}
                | {"category_id": ids[r["category_id"]]}
                for r in sorted(found, key=lambda r: -r["score"])
                if r["score"] >= score
            ]
            for found in self.predictor(images)
        ]


def load_run(
    folder: str | Path,
    opts: Sequence[str] = (),
    *,
    weights: str | Path | None = None,
    categories: Mapping[Any, str] | None = None,
) -> TrainedRun:
    """The model of a run, with the engine that trained it.

    Args:
        folder: the run's OUTPUT_DIR.
        opts: ``KEY VALUE`` pairs over the run's config, such as ``MODEL.DEVICE cpu``.
        weights: a checkpoint; None for the run's last.
        categories: names by category id, for a run that has kept none, and whose datasets are gone.

    Raises:
        SmallObjError: naming what the run lacks.
    """
    folder = Path(folder)
    record = read_record(folder)
    if not record or not (folder / "config.yaml").is_file():
        raise SmallObjError(
            f"{folder} has no run.json and config.yaml: it is not the folder (OUTPUT_DIR) of a "
            "training run."
        )
    path = Path(weights) if weights else last_checkpoint(folder)
    if path is not None and not path.is_file():
        raise SmallObjError(f"There is no file {path}.")
    if path is None:
        raise SmallObjError(f"{folder} has no checkpoint yet. Train on, or give --weights FILE.")
    cfg = settle_device(load_cfg(folder / "config.yaml", opts))
    names = _categories_of_run(folder, cfg) or categories
    if not names:
        raise SmallObjError(
            f"{folder} has no categories.json, and its datasets are not here, so that the names of "
            "its classes are unknown. Give --json FILE, the annotations that it was trained on."
        )
    _, classes = classes_of(cfg)
    if len(names) != classes:
        raise SmallObjError(
            f"The model has {classes} classes, but {len(names)} category names are known: "
            f"{', '.join(names.values())}."
        )
    engine = load_engine(record["engine"])
    if not hasattr(engine, "predictor"):
        raise SmallObjError(f"The engine {record['engine']} has no function `predictor`.")
    return TrainedRun(folder, path, cfg, names, engine.predictor(cfg, path))


def _categories_of_run(folder: Path, cfg: Any) -> Mapping[Any, str] | None:
    path = folder / "categories.json"
    if path.is_file():
        with reading(path):
            return {c["id"]: str(c["name"]) for c in json.loads(path.read_bytes())}
    register_from_config(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        with suppress(SmallObjError):
            return categories_of(name)
    return None


# --- The images


@dataclass(frozen=True)
class Images:
    """Image files to look at."""

    records: Sequence[Mapping[str, Any]]
    """``file_name`` (a path), ``name`` (relative to the folder that all of them are in) and
    ``image_id``; ``height`` and ``width`` where known."""
    unknown: Sequence[str] = ()
    """Files that the annotations do not name."""


def find_images(inputs: Sequence[str | Path], not_in: Path | None = None) -> Images:
    """Image files by name, in folders with all that is below, and by patterns such as ``a/*.png``.

    Args:
        inputs: files, folders and patterns.
        not_in: a folder to leave out of folders that it is in: that of the pictures.

    Raises:
        SmallObjError: for an input that leads to no image.
    """
    files: dict[Path, str] = {}  # by where they are, so that one named twice is there once
    roots = []
    out = _place(not_in) if not_in else None
    for text in map(os.path.expanduser, map(str, inputs)):
        path = Path(text)
        found = [path] if path.exists() else [Path(p) for p in glob.glob(text, recursive=True)]
        kept = {_place(f): str(f) for p in sorted(found) for f in _images_in(p, out)}
        if out and any(_place(f) == out for f in found):
            raise SmallObjError(f"{text} is where the pictures are to go. Choose another folder.")
        if not kept:
            raise SmallObjError(f"{text}: there is no image ({', '.join(SUFFIXES)}).")
        roots += [_place(p if p.is_dir() else p.parent) for p in found]
        files |= {place: name for place, name in kept.items() if place not in files}
    root = Path(os.path.commonpath(roots))
    records = [
        {"file_name": name, "name": place.relative_to(root).as_posix(), "image_id": number}
        for number, (place, name) in enumerate(files.items(), start=1)
    ]
    return Images(records)


def _place(path: Path) -> Path:
    """The one way to write where a file is: absolute, without ``..``."""
    return Path(os.path.abspath(path))


def _images_in(path: Path, out: Path | None) -> list[Path]:
    """A file, or the images of a folder, without those of a folder below it."""
    if not path.is_dir():
        return [path]
    here = _place(path)
    out = out if out is not None and here in (out, *out.parents) else None
    return sorted(
        f
        for f in path.rglob("*")
        if f.suffix.lower() in SUFFIXES
        and f.name[0] != "."
        and f.is_file()
        and out not in _place(f).parents
    )


def with_ids_of(images: Images, json_file: Path) -> tuple[Images, dict[Any, str]]:
    """The images with the ids of a COCO JSON, and its categories.

    An image is found in the JSON by its ``name``, with as much of its path before it as stands
    there, or else by the name of the file alone, where both have that but once.
    """
    with reading(json_file):
        data = read_json(json_file)
        known = {i["file_name"]: _known_of(i) for i in data["images"]}
        classes = sorted(data.get("categories", []), key=lambda c: c["id"])  # as they are numbered
        categories = {c["id"]: str(c["name"]) for c in classes}
    names = Counter(_base(name) for name in known)
    ours = Counter(_base(record["name"]) for record in images.records)
    alone = {b: entry for n, entry in known.items() if names[b := _base(n)] == ours[b] == 1}
    records, unknown = [], []
    for record in images.records:
        parts = _place(Path(record["file_name"])).as_posix().split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts) - record["name"].count("/")))
        named = next((known[end] for end in ends if end in known), None)
        entry = named or alone.get(_base(record["name"]))
        if entry is None:
            unknown.append(record["file_name"])
            continue
        records.append({**record, **entry})
    if not records:
        raise SmallObjError(f"None of the {len(unknown)} images is in {json_file}.")
    return Images(records, unknown), categories


def _known_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """What a COCO JSON says of an image, as a record has it."""
    size = {k: int(image[k]) for k in ("height", "width") if k in image}
    return {"image_id": image["id"], **size}


def _base(name: str) -> str:
    return name.rpartition("/")[2]


# --- Looking at all of them


@dataclass
class Summary:
    """What was found."""

    images: int = 0
    detections: int = 0
    skipped: list[str] = field(default_factory=list)
    """Files that could not be read, and why."""


def predict_images(
    predict: Predict,
    images: Images,
    out: Path,
    *,
    categories: Mapping[Any, str],
    info: Mapping[str, Any],
    as_results: bool = False,
    pictures: Path | None = None,
    batch: int = 1,
    progress: bool = True,
) -> Summary:
    """Write the detections in images to a COCO JSON, and onto pictures of them.

    The JSON is there when all is done, and not before. It is a dataset with ``images``,
    ``categories`` and ``annotations``, which have a ``score``; or a list of results.

    Args:
        predict: images to detections with the ids of `categories`.
        images: what `find_images` or `with_ids_of` gives.
        out: the JSON.
        categories: names by category id.
        info: what the JSON says of its making.
        as_results: write a list of results, as COCO's evaluation takes it.
        pictures: folder for the pictures; None for no pictures.
        batch: images that the model takes at a time.
        progress: show a progress bar on a terminal.

    Raises:
        SmallObjError: if no image can be read, or something cannot be written.
    """
    summary = Summary()
    entries: list[dict[str, Any]] = []
    bar = tqdm(total=len(images.records), unit="img", disable=not progress or None)
    with bar, writing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        if not as_results:
            named = [{"id": i, "name": name} for i, name in categories.items()]
            head = json.dumps({"info": info, "categories": named})
            file.write(f'{head.removesuffix("}")}, "annotations": ')
        file.write("[")
        ahead = in_order(_read, images.records, 2, 2 * batch)
        while several := [(record, read.result()) for record, read in islice(ahead, batch)]:
            for _, pixels in several:
                if isinstance(pixels, UnreadableImage):
                    summary.skipped.append(str(pixels))
                    bar.write(f"skipped: {pixels}")
            read = [(r, p) for r, p in several if not isinstance(p, UnreadableImage)]
            found = predict([p for _, p in read]) if read else []
            for (record, pixels), results in zip(read, found, strict=True):
                height, width = pixels.shape[:2]
                entry = {"id": record["image_id"], "file_name": record["name"]}
                entries.append({**entry, "width": width, "height": height})
                for result in results:
                    line = {"image_id": record["image_id"], **result}
                    if not as_results:
                        line |= {"id": summary.detections + 1, "iscrowd": 0, "area": _area(result)}
                    file.write(f"{',' if summary.detections else ''}\n{json.dumps(line)}")
                    summary.detections += 1
                if pictures is not None:
                    view = prediction_view(pixels, results, categories)
                    picture = Image.fromarray(draw(view, width=max(width, _LEAST_WIDTH)))
                    with writing(picture_of(record["name"], pictures)) as unfinished:
                        picture.save(unfinished, quality=90)
            bar.update(len(several))
        file.write("\n]" if as_results else f'\n], "images": {json.dumps(entries)}}}\n')
        if not entries:
            raise SmallObjError(f"None of the {len(images.records)} images can be read.")
    summary.images = len(entries)
    return summary


def _area(result: Result) -> float:
    if mask := result.get("segmentation"):
        return float(coco_mask.area(mask))
    return float(result["bbox"][2] * result["bbox"][3])


def picture_of(name: str, pictures: Path) -> Path:
    """Where the picture of an image is: under its name, which is longer if it is no JPEG or PNG."""
    shown = name.lower().endswith(_SHOWN_AS_THEY_ARE)
    return pictures / (name if shown else f"{name}.jpg")


def _read(record: Mapping[str, Any]) -> Pixels | UnreadableImage:
    try:
        pixels = read_rgb(record)
    except UnreadableImage as e:
        return e
    height, width = pixels.shape[:2]
    if max(height, width) > THINNEST * min(height, width):
        return UnreadableImage(
            f"{record['file_name']} is {width} x {height} pixels, and resizing would leave nothing "
            "of its shorter side. Cut or pad it."
        )
    return pixels


def require_new(out: Path, pictures: Path | None, images: Images, *, overwrite: bool) -> None:
    """Refuse to write over what is there, and over the images themselves in any case.

    Raises:
        SmallObjError: naming the file or folder.
    """
    sources = {Path(r["file_name"]).resolve() for r in images.records}
    targets = [out] + [picture_of(r["name"], pictures) for r in images.records if pictures]
    for target in targets:
        if target.resolve() in sources:
            raise SmallObjError(f"{target} is one of the images. Choose another place to write to.")
    if out.exists() and not overwrite:
        raise SmallObjError(f"{out} is there already. Choose another --out, or add --overwrite.")
    if pictures is not None:
        with disk_errors(pictures):
            taken = pictures.exists() and next(pictures.iterdir(), None) is not None
        if taken and not overwrite:
            raise SmallObjError(
                f"{pictures} is not empty. Choose another --pictures, or add --overwrite."
            )
