"""The nuclei of the Data Science Bowl 2018 as COCO files, with the split that is used here.

smallobj dsb2018 stage1_train --out datasets/dsb2018

Stage 1's training images are public (CC0) as BBBC038 of the Broad Bioimage Benchmark Collection,
https://bbbc.broadinstitute.org/BBBC038:

curl -O https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip
unzip -q stage1_train.zip -d stage1_train

It has a folder for each image, with ``images/*.png`` and a PNG for each nucleus in ``masks``. Of
its 670 images 470 are for training and 64 for validation, by `experiments/dsb2018.json`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from smallobj_d2.commands import CommandLine, path, writable_folder
from smallobj_d2.config import EXPERIMENTS
from smallobj_d2.errors import SmallObjError, UnreadableImage, command
from smallobj_d2.files import writing

SPLIT = EXPERIMENTS / "dsb2018.json"
NAME_LENGTH = 16
"""Characters of an image's id that its file here is called by; enough to tell them apart."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("source", type=path, metavar="FOLDER", help="stage1_train, unpacked")
    parser.option("--out", default=Path("datasets/dsb2018"), metavar="FOLDER")
    args = parser.parse_args(argv)
    writable_folder(args.out)
    for split, names in json.loads(SPLIT.read_bytes()).items():
        data = convert(args.source, args.out, split, names)
        print(f"{split}: {len(data['images'])} images, {len(data['annotations']):,} nuclei")


def convert(source: Path, out: Path, split: str, names: list[str]) -> dict[str, Any]:
    """Write the images of one split to ``out/split``, and ``out/annotations/split.json``.

    Args:
        source: a folder with one folder for each image.
        out: the dataset's folder.
        split: its name.
        names: of its images, the first `NAME_LENGTH` characters of their folders.

    Returns:
        What was written as JSON.
    """
    folders = {f.name[:NAME_LENGTH]: f for f in source.iterdir() if (f / "masks").is_dir()}
    if missing := [name for name in names if name not in folders]:
        raise SmallObjError(
            f"{source} lacks {len(missing)} of the {len(names)} images of {split}, such as "
            f"{missing[0]}...; it must be stage1_train of BBBC038, unpacked."
        )
    (out / split).mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {
        "info": {"description": "Data Science Bowl 2018 stage 1 nuclei, CC0"},
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    bar = tqdm(sorted(names), desc=split, unit="img", disable=None)
    for number, name in enumerate(bar, 1):
        files = sorted((folders[name] / "images").glob("*.png"))
        if len(files) != 1:
            raise UnreadableImage(f"{folders[name]}/images has {len(files)} PNGs, not one.")
        image = _open(files[0]).convert("RGB")
        image.save(out / split / f"{name}.png")
        size = {"height": image.height, "width": image.width}
        data["images"].append({"id": number, "file_name": f"{name}.png", **size})
        for mask_file in sorted((folders[name] / "masks").glob("*.png")):
            mask = np.asarray(_open(mask_file).convert("L")) > 0
            if mask.shape != (image.height, image.width):
                raise UnreadableImage(f"{mask_file} is not of the size of its image.")
            if mask.any():
                ids = {"id": len(data["annotations"]) + 1, "image_id": number, "category_id": 1}
                data["annotations"].append(ids | _annotation(mask))
    with writing(out / "annotations" / f"{split}.json") as temporary:
        temporary.write_text(json.dumps(data), encoding="utf-8")
    return data


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except Exception as e:  # Pillow's readers of damaged files raise nearly anything
        raise UnreadableImage(f"{path} cannot be read: {e}. Unpack it again.") from e
    return image


def _annotation(mask: Any) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": float(coco_mask.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
    }
