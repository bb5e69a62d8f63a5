"""Is it fast? Iterations a second at the paper's settings, and what a sweep costs."""

import json
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from proofs import NARROW, ROOT, words_of
from proofs._gpu.job import Job, last_line
from proofs._gpu.works import build
from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.coco import dataset_info, datasets_root
from smallobj_d2.experiments.paper import load_paper

BASELINE = ROOT / "configs" / "baseline.yaml"

Variant = tuple[str, str, dict[str, object], tuple[str, ...]]
"""Config, precision, overrides and arguments of `train`."""

PLAIN: tuple[Variant, ...] = (
    ("baseline", "fp32", {}, ()),
    ("orig_aug_multi3x", "fp32", {}, ()),
    ("baseline", "fp16", {}, ()),
    ("orig_aug_multi3x", "fp16", {}, ()),
)
MORE: tuple[Variant, ...] = (
    ("orig_aug_multi3x", "bf16", {}, ()),
    ("orig_aug_multi3x", "fp16", {"SMALLOBJ.FAST_RESIZE": True}, ()),
    ("orig_aug_multi3x", "fp16", {"DATALOADER.NUM_WORKERS": 12}, ()),
    ("orig_aug_multi3x", "fp16", {}, ("--channels-last",)),
    ("orig_aug_multi3x", "fp16", {"CUDNN_BENCHMARK": True}, ()),
)

SMALL: dict[str, object] = {
    **NARROW,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "SOLVER.IMS_PER_BATCH": 2,
}
"""In place of the paper's settings where the steps are tried on a CPU."""


def settings(job: Job, engine: str) -> dict[str, object]:
    """Overrides of a row's config for some iterations that cannot diverge."""
    return {
        **_size(job),
        "MODEL.WEIGHTS": stand_in_weights(job, engine),
        "DATASETS.TEST": "()",
        "SOLVER.STEPS": "()",
        "SOLVER.BASE_LR": 1e-4,
        "SEED": 1,
    }


def _size(job: Job) -> dict[str, object]:
    return {} if job.gpu else SMALL


def speed(job: Job) -> None:
    """Iterations a second at the paper's settings (R50-FPN, 800 pixels, 8 images) on COCO."""
    if not (datasets_root() / "coco").is_dir():
        job.note("speed", why=f"not measured: there is no coco in {datasets_root()}")
        return
    if not job.gpu:
        job.note("the CPU", why="a narrow network on small images, so the figures mean nothing")
    _measure_all(job, PLAIN)
    for engine in job.engines:  # before the others, as the step `cost` needs it
        if (seconds := seconds_an_image(job, engine)) is not None:
            job.note(f"{engine}: evaluation", engine=engine, seconds_an_image=round(seconds, 4))
    _measure_all(job, MORE)
    for engine in job.engines:
        _where_the_time_goes(job, engine)


def _measure_all(job: Job, variants: Iterable[Variant]) -> None:
    for variant in variants:
        for engine in job.engines:
            if variant[1] in job.precisions(engine):
                _measure(job, engine, *variant)


def _measure(
    job: Job, engine: str, row: str, precision: str, more: dict[str, object], how: tuple[str, ...]
) -> None:
    number = job.iterations(60)
    keys = [f"{key.rpartition('.')[2]}={value}" for key, value in more.items()]
    words = [engine, row, precision, *keys, *how]
    output = job.folder / "_".join(words).replace("=", "")
    opts = {**settings(job, engine), "SOLVER.MAX_ITER": number, **more}
    train = ["--precision", precision, *how]
    config = ROOT / "configs" / f"{row}.yaml"
    found = job.train(output, config, opts, engine=engine, train=train)
    if found is None:
        return
    for checkpoint in output.glob("*.pth"):
        checkpoint.unlink()
    job.note(
        " ".join(words),
        engine=engine,
        row=row,
        precision=precision,
        plain=not more and not how,
        seconds_an_iteration=found.get("time"),  # the last 20 iterations' median
        waiting_for_data=found.get("data_time"),
        **{k: v for k, v in found.items() if k.endswith("gib")},
    )


def stand_in_weights(job: Job, engine: str) -> Path:
    """Weights for configs/baseline.yaml that keep activations in range, in place of ImageNet's.

    Frozen batch norms have no statistics yet, so each residual branch starts at zero.
    """
    import torch

    path = job.folder / f"{engine}_weights.pth"
    if path.is_file():
        return path
    torch.manual_seed(0)
    model = build(engine, load_cfg(BASELINE, words_of(_size(job))), "cpu")
    for name, module in model.named_modules():
        if name.endswith((".bn3", ".conv3.norm")):
            module.weight.zero_()
        elif name.endswith(("body.bn1", "stem.conv1.norm")):
            module.weight.fill_(1 / 128)  # pixels are not divided by their deviation
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, path)
    return path


def seconds_an_image(job: Job, engine: str) -> float | None:
    """What an image of the test set takes, with all 100 detections: of many less a few."""
    info = dataset_info("coco_2017_val")
    took: list[tuple[int, float]] = []
    sizes = (1, 16 if job.gpu else 2)
    for times in sizes:
        path = job.folder / f"val{times}.json"
        images = repeat(Path(info.json_file), times, path)
        output = job.folder / f"{engine}_evaluated_{times}"
        opts = {
            **settings(job, engine),
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
            "SMALLOBJ.DATASETS": json.dumps([[f"val{times}", str(path), str(info.image_root)]]),
            "DATASETS.TEST": f"('val{times}',)",
        }
        found = job.train(output, BASELINE, opts, "--eval-only", engine=engine)
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


def _where_the_time_goes(job: Job, engine: str) -> None:
    """A profile of ten iterations, fp16, for whoever wants to make them faster."""
    output, table = job.folder / f"{engine}_profiled", job.folder / f"{engine}_profile.txt"
    opts = {**settings(job, engine), "SOLVER.MAX_ITER": job.iterations(10)}
    how = ["--precision", "fp16" if job.gpu else "fp32", "--profile", str(table)]
    config = ROOT / "configs" / "orig_aug_multi3x.yaml"
    if job.train(output, config, opts, engine=engine, train=how) is not None:
        job.note(f"{engine}: profile", file=table.name)


def stock(job: Job) -> None:
    """The stock loader of Detectron2 against ours in the same training step."""
    if not job.gpu or "detectron2" not in job.engines:
        lack = "a GPU" if not job.gpu else "Detectron2"
        job.note("benchmarks/speed.py step", why=f"not run: it needs {lack}")
        return
    out = job.folder / "benchmark.json"
    log = job.folder / "benchmark.txt"
    command = [sys.executable, "-m", "benchmarks.speed", "step", "loader", "mapper"]
    ended = job.call([*command, "--repeats", 5, "--out", out], log)
    for part, rows in json.loads(out.read_text()).items() if out.is_file() else ():
        for row in rows if part in ("step", "loader", "mapper") else ():
            ok = row["ratio"] <= 1 / 0.98 if "an iteration" in row["what"] else None
            job.note(f"{part}: {row['what']}", ok, **{k: v for k, v in row.items() if k != "what"})
    if not ended:
        job.note("benchmarks/speed.py", False, why=last_line(log))


def cost(job: Job) -> None:
    """Hours of a sweep over Tables 3 to 8, one seed, from what `speed` has measured."""
    from smallobj_d2.commands.reproduce import rows_of

    path = Path(job.args.work) / "speed.json"
    measured = json.loads(path.read_text()) if path.is_file() else []
    rows = rows_of(load_paper(ROOT / "experiments" / "paper.yaml"), None, None)
    runs = sum("@" not in row for row in rows)
    iterations, images = load_cfg(BASELINE).SOLVER.MAX_ITER, 5000
    per_image = {r["engine"]: r["seconds_an_image"] for r in measured if "seconds_an_image" in r}
    for r in measured:
        plain = r.get("plain") and r["row"] != "baseline" and r["seconds_an_iteration"]
        if not plain or r["engine"] not in per_image:
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
