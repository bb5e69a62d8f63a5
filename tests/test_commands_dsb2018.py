"""The public files of the Data Science Bowl 2018 become the COCO files that are used here."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from smallobj_d2.commands import dsb2018
from smallobj_d2.datasets.check import check_coco
from smallobj_d2.datasets.findings import exit_code

REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "dsb2018"


def as_published(split: str, images: int, root: Path) -> dict:
    """Folders as stage1_train has them, from the COCO files; returns what these say."""
    data = json.loads((REAL / "annotations" / f"{split}.json").read_bytes())
    data["images"] = data["images"][:images]
    kept = {i["id"]: i["file_name"].removesuffix(".png") for i in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
    for name in kept.values():
        folder = root / f"{name}{'0' * 48}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        picture = Image.open(REAL / split / f"{name}.png").convert("RGBA")
        picture.save(folder / "images" / f"{folder.name}.png")
    for a in data["annotations"]:
        mask = Image.fromarray(255 * coco_mask.decode(a["segmentation"]))
        mask.save(root / f"{kept[a['image_id']]}{'0' * 48}" / "masks" / f"{a['id']:06}.png")
    return data


@pytest.mark.skipif(not REAL.is_dir(), reason="there is no dsb2018/ under DETECTRON2_DATASETS")
def test_the_public_folders_give_the_files_used_here(tmp_path, monkeypatch, capsys):
    source, split = tmp_path / "stage1_train", tmp_path / "split.json"
    wanted = {
        name: as_published(name, number, source) for name, number in (("train", 9), ("val", 4))
    }
    names = {s: [i["file_name"][:16] for i in d["images"]] for s, d in wanted.items()}
    split.write_text(json.dumps(names))
    monkeypatch.setattr(dsb2018, "SPLIT", split)
    out = tmp_path / "out"
    assert dsb2018.main([str(source), "--out", str(out)]) == 0
    for name, data in wanted.items():
        assert json.loads((out / "annotations" / f"{name}.json").read_bytes()) == data
        assert exit_code(check_coco(out / "annotations" / f"{name}.json")) == 0
        for image in data["images"]:
            pictures = (Image.open(f / name / image["file_name"]) for f in (out, REAL))
            assert np.array_equal(*map(np.asarray, pictures))

    folder = next(source.iterdir())
    (folder / "images" / "twice.png").touch()
    assert dsb2018.main([str(source), "--out", str(out)]) == 2
    assert "has 2 PNGs, not one" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert dsb2018.main([str(source), "--out", str(out)]) == 2
    assert "lacks 1 of the" in capsys.readouterr().err


@pytest.mark.skipif(not REAL.is_dir(), reason="there is no dsb2018/ under DETECTRON2_DATASETS")
def test_the_split_is_that_of_the_files_used_here():
    split = json.loads(dsb2018.SPLIT.read_bytes())
    for name, names in split.items():
        data = json.loads((REAL / "annotations" / f"{name}.json").read_bytes())
        assert [f"{n}.png" for n in names] == [i["file_name"] for i in data["images"]]
    assert not set(split["train"]) & set(split["val"])


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert dsb2018.main([str(tmp_path / "stage1_train"), "--out", str(tmp_path / "out")]) == 2
    assert "No such file" in capsys.readouterr().err
