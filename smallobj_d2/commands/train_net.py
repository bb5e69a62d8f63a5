"""Train and evaluate, with Detectron2's own flags.

tools/train_net.py --config configs/orig_aug_multi3x.yaml --num-gpus 4
tools/train_net.py --config configs/orig_aug_multi3x.yaml --num-gpus 4 --resume
torchrun --nproc-per-node 4 tools/train_net.py --config configs/orig_aug_multi3x.yaml
tools/train_net.py --config configs/baseline.yaml --eval-only MODEL.WEIGHTS model_final.pth
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallobj_d2.commands import command, command_line, parse
from smallobj_d2.config import load_cfg
from smallobj_d2.engines import choose_engine, load_engine
from smallobj_d2.registry import import_modules


def parser() -> argparse.ArgumentParser:
    p = command_line(__doc__, config=True, engine=True)
    p.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR's last checkpoint")
    p.add_argument(
        "--overwrite", action="store_true", help="start anew where OUTPUT_DIR holds a run already"
    )
    p.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, train nothing")
    p.add_argument(
        "--num-gpus", type=int, default=1, help="on each machine; without GPUs, processes"
    )
    p.add_argument("--num-machines", type=int, default=1, help="how many machines take part")
    p.add_argument("--machine-rank", type=int, default=0, help="which of them this is, from 0")
    p.add_argument(
        "--dist-url", default="auto", help="tcp://host:port of machine 0, for several machines"
    )
    p.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="when a process is lost, start all again from the last checkpoint, N times at most",
    )
    return p


def run(engine: str, cfg: Any, resume: bool, eval_only: bool, overwrite: bool) -> Any:
    """One process of the run; at the top level, so that a spawned process finds it."""
    import_modules(cfg.SMALLOBJ.IMPORTS)
    return load_engine(engine).main(cfg, resume, eval_only, overwrite)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(parser(), argv)
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes of torchrun, the first
    cfg = load_cfg(args.config_file, args.opts)
    engine = choose_engine(args.engine)
    why = "as asked" if args.engine == engine else "chosen by --engine auto"
    if speaks:
        print(f"Engine: {engine} ({why}).", flush=True)
    from smallobj_d2.engines.launch import launch
    from smallobj_d2.engines.run import how_to_continue

    if args.num_machines > 1:
        which = f"Machine {args.machine_rank} of {args.num_machines}"
        print(f"{which}: meeting the others at {args.dist_url}.", flush=True)
    output = Path(cfg.OUTPUT_DIR)
    try:
        launch(
            run,
            args.num_gpus,
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            device=cfg.MODEL.DEVICE,
            args=(engine, cfg, args.resume, args.eval_only, args.overwrite),
            args_after_loss=(engine, cfg, args.resume or not args.eval_only, args.eval_only, False),
            max_restarts=args.max_restarts,
        )
    except KeyboardInterrupt:
        if not speaks:
            sys.exit(130)
        raise KeyboardInterrupt(how_to_continue(output)) from None
    if speaks:
        print(f"The run is in {output}: {', '.join(_results(output))}.")


def _results(output: Path) -> list[str]:
    """What a reader looks for in a run's folder, as far as it is there."""
    names = ("row.json", "metrics.json", "log.txt", "model_final.pth")
    return [name for name in names if (output / name).is_file()]
