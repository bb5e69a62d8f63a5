"""Train and evaluate, with Detectron2's own flags.

tools/train_net.py --config configs/orig_aug_multi3x.yaml --num-gpus 4
tools/train_net.py --config configs/orig_aug_multi3x.yaml --num-gpus 4 --resume
torchrun --nproc-per-node 4 tools/train_net.py --config configs/orig_aug_multi3x.yaml
tools/train_net.py --config configs/baseline.yaml --eval-only MODEL.WEIGHTS model_final.pth
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from smallobj_d2.config import load_cfg
from smallobj_d2.engines import choose_engine, load_engine
from smallobj_d2.errors import SmallObjError
from smallobj_d2.registry import import_modules


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--config-file", "--config", required=True, metavar="FILE")
    p.add_argument("--engine", default="auto", help="auto (default), detectron2 or torchvision")
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
    p.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    return p


def run(engine: str, cfg: Any, resume: bool, eval_only: bool, overwrite: bool) -> Any:
    """One process of the run; at the top level, so that a spawned process finds it."""
    import_modules(cfg.SMALLOBJ.IMPORTS)
    return load_engine(engine).main(cfg, resume, eval_only, overwrite)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes of torchrun, the first
    output = Path()
    try:
        cfg = load_cfg(args.config_file, args.opts)
        engine = choose_engine(args.engine)
        why = "as asked" if args.engine == engine else "chosen by --engine auto"
        if speaks:
            print(f"Engine: {engine} ({why}).", flush=True)
        output = Path(cfg.OUTPUT_DIR)
        from smallobj_d2.engines.launch import launch

        if args.num_machines > 1:
            which = f"Machine {args.machine_rank} of {args.num_machines}"
            print(f"{which}: meeting the others at {args.dist_url}.", flush=True)
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
    except SmallObjError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        from smallobj_d2.engines.run import how_to_continue

        if speaks:
            print(how_to_continue(output), file=sys.stderr)
        return 130
    if speaks:
        print(f"The run is in {output}: row.json, metrics.json, log.txt, model_final.pth.")
    return 0
