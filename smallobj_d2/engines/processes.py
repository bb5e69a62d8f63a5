"""The processes of a run: which this is, and how they tell each other what they have."""

import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from smallobj_d2.config import flatten
from smallobj_d2.errors import SmallObjError


def rank() -> int:
    """Which process this is, 0 if there is one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are, over all machines."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def restarts() -> int:
    """How often the processes of this run have been started again after a loss."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def share(value: Any) -> Any:
    """What process 0 has, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """What each process has, in order, in process 0; an empty list in the others."""
    if world_size() == 1:
        return [value]
    boxes = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, boxes, dst=0)
    return boxes or []


def share_statistics(model: torch.nn.Module) -> None:
    """Give all processes the batch norm statistics of the first, which are those that it saves."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def require_same(first: dict[str, Any], other: dict[str, Any], who: str, whose: str) -> None:
    """Compare what two machines or processes were told.

    Raises:
        SmallObjError: naming each thing that is not the same.
    """
    wrong = [
        f"{key} is {other.get(key)} on {who}, but {first.get(key)} on {whose}"
        for key in sorted(first.keys() | other.keys())
        if first.get(key) != other.get(key)
    ]
    if wrong:
        raise SmallObjError(f"{'; '.join(wrong[:5])}. All parts of a run must be told the same.")


_OF_A_MACHINE = ("OUTPUT_DIR", "SMALLOBJ.DATASETS", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS")
"""Config keys that may differ from machine to machine: they say where, not what."""


def agree(cfg: Any, engine: str, *, resume: bool, eval_only: bool) -> None:
    """See that all processes are about to do the same; they would wait for each other forever."""
    if world_size() == 1:
        return
    told = {"--engine": engine, "--resume": resume, "--eval-only": eval_only, **flatten(cfg)}
    if resume:
        pointer = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
        told["the last checkpoint in OUTPUT_DIR"] = (
            pointer.read_text(errors="replace").strip() if pointer.is_file() else None
        )
    told = {key: value for key, value in told.items() if key not in _OF_A_MACHINE}
    whose = f"process 0 ({socket.gethostname()})"
    first, whose = share((told, whose))
    require_same(first, told, f"process {rank()} ({socket.gethostname()})", whose)
