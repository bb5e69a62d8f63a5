"""Contact sheet of what the mapper feeds the model: original beside augmented.

smallobj visualize --config orig_aug_multi3x --out sheet.png
smallobj visualize --config aug SEED 7 --positions 17 20 23
smallobj visualize --config aug --json annotations.json --images images/
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fvcore.common.config import CfgNode
from PIL import Image

from smallobj_d2.commands import (
    add_dataset_options,
    command,
    command_line,
    config_from,
    parse,
    path,
    writable,
)
from smallobj_d2.config import changed
from smallobj_d2.engines import load_engine
from smallobj_d2.errors import SmallObjError
from smallobj_d2.visualization.draws import augmented_positions, training_sheet


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__, config=True, engine=True)
    parser.add_argument("--dataset", help="show this dataset instead of DATASETS.TRAIN")
    add_dataset_options(parser, "a dataset instead of DATASETS.TRAIN")
    parser.add_argument("--num", type=int, default=6, help="number of augmented draws to show")
    parser.add_argument("--positions", type=int, nargs="+", help="show these draws instead")
    parser.add_argument("--width", type=int, default=480, help="width of each picture in pixels")
    parser.add_argument("--out", type=path, default=path("output/contact_sheet.png"), metavar="PNG")
    args = parse(parser, argv)
    cfg = config_from(args)
    engine = load_engine(args.engine)
    out = writable(args.out)
    dataset = engine.build_train_loader(cfg).dataset
    positions = args.positions or augmented_positions(dataset, args.num)
    if not positions:
        raise SmallObjError("No draw of this config pastes anything: no object may be copied.")
    sheet = sheet_of_draws(engine, cfg, dataset, positions, width=args.width)
    sheet.save(out)
    print(f"{len(positions)} draws of seed {cfg.SEED}: {out}")


def sheet_of_draws(
    engine: Any, cfg: CfgNode, dataset: Any, positions: Sequence[int], *, width: int
) -> Image.Image:
    """The draws of a config, with its engine; see `training_sheet`."""
    off = {"SMALLOBJ.COPY_PASTE": False, "SMALLOBJ.STITCH_PROBABILITY": 0.0}
    plain = changed(cfg, off)
    originals = engine.build_train_loader(plain).dataset
    view = partial(engine.view, cfg=cfg)
    return training_sheet(dataset, originals, view, positions, width=width)
