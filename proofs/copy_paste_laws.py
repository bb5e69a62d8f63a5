"""The laws that every result of copy-paste obeys, checked without any code of its own.

Masks are rasterised on the whole image by COCO's tools and by OpenCV, outlines are compared by
shapely, pixels are interpolated in float64. `check` is used on a few hundred scenes by the tests
and on many thousands by ``python -m proofs.verify_copy_paste``.
"""

from collections import Counter
from copy import deepcopy
from math import ceil, degrees

import cv2
import numpy as np
import shapely

from proofs.random_scenes import raster
from smallobj_d2.copy_paste import CopyPaste, ObjectBank, SourceRule
from smallobj_d2.copy_paste.scene import Scene

SLIVER = 0.05
"""Pixels of area that outlines of masks that are apart may share."""
PIXEL_TOLERANCE = 9
"""OpenCV interpolates at 1/32 of a pixel; half of that, in x and y, is 8 of 255 at the most."""


def check(
    image, annotations, copy_paste: CopyPaste, seed, rule: SourceRule | None = None
) -> Counter:
    """Augment one image and assert every law.

    Args:
        image, annotations: what is augmented.
        copy_paste: how.
        seed: of the generator.
        rule: by which a bank was built.

    Returns:
        How often each law was checked.
    """
    counts: Counter = Counter()

    def law(name, holds, detail=""):
        counts[name] += 1
        assert holds, f"{name}: {detail}"

    height, width = image.shape[:2]
    before = image.copy(), deepcopy(annotations)
    result, after = copy_paste(image, annotations, np.random.default_rng(seed))
    same_inputs = (image == before[0]).all() and annotations == before[1]
    law("inputs are unchanged", same_inputs)
    law("the image is uint8 of the same size", result.dtype == np.uint8)
    law("the image is uint8 of the same size", result.shape == before[0].shape)
    law("the result is a new image", not np.shares_memory(result, image))
    plan = copy_paste.plan(annotations, height, width, np.random.default_rng(seed))
    law("plan and call agree", plan.annotations == after)
    bank = copy_paste.sources if isinstance(copy_paste.sources, ObjectBank) else None
    if bank is None:
        scene = Scene(annotations, height, width)
        candidates = {len(copy_paste.sources.candidates(scene, np.random.default_rng(0)))}
    else:
        candidates = {len(bank.of_image(i)) for i in range(bank.images)}
    counted = plan.pasted + plan.given_up + plan.empty + plan.capped
    law("tried = pasted + given up + empty + capped", plan.tried == counted, plan)
    possible = {wanted(copy_paste, n) for n in candidates}
    law("tried = chosen x copies", plan.tried in possible, plan)
    counts["copies tried"] += plan.tried
    counts["copies pasted"] += plan.pasted
    counts["copies given up"] += plan.given_up
    counts["copies that own no pixel"] += plan.empty
    counts["instances that left"] += plan.removed

    for paste in plan.pastes:
        check_margin(law, paste, copy_paste.margin, height, width)
    check_pixels(law, image, result, plan, copy_paste.blur)
    copies = [a for a in after if "copy_paste" in a]
    law("what was there comes first", after[len(after) - len(copies) :] == copies)
    law(
        "instances = those before + pasted - removed",
        len(after) == len(annotations) + plan.pasted - plan.removed,
    )
    if bank is not None:
        images = {a["copy_paste"]["image"] for a in copies}
        law("the objects of a bank are of one image at a time", len(images) <= 1)
    visible = copy_paste.allow_overlap and copy_paste.covered_labels == "visible"
    if not visible:
        law("what was there is as it was", after[: len(annotations)] == annotations)
        for copy, paste in zip(copies, plan.pastes, strict=True):
            source = source_of(copy, annotations, bank)
            check_label(law, copy, source, copy_paste, rule or copy_paste.sources.rule)
            check_mask(law, copy, paste, height, width)
    given = {id(a) for a in annotations}
    for annotation in after:
        if id(annotation) not in given:
            check_form(law, annotation, height, width)
    if visible:
        check_visible(law, plan, annotations, height, width)
    if not copy_paste.allow_overlap:
        check_apart(law, annotations, copies, copy_paste.gap, height, width)
    return counts


def wanted(copy_paste, candidates):
    chosen = {
        "single": min(1, candidates),
        "multiple": min(candidates, max(2, ceil(round(copy_paste.multiple_share * candidates, 6)))),
        "all": candidates,
    }
    return chosen[copy_paste.strategy] * copy_paste.copies


def check_margin(law, paste, margin, height, width):
    h, w = paste.mask.shape
    inside = (
        paste.x >= margin
        and paste.y >= margin
        and paste.x + w <= width - margin
        and paste.y + h <= height - margin
    )
    law("pixels keep the margin", inside, paste)


def source_of(copy, annotations, bank):
    """The annotation that a copy was made from, in coordinates of the image that it is from."""
    origin = copy["copy_paste"]
    if bank is None:
        return annotations[origin["source"]]
    cutouts = (bank[i] for i in range(len(bank)))
    wanted = {k: origin[k] for k in ("image", "source")}
    cutout = next(c for c in cutouts if c.origin == wanted)
    (x, y), source = cutout.corner, dict(cutout.annotation)
    if isinstance(source.get("segmentation"), list):
        moved = [(np.reshape(p, (-1, 2)) + (x, y)).ravel() for p in source["segmentation"]]
        source["segmentation"] = moved
    if "keypoints" in source:
        points = np.reshape(source["keypoints"], (-1, 3))
        source["keypoints"] = np.where(points[:, 2:] > 0, points + (x, y, 0), points).ravel()
    return source


def check_label(law, copy, source, copy_paste, rule):
    """One copy's annotation against its source's."""
    matrix = np.array(copy["copy_paste"]["matrix"])
    law("sources are small and no crowds", source["area"] < rule.small_area)
    law("sources are small and no crowds", not source["iscrowd"])
    law("sources have masks, or boxes are allowed", rule.boxes or source.get("segmentation"))

    scale = np.sqrt(np.linalg.det(matrix[:, :2]))
    angle = degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
    upright = not source.get("segmentation")
    least, most = (0, 0) if upright else copy_paste.jitter.rotation
    low, high = copy_paste.jitter.scale
    law("scale is in its range", low - 1e-9 <= scale <= high + 1e-9, scale)
    law("rotation is in its range", least - 1e-9 <= angle <= most + 1e-9, angle)
    similar = scale * np.array(
        [
            [np.cos(np.radians(angle)), -np.sin(np.radians(angle))],
            [np.sin(np.radians(angle)), np.cos(np.radians(angle))],
        ]
    )
    law("the map is a rotation and a scale", np.allclose(similar, matrix[:, :2]))

    if isinstance(source.get("segmentation"), list):
        for old, new in zip(source["segmentation"], copy["segmentation"], strict=True):
            image_of = np.reshape(old, (-1, 2)) @ matrix[:, :2].T + matrix[:, 2]
            law(
                "polygons are the affine image of their source's",
                np.allclose(image_of, np.reshape(new, (-1, 2)), atol=1e-6),
            )
        law("area follows scale squared", np.isclose(copy["area"], source["area"] * scale**2))
    kept = set(source) - {"id", "bbox", "area", "segmentation", "keypoints", "iscrowd"}
    law("all other keys are carried along", all(copy[k] == source[k] for k in kept))
    law("no key is made up", set(copy) == set(source) - {"id"} | {"iscrowd", "copy_paste"})
    if "keypoints" in source:
        old, new = (np.reshape(a["keypoints"], (-1, 3)) for a in (source, copy))
        seen = old[:, 2] > 0
        moved = old[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        law("keypoints keep their visibility", (old[:, 2] == new[:, 2]).all())
        law("keypoints move with their object", np.allclose(moved[seen], new[seen, :2]))
        law("unlabelled keypoints stay", (old[~seen] == new[~seen]).all())


def check_form(law, annotation, height, width):
    """One annotation in itself."""
    segmentation = annotation.get("segmentation")
    x0, y0, x1, y1 = box_of(annotation)
    if segmentation is None:
        law("no annotation is empty", x1 > x0 and y1 > y0, annotation)
        return
    mask = raster(segmentation, height, width)
    if isinstance(segmentation, list):
        flat = [all(len(p) >= 6 and len(p) % 2 == 0 for p in segmentation)]
        law("polygons have three points or more", flat and all(flat), annotation)
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
        tight = [*points.min(axis=0), *points.max(axis=0)]
    else:
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]
    law("no annotation is empty", mask.any() and annotation["area"] > 0, annotation)
    law("boxes are the bounds of their masks", np.allclose(tight, [x0, y0, x1, y1]))
    plain = all(type(v) in (int, float) for v in annotation["bbox"])
    law("boxes are plain numbers", plain, annotation["bbox"])


def check_mask(law, copy, paste, height, width):
    """The label's mask and the pixels that were pasted are the same."""
    pasted = np.zeros((height, width), np.uint8)
    h, w = paste.mask.shape
    pasted[paste.y : paste.y + h, paste.x : paste.x + w] = paste.mask
    if copy.get("segmentation"):
        same = (raster(copy["segmentation"], height, width) == pasted).all()
    else:
        x0, y0, x1, y1 = box_of(copy)
        same = (raster([[x0, y0, x1, y0, x1, y1, x0, y1]], height, width) == pasted).all()
    law("the pixels pasted are those of the label's mask", same)
    if isinstance(copy.get("segmentation"), dict):
        law("the area of an RLE is its pixels", copy["area"] == pasted.sum())


def check_pixels(law, image, result, plan, blur):
    """Inside the masks the warped source, elsewhere the untouched background."""
    owner = np.full(image.shape[:2], -1)
    near = np.zeros(image.shape[:2], bool)
    rim = blur // 2
    for i, paste in enumerate(plan.pastes):
        ys, xs = np.nonzero(paste.mask)
        owner[ys + paste.y, xs + paste.x] = i
        for dy in range(-rim, rim + 1):
            for dx in range(-rim, rim + 1):
                y = (ys + paste.y + dy).clip(0, image.shape[0] - 1)
                x = (xs + paste.x + dx).clip(0, image.shape[1] - 1)
                near[y, x] = True
    if blur:
        law("only a rim of half the kernel changes around a mask", (result == image)[~near].all())
        return
    law("the background is untouched", (result == image)[owner < 0].all())
    for i, paste in enumerate(plan.pastes):
        ys, xs = np.nonzero(owner == i)
        if len(ys):
            source = image if paste.pixels is None else paste.pixels
            exact = warped(source, paste.matrix, xs, ys)
            off = np.abs(result[ys, xs] - exact).max()
            law("pixels pasted are the warped source", off <= PIXEL_TOLERANCE, off)


def warped(image, matrix, xs, ys):
    """(N, C) float64: the image under a map, at some pixels, bilinear, edges repeated outside."""
    centres = np.column_stack([xs, ys]) + 0.5
    x, y = ((centres - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T - 0.5).T
    height, width = image.shape[:2]
    total = np.zeros((len(xs), image.shape[2]))
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    for dx in (0, 1):
        for dy in (0, 1):
            share = np.abs(1 - dx - (x - x0)) * np.abs(1 - dy - (y - y0))
            pixel = image[(y0 + dy).clip(0, height - 1), (x0 + dx).clip(0, width - 1)]
            total += share[:, None] * pixel
    return total


def box_of(annotation):
    x, y, a, b = annotation["bbox"]
    return (x, y, a, b) if annotation["bbox_mode"] == 0 else (x, y, x + a, y + b)


def segmentation_of(annotation):
    if annotation.get("segmentation"):
        return annotation["segmentation"]
    x0, y0, x1, y1 = box_of(annotation)
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def geometry_of(segmentation):
    """What the polygons enclose; None for RLE, and for outlines that cross or retrace themselves.

    There is no agreement on what the latter enclose; COCO's tools have the word for them.
    """
    if isinstance(segmentation, dict):
        return None
    parts = [shapely.Polygon(np.reshape(p, (-1, 2))) for p in segmentation]
    return shapely.union_all(parts) if shapely.is_valid(parts).all() else None


def opencv_raster(geometry, height, width):
    """(H, W) bool: pixels whose centre a polygon holds, drawn by OpenCV at four times the size."""
    fine = np.zeros((4 * height, 4 * width), np.uint8)
    for polygon in shapely.get_parts(geometry):
        rings = [np.asarray(r.coords) for r in (polygon.exterior, *polygon.interiors)]
        fixed = [np.rint((4 * r - 0.5) * 256).astype(np.int32) for r in rings]
        cv2.fillPoly(fine, fixed, 1, shift=8)
    return fine[2::4, 2::4].astype(bool)


def check_apart(law, annotations, copies, gap, height, width):
    """No copy's mask overlaps any other's, in any of three ways to look at it."""
    if not copies:
        return
    everyone = [segmentation_of(a) for a in [*annotations, *copies]]
    masks = [raster(s, height, width).astype(bool) for s in everyone]
    shapes = [geometry_of(s) for s in everyone]
    opencv = [
        mask if shape is None else opencv_raster(shape, height, width)
        for mask, shape in zip(masks, shapes, strict=True)
    ]
    for i in range(len(annotations), len(everyone)):
        rows, columns = np.nonzero(masks[i])
        ys, xs = np.nonzero(masks[i] | opencv[i])
        part = np.s_[
            max(ys.min() - gap, 0) : ys.max() + gap + 1, max(xs.min() - gap, 0) : xs.max() + gap + 1
        ]
        near = np.zeros((height, width), bool)
        for dy in range(-gap, gap + 1):
            for dx in range(-gap, gap + 1):
                near[(rows + dy).clip(0, height - 1), (columns + dx).clip(0, width - 1)] = True
        for j in range(i):
            law("masks are apart by COCO's tools", not (near[part] & masks[j][part]).any(), (i, j))
            both = opencv[i][part] & opencv[j][part]
            law("masks are apart by OpenCV", not both.any(), (i, j))
            if shapes[i] is not None and shapes[j] is not None:
                # Outlines reach into the pixels that surround those owned, and no further.
                common = shapely.area(shapely.intersection(shapes[i], shapes[j]))
                law("outlines share no area by shapely", common < SLIVER, (i, j, common))
                if gap:
                    distance = shapely.distance(shapes[i], shapes[j])
                    law("outlines keep the gap but for a pixel", distance > gap - 1, (i, j))


def check_visible(law, plan, annotations, height, width):
    """Where a copy covers something, the label below follows: the topmost instance owns a pixel."""
    top = np.full((height, width), -1)
    for i, paste in enumerate(plan.pastes):
        h, w = paste.mask.shape
        top[paste.y : paste.y + h, paste.x : paste.x + w][paste.mask > 0] = i
    matrices = [p.matrix[:, :2].tolist() for p in plan.pastes]  # a bank's are moved
    given = {id(a) for a in annotations}
    for annotation in plan.annotations:
        if not annotation.get("segmentation"):
            continue
        mask = raster(annotation["segmentation"], height, width).astype(bool)
        copy = annotation.get("copy_paste")
        order = matrices.index([row[:2] for row in copy["matrix"]]) if copy else -1
        law("no mask holds a pixel of a later copy", not (mask & (top > order)).any())
        if order < 0 and id(annotation) not in given:
            law("a changed label's area is its pixels", annotation["area"] == mask.sum())
