"""Claims about the procedural scenes: exact masks, COCO's statistics, the same bytes every time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO
from shapely import Polygon

from smallobj_d2.datasets.synthetic import (
    CATEGORIES,
    SyntheticScene,
    make_dataset,
    make_scene,
    make_splits,
)
from smallobj_d2.datasets.synthetic.layout import polygons_of
from smallobj_d2.errors import SmallObjError
from smallobj_d2.sizes import BANDS

NUM_SCENES = 400


def scene_shape(rng: np.random.Generator, longest: int) -> tuple[int, int]:
    shorter = int(rng.integers(round(0.75 * longest), longest + 1))
    return (shorter, longest) if rng.random() < 0.5 else (longest, shorter)


def many_scenes(longest: int, count: int) -> list[SyntheticScene]:
    generators = [np.random.default_rng((7, i)) for i in range(count)]
    return [make_scene(rng, scene_shape(rng, longest)) for rng in generators]


@pytest.fixture(scope="module")
def at_256() -> list[SyntheticScene]:
    return many_scenes(256, NUM_SCENES)


@pytest.fixture(scope="module")
def at_480() -> list[SyntheticScene]:
    return many_scenes(480, 150)


@pytest.fixture(scope="module")
def crowded() -> list[SyntheticScene]:
    generators = [np.random.default_rng((8, i)) for i in range(20)]
    return [make_scene(rng, (220, 256), crowd_probability=1) for rng in generators]


def instances(scene: SyntheticScene) -> list[tuple[int, dict[str, Any]]]:
    """(label in the label map, annotation) of all that are not crowds."""
    return [(i, a) for i, a in enumerate(scene.annotations, 1) if not a["iscrowd"]]


def decode(annotation: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """(H, W) bool, what pycocotools makes of a segmentation."""
    rles = mask_util.frPyObjects(annotation["segmentation"], *shape)
    if isinstance(rles, list):
        rles = mask_util.merge(rles)
    return mask_util.decode(rles) > 0


def areas_of(some: list[SyntheticScene]) -> list[np.ndarray]:
    return [np.array([a["area"] for _, a in instances(s)]) for s in some]


def share(areas: np.ndarray, band: str) -> Any:
    low, high = BANDS[band]
    return (areas >= low) & (areas < high)


class TestMasks:
    def test_polygons_are_what_was_painted(self, at_256: list[SyntheticScene]) -> None:
        ious = []
        for scene in at_256[:200]:
            for label, annotation in instances(scene):
                painted = scene.labels == label
                annotated = decode(annotation, scene.labels.shape)
                ious.append((painted & annotated).sum() / (painted | annotated).sum())
        # Exact but for the seam along an occluder, where pycocotools' grid of fifths of a pixel
        # may turn a pixel over.
        assert min(ious) > 0.85
        assert np.mean(np.array(ious) > 0.95) > 0.99
        assert np.mean(ious) > 0.995

    def test_an_object_that_nothing_hides_is_exact(self) -> None:
        for i in range(60):
            rng = np.random.default_rng((9, i))
            scene = make_scene(rng, (300, 400))
            front = len(scene.annotations)  # the last one painted has nothing in front
            if front:
                annotation = scene.annotations[-1]
                assert (decode(annotation, (300, 400)) == (scene.labels == front)).all()

    def test_most_small_objects_are_whole(self, at_256: list[SyntheticScene]) -> None:
        small = [a for s in at_256 for _, a in instances(s) if share(a["area"], "small")]
        assert np.mean([len(a["segmentation"]) == 1 for a in small]) > 0.9

    def test_some_objects_are_cut_in_parts(self, at_256: list[SyntheticScene]) -> None:
        parts = [len(a["segmentation"]) for s in at_256 for _, a in instances(s)]
        assert 0.03 < np.mean(np.array(parts) > 1) < 0.3

    def test_every_polygon_can_train(
        self, at_256: list[SyntheticScene], at_480: list[SyntheticScene]
    ) -> None:
        for scene in at_256 + at_480:
            height, width = scene.labels.shape
            for _, annotation in instances(scene):
                assert annotation["segmentation"]
                for polygon in annotation["segmentation"]:
                    points = np.reshape(polygon, (-1, 2))
                    assert len(points) >= 3
                    assert (points >= 0).all()
                    assert (points <= (width, height)).all()
                    rle = mask_util.frPyObjects([polygon], height, width)
                    assert mask_util.area(rle)[0] > 0
                assert annotation["area"] >= 12

    def test_a_part_without_pixels_is_left_out(self) -> None:
        needle = Polygon([(5, 5.1), (55, 5.1), (55, 5.16)])  # 1.5 px, between two rows
        square = Polygon([(10, 10), (50, 10), (50, 50), (10, 50)])
        assert polygons_of(needle, 60, 60) == []
        assert len(polygons_of(needle.union(square), 60, 60)) == 1

    def test_area_is_that_of_the_mask_and_the_box_that_of_the_outline(
        self, at_256: list[SyntheticScene]
    ) -> None:
        for scene in at_256[:100]:
            for annotation in scene.annotations:
                mask = decode(annotation, scene.labels.shape)
                assert annotation["area"] == mask.sum()
                if annotation["iscrowd"]:
                    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                    box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
                else:
                    points = np.concatenate(annotation["segmentation"]).reshape(-1, 2)
                    box = [*points.min(axis=0), *np.ptp(points, axis=0)]
                assert annotation["bbox"] == pytest.approx(box)

    def test_a_hole_is_cut_without_losing_a_pixel(self) -> None:
        square = Polygon([(10, 10), (50, 10), (50, 50), (10, 50)])
        hole = Polygon([(25, 22), (33, 22), (33, 31), (25, 31)])
        polygons = polygons_of(square.difference(hole), 60, 60)
        assert len(polygons) == 2
        mask = decode({"segmentation": polygons}, (60, 60))
        expected = np.zeros((60, 60), bool)
        expected[10:50, 10:50] = True
        expected[22:31, 25:33] = False
        assert (mask == expected).all()


class TestCrowds:
    def test_a_few_images_have_one(self, at_256: list[SyntheticScene]) -> None:
        crowds = [sum(a["iscrowd"] for a in s.annotations) for s in at_256]
        assert max(crowds) == 1
        assert 0.01 < np.mean(crowds) < 0.08

    def test_runs_are_plain_numbers_that_cover_the_image(
        self, crowded: list[SyntheticScene]
    ) -> None:
        found = [(s, a) for s in crowded for a in s.annotations if a["iscrowd"]]
        assert len(found) >= 10
        for scene, crowd in found:
            assert crowd["segmentation"]["size"] == list(scene.labels.shape)
            assert sum(crowd["segmentation"]["counts"]) == scene.labels.size
            json.dumps(crowd)

    def test_region_is_what_was_painted(self, crowded: list[SyntheticScene]) -> None:
        for scene in crowded:
            for label, annotation in enumerate(scene.annotations, 1):
                if annotation["iscrowd"]:
                    painted = scene.labels == label
                    assert (decode(annotation, scene.labels.shape) == painted).all()


class TestStatistics:
    """Table 2 of the paper: 41/34/24% of the objects, in 52/70/82% of the images."""

    def test_objects_by_size(
        self, at_256: list[SyntheticScene], at_480: list[SyntheticScene]
    ) -> None:
        for some in (at_256, at_480):
            areas = np.concatenate(areas_of(some))
            found = [share(areas, band).mean() for band in BANDS]
            assert found == pytest.approx([0.414, 0.343, 0.242], abs=0.07)

    def test_images_by_size(
        self, at_256: list[SyntheticScene], at_480: list[SyntheticScene]
    ) -> None:
        for some in (at_256, at_480):
            found = [np.mean([share(a, band).any() for a in areas_of(some)]) for band in BANDS]
            assert found == pytest.approx([0.518, 0.701, 0.823], abs=0.09)

    def test_large_objects_own_most_of_the_area(self, at_480: list[SyntheticScene]) -> None:
        areas = np.concatenate(areas_of(at_480))
        found = [areas[share(areas, band)].sum() / areas.sum() for band in BANDS]
        assert found[0] < 0.04
        assert found[2] > 0.75

    def test_counts_are_skewed(self, at_256: list[SyntheticScene]) -> None:
        counts = np.array([len(instances(s)) for s in at_256])
        assert 5 < counts.mean() < 8
        assert np.median(counts) < counts.mean() < counts.max() / 2.5
        assert 0 < (counts == 0).mean() < 0.03

    def test_small_objects_come_several_at_once(self, at_256: list[SyntheticScene]) -> None:
        small = np.array([share(a, "small").sum() for a in areas_of(at_256)])
        assert small[small > 0].mean() > 4

    def test_no_category_is_rare(self, at_256: list[SyntheticScene]) -> None:
        ids = [a["category_id"] for s in at_256 for a in s.annotations]
        for category in CATEGORIES:
            assert np.mean(np.array(ids) == category["id"]) > 0.1

    def test_a_scene_without_annotations_can_be_asked_for(self) -> None:
        scene = make_scene(np.random.default_rng(0), (96, 128), empty_probability=1)
        assert scene.annotations == []
        assert not scene.labels.any()


class TestScene:
    def test_has_the_size_and_types_it_says(self) -> None:
        scene = make_scene(np.random.default_rng(0), (100, 140))
        assert scene.image.shape == (100, 140, 3)
        assert scene.image.dtype == np.uint8
        assert scene.labels.shape == (100, 140)
        assert scene.labels.dtype == np.uint16

    def test_is_a_function_of_the_generator(self) -> None:
        one, two = (make_scene(np.random.default_rng(3), (150, 200)) for _ in range(2))
        assert (one.image == two.image).all()
        assert one.annotations == two.annotations

    def test_leaves_the_global_generator_alone(self) -> None:
        before = np.random.get_state()[1]
        make_scene(np.random.default_rng(0), (100, 140))
        assert (np.random.get_state()[1] == before).all()  # type: ignore[index]

    def test_objects_stand_out_from_the_background(self, at_256: list[SyntheticScene]) -> None:
        contrast = []
        for scene in at_256[:100]:
            for label, _ in instances(scene):
                inside = scene.labels == label
                kernel = np.ones((9, 9), np.uint8)
                ring = cv2.dilate(inside.astype(np.uint8), kernel) > inside
                inner, outer = (scene.image[m].mean(0) for m in (inside, ring))
                contrast.append(np.linalg.norm(inner - outer))
        assert np.median(contrast) > 50

    def test_too_small_is_an_error(self) -> None:
        with pytest.raises(SmallObjError, match="at least 64"):
            make_scene(np.random.default_rng(0), (63, 200))


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


class TestDataset:
    def test_same_seed_same_bytes(self, tmp_path: Path) -> None:
        one, two = (
            make_dataset(tmp_path / d, "x", 4, seed=5, size=160, progress=False) for d in "ab"
        )
        assert one != two
        assert contents(one.parent) == contents(two.parent)

    def test_longer_begins_with_shorter(self, tmp_path: Path) -> None:
        short = make_dataset(tmp_path, "short", 3, seed=5, size=160, progress=False)
        long = make_dataset(tmp_path, "long", 6, seed=5, size=160, progress=False)
        images = contents(short.parent / "images")
        assert images.items() <= contents(long.parent / "images").items()
        a, b = (json.loads(p.read_text()) for p in (short, long))
        assert b["images"][:3] == a["images"]
        assert b["annotations"][: len(a["annotations"])] == a["annotations"]

    def test_other_seed_other_images(self, tmp_path: Path) -> None:
        one, two = (
            make_dataset(tmp_path, f"s{s}", 3, seed=s, size=160, progress=False) for s in (0, 1)
        )
        images = [set(contents(p.parent / "images").values()) for p in (one, two)]
        assert not images[0] & images[1]

    def test_finished_one_is_kept(self, tmp_path: Path) -> None:
        def make() -> Path:
            return make_dataset(tmp_path, "x", 3, seed=5, size=160, progress=False)

        before = {p: p.stat().st_mtime_ns for p in make().parent.rglob("*")}
        after = {p: p.stat().st_mtime_ns for p in make().parent.rglob("*")}
        assert before == after

    @pytest.mark.parametrize("change", [{"seed": 6}, {"size": 200}])
    def test_other_recipe_remakes(self, tmp_path: Path, change: dict[str, int]) -> None:
        recipe = {"seed": 5, "size": 160}
        first = make_dataset(tmp_path, "x", 2, progress=False, **recipe).read_bytes()
        other = make_dataset(tmp_path, "x", 2, progress=False, **(recipe | change))
        assert other.read_bytes() != first
        alone = make_dataset(tmp_path / "alone", "x", 2, progress=False, **(recipe | change))
        assert contents(other.parent) == contents(alone.parent)

    def test_fewer_images_leave_none_behind(self, tmp_path: Path) -> None:
        make_dataset(tmp_path, "x", 3, seed=5, size=160, progress=False)
        path = make_dataset(tmp_path, "x", 2, seed=5, size=160, progress=False)
        assert len(list((path.parent / "images").iterdir())) == 2

    def test_a_missing_image_is_made_again(self, tmp_path: Path) -> None:
        path = make_dataset(tmp_path, "x", 2, seed=5, size=160, progress=False)
        before = contents(path.parent)
        (path.parent / "images" / "000000000001.jpg").unlink()
        make_dataset(tmp_path, "x", 2, seed=5, size=160, progress=False)
        assert contents(path.parent) == before

    def test_a_killed_run_leaves_nothing_that_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make_dataset(tmp_path, "x", 2, seed=5, size=160, progress=False)

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("smallobj_d2.datasets.synthetic.dataset._write_jpeg", die)
        with pytest.raises(KeyboardInterrupt):
            make_dataset(tmp_path, "x", 2, seed=6, size=160, progress=False)
        assert not path.exists()

    def test_a_dataset_of_somebody_else_is_left_alone(self, tmp_path: Path) -> None:
        theirs = tmp_path / "x" / "annotations.json"
        theirs.parent.mkdir()
        theirs.write_text('{"info": {}, "images": []}')
        with pytest.raises(SmallObjError, match="not a generated dataset"):
            make_dataset(tmp_path, "x", 2, seed=5, size=160, progress=False)
        assert theirs.read_text() == '{"info": {}, "images": []}'

    def test_bad_arguments_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(SmallObjError, match="negative"):
            make_dataset(tmp_path, "x", 2, seed=-1, progress=False)
        with pytest.raises(SmallObjError, match="size"):
            make_dataset(tmp_path, "x", 2, seed=0, size=50, progress=False)

    def test_pycocotools_reads_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = make_dataset(tmp_path, "x", 12, seed=1, size=192, progress=False)
        coco = COCO(str(path))
        assert len(coco.imgs) == 12
        assert coco.cats.keys() == {c["id"] for c in CATEGORIES}
        for annotation in coco.anns.values():
            image = coco.imgs[annotation["image_id"]]
            assert coco.annToMask(annotation).sum() == annotation["area"]
            pixels = cv2.imread(str(path.parent / "images" / image["file_name"]))
            assert pixels is not None
            assert pixels.shape == (image["height"], image["width"], 3)
            assert max(pixels.shape) == 192

    def test_splits_share_no_image(self, tmp_path: Path) -> None:
        paths = make_splits(tmp_path, num_train=3, num_val=3, seed=1, size=160, progress=False)
        assert list(paths) == ["scenes_train", "scenes_val"]
        train, val = (set(contents(p.parent / "images").values()) for p in paths.values())
        assert len(train) == len(val) == 3
        assert not train & val


def test_a_pool_makes_the_same_bytes(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        for name, each in (("one", map), ("pool", pool.map)):
            make_splits(
                tmp_path / name, num_train=5, num_val=2, seed=1, size=96, progress=False, each=each
            )
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*")]
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "pool" / file).read_bytes()
