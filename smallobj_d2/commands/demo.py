"""The whole job on synthetic scenes: look at the augmentation, train on the CPU, read AP_S.

smallobj demo
smallobj demo --pictures-only --out pictures

Makes the demo dataset and a contact sheet of what the augmentation does to it, trains the small
model of configs/demo.yaml, and prints its table row.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from smallobj_d2.commands import CommandLine, parse, require, train_net, writable_folder
from smallobj_d2.commands.visualize import draws_of, sheet_of_draws
from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.synthetic import make_splits
from smallobj_d2.engines import load_engine
from smallobj_d2.errors import command
from smallobj_d2.visualization.detections import detection_sheet
from smallobj_d2.visualization.draws import augmented_positions

TRAIN, VAL, SIZE, SEED = 800, 100, 192, 0
"""Images to train on and to evaluate on, their longest side in pixels, and the scenes' seed."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, engine=True)
    where = "folder of the pictures and the run; the scenes are in output/demo/scenes"
    parser.option("--out", where, Path("output/demo"))
    parser.option("--num", "number of draws on the contact sheet", 6)
    parser.flag("--pictures-only", "make the pictures, do not train")
    args = parse(parser, argv)
    require(args, "num")
    writable_folder(args.out)
    start = time.monotonic()

    scenes = Path("output/demo/scenes")
    print(f"1. The demo dataset: {scenes}", flush=True)
    make_splits(scenes, num_train=TRAIN, num_val=VAL, seed=SEED, size=SIZE)

    sheet = args.out / "contact_sheet.png"
    cfg = load_cfg("demo", args.opts)
    engine = load_engine(args.engine)
    dataset = draws_of(engine, cfg)
    positions = augmented_positions(dataset, args.num)
    sheet_of_draws(engine, cfg, dataset, positions, width=384).save(sheet)
    print(f"2. What the augmentation does to it: {sheet}", flush=True)
    if args.pictures_only:
        return 0

    print("3. Training and evaluation", flush=True)
    run = args.out / "run"
    words = ["--config", "demo", "--engine", args.engine, "--overwrite"]
    if code := train_net.main([*words, *args.opts, "OUTPUT_DIR", str(run)]):
        return code
    found = args.out / "detections.png"
    pictures, text = detection_sheet({"this model": run}, num=args.num, width=384)
    pictures.save(found)
    minutes = (time.monotonic() - start) / 60
    print(f"4. What it finds: {found}\n{text}")
    print(f"Done in {minutes:.1f} minutes. Pictures: {sheet} {found}  Run: {run}")
    return 0
