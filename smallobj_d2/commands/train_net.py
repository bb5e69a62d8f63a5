r"""Train and evaluate, with Detectron2's own flags.

smallobj train --config orig_aug_multi3x --num-gpus 4
smallobj train --config orig_aug_multi3x --num-gpus 4 --resume
torchrun --nproc-per-node 4 -m smallobj_d2 train --config orig_aug_multi3x
smallobj train --config baseline --eval-only MODEL.WEIGHTS model_final.pth
smallobj train --config aug --json train.json --images train/ \
    --val-json val.json --val-images val/ MODEL.ROI_HEADS.NUM_CLASSES 5
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallobj_d2.commands import CommandLine, add_dataset_options, parse, with_dataset
from smallobj_d2.config import load_cfg
from smallobj_d2.engines import ENGINES, choose_engine, load_engine
from smallobj_d2.errors import SmallObjError, command
from smallobj_d2.registry import import_modules


def parser() -> CommandLine:
    p = CommandLine(__doc__, config=True, engine=True)
    add_dataset_options(p, "train on this dataset instead of DATASETS.TRAIN")
    add_dataset_options(p, "evaluate on this one instead of DATASETS.TEST", "val-")
    p.flag("--resume", "continue from OUTPUT_DIR's last checkpoint")
    p.flag("--overwrite", "start again in an OUTPUT_DIR that already holds a run")
    p.flag("--eval-only", "evaluate MODEL.WEIGHTS, do not train")
    p.option("--num-gpus", "GPUs per machine; without GPUs, processes on the CPU", 1)
    p.option("--num-machines", "number of machines", 1)
    p.option("--machine-rank", "rank of this machine, from 0", 0)
    p.option("--dist-url", "tcp://HOST:PORT of machine 0, for several machines", "auto")
    words = "restart all processes from the last checkpoint when one is lost, at most N times"
    p.option("--max-restarts", words, 0, metavar="N")
    return p


def run(engine: str, cfg: Any, resume: bool, eval_only: bool, overwrite: bool) -> Any:
    """One process of the run; at the top level, so that a spawned process finds it."""
    import_modules(cfg.SMALLOBJ.IMPORTS)
    return load_engine(engine).main(cfg, resume, eval_only, overwrite)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(parser(), argv)
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes of torchrun, the first
    cfg = with_dataset(load_cfg(args.config_file, args.opts), args)
    cfg = with_dataset(cfg, args, "TEST", "val-")
    if args.resume and args.overwrite:
        raise SmallObjError("--resume goes on with a run, and --overwrite starts anew: name one.")
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
            max_restarts=args.max_restarts,
            imports=[ENGINES[engine]],
        )
    except KeyboardInterrupt:
        if not speaks:
            sys.exit(130)
        raise KeyboardInterrupt("" if args.eval_only else how_to_continue(output)) from None
    if speaks:
        print(f"The run is in {output}: {', '.join(_results(output))}.")


def _results(output: Path) -> list[str]:
    """What a reader looks for in a run's folder, as far as it is there."""
    names = ("row.json", "metrics.json", "log.txt", "model_final.pth")
    return [name for name in names if (output / name).is_file()]
