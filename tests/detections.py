"""Folders of runs, as far as their detections go."""

import json

import numpy as np
from pycocotools import mask as coco_mask

from smallobj_d2.evaluation.ap import coco_metrics, count_objects, row_of


def result(image, category, mask, score):
    rle = coco_mask.encode(np.asfortranarray(mask))
    rle["counts"] = rle["counts"].decode()
    box = coco_mask.toBbox(rle).tolist()
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": rle,
        "bbox": box,
        "score": float(score),
    }


def ap_row(truth, results, iou_types=("segm", "bbox")):
    """The numbers of a table row."""
    return row_of({t: coco_metrics(truth, results, t) for t in iou_types}, count_objects(truth))


def boxes_beside(truth, spread, stretch=(1.0, 1.0)):
    """Boxes a little beside the objects: of some none, of others two."""
    rng, results = np.random.default_rng(0), []
    for a in truth.anns.values():
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = a["bbox"]
            x, y = rng.normal((x, y), spread)
            box = [x, y, w * rng.uniform(*stretch), h]
            found = {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": box}
            results.append(found | {"score": float(rng.random())})
    return results


def run_folder(folder, scenes, results, name="found_scenes", limit=100):
    """What a run leaves behind, as far as its detections go."""
    files = {"json_file": str(scenes), "images": str(scenes.parent / "images")}
    (folder / "inference").mkdir(parents=True)
    (folder / "row.json").write_text(json.dumps({"dataset": name, "detections": limit, **files}))
    (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(results))
    return folder
