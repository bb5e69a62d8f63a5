"""What a config may leave open, the seed and the device, and the seed of each iteration."""

import logging
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smallobj_d2.config import changed
from smallobj_d2.engines import processes
from smallobj_d2.engines.folder import read_record
from smallobj_d2.errors import SmallObjError

logger = logging.getLogger(__name__)


def settle_device(cfg: Any) -> Any:
    """The config with MODEL.DEVICE "cpu" if it asks for a GPU on a machine that has none."""
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return cfg
    if processes.rank() == 0:
        logger.info(
            "MODEL.DEVICE is %s, but there is no GPU here: using the CPU.", cfg.MODEL.DEVICE
        )
    return changed(cfg, {"MODEL.DEVICE": "cpu"})


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; without them it is several times slower."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not x86 or bool(torch.cpu._is_avx512_bf16_supported())


def settle_precision(cfg: Any, engine: str) -> Any:
    """The config with SOLVER.AMP.ENABLED False where mixed precision would only make it slower.

    Raises:
        SmallObjError: if Detectron2 is asked for it without a GPU.
    """
    if not cfg.SOLVER.AMP.ENABLED or cfg.MODEL.DEVICE.startswith("cuda"):
        return cfg
    if engine == "detectron2":
        raise SmallObjError(
            "SOLVER.AMP.ENABLED is True, but Detectron2 has mixed precision on a GPU only, and "
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}. Set SOLVER.AMP.ENABLED False, or use --engine "
            "torchvision."
        )
    if cfg.MODEL.DEVICE != "cpu" or has_bfloat16():
        return cfg
    if processes.rank() == 0:
        logger.warning(
            "SOLVER.AMP.ENABLED is True, but this CPU has no instructions for bfloat16 (see lscpu: "
            "avx512_bf16): training in float32."
        )
    return changed(cfg, {"SOLVER.AMP.ENABLED": False})


def settle_seed(cfg: Any, resume: bool = False, *, engine: str | None = None) -> Any:
    """The config with the SEED that all processes share.

    A negative SEED asks for a fresh one, which is logged. A resumed run keeps the seed that
    run.json recorded, as its stream of draws must continue.

    Raises:
        SmallObjError: if a resumed run is asked for another seed than it had, or another engine.
    """
    seed = cfg.SEED
    if processes.rank() == 0:
        before = read_record(Path(cfg.OUTPUT_DIR)) if resume else {}
        if before and engine and before["engine"] != engine:
            raise SmallObjError(
                f"{cfg.OUTPUT_DIR} holds a run of the engine {before['engine']}, which {engine} "
                "cannot continue. Choose that engine, or another OUTPUT_DIR."
            )
        recorded = before.get("seed")
        if recorded is not None and seed >= 0 and seed != recorded:
            raise SmallObjError(
                f"SEED is {seed}, but the run in {cfg.OUTPUT_DIR} has seed {recorded}; leave SEED "
                "out to continue that run, or choose another OUTPUT_DIR for a new one."
            )
        if seed < 0:
            seed = recorded
            if seed is None:
                seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
            logger.info("SEED is negative: using seed %d.", seed)
    return changed(cfg, {"SEED": processes.share(seed)})


def seed_step(seed: int, iteration: int) -> None:
    """Start torch's generator afresh for an iteration of this process.

    So what a model draws at random (boxes to learn from, say) depends on nothing that happened
    before, and a resumed run does what an unbroken one does. Iteration -1 is the model's start.
    """
    sequence = np.random.SeedSequence((seed, iteration + 1, processes.rank()))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
