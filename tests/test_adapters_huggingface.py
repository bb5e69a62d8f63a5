"""Copy-paste between a Hugging Face dataset and the processors of DETR and RT-DETR."""

from copy import deepcopy
from functools import partial

import hosts
import numpy as np
import pytest
import torch
from PIL import Image

from smallobj_d2 import CopyPaste, SameImage, SmallObjError, SourceRule
from smallobj_d2.adapters.huggingface import CopyPasteTransform
from smallobj_d2.copy_paste.bank import Cutout, ObjectBank

COPY = CopyPaste(copies=3)


def collected(images, annotations, return_tensors):
    """In place of a processor: what it is given."""
    return {"images": images, "annotations": annotations}


def objects(**more):
    things = [
        {
            "id": i,
            "area": float(w * h),
            "bbox": [float(x), float(y), float(w), float(h)],
            "category": 10 + i,
            "segmentation": [[float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]],
        }
        for i, (x, y, w, h) in enumerate(hosts.PLACES)
    ]
    return [t | more for t in things]


def as_lists(things):
    return {key: [t[key] for t in things] for key in things[0]}


def batch(things, image_id=7):
    image = Image.fromarray(hosts.image())
    return {"image": [image], "image_id": [image_id], "objects": [things]}


def augmented(things, **more):
    got = CopyPasteTransform(COPY, collected, **{"p": 1, "seed": 5, **more})(batch(things))
    return got["images"][0], got["annotations"][0]


@pytest.mark.parametrize("form", [list, as_lists])
def test_a_sample_is_what_the_core_makes_of_the_same_annotations(form):
    rng = np.random.default_rng((5, 0, 7))  # seed, epoch, image id
    rng.random()  # whether to augment
    given = [{**o, "iscrowd": 0} for o in objects()]
    expected, labels = COPY(hosts.image(), given, rng)
    image, target = augmented(form(objects()))
    assert (image == expected).all()
    assert target["image_id"] == 7
    assert [a["category_id"] for a in target["annotations"]] == [10, 11, 12, 13, 10, 10, 10]
    for a, want in zip(target["annotations"], labels, strict=True):
        assert set(a) == {"area", "bbox", "category_id", "segmentation", "iscrowd"}
        assert all(a[k] == want[k] for k in ("area", "bbox", "segmentation"))


def test_a_bank_is_refused():
    """Its labels are numbers of their own."""
    cutout = Cutout(np.zeros((5, 5, 3), np.uint8), {}, {}, (0, 0))
    with pytest.raises(SmallObjError, match="objects of the image itself"):
        CopyPasteTransform(CopyPaste(sources=ObjectBank([[cutout]])), collected)


def test_copies_overlap_nothing():
    _, target = augmented(objects())
    shapes = [a["segmentation"] for a in target["annotations"]]
    masks = [hosts.raster(s, hosts.HEIGHT, hosts.WIDTH) for s in shapes]
    assert hosts.require_apart(masks) == 3


def test_epochs_and_images_differ():
    transform = CopyPasteTransform(COPY, collected, p=1, seed=0)
    results = {}
    for epoch, image_id in ((0, 1), (1, 1), (0, 2), (0, 1)):
        transform.set_epoch(epoch)
        image = transform(batch(objects(), image_id))["images"][0].tobytes()
        assert results.setdefault((epoch, image_id), image) == image
    assert len(set(results.values())) == 3


def test_without_a_seed_torch_decides():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augmented(objects(), seed=None)[0].tobytes())
    assert results[0] == results[1] != results[2]


def test_crowds_are_left_out_but_not_pasted_over():
    things = objects()
    things[2]["iscrowd"] = 1
    _, target = augmented(things)
    assert [a["category_id"] for a in target["annotations"]] == [10, 11, 13, 10, 10, 10]
    shapes = [a["segmentation"] for a in target["annotations"]]
    masks = [hosts.raster(s, hosts.HEIGHT, hosts.WIDTH) for s in shapes]
    assert hosts.require_apart([hosts.masks()[2], *masks], originals=4) == 3


def test_boxes_alone_need_leave_to_be_pasted():
    things = [{k: v for k, v in o.items() if k != "segmentation"} for o in objects()]
    with pytest.raises(SmallObjError, match=r"no masks to cut objects out by.*`segmentation`"):
        augmented(things)
    rectangles = CopyPaste(sources=SameImage(SourceRule(boxes=True)))
    got = CopyPasteTransform(rectangles, collected, p=1)(batch(things))
    assert len(got["annotations"][0]["annotations"]) == 5


def test_an_image_without_masks_passes_where_the_dataset_has_them():
    things = [{**o, "segmentation": []} for o in objects()]
    _, target = augmented(things)
    assert len(target["annotations"]) == 4


def test_boxes_of_two_corners_are_refused():
    things = [{**o, "bbox": [x, y, x + w, y + h]} for o in objects() for x, y, w, h in [o["bbox"]]]
    with pytest.raises(SmallObjError, match="fits its mask as x0, y0, x1, y1 only"):
        augmented(things)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_16_bits_or_more_are_refused(mode):
    image = Image.new(mode, (hosts.WIDTH, hosts.HEIGHT))
    with pytest.raises(SmallObjError, match=f"`image` is of mode {mode}"):
        CopyPasteTransform(COPY, collected, p=1)({**batch(objects()), "image": [image]})


def test_a_deep_copy_hears_of_epochs_too():
    """Some operations on a dataset copy its transform."""
    transform = CopyPasteTransform(COPY, collected, p=1, seed=0)
    twin = deepcopy(transform)
    transform.set_epoch(3)
    one, two = (t(batch(objects()))["images"][0] for t in (transform, twin))
    assert (one == two).all()


def test_what_is_missing_is_named():
    given = batch(objects())
    del given["image_id"]
    with pytest.raises(SmallObjError, match="A batch has no image_id"):
        CopyPasteTransform(COPY, collected)(given)
    with pytest.raises(SmallObjError, match="`image` is ndarray"):
        CopyPasteTransform(COPY, collected)({**batch(objects()), "image": [hosts.image()]})
    with pytest.raises(SmallObjError, match="has no 'category'"):
        augmented([{"bbox": [1, 2, 3, 4]}])
    with pytest.raises(SmallObjError, match="image_id is 'a'"):
        CopyPasteTransform(COPY, collected, seed=0)(batch(objects(), "a"))


@pytest.mark.parametrize("name", ["DetrImageProcessor", "RTDetrImageProcessor"])
@pytest.mark.parametrize("form", [list, as_lists])
def test_with_the_real_libraries(name, form):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    columns = batch(form(objects()))
    size = {"height": 2 * hosts.HEIGHT, "width": 2 * hosts.WIDTH}
    processor = getattr(transformers, name)(size=size)
    with_masks = partial(processor, return_segmentation_masks=True)
    transform = CopyPasteTransform(COPY, with_masks, p=1, seed=5)
    item = datasets.Dataset.from_dict(columns).with_transform(transform)[0]
    assert item["pixel_values"].shape[1:] == (2 * hosts.HEIGHT, 2 * hosts.WIDTH)
    labels = item["labels"]
    assert labels["class_labels"].tolist() == [10, 11, 12, 13, 10, 10, 10]
    _, target = augmented(objects())
    boxes = torch.tensor([a["bbox"] for a in target["annotations"]])
    boxes[:, :2] += boxes[:, 2:] / 2
    scale = torch.tensor([hosts.WIDTH, hosts.HEIGHT] * 2)
    assert torch.allclose(labels["boxes"], boxes / scale, atol=1e-5)
    if name == "DetrImageProcessor":  # the other makes no masks
        assert len(labels["masks"]) == 7
