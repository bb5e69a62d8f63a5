"""Copy-paste as a transform of torchvision's v2: in its own dataset, loader and compositions."""

import hosts
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from smallobj_d2 import CopyPaste, SameImage, SmallObjError, SourceRule
from smallobj_d2.adapters.torchvision import CopyPasteTransform
from smallobj_d2.copy_paste.bank import Cutout, ObjectBank
from smallobj_d2.datasets.synthetic import make_dataset

ALL = CopyPaste(copies=3)


def sample(**more):
    """An image and a target with everything that CocoDetection may give, and more."""
    size = (hosts.HEIGHT, hosts.WIDTH)
    masks = torch.from_numpy(hosts.masks())
    target = {
        "image_id": 7,
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(hosts.boxes(), dtype=torch.float32), format="XYXY", canvas_size=size
        ),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.tensor([3, 5, 3, 9]),
        "area": [80.0, 63.0, 1400.0, 99.0],
        "iscrowd": [0, 0, 0, 0],
    }
    image = torch.from_numpy(hosts.image()).permute(2, 0, 1)
    return tv_tensors.Image(image), target | more


def without(target, *keys):
    return {k: v for k, v in target.items() if k not in keys}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Synthetic scenes as CocoDetection with a transform."""
    scenes = make_dataset(tmp_path_factory.mktemp("v2"), "s", 6, seed=1, size=96, progress=False)

    def dataset(transform, target_keys):
        plain = CocoDetection(scenes.parent / "images", scenes, transforms=transform)
        return wrap_dataset_for_transforms_v2(plain, target_keys=target_keys)

    return dataset


def test_copies_have_masks_boxes_and_labels_and_overlap_nothing():
    image, target = sample()
    new_image, new = CopyPasteTransform(ALL, p=1, seed=0)(image, target)
    copies = hosts.require_apart(new["masks"].numpy())
    assert copies == 3
    assert new["labels"].tolist() == [3, 5, 3, 9, 3, 3, 3]
    assert new["iscrowd"] == [0] * 7
    assert isinstance(new_image, tv_tensors.Image)
    assert isinstance(new["masks"], tv_tensors.Mask)
    assert isinstance(new["boxes"], tv_tensors.BoundingBoxes)
    assert new["masks"].dtype == torch.uint8
    for i in range(4, 7):
        assert new["boxes"][i].tolist() == hosts.tight(new["masks"][i].numpy())
        assert new["area"][i] == new["masks"][i].sum()
    for key, value in target.items():  # what was there comes first, as it was
        if key != "image_id":
            assert all((a == b) if isinstance(a, float | int) else (a == b).all()
                       for a, b in zip(new[key], value, strict=False)), key  # fmt: skip
    background = ~new["masks"][4:].bool().any(dim=0)
    assert (new_image == image)[:, background].all()
    assert not (new_image == image).all()


def test_a_sample_is_what_the_core_makes_of_the_same_masks():
    image, target = sample()
    annotations = [
        {"bbox": box, "bbox_mode": 0, "area": area, "segmentation": mask, "iscrowd": 0}
        for box, area, mask in zip(hosts.boxes(), target["area"], hosts.masks(), strict=True)
    ]
    rng = np.random.default_rng((5, 2, 7))  # seed, epoch, image id
    rng.random()  # whether to augment
    expected, labels = ALL(hosts.image(), annotations, rng)
    transform = CopyPasteTransform(ALL, p=1, seed=5)
    transform.set_epoch(2)
    new_image, new = transform(image, target)
    assert (new_image.permute(1, 2, 0).numpy() == expected).all()
    assert (new["masks"].numpy() == [a["segmentation"] for a in labels]).all()


@pytest.mark.parametrize("target_keys", ["all", ("boxes", "masks", "labels", "image_id")])
def test_it_works_in_coco_detection(coco, target_keys):
    dataset = coco(CopyPasteTransform(ALL, p=1, seed=0), target_keys)
    plain = coco(None, target_keys)
    pasted = 0
    for (image, new), (_, old) in zip(dataset, plain, strict=True):
        assert isinstance(image, Image.Image)
        if "masks" not in old:  # an image without annotations
            assert new == old
            continue
        count = len(new["masks"])
        pasted += count - len(old["masks"])
        assert {len(v) for k, v in new.items() if k != "image_id"} == {count}
        if target_keys == "all":
            for i in range(len(old["masks"]), count):
                assert (coco_mask.decode(new["segmentation"][i]) == new["masks"][i].numpy()).all()
                x0, y0, x1, y1 = new["boxes"][i].tolist()
                assert new["bbox"][i] == [x0, y0, x1 - x0, y1 - y0]
                assert new["category_id"][i] == new["labels"][i]
    assert pasted > 10


def test_it_works_before_other_transforms(coco):
    steps = [
        v2.ToImage(),
        CopyPasteTransform(ALL, p=1),
        v2.RandomHorizontalFlip(),
        v2.Resize((64, 64)),
        v2.ToDtype(torch.float32, scale=True),
    ]
    image, target = coco(v2.Compose(steps), ("boxes", "masks", "labels"))[0]
    assert image.dtype == torch.float32
    assert image.shape[1:] == target["masks"].shape[1:] == target["boxes"].canvas_size == (64, 64)
    assert len(target["boxes"]) == len(target["labels"]) > 5


def first(batch):
    return batch[0]


def labels_of(dataset, workers, persistent=False, transform=None):
    """Two epochs: the sums of the pixels."""
    loader = DataLoader(
        dataset, num_workers=workers, collate_fn=first, persistent_workers=persistent
    )
    epochs = []
    for epoch in range(2):
        transform.set_epoch(epoch)
        epochs.append([int(np.asarray(image, np.int64).sum()) for image, _ in loader])
    return epochs


def test_with_a_seed_samples_do_not_depend_on_workers(coco):
    transform = CopyPasteTransform(ALL, p=0.7, seed=3)
    dataset = coco(transform, ("boxes", "masks", "labels", "image_id"))
    here = labels_of(dataset, 0, transform=transform)
    assert here == labels_of(dataset, 2, persistent=True, transform=transform)
    assert here[0] != here[1]


def test_without_a_seed_torch_decides():
    transform, (image, target) = CopyPasteTransform(ALL, p=1), sample()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(image, without(target, "image_id"))[0])
    assert (results[0] == results[1]).all()
    assert not (results[0] == results[2]).all()


@pytest.mark.parametrize("fmt", ["XYWH", "CXCYWH"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_boxes_keep_their_format(fmt, dtype):
    image, target = sample()
    boxes = v2.functional.convert_bounding_box_format(target["boxes"], new_format=fmt)
    given = tv_tensors.wrap(boxes.to(dtype), like=boxes)
    _, new = CopyPasteTransform(ALL, p=1, seed=0)(image, {**target, "boxes": given})
    assert (new["boxes"].format.value, new["boxes"].dtype) == (fmt, dtype)
    back = v2.functional.convert_bounding_box_format(new["boxes"], new_format="XYXY")
    want = torch.tensor([hosts.tight(m.numpy()) for m in new["masks"]])
    assert (back - want).abs().max() <= 1
    if fmt == "XYWH":
        assert (back == want).all()


def test_boxes_alone_are_pasted_as_rectangles_where_that_is_allowed():
    image, target = sample()
    target = without(target, "masks")
    with pytest.raises(SmallObjError, match=r"no masks to cut objects out by.*boxes=True"):
        CopyPasteTransform(ALL, p=1, seed=0)(image, target)
    rectangles = CopyPaste(copies=3, sources=SameImage(SourceRule(boxes=True)))
    _, new = CopyPasteTransform(rectangles, p=1, seed=0)(image, target)
    assert len(new["boxes"]) == len(new["labels"]) == 7
    assert "masks" not in new


def test_overlap_changes_the_masks_below():
    everywhere = CopyPaste(copies=30, allow_overlap=True, margin=0)
    _, new = CopyPasteTransform(everywhere, p=1, seed=0)(*sample())
    assert (new["masks"][:4].numpy() != hosts.masks()).any()
    for mask, box, area in zip(new["masks"].numpy(), new["boxes"], new["area"], strict=True):
        assert mask.sum() == area
        assert box.tolist() == hosts.tight(mask)


def test_a_crowd_is_not_copied_and_its_place_is_taken():
    image, target = sample(iscrowd=torch.tensor([1, 0, 0, 0]))
    _, new = CopyPasteTransform(ALL, p=1, seed=0)(image, target)
    assert len(new["masks"]) == 4  # it was the only candidate


def test_other_keys_are_extended_as_told():
    image, target = sample(track=["a", "b", "c", "d"], orig_size=torch.tensor([90, 110]))
    for keys in ({}, {"instance_keys": ["track"]}, {"image_keys": ["orig_size"]}):
        with pytest.raises(SmallObjError, match=r"target\['(track|orig_size)'\] is a .*_keys="):
            CopyPasteTransform(ALL, **keys)(image, target)
    transform = CopyPasteTransform(
        ALL, p=1, seed=0, instance_keys=["track"], image_keys=["orig_size"]
    )
    _, new = transform(image, target)
    assert new["track"] == ["a", "b", "c", "d", "a", "a", "a"]
    assert new["orig_size"].tolist() == [90, 110]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": torch.tensor([1])}, "entries for different numbers"),
        ({"boxes": torch.zeros(4, 4)}, "must be tv_tensors.BoundingBoxes"),
        ({"image_id": "a"}, "image_id is 'a'; with a seed"),
        ({"keypoints": torch.zeros(4, 1, 3)}, "would stay where their source is"),
        ({"other": tv_tensors.KeyPoints(torch.zeros(4, 2), canvas_size=(90, 110))}, "would stay"),
        (
            {
                "boxes": tv_tensors.BoundingBoxes(
                    torch.zeros(4, 5), format="CXCYWHR", canvas_size=(90, 110)
                )
            },
            "are CXCYWHR; copy-paste takes upright boxes",
        ),
        ({"masks": tv_tensors.Mask(torch.zeros(4, 5, 5, dtype=torch.uint8))}, "has shape"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    image, target = sample(**change)
    with pytest.raises(SmallObjError, match=words):
        CopyPasteTransform(ALL, p=1, seed=0)(image, target)


def test_a_target_that_is_none_is_refused_with_what_to_do():
    """CocoDetection without its wrapper, and `transform` in place of `transforms`."""
    image, _ = sample()
    transform = CopyPasteTransform(ALL, p=1)
    for given in ((image, [{"bbox": [1, 2, 3, 4]}]), (image,), (Image.fromarray(hosts.image()),)):
        with pytest.raises(SmallObjError, match="`transforms`, not as `transform`"):
            transform(*given)


def test_arrays_stay_arrays():
    image, target = sample()
    arrays = {k: np.asarray(target[k]) for k in ("masks", "labels", "area", "iscrowd")}
    transform = CopyPasteTransform(ALL, p=1, seed=0)
    _, expected = transform(image, target)
    _, new = transform(image, target | arrays)
    for key, given in arrays.items():
        assert isinstance(new[key], np.ndarray)
        assert new[key].dtype == given.dtype
        assert (new[key] == np.asarray(expected[key])).all()


def test_a_float_image_is_refused():
    image, target = sample()
    with pytest.raises(SmallObjError, match="uint8"):
        CopyPasteTransform(ALL, p=1)(image.float() / 255, target)


def test_arguments_are_checked():
    with pytest.raises(SmallObjError, match="p is 2"):
        CopyPasteTransform(ALL, p=2)
    with pytest.raises(SmallObjError, match="seed is -1"):
        CopyPasteTransform(ALL, seed=-1)
    cutout = Cutout(np.zeros((5, 5, 3), np.uint8), {}, {}, (0, 0))
    bank = ObjectBank([[cutout]])
    with pytest.raises(SmallObjError, match="objects of the image itself"):
        CopyPasteTransform(CopyPaste(sources=bank))


def test_pil_and_plain_tensors_stay_what_they_are():
    image, target = sample()
    transform = CopyPasteTransform(ALL, p=1, seed=0)
    expected = transform(image, target)[0]
    plain = transform(image.as_subclass(torch.Tensor), target)[0]
    assert type(plain) is torch.Tensor
    assert (plain == expected).all()
    pil = transform((Image.fromarray(hosts.image()), target))[0]  # a pair works as well
    assert (np.asarray(pil) == expected.permute(1, 2, 0).numpy()).all()
