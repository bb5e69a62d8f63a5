"""Contact sheet of what the mapper feeds the model: original beside augmented.

smallobj visualize --config orig_aug_multi3x --out sheet.png
smallobj visualize --config aug SEED 7 --positions 17 20 23
smallobj visualize --config aug --json annotations.json --images images/
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from PIL import Image

from smallobj_d2.commands import (
    CommandLine,
    add_dataset_options,
    config_from,
    parse,
    require,
    writable,
)
from smallobj_d2.config import changed
from smallobj_d2.engines import load_engine
from smallobj_d2.errors import SmallObjError, command
from smallobj_d2.visualization.draws import augmented_positions, training_sheet
from smallobj_d2.visualization.texts import counted


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__, config=True, engine=True)
    parser.option("--dataset", "show this dataset instead of DATASETS.TRAIN")
    add_dataset_options(parser, "a dataset instead of DATASETS.TRAIN")
    parser.option("--num", "number of augmented draws to show", 6)
    words = "show these draws instead; KEY VALUE pairs stand before it"
    parser.option("--positions", words, type=int, nargs="+")
    parser.option("--width", "width of each picture in pixels", 480)
    parser.option("--out", default=Path("output/contact_sheet.png"), metavar="PNG")
    args = parse(parser, argv)
    require(args, "num", "width")
    require(args, "positions", least=0)
    cfg = config_from(args)
    engine = load_engine(args.engine)
    out = writable(args.out)
    dataset = draws_of(engine, cfg)
    positions = args.positions or augmented_positions(dataset, args.num)
    if not positions:
        raise SmallObjError(
            "None of the first draws of this config pastes anything; smallobj analyze --augment "
            "says why. --positions shows draws that are as they were."
        )
    sheet = sheet_of_draws(engine, cfg, dataset, positions, width=args.width)
    sheet.save(out)
    print(f"{counted(len(positions), 'draw')} of seed {cfg.SEED}: {out}")


def draws_of(engine: Any, cfg: CfgNode) -> Any:
    """The samples of training by their position; its loader processes are not needed for that."""
    return engine.build_train_loader(changed(cfg, {"DATALOADER.NUM_WORKERS": 0})).dataset


def sheet_of_draws(
    engine: Any, cfg: CfgNode, dataset: Any, positions: Sequence[int], *, width: int
) -> Image.Image:
    """The draws of a config, with its engine; see `training_sheet`."""
    originals = draws_of(engine, changed(cfg, {"SMALLOBJ.COPY_PASTE": False}))
    view = partial(engine.view, cfg=cfg)
    return training_sheet(dataset, originals, view, positions, width=width)
