"""Is it fast? Iterations a second at the paper's settings, and what a sweep costs."""

import json
import math
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from _gpu.job import ROOT, Job, last_line
from _gpu.works import build

VARIANTS: tuple[tuple[str, str, dict[str, object], tuple[str, ...]], ...] = (
    ("baseline", "fp32", {}, ()),
    ("orig_aug_multi3x", "fp32", {}, ()),
    ("baseline", "fp16", {}, ()),
    ("orig_aug_multi3x", "fp16", {}, ()),
    ("orig_aug_multi3x", "bf16", {}, ()),
    ("orig_aug_multi3x", "fp16", {"SMALLOBJ.FAST_RESIZE": True}, ()),
    ("orig_aug_multi3x", "fp16", {"DATALOADER.NUM_WORKERS": 12}, ()),
    ("orig_aug_multi3x", "fp16", {}, ("--channels-last",)),
    ("orig_aug_multi3x", "fp16", {"CUDNN_BENCHMARK": True}, ()),
)
"""Config, precision, overrides and arguments of proofs/_train.py."""


def speed(job: Job) -> None:
    """Iterations a second at the paper's settings (R50-FPN, 800 pixels, 8 images) on COCO."""
    if not (Path(job.args.data) / "datasets" / "coco").is_dir() and not has_coco():
        job.note("images", False, why=f"there is no coco in {job.args.data}/datasets")
        return
    number = job.iterations(60)
    cut = (
        {}
        if job.gpu
        else {"SOLVER.IMS_PER_BATCH": 2, "INPUT.MIN_SIZE_TRAIN": (128,), "INPUT.MIN_SIZE_TEST": 128}
    )
    if cut:
        job.note("on the CPU", settings="2 images of 128 pixels, so the figures mean nothing")
    for config, precision, more, train in VARIANTS:
        for engine in job.engines:
            if precision not in job.precisions(engine):
                continue
            weights = stand_in_weights(job, engine)
            words = [
                config,
                precision,
                *(f"{k.rpartition('.')[2]}={v}" for k, v in more.items()),
                *train,
            ]
            name = " ".join(words)
            output = job.folder / "_".join([engine, *words]).replace("=", "").replace("/", "_")
            opts = {
                "MODEL.WEIGHTS": weights,
                "DATASETS.TEST": "()",
                "SOLVER.MAX_ITER": number,
                "SOLVER.STEPS": "()",
                "SOLVER.BASE_LR": 1e-4,
                "SOLVER.CHECKPOINT_PERIOD": 10**6,
                "SEED": 1,
                **cut,
                **more,
            }
            how = ["--precision", precision, *train]
            found = job.train(
                output, ROOT / "configs" / f"{config}.yaml", opts, engine=engine, train=how
            )
            if found is None:
                continue
            seconds = found.get("time") or found["seconds"] / number
            job.note(
                f"{engine}: {name}",
                engine=engine,
                config=config,
                precision=precision,
                plain=not more and not train,
                seconds_an_iteration=round(seconds, 4),
                waiting_for_data=round(found.get("data_time", math.nan), 4),
                **{k: v for k, v in found.items() if k.endswith("gib")},
            )
    for engine in job.engines:
        if (seconds := seconds_an_image(job, engine, cut)) is not None:
            job.note(f"{engine}: evaluation", engine=engine, seconds_an_image=round(seconds, 4))
    for engine in job.engines:
        _where_the_time_goes(job, engine, cut)


def has_coco() -> bool:
    from smallobj_d2.coco import datasets_root

    return (datasets_root() / "coco").is_dir()


def stand_in_weights(job: Job, engine: str) -> Path:
    """Weights for configs/baseline.yaml that keep activations in range, in place of ImageNet's.

    Frozen batch norms have no statistics yet, so each residual branch starts at zero.
    """
    import torch

    from smallobj_d2.config import load_cfg

    path = job.folder / f"{engine}_weights.pth"
    if path.is_file():
        return path
    torch.manual_seed(0)
    model = build(engine, load_cfg(ROOT / "configs" / "baseline.yaml"), "cpu")
    for name, module in model.named_modules():
        if name.endswith((".bn3", ".conv3.norm")):
            module.weight.zero_()
        elif name.endswith(("body.bn1", "stem.conv1.norm")):
            module.weight.fill_(1 / 128)  # pixels are not divided by their deviation
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, path)
    return path


def seconds_an_image(job: Job, engine: str, cut: Mapping[str, object]) -> float | None:
    """What an image of the test set takes, with all 100 detections: of many less a few."""
    from smallobj_d2.coco import dataset_info, register_from_config
    from smallobj_d2.config import load_cfg

    register_from_config(load_cfg(ROOT / "configs" / "baseline.yaml"))
    info = dataset_info("coco_2017_val")
    took, sizes = [], (1, 16 if job.gpu else 2)
    for times in sizes:
        path = job.folder / f"val{times}.json"
        images = repeat(Path(info.json_file), times, path)
        output = job.folder / f"{engine}_evaluated_{times}"
        opts = {
            "MODEL.WEIGHTS": stand_in_weights(job, engine),
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
            "SMALLOBJ.DATASETS": json.dumps([[f"val{times}", str(path), str(info.image_root)]]),
            "DATASETS.TEST": f"('val{times}',)",
            **cut,
        }
        config = ROOT / "configs" / "baseline.yaml"
        found = job.train(output, config, opts, "--eval-only", engine=engine)
        if found is None:
            return None
        took.append((images, found["seconds"]))
    (few, short), (many, long) = took
    return (long - short) / (many - few)


def repeat(source: Path, times: int, target: Path) -> int:
    """Write a COCO JSON with all its images several times; returns how many there are then."""
    truth = json.loads(source.read_text())
    ids, number = count(1), count(1)
    images, annotations = [], []
    by_image: dict[int, list[dict[str, Any]]] = {}
    for a in truth["annotations"]:
        by_image.setdefault(a["image_id"], []).append(a)
    for _ in range(times):
        for image in truth["images"]:
            i = next(ids)
            images.append({**image, "id": i})
            annotations += [
                {**a, "id": next(number), "image_id": i} for a in by_image.get(image["id"], [])
            ]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**truth, "images": images, "annotations": annotations}))
    return len(images)


def _where_the_time_goes(job: Job, engine: str, cut: Mapping[str, object]) -> None:
    """A profile of ten iterations, fp16, for whoever wants to make them faster."""
    output, table = job.folder / f"{engine}_profiled", job.folder / f"{engine}_profile.txt"
    opts = {
        "MODEL.WEIGHTS": stand_in_weights(job, engine),
        "DATASETS.TEST": "()",
        "SOLVER.MAX_ITER": job.iterations(10),
        "SOLVER.STEPS": "()",
        "SOLVER.BASE_LR": 1e-4,
        "SEED": 1,
        **cut,
    }
    how = ["--precision", "fp16" if job.gpu else "fp32", "--profile", str(table)]
    config = ROOT / "configs" / "orig_aug_multi3x.yaml"
    if job.train(output, config, opts, engine=engine, train=how) is not None:
        job.note(f"{engine}: profile", file=table.name)


def stock(job: Job) -> None:
    """The stock loader of Detectron2 against ours in the same training step."""
    if not job.gpu or "detectron2" not in job.engines:
        lack = "a GPU" if not job.gpu else "Detectron2"
        job.note("tools/benchmark.py step", why=f"not run: it needs {lack}")
        return
    out = job.folder / "benchmark.json"
    ended = job.tool("benchmark", "step", "loader", "mapper", "--repeats", 5, "--out", out)
    for part, rows in json.loads(out.read_text()).items() if out.is_file() else ():
        for row in rows if part in ("step", "loader", "mapper") else ():
            ok = row["ratio"] <= 1 / 0.98 if "an iteration" in row["what"] else None
            job.note(f"{part}: {row['what']}", ok, **{k: v for k, v in row.items() if k != "what"})
    if not ended:
        job.note("tools/benchmark.py", False, why=last_line(job.folder / "benchmark.txt"))


def cost(job: Job) -> None:
    """Hours of a sweep over Tables 3 to 8, one seed, from what `speed` has measured."""
    from reproduce import rows_of

    from smallobj_d2.config import load_cfg
    from smallobj_d2.paper import load_paper

    path = Path(job.args.work) / "speed.json"
    measured = json.loads(path.read_text()) if path.is_file() else []
    rows = rows_of(load_paper(ROOT / "experiments" / "paper.yaml"), None, None)
    runs = sum("@" not in row for row in rows)
    cfg = load_cfg(ROOT / "configs" / "baseline.yaml")
    iterations, images = cfg.SOLVER.MAX_ITER, 5000
    per_image = {r["engine"]: r["seconds_an_image"] for r in measured if "seconds_an_image" in r}
    for r in measured:
        if not r.get("plain") or r["config"] == "baseline" or r["engine"] not in per_image:
            continue
        training = iterations * r["seconds_an_iteration"] / 3600
        evaluation = images * per_image[r["engine"]] / 3600
        hours = runs * training + len(rows) * evaluation
        job.note(
            f"{r['engine']}, {r['precision']}: Tables 3-8, one seed",
            runs=runs,
            evaluations=len(rows),
            hours_a_run=round(training + evaluation, 2),
            hours_on_1_gpu=round(hours, 1),
            hours_on_4_gpus=round(hours / 4, 1),  # four runs at a time, one on each
        )
    if not job.rows:
        job.note("cost", why="not computed: the step speed has measured nothing")
