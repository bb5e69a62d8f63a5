"""Beyond the paper: objects of other training images, by a bank that loader workers share."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from proofs.copy_paste_laws import PIXEL_TOLERANCE, check
from proofs.random_scenes import random_options, random_scene, raster, rectangle
from smallobj_d2.augmentation import DrawAugmentation, build_augmentation
from smallobj_d2.config import load_cfg
from smallobj_d2.copy_paste import CopyPaste, Jitter, ObjectBank, SameImage, SourceRule
from smallobj_d2.copy_paste.bank import build_bank
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.sampling import Draw

BANK = Path(__file__).parents[1] / "configs" / "beyond" / "bank.yaml"
ANY = SourceRule(connected=False, max_covered=1)


def a_record(image, annotations, number=1):
    height, width = image.shape[:2]
    return {
        "height": height,
        "width": width,
        "annotations": annotations,
        "image_id": number,
        "image": image,
    }


def random_records(rng, count, **options):
    scenes = [random_scene(rng, low=40, **options) for _ in range(count)]
    return [a_record(*scene, number=100 + i) for i, scene in enumerate(scenes)]


def bank_of(records, rule, *, images=1000, seed=0, read=lambda r: r["image"], factors=None):
    rng = np.random.default_rng(seed)
    return build_bank(records, rule, read, rng, images=images, factors=factors)


def pasting(bank, **options):
    return CopyPaste(**{**options, "sources": bank})


# --- The bank


@pytest.mark.parametrize("seed", range(20))
def test_holds_what_may_be_copied_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    rule = random_options(rng)["sources"].rule
    records = random_records(rng, 6)
    wanted = Counter()
    for record in records:
        scene = Scene(record["annotations"], record["height"], record["width"])
        for candidate in rule.candidates(scene):
            wanted[record["image_id"], candidate.annotation["id"]] += 1
    if not wanted:
        with pytest.raises(SmallObjError, match="may be copied"):
            bank_of(records, rule)
        return
    bank = bank_of(records, rule)
    origins = [bank[i].origin for i in range(len(bank))]
    assert Counter((o["image"], o["source"]) for o in origins) == wanted
    assert bank.images == len({image for image, _ in wanted})
    of_images = [[origins[k]["image"] for k in bank.of_image(i)] for i in range(bank.images)]
    assert all(len(set(images)) == 1 for images in of_images)
    assert sum(map(len, of_images)) == len(bank)


@pytest.mark.parametrize("seed", range(20))
def test_an_object_is_cut_out_with_its_pixels_and_its_label(seed):
    rng = np.random.default_rng(seed)
    records = random_records(rng, 4, most=20)
    bank = bank_of(records, ANY)
    by_id = {r["image_id"]: r for r in records}
    for i in range(len(bank)):
        cutout = bank[i]
        record = by_id[cutout.origin["image"]]
        source = next(a for a in record["annotations"] if a["id"] == cutout.origin["source"])
        size = cutout.pixels.shape[:2]
        whole = raster(source["segmentation"], record["height"], record["width"])
        part = raster(cutout.annotation["segmentation"], *size)
        assert part.sum() == whole.sum() == source["area"]
        # Where the mask is in both tells where the pixels come from.
        ys, xs = np.nonzero(whole)
        v, u = np.nonzero(part)
        y, x = ys.min() - v.min(), xs.min() - u.min()
        assert cutout.corner == (x, y)
        assert (whole[y : y + size[0], x : x + size[1]] == part).all()
        assert (record["image"][y : y + size[0], x : x + size[1]] == cutout.pixels).all()
        around = (u.min(), v.min(), size[1] - 1 - u.max(), size[0] - 1 - v.max())
        far = (x, y, record["width"] - x - size[1], record["height"] - y - size[0])
        assert all(a >= 6 or f == 0 for a, f in zip(around, far, strict=True))
        for key in source.keys() - {"bbox", "segmentation", "keypoints"}:
            assert cutout.annotation[key] == source[key]
        if "keypoints" in source:
            old, new = (np.reshape(a["keypoints"], (-1, 3)) for a in (source, cutout.annotation))
            seen = old[:, 2] > 0
            assert np.allclose(new[seen], old[seen] - (x, y, 0))
            assert (new[~seen] == old[~seen]).all()


def test_takes_as_many_images_as_it_may_at_random():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    records = [a_record(image, [rectangle(20, 20, 9, 9)], i) for i in range(40)]

    def images(seed):
        bank = bank_of(records, ANY, images=5, seed=seed)
        return [bank[i].origin["image"] for i in range(len(bank))]

    assert len(set(images(0))) == 5
    assert images(0) == images(0) != images(1)
    often = Counter(i for seed in range(400) for i in images(seed))
    assert min(often.values()) > 25  # 50 on average
    assert max(often.values()) < 85


def test_images_that_are_not_needed_are_not_read():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    read = []

    def reading(record):
        read.append(record["image_id"])
        return record["image"]

    records = [a_record(image, [rectangle(9, 9, 9 if i % 2 else 40, 30)], i) for i in range(40)]
    bank_of(records, ANY, images=5, read=reading)
    assert len(read) == 5
    assert all(i % 2 for i in read)


def test_workers_share_its_pixels():
    rng = np.random.default_rng(3)
    bank = bank_of(random_records(rng, 8), ANY)
    one, again = bank[0].pixels, bank[0].pixels
    assert np.shares_memory(one, again)
    with pytest.raises(ValueError, match="read-only"):
        one[:] = 0
    # Few objects in all, however many it holds: there is nothing for a fork to copy.
    assert all(isinstance(v, np.ndarray) or k == "_labels" for k, v in vars(bank).items())
    other = pickle.loads(pickle.dumps(bank))
    assert all((other[i].pixels == bank[i].pixels).all() for i in range(len(bank)))
    assert bank.nbytes > sum(bank[i].pixels.nbytes for i in range(len(bank)))


def test_images_give_objects_as_often_as_their_factors_say():
    image = np.zeros((60, 60, 3), np.uint8)
    records = [a_record(image, [rectangle(20, 20, 9, 9, id=i)], i) for i in range(4)]
    factors = [1, 1, 2, 4]

    def given(**more):
        rng = np.random.default_rng(0)
        bank = build_bank(records, ANY, lambda r: r["image"], rng, images=9, **more)
        scene, rng = Scene([], 60, 60), np.random.default_rng(1)
        drawn = [bank.candidates(scene, rng)[0].origin["image"] for _ in range(4000)]
        return np.bincount(drawn, minlength=4) / 500

    assert given(factors=factors) == pytest.approx(factors, abs=0.3)
    assert given(factors=[3, 3, 3, 3]).tolist() == given().tolist()


def test_there_is_no_bank_without_objects():
    with pytest.raises(SmallObjError):
        ObjectBank([])
    bank = bank_of(random_records(np.random.default_rng(3), 8), ANY)
    with pytest.raises(IndexError):
        bank[len(bank)]
    donors = [[bank[0]], [bank[1]]]
    with pytest.raises(SmallObjError, match="above 0"):  # nothing is left for the first image
        ObjectBank(donors, factors=(1.0, 0.0))


# --- Pasting


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("seed", range(40))
def test_from_a_bank_of_the_image_itself_it_is_as_within_the_image(seed, scale):
    """So what is proved of pasting within an image holds for the bank."""
    rng = np.random.default_rng(seed)
    image, annotations = random_scene(rng, low=60, most=20)
    # Other jitter turns the copies around another point, so that they are off by parts of a pixel.
    jitter = Jitter((scale, scale), (0, 0))
    options = {**random_options(rng), "strategy": "all", "jitter": jitter}
    rule = options["sources"].rule
    if not len(rule.candidates(Scene(annotations, *image.shape[:2]))):
        return
    bank = bank_of([a_record(image, annotations)], rule)
    expected, after = CopyPaste(**options)(image, annotations, np.random.default_rng(seed))
    result, labels = pasting(bank, **options)(image, annotations, np.random.default_rng(seed))
    assert len(labels) == len(after)
    for label, want in zip(labels, after, strict=True):
        assert label.keys() == want.keys()
        assert np.allclose(label["bbox"], want["bbox"])
        assert np.isclose(label["area"], want["area"])
        if isinstance(want.get("segmentation"), list):
            for part, wanted in zip(label["segmentation"], want["segmentation"], strict=True):
                assert np.allclose(part, wanted)
        elif want.get("segmentation"):
            size = image.shape[:2]
            assert (
                raster(label["segmentation"], *size) == raster(want["segmentation"], *size)
            ).all()
    off = np.abs(result.astype(int) - expected)
    assert off.max(initial=0) <= PIXEL_TOLERANCE
    assert (off > 0).mean() < 0.02


@pytest.mark.parametrize("seed", range(80))
def test_laws_of_pasting_hold_in_other_images(seed):
    """`proofs.verify_copy_paste` does this more often; verification.md has the figures."""
    rng = np.random.default_rng(1000 + seed)
    options = random_options(rng)
    try:
        bank = bank_of(random_records(rng, 5, most=20), options["sources"].rule)
    except SmallObjError:
        return
    scene = random_scene(rng, low=60, most=8)
    check(*scene, pasting(bank, **options), seed, options["sources"].rule)


def test_pastes_nothing_into_the_bank():
    rng = np.random.default_rng(5)
    bank = bank_of(random_records(rng, 8), ANY)
    before = [bank[i].pixels.copy() for i in range(len(bank))]
    copy_paste = pasting(bank, copies=3, blur=3)
    for seed in range(20):
        image, annotations = random_scene(rng, low=80)
        copy_paste(image, annotations, np.random.default_rng(seed))
    assert all((bank[i].pixels == before[i]).all() for i in range(len(bank)))


def test_every_image_of_the_bank_is_chosen_as_often():
    rng = np.random.default_rng(7)
    image = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    records = [
        a_record(image, [rectangle(5 + 12 * k, 20, 9, 9) for k in range(1 + i)], i)
        for i in range(4)
    ]
    copy_paste = pasting(bank_of(records, ANY), strategy="all")
    chosen = Counter()
    for seed in range(2000):
        plan = copy_paste.plan([], 300, 300, np.random.default_rng(seed))
        image_id = {a["copy_paste"]["image"] for a in plan.annotations}.pop()
        assert plan.pasted == 1 + image_id
        chosen[image_id] += 1
    assert all(abs(n - 500) < 100 for n in chosen.values())


def named(records):
    return [{**r, "file_name": f"{r['image_id']}.png"} for r in records]


@pytest.mark.parametrize("factors", [None, (1.0, 1.2, 1.1, 0.9)])
def test_an_image_is_never_given_its_own_objects(factors):
    rng = np.random.default_rng(7)
    image = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    records = named(a_record(image, [rectangle(5, 20, 9, 9)], i) for i in range(4))
    copy_paste = pasting(bank_of(records, ANY, factors=factors))
    for name, others in (("2.png", {0, 1, 3}), ("9.png", {0, 1, 2, 3}), (None, {0, 1, 2, 3})):
        plans = [copy_paste.plan([], 100, 100, seed, name) for seed in range(400)]
        chosen = Counter(a["copy_paste"]["image"] for p in plans for a in p.annotations)
        assert set(chosen) == others
        assert min(chosen.values()) > 0.6 * 400 / len(others)
    alone = pasting(bank_of(records[:1], ANY))
    assert alone.plan([], 100, 100, 0, "0.png").tried == 0


def test_an_image_that_is_never_drawn_gives_nothing():
    """And where one alone is drawn, it gets nothing; it would be looked for forever."""
    rng = np.random.default_rng(7)
    image = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    records = named(a_record(image, [rectangle(5, 20, 9, 9)], i) for i in range(4))
    alone = pasting(bank_of(records, ANY, factors=(0, 0, 1, 0)))
    assert alone.plan([], 100, 100, 0, "2.png").tried == 0
    assert {a["copy_paste"]["image"] for a in alone.plan([], 100, 100, 0, "0.png").annotations} == {
        2
    }


def test_the_matrix_maps_from_the_image_that_the_object_comes_from():
    rng = np.random.default_rng(4)
    records = random_records(rng, 6, most=20)
    copy_paste = pasting(bank_of(records, ANY))
    sources = {(r["image_id"], a["id"]): a for r in records for a in r["annotations"]}
    checked = 0
    for seed in range(40):
        for copy in copy_paste.plan([], 200, 200, seed).annotations:
            origin = copy["copy_paste"]
            source = sources[origin["image"], origin["source"]]
            if not isinstance(source.get("segmentation"), list):
                continue
            matrix = np.array(origin["matrix"])
            for old, new in zip(source["segmentation"], copy["segmentation"], strict=True):
                image_of = np.reshape(old, (-1, 2)) @ matrix[:, :2].T + matrix[:, 2]
                assert np.allclose(image_of, np.reshape(new, (-1, 2)), atol=1e-6)
                checked += 1
    assert checked > 20


def test_a_bank_without_training_images_says_what_to_do():
    with pytest.raises(SmallObjError, match="build_augmentation with their dataset dicts"):
        build_augmentation(load_cfg(BANK), 3)


# --- Draws


def two_images():
    rng = np.random.default_rng(9)
    pixels = [rng.integers(0, 256, (200, 240, 3), dtype=np.uint8) for _ in range(2)]
    small = [rectangle(20 + 30 * k, 20, 10, 12, id=k) for k in range(4)]
    return [a_record(pixels[0], small, 1), a_record(pixels[1], [rectangle(9, 9, 150, 99, id=9)], 2)]


def augmentation(*opts):
    cfg = load_cfg(BANK, list(opts))
    return build_augmentation(cfg, 3, two_images(), lambda r: r["image"])


def test_the_config_says_of_how_many_images_the_bank_keeps_objects_at_most():
    records = [{**two_images()[0], "image_id": i} for i in range(4)]
    for most, kept in ((3, 3), (9, 4)):
        cfg = load_cfg(BANK, ["SMALLOBJ.BANK_IMAGES", str(most)])
        bank = build_augmentation(cfg, 3, records, lambda r: r["image"]).copy_paste.sources
        assert len({bank[i].origin["image"] for i in range(len(bank))}) == kept


def test_images_without_small_objects_are_augmented_too():
    aug = augmentation()
    large = two_images()[1]
    plans = [aug.plan({**large, "draw": Draw(k, 1, 0, 0)}) for k in range(400)]
    assert 150 < sum(p is not None for p in plans) < 250
    assert all(p.pasted == 4 for p in plans if p)
    assert aug.may_augment(large["annotations"])
    only_small = augmentation("SMALLOBJ.AUGMENTED_IMAGES", "small")
    assert not any(only_small.plan({**large, "draw": Draw(k, 1, 0, 0)}) for k in range(50))
    assert not only_small.may_augment(large["annotations"])


def test_a_rare_category_gives_objects_as_often_as_its_images_are_drawn():
    """One image of a hundred, where a tenth is no longer rare, counts sqrt(10) times."""
    image = np.zeros((90, 90, 3), np.uint8)
    records = [
        a_record(image, [rectangle(20, 20, 9, 9, id=i, category_id=int(i == 7))], i)
        for i in range(100)
    ]
    cfg = load_cfg(BANK.with_name("bank_rare.yaml"))
    bank = build_augmentation(cfg, 0, records, lambda r: r["image"]).copy_paste.sources
    rng, scene = np.random.default_rng(1), Scene([], 90, 90)
    given = [bank.candidates(scene, rng)[0].origin["image"] for _ in range(6000)]
    assert given.count(7) == pytest.approx(6000 * 10**0.5 / (99 + 10**0.5), abs=50)


def test_a_draw_is_never_given_the_objects_of_its_own_image():
    records = [{**r, "file_name": f"{i}.png"} for i, r in enumerate([two_images()[0]] * 2)]
    records[1]["image_id"] = 2
    aug = build_augmentation(load_cfg(BANK), 3, records, lambda r: r["image"])
    plans = [aug.plan({**records[0], "draw": Draw(k, 0, 0, 0)}) for k in range(60)]
    pasted = [a["copy_paste"]["image"] for p in plans if p for a in p.annotations[4:]]
    assert set(pasted) == {2}


def test_factors_that_are_given_go_before_those_of_the_config():
    records = [{**two_images()[0], "image_id": i} for i in range(3)]
    factors = np.array([0.0, 1.0, 0.0])
    bank = build_augmentation(load_cfg(BANK), 3, records, lambda r: r["image"], factors)
    bank = bank.copy_paste.sources
    assert {bank[i].origin["image"] for i in range(len(bank))} == {1}


def test_seeds_have_banks_of_their_own():
    records = [{**two_images()[0], "image_id": i} for i in range(30)]
    cfg = load_cfg(BANK, ["SMALLOBJ.BANK_IMAGES", "3"])
    made = [build_augmentation(cfg, s, records, lambda r: r["image"]) for s in range(6)]
    banks = [aug.copy_paste.sources for aug in made]
    assert len({tuple(b[i].origin["image"] for i in range(len(b))) for b in banks}) == 6


def test_a_draw_follows_from_seed_and_position():
    one, other = augmentation(), augmentation()
    for k in range(40):
        record = {**two_images()[1], "draw": Draw(k, 1, 0, 0)}
        images = [record["image"].copy() for _ in range(2)]
        records = [dict(record), dict(record)]
        for aug, image, changed in zip((one, other), images, records, strict=True):
            aug(image, changed)
        assert (images[0] == images[1]).all()
        assert records[0]["annotations"] == records[1]["annotations"]


def test_unreadable_images_stop_or_are_left_out():
    def read(record):
        if record["image_id"] == 1:
            raise UnreadableImage("a.jpg (image 1) cannot be read")
        return record["image"]

    records = [*two_images(), {**two_images()[0], "image_id": 3}]
    for action in ("stop", "skip"):
        cfg = load_cfg(BANK, ["SMALLOBJ.UNREADABLE_IMAGES", action])
        if action == "stop":
            with pytest.raises(UnreadableImage):
                build_augmentation(cfg, 3, records, read)
        else:
            bank = build_augmentation(cfg, 3, records, read).copy_paste.sources
            assert {bank[i].origin["image"] for i in range(len(bank))} == {3}


def test_the_papers_configs_have_no_bank():
    cfg = load_cfg(BANK.parents[1] / "orig_aug_multi3x.yaml")
    aug = build_augmentation(cfg, 3, [], lambda r: pytest.fail("nothing is to be read"))
    assert isinstance(aug, DrawAugmentation)
    assert isinstance(aug.copy_paste.sources, SameImage)


def test_labels_can_be_written_as_json():
    aug = augmentation()
    plans = [aug.plan({**two_images()[1], "draw": Draw(k, 1, 0, 0)}) for k in range(9)]
    pasted = next(p for p in plans if p).annotations[-1]
    assert json.loads(json.dumps(pasted["copy_paste"])) == pasted["copy_paste"]
