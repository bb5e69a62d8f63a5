"""Every config trains and evaluates, with each engine, on synthetic scenes."""

import json
from pathlib import Path

import pytest

from smallobj_d2.config import has_detectron2, load_cfg
from smallobj_d2.datasets.synthetic import make_splits
from smallobj_d2.engines import load_engine

CONFIGS = sorted(
    p for p in (Path(__file__).parents[1] / "configs").rglob("*.yaml") if p.stem != "base"
)

# The config's own model, made narrow, on small images: what a row changes stays as it is.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.FPN.NORM": "",
    "MODEL.ROI_HEADS.NUM_CLASSES": 6,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RESNETS.DEPTH": 18,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "SEED": 1,
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    made = make_splits(root, num_train=12, num_val=2, seed=0, size=128, progress=False)
    # Names of their own, as a catalog of Detectron2's keeps each name for good.
    return [[f"every_{n}", str(path), str(path.parent / "images")] for n, path in made.items()]


@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_trains_and_evaluates(config, engine, scenes, tmp_path):
    if engine == "detectron2" and not has_detectron2():
        pytest.skip("Detectron2 is not installed")
    names = [name for name, _, _ in scenes]
    options = {
        **SMALL,
        "OUTPUT_DIR": str(tmp_path),
        "SMALLOBJ.DATASETS": scenes,
        "DATASETS.TRAIN": (names[0],),
        "DATASETS.TEST": (names[1],),
    }
    cfg = load_cfg(config, [str(x) for pair in options.items() for x in pair])
    row = load_engine(engine).main(cfg, False, False)
    kinds = {"segm", "bbox"} if cfg.MODEL.MASK_ON else {"bbox"}
    assert {*row} & {"segm", "bbox"} == kinds
    written = json.loads((tmp_path / "row.json").read_text())
    assert all(written[kind] == row[kind] for kind in (*kinds, "ground_truth"))
    assert (tmp_path / "model_final.pth").is_file()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert any(line.get("total_loss", 0) > 0 for line in lines)
