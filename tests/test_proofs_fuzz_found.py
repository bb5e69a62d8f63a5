"""What `proofs.fuzz` has found, each as the smallest case of it; and a little more fuzzing."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from test_datasets_check import HEIGHT, WIDTH, annotation, good, image, write

from proofs import fuzz
from smallobj_d2.datasets import images
from smallobj_d2.datasets.check import check_coco
from smallobj_d2.datasets.coco import load_coco
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.sampling import Draw


@pytest.mark.parametrize("side", [10**30, 1e308, 200_000])
def test_a_box_of_astronomic_size_stops_the_loader_and_not_the_training(tmp_path, side):
    """It passed as one that leaves the image, and copy-paste refused it in the middle of a run."""
    data = good()
    annotation(bbox=[10, 10, 20, side], segmentation=None)(data)
    path = write(tmp_path, data)
    assert "bbox-off-image" in [f.kind for f in check_coco(path)]
    with pytest.raises(SmallObjError, match="annotation 11"):
        load_coco(path, tmp_path)


@pytest.mark.parametrize("side", [10**30, 2**63, 1e308])
def test_an_image_of_astronomic_size_is_named(tmp_path, side):
    """numpy's whole numbers end at 2**63: OverflowError."""
    data = good()
    image(height=side)(data)
    assert "size-huge" in [f.kind for f in check_coco(write(tmp_path, data))]


def test_damage_after_the_first_frame_does_not_matter(tmp_path):
    """Counting the frames reads all of them; training reads the first only."""
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    buffer = io.BytesIO()
    frames = [Image.fromarray(noise), Image.fromarray(255 - noise)]
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    path = tmp_path / "a.tif"
    path.write_bytes(buffer.getvalue()[:-40])
    found = images.look_at(str(tmp_path), (str(path), HEIGHT, WIDTH))
    assert {kind for kind, _ in found} <= {"image-gray", "image-frames"}
    record = {"file_name": str(path), "height": HEIGHT, "width": WIDTH}
    with images.opened(record) as file:
        assert np.array_equal(np.array(file), noise)


def test_a_header_that_asks_for_more_than_there_is_memory_is_a_damaged_image(tmp_path):
    """Pillow's reader of JPEG 2000 believes the length of a box: MemoryError."""
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(buffer, "JPEG2000")
    content = bytearray(buffer.getvalue())
    at = content.index(b"jp2h") - 4
    content[at : at + 4] = (1).to_bytes(4, "big")  # the length follows, in eight bytes
    content[at + 8 : at + 16] = (1 << 62).to_bytes(8, "big")
    path = tmp_path / "a.jp2"
    path.write_bytes(content)
    ((kind, what),) = images.look_at(str(tmp_path), (str(path), HEIGHT, WIDTH))
    assert kind == "image-damaged"
    assert what
    with (
        pytest.raises(UnreadableImage, match="cannot be read"),
        images.opened({"file_name": str(path), "height": HEIGHT, "width": WIDTH}),
    ):
        pass


@pytest.mark.parametrize("engine", ["detectron2", "torchvision"])
def test_a_tiff_that_says_how_it_lies_is_turned_once(tmp_path, engine):
    """Pillow turns a TIFF while reading it, and Detectron2 then turned it again."""
    upright = np.random.default_rng(0).integers(0, 255, (WIDTH, HEIGHT, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    # Orientation 6: to be turned by 90 degrees clockwise.
    Image.fromarray(np.rot90(upright)).save(path, tiffinfo={0x0112: 6})
    found = images.look_at(str(tmp_path), (str(path), WIDTH, HEIGHT))
    assert [kind for kind, _ in found] == ["image-turned"]
    read = pytest.importorskip(f"smallobj_d2.engines.{engine}.mapper").read_image
    record = {"file_name": str(path), "height": WIDTH, "width": HEIGHT}
    assert np.array_equal(read(record, "RGB"), upright)


def test_one_instance_without_a_mask_among_others_is_left_out_of_training(tmp_path):
    """Detectron2's own method ends in KeyError: 'segmentation'."""
    data = good()
    data["annotations"] = data["annotations"][:1] * 2
    data["annotations"] = [{**a, "id": 20 + i} for i, a in enumerate(data["annotations"])]
    del data["annotations"][1]["segmentation"]
    record = load_coco(write(tmp_path, data), tmp_path).records[0]
    Image.new("RGB", (WIDTH, HEIGHT)).save(record["file_name"])
    for mapper in fuzz.mappers():
        sample = mapper({**record, "draw": Draw(0, 0, 0)})
        fuzz.check_sample(sample)
        found = sample["target"]["boxes"] if "target" in sample else sample["instances"]
        assert len(found) == 1


@pytest.mark.parametrize("kind", fuzz.TRIALS)
def test_a_little_fuzzing(tmp_path, kind):
    """docs/review/robustness.md has the figures of much more of it."""
    outcomes: Counter = Counter()
    for number in range(1_000_000, 1_000_060):
        outcome, failure = fuzz.trial(kind, number, tmp_path)
        assert failure is None, f"{kind}:{number}\n{failure}"
        outcomes[outcome] += 1
    assert len(outcomes) > 1


def test_the_dataset_that_is_damaged_is_a_good_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(fuzz.scenes()[0]))
    assert {f.severity for f in check_coco(path)} <= {"note", "warning"}
