"""tools/train_net.py in any precision, with a note of what the run took.

python -m proofs._gpu.train --precision bf16 --note took.json -- <arguments of train_net.py>

With proofs/recording.py's environment variable, draws, gradients and weights are recorded.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smallobj_d2.commands import CommandLine

PRECISIONS = ("fp32", "fp16", "bf16")


def settle(precision: str, *, channels_last: bool, deterministic: bool) -> list[str]:
    """Set up this process; returns overrides of the config.

    AMP means half precision in both engines. What has no config key is set where torch or the
    engine looks it up.
    """
    if precision == "bf16":
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        if defaults := _detectron2_defaults():
            defaults.AMPTrainer = partial(defaults.AMPTrainer, precision=torch.bfloat16)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=True)
    if channels_last:
        _build_channels_last()
    return ["SOLVER.AMP.ENABLED", str(precision != "fp32")]


def _detectron2_defaults() -> Any:
    from smallobj_d2.config import has_detectron2

    if not has_detectron2():
        return None
    from detectron2.engine import defaults

    return defaults


def _build_channels_last() -> None:
    from smallobj_d2.engines import torchvision

    build = torchvision.build_model
    torchvision.build_model = lambda cfg: build(cfg).to(memory_format=torch.channels_last)
    if defaults := _detectron2_defaults():
        stock = defaults.build_model
        defaults.build_model = lambda cfg: stock(cfg).to(memory_format=torch.channels_last)


@contextmanager
def profiled(path: Path) -> Iterator[None]:
    """Write where the time went, by kernel and by operator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        yield
    averages = profile.key_averages()
    orders = ["self_device_time_total", "cpu_time_total"][not torch.cuda.is_available() :]
    tables = [averages.table(sort_by=by, row_limit=40, max_name_column_width=60) for by in orders]
    path.write_text("\n".join(tables))


def took(seconds: float) -> dict[str, float]:
    """Seconds of the run, and the most memory that it had at a time."""
    note = {
        "seconds": round(seconds, 1),
        "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        note["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        note["gpu_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return {k: round(v, 2) for k, v in note.items()}


def main() -> int:
    parser = CommandLine(__doc__)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--profile", type=Path, metavar="TXT")
    parser.add_argument("--note", type=Path, required=True, metavar="JSON")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of train_net.py, after --")
    args = parser.parse_args()
    from proofs import recording
    from smallobj_d2.commands import train_net

    if recording.RECORD in os.environ:
        train_net.run = recording.run
    opts = settle(
        args.precision, channels_last=args.channels_last, deterministic=args.deterministic
    )
    begun = time.monotonic()
    with profiled(args.profile) if args.profile else nullcontext():
        code = train_net.main([*args.arguments[args.arguments[:1] == ["--"] :], *opts])
    args.note.write_text(json.dumps(took(time.monotonic() - begun)) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
