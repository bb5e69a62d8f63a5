"""Does it work? Operators, numbers, training, processes."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proofs import DEMO, ROOT, datasets_of, losses_of, words_of
from proofs._gpu.job import PRECISIONS, Job, last_line, metrics, scenes

TRAINING = {"num_train": 64, "num_val": 16, "seed": 3, "size": 224}
"""The scenes of the step `training`."""


def machine(job: Job) -> None:
    """What there is: card, memory, libraries; torchvision's and Detectron2's operators on it."""
    import torch
    from torchvision.ops import nms, roi_align

    from smallobj_d2.config import has_detectron2
    from smallobj_d2.engines.folder import versions

    cores = len(os.sched_getaffinity(0))
    job.note(
        "versions",
        None,
        **versions(),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
    )
    if job.gpu:
        if not torch.cuda.is_available():
            job.note("a GPU", False, why="torch sees none")
            return
        card = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        job.note(
            "a GPU",
            True,
            name=card.name,
            gib=round(total / 2**30, 1),
            free_gib=round(free / 2**30, 1),
            number=torch.cuda.device_count(),
            bf16=torch.cuda.is_bf16_supported(),
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    job.note("the machine", cores=cores, gib=round(memory), nvcc=shutil.which("nvcc") or "none")

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    image = torch.arange(1024.0).view(1, 1, 32, 32)
    found = []
    for device in ("cpu", job.args.device):
        b = boxes.to(device)
        kept = nms(b, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5).cpu()
        found.append((kept, roi_align(image.to(device), [b], 7, aligned=True).cpu()))
    same = torch.equal(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1])
    job.note("torchvision's operators: as on the CPU", same)
    if not has_detectron2():
        job.note("Detectron2", why="not installed, so all steps leave it out")
        return
    from detectron2 import _C

    built_for = _C.get_cuda_version() if _C.has_cuda() else "the CPU"
    job.note("Detectron2's operators", _C.has_cuda() if job.gpu else None, built_for=built_for)


def numbers(job: Job) -> None:
    """Losses and gradients of one batch: the device against the CPU, in each precision."""
    import torch

    from smallobj_d2.config import load_cfg
    from smallobj_d2.engines import load_engine

    scenes(job.folder / "scenes", num_train=16, num_val=2, seed=3, size=224)
    everything = {
        # No proposal is left to chance, as the two devices draw from generators of their own.
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 10**6,
        "MODEL.RPN.POSITIVE_FRACTION": 1.0,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 10**6,
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
        "SEED": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "SMALLOBJ.DATASETS": datasets_of(job.folder / "scenes"),
    }
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name in job.engines:
        engine = load_engine(name)
        cfg = load_cfg(DEMO, words_of(everything))
        batch = next(iter(engine.build_train_loader(cfg)))
        torch.manual_seed(0)
        state = build(name, cfg, "cpu").state_dict()
        truth = measured(name, build(name, cfg, "cpu", state), batch, "cpu", None)
        for precision in PRECISIONS:
            if precision == "fp16" and not job.gpu:
                continue  # the CPU's is no reference for anything
            kind = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
            model = build(name, cfg, job.args.device, state)
            losses, gradient = measured(name, model, batch, job.args.device, kind)
            off = max(abs(losses[k] - v) / max(abs(v), 1e-3) for k, v in truth[0].items())
            gradient_off = float((gradient - truth[1]).norm() / truth[1].norm())
            limit = 1e-2 if precision == "fp32" else 0.5
            job.note(
                f"{name}, {precision}: a batch as on the CPU in fp32",
                off < limit and math.isfinite(gradient_off),
                losses_off=f"{off:.1e}",
                gradients_off=f"{gradient_off:.1e}",
            )


def build(engine: str, cfg: Any, device: str, state: Any = None) -> Any:
    """A model of an engine that trains, on a device."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    if engine == "detectron2":
        from detectron2.modeling import build_model
    else:
        from smallobj_d2.engines.torchvision import build_model
    model = build_model(cfg).to(device).train()
    if state is not None:
        model.load_state_dict(state)
    return model


def measured(
    engine: str, model: Any, batch: list[Any], device: str, autocast: Any
) -> tuple[dict[str, float], Any]:
    """Losses by name, and all gradients as one vector, on the CPU."""
    import torch

    with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
        losses = losses_of(engine, model, batch)
    sum(losses.values()).backward()
    gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.requires_grad])
    return {k: v.item() for k, v in losses.items()}, gradient


def training(job: Job) -> None:
    """Both engines, each precision: train, evaluate, train again, resume; what is the same."""
    scenes(job.folder / "scenes", **TRAINING)
    number = max(2, job.iterations(60))
    middle = number // 2
    opts = {
        "SMALLOBJ.DATASETS": datasets_of(job.folder / "scenes"),
        "SOLVER.MAX_ITER": number,
        "SOLVER.STEPS": "()",
        "SOLVER.CHECKPOINT_PERIOD": middle,
        "DATALOADER.NUM_WORKERS": 2,
        "SEED": 1,
    }
    for engine in job.engines:
        expected = draws_on_the_cpu(engine, opts, number)
        compare_with_the_packer(job, engine, expected)
        for precision in job.precisions(engine):
            _train_twice_and_resume(job, engine, precision, opts, expected, middle)
    for engine in job.engines if job.gpu else ():
        step, job.until = job.until, min(job.until, time.monotonic() + 90)  # it may be slow
        _deterministic(job, engine, opts)
        job.until = step


def _train_twice_and_resume(
    job: Job,
    engine: str,
    precision: str,
    opts: Mapping[str, object],
    expected: list[Any],
    middle: int,
) -> None:
    from proofs.recording import drawn

    name = f"{engine}_{precision}"
    outputs: list[Path] = []
    took: list[dict[str, Any]] = []
    for which in ("first", "second", "resumed"):
        output = job.folder / f"{name}_{which}"
        flags: list[str] = []
        if which == "resumed":
            shutil.copytree(
                outputs[0], output, ignore=shutil.ignore_patterns("*final*", "row.json")
            )
            (output / "last_checkpoint").write_text(f"model_{middle - 1:07d}.pth")
            flags = ["--resume"]
        how = ["--precision", precision]
        found = job.train(output, DEMO, opts, *flags, engine=engine, train=how, record=True)
        if found is None:
            return
        outputs.append(output)
        took.append(found)
    first = [line["total_loss"] for line in metrics(outputs[0]) if "total_loss" in line]
    record = json.loads((outputs[0] / "run.json").read_text())
    row = json.loads((outputs[0] / "row.json").read_text())
    job.note(
        f"{name}: trains and evaluates",
        all(map(math.isfinite, first)) and "segm" in row,
        device=record["device"],
        losses=[round(x, 2) for x in first],
        seconds_an_iteration=took[0].get("time"),
        **{k: v for k, v in took[0].items() if k.endswith("gib")},
    )
    draws = [[b for _, _, b in drawn(o.with_suffix(".draws"))] for o in outputs]
    same = draws[0] == draws[1] == expected and draws[2] == expected[middle:]
    job.note(
        f"{name}: draws are those of the CPU, after a resume, too", same, batches=len(expected)
    )
    job.note(
        f"{name}: the same seed again; resumed at {middle}",
        weights_apart_again=apart(outputs[0], outputs[1]),
        weights_apart_resumed=apart(outputs[0], outputs[2]),
    )
    if precision != "fp32":
        scalers = [scaler_of(o, engine) for o in outputs]
        # Steps without an overflow since the last one, which a scaler that began anew would forget.
        kept = all(s and s["_growth_tracker"] == scalers[0]["_growth_tracker"] for s in scalers)
        overflow = any(s and s["scale"] < 65536 for s in scalers)
        job.note(
            f"{name}: GradScaler through a resume",
            kept if not overflow else all(scalers),
            scales=[s.get("scale") for s in scalers],
            steps=[s.get("_growth_tracker") for s in scalers],
        )


def draws_on_the_cpu(engine: str, opts: Mapping[str, object], number: int) -> list[Any]:
    """Position and pixels' checksum of each draw of configs/demo.yaml, batch by batch."""
    from proofs.recording import checksums
    from smallobj_d2.config import load_cfg
    from smallobj_d2.engines import load_engine

    values = {**opts, "DATALOADER.NUM_WORKERS": 0}
    cfg = load_cfg(DEMO, words_of(values))
    loader = load_engine(engine).build_train_loader(cfg)
    return [checksums(batch) for _, batch in zip(range(number), loader, strict=False)]


def compare_with_the_packer(job: Job, engine: str, found: list[Any]) -> None:
    """Are the draws those of another machine, with other versions? No law, but good to know."""
    path = Path(job.args.data) / "expected.json"
    if not path.is_file():
        return
    there = json.loads(path.read_text())
    pairs = [
        (a, tuple(b))
        for x, y in zip(found, there["draws"], strict=False)
        for a, b in zip(x, y, strict=True)
    ]
    job.note(
        f"{engine}: draws as on the machine that packed",
        all(a[0] == b[0] for a, b in pairs),
        draws=len(pairs),
        same_pixels=sum(a == b for a, b in pairs),
        versions_there=there["versions"],
    )


def apart(a: Path, b: Path) -> str:
    """How far the final weights of two runs are apart, as a share of their size."""
    import torch

    one, other = (
        torch.load(f / "model_final.pth", map_location="cpu", weights_only=True)["model"]
        for f in (a, b)
    )
    far = sum(float((one[k].double() - other[k].double()).square().sum()) for k in one)
    size = sum(float(v.double().square().sum()) for v in one.values())
    return "equal" if not far else f"{(far / size) ** 0.5:.1e}"


def scaler_of(output: Path, engine: str) -> dict[str, Any]:
    """The GradScaler's state in a final checkpoint."""
    import torch

    state = torch.load(output / "model_final.pth", map_location="cpu", weights_only=True)
    if engine == "detectron2":
        state = state.get("trainer", {}).get("_trainer", {})
    return dict(state.get("scaler" if engine == "torchvision" else "grad_scaler") or {})


def _deterministic(job: Job, engine: str, opts: Mapping[str, object]) -> None:
    """Does torch's own switch make two runs equal?"""
    outputs = [job.folder / f"{engine}_deterministic_{i}" for i in (1, 2)]
    short = {**opts, "SOLVER.MAX_ITER": 10, "DATASETS.TEST": "()"}
    for output in outputs:
        if not job.train(output, DEMO, short, engine=engine, train=["--deterministic"]):
            return
    job.note(f"{engine}: with deterministic algorithms, fp32", weights_apart=apart(*outputs))


def processes(job: Job) -> None:
    """NCCL by itself, and two processes on the one card, as two machines of one GPU each."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from proofs import verify_processes as verify

    if job.gpu:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl",
            init_method=f"tcp://127.0.0.1:{verify.free_port()}",
            rank=0,
            world_size=1,
        )
        ones = torch.ones(4, device="cuda")
        dist.all_reduce(ones)
        box = ["said"]
        dist.broadcast_object_list(box, src=0)
        layer = DistributedDataParallel(torch.nn.Linear(4, 1).cuda(), device_ids=[0])
        layer(ones[None]).sum().backward()
        dist.barrier()
        dist.destroy_process_group()
        job.note("NCCL, one process", bool((ones == 1).all()), version=torch.cuda.nccl.version())

    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
    opts = {
        "SMALLOBJ.DATASETS": datasets_of(job.folder / "launched"),
        "SOLVER.MAX_ITER": 4,
        "SOLVER.STEPS": "()",
        "MODEL.DEVICE": job.args.device,
    }
    scenes(job.folder / "launched", num_train=16, num_val=2, seed=3, size=128)
    for engine in job.engines:
        output = job.folder / f"{engine}_launched"
        command = [*launched, ROOT / "tools" / "train_net.py", "--config", DEMO, "--engine", engine]
        words = words_of({**opts, "OUTPUT_DIR": output})
        ok = job.call([*command, *words], output.with_suffix(".txt"))
        why = {} if ok else {"why": last_line(output.with_suffix(".txt"))}
        job.note(f"{engine}: one process by torchrun", ok, **why)

    # NCCL refuses two processes of one host on one card; by these names they are of two hosts.
    apart = [
        {"NCCL_HOSTID": f"host{i}", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
        for i in range(2)
    ]
    made = job.folder / "scenes"
    verify.make_scenes(made)
    for engine in job.engines:
        output = job.folder / engine
        layout = verify.Layout(2, 1)
        try:
            run = verify.train(
                engine, layout, made, output, device=job.args.device, environments=apart
            )
        except RuntimeError as e:
            output.with_suffix(".txt").write_text(str(e))
            job.note(f"{engine}: two processes on one card", False, why=str(e)[-400:])
            continue
        with contextlib.redirect_stdout(sys.stderr):
            error = verify.gradient_error(run)
            wrong = [*verify.wrong_draws(run), *verify.wrong_weights(run)]
        job.note(
            f"{engine}: two processes on one card, draws and weights as they must be",
            not wrong,
            wrong=wrong,
            gradients_off=f"{error:.0e}",
        )
