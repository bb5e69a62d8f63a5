"""Table 2's columns, what the augmentation changes in them, and the advice made of them."""

from pathlib import Path

import numpy as np
import pytest

from smallobj_d2.analysis.advice import Sources, advise, find_sources
from smallobj_d2.analysis.matching import Matches, match
from smallobj_d2.analysis.objects import objects_of
from smallobj_d2.analysis.presented import presented
from smallobj_d2.analysis.protocols import PAPER, training_protocol
from smallobj_d2.analysis.table2 import (
    PUBLISHED,
    as_json,
    cells,
    gains,
    layouts,
    side_by_side,
    table2,
)
from smallobj_d2.augmentation import build_augmentation
from smallobj_d2.config import load_cfg
from smallobj_d2.datasets.coco import load_coco, without_empty
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.errors import SmallObjError
from smallobj_d2.sampling import Stream, factors_from_config
from smallobj_d2.sizes import BANDS
from smallobj_d2.visualization.texts import percent

CONFIGS = Path(__file__).parents[1] / "configs"
AUGMENT = CONFIGS / "orig_aug_multi3x.yaml"


def record(*areas: float, crowd: bool = False, mask: bool = True):
    """An image with square objects side by side."""
    annotations = []
    left = 10.0
    for area in areas:
        side = area**0.5
        polygon = [left, 20, left + side, 20, left + side, 20 + side, left, 20 + side]
        annotations.append(
            {
                "bbox": [left, 20.0, side, side],
                "bbox_mode": 1,
                "area": area,
                "iscrowd": int(crowd),
                "category_id": 0,
                **({"segmentation": [polygon]} if mask else {}),
            }
        )
        left += side + 10
    return {"file_name": "", "height": 400, "width": 600, "annotations": annotations}


def test_shares_and_means_by_hand():
    records = [record(100, 300), record(1023.9, 1024, 9216), record(9215.9), record(5, crowd=True)]
    objects = objects_of(records)
    assert objects.crowds == 1
    matches = Matches(np.arange(6) / 10, np.array([1, 1, 2, 1, 5, 2]))
    table = table2(objects, matches, data="d", protocol="p")
    small, medium, large = (table.rows[size] for size in BANDS)
    assert (table.images, table.objects) == (4, 6)
    assert [r.objects for r in (small, medium, large)] == [3, 2, 1]
    assert [r.image_share for r in (small, medium, large)] == [2 / 4, 2 / 4, 1 / 4]
    total = 100 + 300 + 1023.9 + 1024 + 9216 + 9215.9
    assert small.area_share == pytest.approx(1423.9 / total)
    assert [r.matched for r in (small, medium, large)] == [4, 3, 5]
    assert medium.matched_share == pytest.approx(3 / 12)
    assert medium.mean_matched == pytest.approx(1.5)
    assert small.mean_max_iou == pytest.approx((0 + 0.1 + 0.2) / 3)
    for column in ("object_share", "area_share", "matched_share"):
        assert sum(getattr(r, column) for r in (small, medium, large)) == pytest.approx(1)


def test_what_small_means_can_be_changed():
    objects = objects_of([record(100, 300, 2000)])
    table = table2(objects, match(objects, PAPER), data="", protocol="", small_area=200)
    assert [table.rows[size].objects for size in BANDS] == [1, 2, 0]


def test_sizes_without_objects_and_datasets_without_any():
    for records in ([record(100)], [record()], []):
        objects = objects_of(records)
        table = table2(objects, match(objects, PAPER), data="d", protocol="paper")
        assert cells(table.rows["large"])[-2:] == ["-", "-"]
        assert as_json(table)["rows"]["large"]["mean_max_iou"] is None


def test_the_published_table_agrees_with_itself():
    rows = PUBLISHED.rows
    anchors = {size: rows[size].object_share * rows[size].mean_matched for size in BANDS}
    for size in BANDS:
        share = anchors[size] / sum(anchors.values())
        assert share == pytest.approx(rows[size].matched_share, abs=0.002)
    assert cells(rows["small"]) == ["41.43%", "51.82%", "1.23%", "29.96%", "1.00", "0.29"]


def test_tables_stand_side_by_side():
    objects = objects_of([record(100, 2000)])
    table = table2(objects, match(objects, PAPER), data="mine", protocol="paper")
    header, rows = side_by_side([table, PUBLISHED])
    assert header[:3] == ["Size", "Data", "Object count"]
    assert [r[:2] for r in rows[:3]] == [
        ["small", "mine"],
        ["small", "the paper, for COCO"],
        ["medium", "mine"],
    ]


def test_layouts_has_a_row_for_each_reading():
    header, rows = layouts(objects_of([record(100, 2000), record(300)]))
    assert len({len(r) for r in (header, *rows)}) == 1
    assert rows[0][0] == "<strong>published</strong>"
    assert rows[1][4].startswith("1.00")
    assert rows[1][3] == "-"  # no large object


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1, "100%"), (0.004, "0.4%"), (0.996, "99.6%"), (0.25, "25%")]
)
def test_a_share_is_not_said_to_be_all_or_nothing_unless_it_is(share, text):
    assert percent(share) == text


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    path = make_dataset(root, "scenes", 12, seed=3, progress=False)
    records = load_coco(path, path.parent / "images").records
    return [*records, record(crowd=False), record(50_000)]  # one without objects, one large


def test_draws_are_those_of_training(scenes):
    cfg = load_cfg(AUGMENT, ["SEED", "5", "SMALLOBJ.OVERSAMPLING_FACTOR", "1.5"])
    found = presented(scenes, objects_of(scenes), cfg, epochs=2)
    records = without_empty(scenes)
    stream = Stream(factors_from_config(records, cfg), 5)
    augmentation = build_augmentation(cfg, 5)
    shown, plans = [], []
    for position in range(stream.epoch_start(2)):
        draw = stream[position]
        plan = augmentation.plan({**records[draw.index], "draw": draw})
        plans.append(plan)
        shown.append(
            {**records[draw.index], "annotations": plan.annotations}
            if plan
            else records[draw.index]
        )
    for name, value in vars(objects_of(shown)).items():
        np.testing.assert_array_equal(getattr(found.objects, name), value, err_msg=name)
    assert found.epochs == 2
    wanted, *fates = (n for what, n in found.counts.items() if what.startswith("copies"))
    assert found.counts["augmented_draws"] == sum(p is not None for p in plans) > 0
    assert found.counts["copies_pasted"] == sum(p.pasted for p in plans if p) > 0
    assert wanted == sum(fates)


def test_fewer_draws_are_the_first_ones(scenes):
    cfg = load_cfg(AUGMENT)
    objects = objects_of(scenes)
    whole, part = presented(scenes, objects, cfg), presented(scenes, objects, cfg, draws=5)
    assert part.objects.num_images == 5
    assert part.epochs == pytest.approx(5 / whole.objects.num_images)
    n = len(part.objects)
    np.testing.assert_array_equal(part.objects.boxes, whole.objects.boxes[:n])


def test_a_config_without_copy_paste_only_repeats(scenes):
    cfg = load_cfg(CONFIGS / "base.yaml", ["SMALLOBJ.OVERSAMPLING_FACTOR", "3.0"])
    objects = objects_of(scenes)
    found = presented(scenes, objects, cfg)
    small = len(np.unique(objects.image[objects.bands() == 0]))
    assert found.objects.num_images == 3 * small + (len(scenes) - 1 - small)
    assert set(found.counts.values()) == {0}


def test_gains_are_per_epoch(scenes):
    cfg = load_cfg(AUGMENT)
    objects = objects_of(scenes)
    tables = []
    for epochs in (1, 3):
        found = presented(scenes, objects, cfg, epochs=epochs)
        before = table2(objects, match(objects, PAPER), data="", protocol="paper")
        matches = match(found.objects, PAPER)
        after = table2(found.objects, matches, data="", protocol="paper")
        tables.append({g.what: g for g in gains([before], [after], found.epochs, before.images)})
    one, three = tables
    drawn = "images drawn per epoch"
    assert one[drawn].after == pytest.approx(three[drawn].after)
    assert one["small objects per epoch"].after > one["small objects per epoch"].before
    assert one[drawn].cells()[1:3] == [f"{one[drawn].before:,.0f}", f"{one[drawn].after:,.0f}"]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(SmallObjError, match="no image with an annotation"):
        presented([record()], objects_of([record()]), load_cfg(AUGMENT))


def test_sources_and_wishes_by_hand():
    cut_off = record(100)
    cut_off["annotations"][0]["bbox"][0] = 0.0
    cut_off["annotations"][0]["segmentation"][0][::2] = [0, 10, 10, 0]
    records = [record(100, 100, 100, 100), record(2000), cut_off]
    found = find_sources(records, objects_of(records), load_cfg(AUGMENT))
    # "multiple" takes two of four, three copies each; the object that is cut off gives none.
    assert found == Sources(small_images=2, examined=2, with_source=1, candidates=2.0, wanted=3.0)


def advice(records, *opts, config=AUGMENT, training=False):
    cfg = load_cfg(config, list(opts))
    objects = objects_of(records)
    protocol = training_protocol(cfg) if training else PAPER
    table = table2(objects, match(objects, protocol), data="", protocol=protocol.name)
    return " ".join(advise(objects, [table], find_sources(records, objects, cfg), cfg))


def test_objects_that_lie_on_a_larger_one_are_named_with_the_key_that_takes_them():
    on_a_wall = record(100, 100, 90_000)
    for window in on_a_wall["annotations"][:2]:  # move them onto the wall
        window["bbox"][0] += 60
        window["segmentation"][0][::2] = [x + 60 for x in window["segmentation"][0][::2]]
    assert find_sources([on_a_wall], objects_of([on_a_wall]), load_cfg(AUGMENT)).under_others == 1
    assert "SMALLOBJ.MAX_COVERED 1.0 lets them be copied" in advice([on_a_wall])
    taken = advice([on_a_wall], "SMALLOBJ.MAX_COVERED", "1")
    assert "100%" in taken
    assert "SMALLOBJ.MAX_COVERED 1.0" not in taken


def test_advice_where_all_images_have_small_objects():
    text = advice([record(100), record(200, 5000)])
    assert "2 of 2 images (100%) have a small object" in text
    assert "oversampling cannot help" in text
    assert "In 2 of the 2 images with small objects (100%)" in text
    assert "3.0 copies" in text


def test_advice_where_nearly_all_images_have_small_objects():
    text = advice([record(100) for _ in range(199)] + [record(2000)])
    assert "199 of 200 images (99.5%)" in text
    assert "Nearly every image has small objects, so oversampling cannot help" in text


def test_images_that_training_leaves_out_do_not_count_for_oversampling():
    """All that is drawn has small objects, though most images have nothing."""
    records = [record(100), record(200, 5000), *(record() for _ in range(8))]
    text = advice(records)
    assert "2 of 10 images (20%) have a small object" in text
    assert "Training leaves out the 8 images without annotations" in text
    assert "All of these have small objects, so oversampling cannot help" in text
    text = advice(records, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False")
    assert "33% of the drawn images would have small objects instead of 20%" in text


def test_advice_where_to_start():
    two = [record(100), record(200, 5000)]
    assert "we advise beyond/bank: small objects" in advice(two)
    assert "we advise" not in advice(two, "SMALLOBJ.SOURCES", "bank")
    hidden = record(100, 90_000)
    hidden["annotations"][0]["bbox"][0] += 60  # onto the large one
    x = hidden["annotations"][0]["segmentation"][0]
    x[::2] = [v + 60 for v in x[::2]]
    text = advice([record(100), *([hidden] * 4)])
    assert "Do not expect much of copy-paste" in text
    assert "we advise" not in text


def test_advice_where_small_objects_are_not_rare():
    assert "have 100% of the matched anchors already" in advice([record(100, 100)])
    assert "matched anchors already" not in advice([record(100, 5000, 5000)])


def test_advice_on_what_the_network_sees():
    def at(size, *areas):
        size = ["INPUT.MIN_SIZE_TRAIN", f"({size},)"]
        return advice([record(*(areas or (400,)))], *size, training=True)

    side = record(400)["height"]
    assert "is 20 pixels wide (median; the root of its area), and 20 in the input" in at(side)
    assert "100% of the small objects are below 32 there." in at(side)
    assert "and 10 in the input of the configured network. 100% of" in at(side // 2)
    assert "MAX_SIZE_TRAIN downscale most of them" in at(side // 2)
    assert "and 40 in the input of the configured network. 0% of" in at(side * 2)


def test_nobody_is_told_to_shrink_images():
    """On COCO the median small object is 34 pixels wide in the input, and half are below 32."""
    side = record(400)["height"]
    size = ["INPUT.MIN_SIZE_TRAIN", f"({2 * side},)"]
    text = advice([record(100, 100, 400, 400, 400)], *size, training=True)
    assert "and 40 in the input of the configured network. 40% of the small objects" in text
    assert "smaller INPUT" not in text


def test_advice_where_images_are_crowded():
    text = advice([record(*[100] * 130), record(100)])
    assert "1 of 2 images have more than 100 objects, 130 at most" in text
    assert "23% of the objects cannot be found" in text
    text = advice([record(*[100] * 130), record(100)], "TEST.DETECTIONS_PER_IMAGE", "400")
    assert "cannot be found" not in text
    assert "cannot be found" not in advice([record(*[100] * 100)])


def test_advice_where_some_images_have_small_objects():
    text = advice([record(100), record(2000)], "SMALLOBJ.OVERSAMPLING_FACTOR", "3.0")
    assert "With an oversampling factor of 3, 75% of the drawn images" in text


def test_advice_without_masks():
    records = [record(100, mask=False), record(2000, mask=False)]
    assert "No object has a mask" in advice(records)
    assert "pastes upright rectangles" in advice(records, "SMALLOBJ.PASTE_BOXES", "True")
    assert "1 of 2 objects have no mask" in advice([record(100), record(2000, mask=False)])


def test_advice_without_small_objects_or_any():
    assert "No object is small" in advice([record(5000)])
    assert "no object in this dataset" in advice([record()])


def test_advice_where_nothing_may_be_copied():
    cut_off = record(100)
    cut_off["annotations"][0]["bbox"][0] = 0.0
    cut_off["annotations"][0]["segmentation"][0][::2] = [0, 10, 10, 0]
    assert "Copy-paste would change nothing" in advice([cut_off, record(3000)])
