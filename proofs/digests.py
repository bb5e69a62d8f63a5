"""Digests of all that must stay the same while the code is rearranged.

python -m proofs.digests --check    # which of tests/data/digests.json differ; exit code 1 if any
python -m proofs.digests --write    # takes them as they are now

Pinned are the first draws of every config in every engine, Table 2, the report on the committed
results, and offline copies. Each part has a digest of its own, so that a change on purpose shows
what it changed and what it did not. Datasets and engines that are not here are left out, and so
said. Real images are those under DETECTRON2_DATASETS.

Pixels depend on the libraries that read and resize them, so digests hold for the versions that
stand beside them; those of painted scenes for such a CPU, too. What is left out at --write stays
as it was.
"""

import dataclasses
import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
import PIL
import PIL.Image
import torch
from pycocotools import mask as coco_mask

# All that is used of the package; where a module moves, only these lines follow it.
from proofs import ROOT
from smallobj_d2.analysis.analyze import analyze
from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.analysis.report import build_report as analysis_report
from smallobj_d2.analysis.table2 import as_json
from smallobj_d2.commands import CommandLine
from smallobj_d2.config import has_detectron2, load_cfg
from smallobj_d2.datasets.coco import datasets_root
from smallobj_d2.datasets.synthetic import make_splits
from smallobj_d2.engines import ENGINES, load_engine
from smallobj_d2.experiments.paper import load_paper
from smallobj_d2.experiments.report import build_report
from smallobj_d2.experiments.results import load_results
from smallobj_d2.export.augmented import augment_dataset

DIGESTS = ROOT / "tests" / "data" / "digests.json"
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SEED = 14  # one at which every config pastes in several of its first draws
BATCH, BATCHES = 4, 2

Parts = dict[str, str]
"""Part to its digest; ``shown`` counts, for people."""


def versions() -> dict[str, str]:
    """Of the libraries that the digests depend on."""
    return {
        "matplotlib": matplotlib.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "pycocotools": version("pycocotools"),
    }


def cpu() -> list[str]:
    """What numpy knows of this CPU; its sines differ in the last bit."""
    return list(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))


# --- Hashes


def digest(*values: Any) -> str:
    """Twelve hexadecimal digits that follow from values and nothing else."""
    hashed = hashlib.sha256()
    for value in values:
        _feed(hashed.update, value)
    return hashed.hexdigest()[:12]


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    """Dtypes, shapes and lengths too, so that no two values look alike."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        update(f"{value.dtype}{value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        update(f"dict{len(value)}".encode())
        for key in sorted(value, key=str):
            _feed(update, key)
            _feed(update, value[key])
    elif isinstance(value, list) and {*map(type, value)} == {float}:  # a polygon: fast
        update(f"floats{len(value)}".encode())
        update(np.array(value).tobytes())
    elif isinstance(value, list | tuple):
        update(f"list{len(value)}".encode())
        for entry in value:
            _feed(update, entry)
    elif isinstance(value, bytes):
        update(f"bytes{len(value)}:".encode())
        update(value)
    elif isinstance(value, np.generic):
        _feed(update, value.item())
    elif value is None or isinstance(value, str | bool | int | float):
        update(f"{type(value).__name__}{value!r};".encode())
    else:
        raise TypeError(f"There is no digest of a {type(value)}.")


def file_digests(folder: Path) -> str:
    """One digest of the names and bytes of all files in a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return digest([[p.relative_to(folder).as_posix(), p.read_bytes()] for p in files])


# --- Datasets


class Source(NamedTuple):
    """A dataset, and how its images are made small, or larger than they are."""

    name: str
    json_file: Path
    images: Path
    classes: int
    sizes: tuple[int, int]
    """To choose from; the second enlarges, which shows boxes and masks between pixels."""
    opts: tuple[str, ...] = ()


REAL = {
    "coco": Source(
        "",
        Path("coco/annotations/instances_train2017.json"),
        Path("coco/train2017"),
        classes=80,
        sizes=(120, 203),
    ),
    "nuclei": Source(
        "",
        Path("dsb2018/annotations/val.json"),
        Path("dsb2018/val"),
        classes=1,
        sizes=(120, 271),
        opts=("INPUT.MASK_FORMAT", "bitmask"),
    ),
}
"""Datasets of real images, under DETECTRON2_DATASETS."""


class Sources:
    """The datasets that can be had here, made when they are first asked for.

    Args:
        folder: where to make those that are made.
    """

    NAMES = ("scenes", "scenes_rle", *REAL)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Source] = {}
        self.painted = ""

    def missing(self, name: str) -> str:
        """Why a dataset is not here, or nothing."""
        if name not in REAL or (datasets_root() / REAL[name].json_file).is_file():
            return ""
        return f"there is no {REAL[name].json_file} under DETECTRON2_DATASETS"

    def __getitem__(self, name: str) -> Source:
        if name not in self._made:
            make = {"scenes": self._scenes, "scenes_rle": self._scenes_rle}
            self._made[name] = make[name]() if name in make else self._few(name, REAL[name])
        return self._made[name]

    def _name(self, stem: str) -> str:
        return f"{stem}_{self.folder.name}"  # engines keep a name for one folder for good

    def _scenes(self) -> Source:
        path = make_splits(self.folder, num_train=20, num_val=1, seed=2, size=160, progress=False)[
            "scenes_train"
        ]
        self.painted = file_digests(path.parent / "images")
        self._paint_anew(path)
        return Source(self._name("scenes"), path, path.parent / "images", 6, (96, 211))

    @staticmethod
    def _paint_anew(path: Path) -> None:
        """Give scenes pixels from whole numbers; painted ones differ by a bit from CPU to CPU."""
        for image in json.loads(path.read_bytes())["images"]:
            height, width = image["height"], image["width"]
            rng = np.random.default_rng(image["id"])
            blocks = rng.integers(0, 236, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
            pixels = np.kron(blocks, np.ones((4, 4, 1), np.uint8))[:height, :width]
            pixels += rng.integers(0, 20, pixels.shape, dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(
                path.parent / "images" / image["file_name"], format="png", compress_level=1
            )

    def _scenes_rle(self) -> Source:
        """The synthetic scenes with run lengths in place of polygons."""
        polygons = self["scenes"]
        data = json.loads(polygons.json_file.read_bytes())
        images = {i["id"]: (i["height"], i["width"]) for i in data["images"]}
        for annotation in data["annotations"]:
            if not annotation["iscrowd"]:  # a crowd has run lengths already
                size = images[annotation["image_id"]]
                rle = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], *size))
                annotation["segmentation"] = {**rle, "counts": rle["counts"].decode("ascii")}
        path = self.folder / "scenes_rle.json"
        path.write_text(json.dumps(data))
        return polygons._replace(
            name=self._name("scenes_rle"), json_file=path, opts=("INPUT.MASK_FORMAT", "bitmask")
        )

    def _few(self, name: str, real: Source) -> Source:
        """The first images of a dataset with some objects each, few enough to be fast."""
        data = json.loads((datasets_root() / real.json_file).read_bytes())
        counts = Counter(a["image_id"] for a in data["annotations"])
        data["images"] = [i for i in data["images"] if 3 <= counts[i["id"]] < 13][:16]
        kept = {image["id"] for image in data["images"]}
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
        part = self.folder / f"{name}.json"
        part.write_text(json.dumps(data))
        images = datasets_root() / real.images
        return real._replace(name=self._name(name), json_file=part, images=images)


# --- Draws


def config_for(path: Path, source: Source) -> Any:
    """A config on another dataset, with small images; what it is about stays as it is."""
    opts = [
        *("SMALLOBJ.DATASETS", str([[source.name, str(source.json_file), str(source.images)]])),
        *("DATASETS.TRAIN", f"('{source.name}',)"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", str(source.classes)),
        *("INPUT.MIN_SIZE_TRAIN", str(source.sizes)),
        *("INPUT.MAX_SIZE_TRAIN", "800"),
        *("DATALOADER.NUM_WORKERS", "0"),
        *("SOLVER.IMS_PER_BATCH", str(BATCH)),
        *("SEED", str(SEED)),
        *source.opts,
    ]
    return load_cfg(path, opts)


def draws_of(engine: str, path: Path, source: Source) -> Parts:
    """Of the first batches of a config: what is drawn, pasted, seen and learned from."""
    loader = load_engine(engine).build_train_loader(config_for(path, source))
    samples = [sample for batch in islice(loader, BATCHES) for sample in batch]
    dataset = loader.dataset
    records = [dataset.record(sample["draw"].position) for sample in samples]
    augmentation = dataset.mapper.augmentation
    plans = [None if augmentation is None else augmentation.plan(dict(r)) for r in records]
    pastes = sum(plan.pasted for plan in plans if plan)
    augmented = sum(bool(plan and plan.pasted) for plan in plans)
    return {
        "shown": f"{augmented} of {len(plans)} draws, {pastes} pastes",
        "records": digest([_plain(record) for record in records]),
        "pastes": digest([_plan(plan) for plan in plans]),
        **parts_of(samples),
    }


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset dict without the folder that its image is in."""
    plain = {**record, "file_name": Path(record["file_name"]).name}
    if "draw" in record:
        plain["draw"] = record["draw"]._asdict()
    return plain


def _plan(plan: Any) -> Any:
    """Where each copy comes from and goes to, and the annotations afterwards."""
    if plan is None:
        return None
    pastes = [[p.matrix, p.mask, p.x, p.y, p.pixels] for p in plan.pastes]
    counts = [plan.tried, plan.given_up, plan.capped, plan.removed]
    return [pastes, plan.annotations, counts]


def parts_of(samples: list[dict[str, Any]]) -> Parts:
    """Digests of what a model gets, of either engine."""
    labels = [_labels(sample) for sample in samples]
    return {
        "pixels": digest([sample["image"] for sample in samples]),
        **{part: digest([label[part] for label in labels]) for part in labels[0]},
    }


def _labels(sample: dict[str, Any]) -> dict[str, Any]:
    if "target" in sample:
        target = sample["target"]
        return {
            "boxes": target["boxes"],
            "masks": [target[key] for key in ("windows", "masks") if key in target],
            "classes": [target["labels"], target["pasted"]],
        }
    instances = sample["instances"]
    masks = instances.gt_masks if instances.has("gt_masks") else None
    return {
        "boxes": instances.gt_boxes.tensor,
        "masks": masks.polygons if hasattr(masks, "polygons") else getattr(masks, "tensor", []),
        "classes": [instances.gt_classes, sample.get("pasted")],
    }


def _draws(sources: Sources, name: str, engine: str) -> Iterator[tuple[str, Parts]]:
    for path in CONFIGS:
        config = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        yield config, draws_of(engine, path, sources[name])


# --- Everything else


def _synthetic(sources: Sources) -> Iterator[tuple[str, Parts]]:
    """The scenes themselves: if their labels differ, so does all that is drawn from them."""
    data = json.loads(sources["scenes"].json_file.read_bytes())
    yield "scenes", {key: digest(data[key]) for key in ("images", "annotations", "categories")}


def _painted(sources: Sources) -> Iterator[tuple[str, Parts]]:
    """Their pixels, which nothing else here depends on."""
    yield "scenes", {"pixels": sources["scenes"] and sources.painted}


def _table2(sources: Sources, name: str) -> Iterator[tuple[str, Parts]]:
    """Section 3 in both protocols, and what a config makes of it."""
    source = sources[name]
    whole = datasets_root() / REAL["coco"].json_file
    data = CocoFile(whole if name == "coco" else source.json_file, source.images)
    base, augment = (ROOT / "configs" / f"{c}.yaml" for c in ("base", "orig_aug_multi3x"))
    cfg, augmented = config_for(base, source), config_for(augment, source)
    sized = cfg.clone()
    sized.defrost()
    sized.INPUT.MIN_SIZE_TRAIN, sized.INPUT.MAX_SIZE_TRAIN = (800,), 1333  # anchors cost no pixels
    found = analyze(data, name, sized, augment=augmented, config_name="orig_aug_multi3x")
    for table in found.tables:
        yield table.protocol, {"table": digest(as_json(table))}
    for table in found.after_tables:
        yield f"{table.protocol} augmented", {"table": digest(as_json(table))}
    yield "report", {"markdown": digest(analysis_report(found).markdown(None))}


def _report(_: Sources) -> Iterator[tuple[str, Parts]]:
    """The report on the committed results; they hold no runs, so none are added."""
    folder = ROOT / "experiments"
    results = [load_results(path) for path in sorted((folder / "results").glob("*.json"))]
    document = build_report(load_paper(folder / "paper.yaml"), results)
    with tempfile.TemporaryDirectory() as made:
        markdown, html = document.write(Path(made), "report")
        text = markdown.read_text(encoding="utf-8")
        tables = [line for line in text.splitlines() if line.startswith("|")]
        yield (
            "committed results",
            {
                "tables": digest(tables),
                "markdown": digest(text),
                "html": digest(html.read_text(encoding="utf-8")),
                "figures": file_digests(Path(made) / "report_files"),
            },
        )


def _offline(sources: Sources, name: str) -> Iterator[tuple[str, Parts]]:
    """The first epoch on disk."""
    for config in ("orig_aug_multi3x", "orig_aug_overlap", "beyond/bank"):
        cfg = config_for(ROOT / "configs" / f"{config}.yaml", sources[name])
        with tempfile.TemporaryDirectory() as made:
            done = augment_dataset(cfg, Path(made) / "copy", workers=1, progress=False)
            data = json.loads(done.json_file.read_bytes())
            yield (
                config,
                {
                    "shown": f"{done.original} originals, {done.augmented} copies, "
                    f"{done.pastes} pastes",
                    "images": digest(data["images"]),
                    "annotations": digest(data["annotations"]),
                    "categories": digest(data["categories"]),
                    "info": digest(data["info"]),
                    "pixels": file_digests(done.image_root),
                },
            )


# --- Sections


@dataclasses.dataclass(frozen=True)
class Section:
    """Digests that are made together."""

    name: str
    make: Callable[[Sources], Iterator[tuple[str, Parts]]]
    source: str = ""
    engine: str = ""
    depends_on_cpu: bool = False

    def missing(self, sources: Sources) -> str:
        """Why it cannot be made here, or nothing."""
        if self.engine == "detectron2" and not has_detectron2():
            return "Detectron2 is not installed"
        return sources.missing(self.source)

    def digests(self, sources: Sources) -> dict[str, Parts]:
        """Key to parts; the keys of a section all begin with its name."""
        return {f"{self.name}: {key}": parts for key, parts in self.make(sources)}


SECTIONS = [
    Section("synthetic", _synthetic, "scenes"),
    Section("painted", _painted, "scenes", depends_on_cpu=True),
    *(
        Section(f"draws {s} {e}", partial(_draws, name=s, engine=e), s, e)
        for s in Sources.NAMES
        for e in sorted(ENGINES)
    ),
    *(Section(f"table2 {s}", partial(_table2, name=s), s) for s in ("scenes", "coco")),
    Section("report", _report),
    *(
        Section(f"offline {s}", partial(_offline, name=s), s)
        for s in ("scenes", "scenes_rle", "nuclei")
    ),
]


def recorded() -> dict[str, Any]:
    """What is committed: ``versions``, ``cpu`` and ``digests``."""
    content: dict[str, Any] = json.loads(DIGESTS.read_bytes())
    return content


def of_section(digests: Mapping[str, Parts], section: Section) -> dict[str, Parts]:
    """Those that belong to a section."""
    return {k: v for k, v in digests.items() if k.startswith(f"{section.name}: ")}


def differences(before: Mapping[str, Parts], now: Mapping[str, Parts]) -> list[str]:
    """A line for each key whose parts are not the same."""
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key, {}), now.get(key, {})
        parts = [p for p in {**old, **new} if old.get(p) != new.get(p)]
        if not old or not new:
            lines.append(f"{key}: {'new' if new else 'gone'}")
        elif parts:
            same = [p for p in new if p not in parts and p != "shown"]
            lines.append(f"{key}: {', '.join(parts)} differ; the same: {', '.join(same) or 'none'}")
    return lines


@contextmanager
def sources() -> Iterator[Sources]:
    """Datasets in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="digests_") as folder:
        yield Sources(Path(folder))


def write(digests: Mapping[str, Parts]) -> None:
    """Write the committed file: a line for each key."""
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(digests.items())]
    text = (
        f'{{"versions": {json.dumps(versions())},\n "cpu": {json.dumps(cpu())},\n "digests": {{\n'
    )
    DIGESTS.write_text(text + ",\n".join(lines) + "\n}}\n")


def main() -> int:
    parser = CommandLine(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare with those committed")
    what.add_argument("--write", action="store_true", help="commit to those of now")
    parser.add_argument("--only", default="", metavar="TEXT", help="sections with this in the name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    known = recorded()
    digests: dict[str, Parts] = dict(known["digests"])
    if known["versions"] != versions():
        print(f"Those committed are of {known['versions']}; here are {versions()}.")
        if args.write and args.only:
            parser.error("Digests of two sets of versions cannot stand in one file: no --only.")
        if args.write:
            digests = {}
    lines: list[str] = []
    with sources() as here:
        for section in SECTIONS:
            if args.only not in section.name:
                continue
            why = section.missing(here)
            if args.check and section.depends_on_cpu and known["cpu"] != cpu():
                why = f"recorded on a CPU with {known['cpu']}, this one has {cpu()}"
            if why:
                print(f"left out: {section.name}; {why}")
                continue
            before, now = of_section(digests, section), section.digests(here)
            lines += differences(before, now)
            digests = {k: v for k, v in digests.items() if k not in before} | now
    names = tuple(f"{section.name}: " for section in SECTIONS)
    digests = {k: v for k, v in digests.items() if k.startswith(names)}
    print("\n".join(lines) if lines else "No digest differs.")
    if args.write:
        write(digests)
        print(f"{DIGESTS}: {len(digests)} lines.")
        return 0
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
