"""The purity law: the sample at position k of the stream is a function of (SEED, k), and no more.

It is the same with any number of loader workers and processes, in either engine, after a resume,
and whatever anybody does with the global random generators. The last tests here break the law on
purpose and see that the check notices.
"""

import hashlib
import json
import multiprocessing
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import get_worker_info

from smallobj_d2.augmentation import DrawAugmentation
from smallobj_d2.config import load_cfg
from smallobj_d2.copy_paste import CopyPaste, Jitter
from smallobj_d2.datasets.coco import register_from_config
from smallobj_d2.datasets.synthetic import make_dataset
from smallobj_d2.engines import load_engine
from smallobj_d2.engines.loader import BatchSampler, DrawDataset, TrainLoader
from smallobj_d2.engines.torchvision.inference import detect
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.sampling import Stream
from smallobj_d2.training_set import training_data

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_SAMPLES = 240


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """The JSON of 48 synthetic scenes, wide and tall ones, half of them with small objects."""
    folder = tmp_path_factory.mktemp("purity")
    return make_dataset(folder, "scenes", 48, seed=3, size=128, progress=False)


@pytest.fixture
def cfg(scenes) -> Any:
    """Oversampling, copy-paste on half of the draws, random resize, random flip."""
    name = f"purity_{scenes.parent.parent.name}"
    opts = {
        "SMALLOBJ.DATASETS": f'[["{name}", "{scenes}", "{scenes.parent / "images"}"]]',
        "DATASETS.TRAIN": f'("{name}",)',
        "SMALLOBJ.OVERSAMPLING_FACTOR": "2.5",
        "INPUT.MIN_SIZE_TRAIN": "(64, 72, 80)",
        "SOLVER.IMS_PER_BATCH": "4",
        "SEED": "11",
    }
    cfg = load_cfg(CONFIGS / "orig_aug_multi1x.yaml", [w for pair in opts.items() for w in pair])
    register_from_config(cfg)
    return cfg


def changed(cfg: Any, *opts: Any) -> Any:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(opts))
    return cfg


# --- engines


def detectron2_mapper(cfg: Any) -> Callable[[Any], Any]:
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from smallobj_d2.engines.detectron2 import MAPPERS

    return MAPPERS.get(cfg.SMALLOBJ.MAPPER)(cfg, True)


def torchvision_mapper(cfg: Any) -> Callable[[Any], Any]:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from smallobj_d2.engines.torchvision.mapper import build_mapper

    return build_mapper(cfg, True)


MAPPERS = {"detectron2": detectron2_mapper, "torchvision": torchvision_mapper}


@pytest.fixture(params=sorted(MAPPERS))
def engine(request) -> str:
    return request.param


@pytest.fixture
def any_engine() -> str:
    """One that is installed, for what lies below the engines."""
    return "torchvision" if find_spec("torchvision") else "detectron2"


def loader_of(engine: str, cfg: Any, **changes: Any) -> TrainLoader:
    records, factors = training_data(cfg)
    arguments = {
        "seed": cfg.SEED,
        "images_per_batch": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
    }
    return TrainLoader(records, factors, MAPPERS[engine](cfg), **{**arguments, **changes})


# --- digests of samples


def feed(update: Callable[[bytes], None], value: Any) -> None:
    """Everything in a sample, as bytes: pixels, boxes, masks, classes, and whatever else."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        update(f"{value.dtype}{value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        for key in sorted(value):
            update(key.encode())
            feed(update, value[key])
    elif isinstance(value, list | tuple):
        update(f"{len(value)}".encode())
        for entry in value:
            feed(update, entry)
    elif hasattr(value, "get_fields"):  # Detectron2's Instances
        feed(update, {**value.get_fields(), "image_size": value.image_size})
    elif hasattr(value, "polygons") or hasattr(value, "tensor"):  # its masks and boxes
        feed(update, value.polygons if hasattr(value, "polygons") else value.tensor)
    else:
        assert isinstance(value, str | bytes | int | float | None), type(value)
        update(repr(value).encode())


def digest(sample: dict[str, Any]) -> str:
    hashed = hashlib.sha1()
    feed(hashed.update, sample)
    return hashed.hexdigest()


def batches(loader: TrainLoader) -> Iterator[dict[int, str]]:
    """Position to digest, batch by batch."""
    for batch in loader:
        assert loader.positions == [s["draw"].position for s in batch]
        yield {s["draw"].position: digest(s) for s in batch}


def samples(loader: TrainLoader, n: int) -> dict[int, str]:
    """Digests of the first ``n`` positions."""
    wanted, seen = set(range(n)), {}
    for batch in batches(loader):
        assert not seen.keys() & batch.keys()
        seen |= batch
        if wanted <= seen.keys():
            return {k: seen[k] for k in sorted(wanted)}
    raise AssertionError("the loader ended")


# --- the law

_reference: dict[str, dict[int, str]] = {}


@pytest.fixture
def reference(engine, cfg) -> dict[int, str]:
    """The first samples, in this process."""
    if engine not in _reference:
        _reference[engine] = samples(loader_of(engine, cfg), NUM_SAMPLES)
    return _reference[engine]


def test_samples_differ(reference):
    """Else the law would say nothing."""
    assert len(set(reference.values())) == NUM_SAMPLES


@pytest.mark.parametrize("num_workers", [1, 4])
def test_samples_do_not_depend_on_the_number_of_workers(engine, cfg, reference, num_workers):
    loader = loader_of(engine, cfg, num_workers=num_workers)
    assert samples(loader, NUM_SAMPLES) == reference


@pytest.mark.parametrize("start", [0, 7])
def test_the_law_holds_with_objects_of_a_bank(engine, cfg, start):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    beyond = ("SOURCES", "bank", "AUGMENTED_IMAGES", "all", "STRATEGY", "all")
    cfg = changed(cfg, *(f"SMALLOBJ.{w}" if w.isupper() else w for w in beyond))
    build = load_engine(engine).build_train_loader
    runs = []
    for workers, start_iter in ((0, 0), (2, start)):
        loader = build(changed(cfg, "DATALOADER.NUM_WORKERS", workers), start_iter=start_iter)
        runs.append(list(islice(batches(loader), 20 - start_iter)))
    assert runs[0][start:] == runs[1]
    plain = samples(loader_of(engine, changed(cfg, "SMALLOBJ.COPY_PASTE", False)), 60)
    assert sum(plain.get(k, d) != d for batch in runs[0] for k, d in batch.items()) > 15


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("grouping", [True, False])
def test_processes_share_the_batches_of_one(engine, cfg, grouping, world_size):
    """So each iteration has the same draws with any number of processes."""
    whole = islice(batches(loader_of(engine, cfg, aspect_ratio_grouping=grouping)), 15)
    shares = [
        batches(
            loader_of(engine, cfg, rank=r, world_size=world_size, aspect_ratio_grouping=grouping)
        )
        for r in range(world_size)
    ]
    for batch in whole:
        parts = [next(share) for share in shares]
        assert {len(part) for part in parts} == {4 // world_size}
        assert {k: v for part in parts for k, v in part.items()} == batch


def _one_of_two(rank: int, file: str, cfg: Any, queue: Any) -> None:
    from smallobj_d2.engines.detectron2 import build_train_loader

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    queue.put(list(islice(batches(build_train_loader(cfg)), 25)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_real_processes_share_the_batches_of_one(cfg, tmp_path):
    """Detectron2's loader learns from torch.distributed which process it is."""
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from smallobj_d2.engines import detectron2

    cfg = changed(cfg, "DATALOADER.NUM_WORKERS", 1)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (str(tmp_path / "store"), cfg, queue)
    processes = [context.Process(target=_one_of_two, args=(r, *arguments)) for r in (0, 1)]
    for process in processes:
        process.start()
    shares = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    whole = list(islice(batches(detectron2.build_train_loader(cfg)), 25))
    assert [a | b for a, b in zip(*shares, strict=True)] == whole


def with_rle(cfg: Any, scenes: Path, folder: Path) -> Any:
    """The same scenes, with masks as RLE."""
    data = json.loads(scenes.read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in data["images"]}
    for annotation in data["annotations"]:
        size = sizes[annotation["image_id"]]
        rle = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], *size))
        annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    (folder / "rle.json").write_text(json.dumps(data))
    name = f"rle_{folder.name}"
    entry = [[name, str(folder / "rle.json"), str(scenes.parent / "images")]]
    masks = ("INPUT.MASK_FORMAT", "bitmask")
    return changed(cfg, "SMALLOBJ.DATASETS", entry, "DATASETS.TRAIN", (name,), *masks)


def owning_pixels(instances: Any) -> torch.Tensor:
    """Which of Detectron2's instances have a pixel; torchvision's have pixels or are left out."""
    from detectron2.structures import BitMasks

    masks = instances.gt_masks
    if hasattr(masks, "polygons"):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    return masks.tensor.flatten(1).any(dim=1)


@pytest.mark.parametrize("sources", ["image", "bank"])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("masks", ["polygons", "rle"])
def test_both_engines_see_the_same_images_and_boxes(cfg, scenes, tmp_path, masks, overlap, sources):
    for engine in sorted(MAPPERS):
        pytest.importorskip(engine, reason=f"{engine} is not installed")
    if masks == "rle":
        cfg = with_rle(cfg, scenes, tmp_path)
    cfg = changed(cfg, "SMALLOBJ.SOURCES", sources, "SMALLOBJ.ALLOW_OVERLAP", overlap)
    cfg = changed(cfg, "DATALOADER.NUM_WORKERS", 0)
    fractions = []
    for sampling, sizes in (("choice", (60, 90)), ("range", (130, 190))):
        cfg = changed(cfg, "INPUT.MIN_SIZE_TRAIN_SAMPLING", sampling, "INPUT.MIN_SIZE_TRAIN", sizes)
        theirs, ours = (iter(load_engine(name).build_train_loader(cfg)) for name in sorted(MAPPERS))
        for _ in range(10):
            for a, b in zip(next(theirs), next(ours), strict=True):
                assert a["draw"] == b["draw"]
                assert torch.equal(a["image"], b["image"])
                instances = a["instances"][owning_pixels(a["instances"])]
                assert torch.equal(instances.gt_boxes.tensor, b["target"]["boxes"])
                assert torch.equal(instances.gt_classes + 1, b["target"]["labels"])
                fractions += [b["target"]["boxes"][b["target"]["pasted"]] % 1]
    assert (torch.cat(fractions) > 0).float().mean() > 0.8  # boxes are not whole pixels


@pytest.mark.parametrize(("num_workers", "grouping"), [(0, True), (0, False), (2, True)])
def test_a_resumed_run_goes_on_where_it_stopped(engine, cfg, num_workers, grouping):
    options = {"num_workers": num_workers, "aspect_ratio_grouping": grouping}
    unbroken = list(islice(batches(loader_of(engine, cfg, **options)), 20))
    for start in (1, 13):
        resumed = batches(loader_of(engine, cfg, start_iter=start, **options))
        assert list(islice(resumed, 20 - start)) == unbroken[start:]


def test_batches_do_not_depend_on_the_number_of_workers(engine, cfg):
    orders = [
        [list(b) for b in islice(batches(loader_of(engine, cfg, num_workers=n)), 20)]
        for n in (0, 3)
    ]
    assert orders[0] == orders[1]


def test_seeds_differ(engine, cfg, reference):
    other = samples(loader_of(engine, changed(cfg, "SEED", 12)), 40)
    assert not set(other.values()) & set(reference.values())


def global_state() -> tuple[Any, ...]:
    return np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().tolist()


def scramble(seed: int) -> None:
    np.random.seed(seed)
    random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_generators_are_neither_read_nor_changed(engine, cfg, reference, num_workers):
    for seed in (1, 2):
        scramble(seed)
        before = global_state()
        seen = samples(loader_of(engine, cfg, num_workers=num_workers), 60)
        assert global_state() == before
        assert seen == {k: reference[k] for k in range(60)}


# --- what the stream looks like through a loader


class Positions:
    """A mapper that reads no image."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(record["draw"].position)
        return {"draw": record["draw"], "index": record["image_id"]}


def records_of(num: int) -> list[dict[str, Any]]:
    return [{"image_id": i, "width": 2 + i % 3, "height": 3} for i in range(num)]


def plain_loader(mapper: Any, num: int = 10, **changes: Any) -> TrainLoader:
    arguments = {"seed": 0, "images_per_batch": 4, **changes}
    return TrainLoader(records_of(num), np.ones(num), mapper, **arguments)


def test_batches_are_all_wide_or_all_not_and_no_position_is_lost():
    loader = plain_loader(Positions())
    seen = []
    for batch in islice(loader, 200):
        assert len({records_of(10)[s["index"]]["width"] > 3 for s in batch}) == 1
        seen += [s["draw"].position for s in batch]
    assert len(set(seen)) == len(seen) == 800
    assert set(range(790)) <= set(seen)  # all but what waits in the other bucket


def test_no_image_is_read_for_batches_before_the_start():
    mapper = Positions()
    list(islice(plain_loader(mapper, start_iter=1000), 2))
    assert len(mapper.seen) == 8
    assert min(mapper.seen) > 3980


def test_batches_without_grouping_are_runs_of_positions():
    stream = Stream([1.0] * 5, 0)
    sampler = BatchSampler(stream, 6, None, rank=1, world_size=2, start=1)
    assert list(islice(sampler, 2)) == [[7, 9, 11], [13, 15, 17]]


def test_a_dataset_gives_dataset_dicts_with_their_draw():
    dataset = DrawDataset(records_of(4), Stream([1.0] * 4, 0), Positions())
    draws = [dataset.record(k)["draw"] for k in range(len(dataset))]
    assert sorted(d.index for d in draws) == [0, 1, 2, 3]
    assert all(dataset.record(d.position)["image_id"] == d.index for d in draws)


def test_processes_must_share_a_batch_evenly():
    with pytest.raises(SmallObjError, match="IMS_PER_BATCH is 4, which 3 processes cannot share"):
        plain_loader(Positions(), world_size=3)


# --- images that cannot be read


@pytest.mark.skipif(cv2.getNumThreads() == 1, reason="OpenCV has one thread here")
def test_workers_do_without_opencv_threads_whose_locks_a_fork_may_hold():
    def mapper(record):
        return {"draw": record["draw"], "threads": cv2.getNumThreads()}

    before = cv2.getNumThreads()
    batch = next(iter(plain_loader(mapper, num_workers=1)))
    assert {sample["threads"] for sample in batch} == {1}
    assert cv2.getNumThreads() == before


@pytest.mark.skipif(cv2.getNumThreads() == 1, reason="OpenCV has one thread here")
def test_so_do_those_of_an_evaluation_in_torchvision():
    def mapper(record):
        raise SmallObjError(f"it has {cv2.getNumThreads()}")

    with pytest.raises(SmallObjError, match="it has 1"):
        detect(torch.nn.Linear(1, 1), records_of(2), mapper, [1], num_workers=1)


class Unreadable:
    """A mapper for which some images cannot be read."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        if record["image_id"] in self.bad:
            raise UnreadableImage(f"image {record['image_id']} cannot be read")
        return {"draw": record["draw"], "index": record["image_id"]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_stops_the_run_with_its_name(num_workers):
    with pytest.raises(UnreadableImage, match=r"^image 3 cannot be read$"):
        list(islice(plain_loader(Unreadable(3), num_workers=num_workers), 4))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_takes_its_place_is_a_draw_of_its_own_record(num_workers):
    """So that it has the one copy that there is of it, with ONE_COPY_PER_IMAGE."""
    loader = plain_loader(Unreadable(3, 4), num_workers=num_workers, skip_unreadable=True)
    samples = [s for batch in islice(loader, 30) for s in batch]
    assert all(s["draw"].index == s["index"] for s in samples)
    assert loader.skipped


@pytest.mark.parametrize("num_workers", [0, 2])
def test_or_is_skipped_and_counted(num_workers):
    loader = plain_loader(Unreadable(3, 4), num_workers=num_workers, skip_unreadable=True)
    stream = Stream(np.ones(10), 0)
    num_replaced = 0
    for batch in islice(loader, 20):
        for sample in batch:
            assert "skipped" not in sample
            due = stream[sample["draw"].position].index
            assert sample["index"] == (5 if due in (3, 4) else due)
            num_replaced += due in (3, 4)
    assert num_replaced
    assert sorted(loader.skipped) == ["image 3 cannot be read", "image 4 cannot be read"]
    assert loader.skipped["image 4 cannot be read"] >= num_replaced


def test_what_is_never_drawn_takes_no_place():
    """A factor of 0 leaves an image out, whatever happens to others."""
    factors = [1.0, 1, 0, 0, 1, 0]
    loader = TrainLoader(
        records_of(6), factors, Unreadable(1, 4), seed=0, images_per_batch=4, skip_unreadable=True
    )
    assert {s["index"] for batch in islice(loader, 20) for s in batch} == {0}
    loader = TrainLoader(
        records_of(6),
        factors,
        Unreadable(0, 1, 4),
        seed=0,
        images_per_batch=4,
        skip_unreadable=True,
    )
    with pytest.raises(UnreadableImage):
        next(iter(loader))


def test_where_no_image_can_be_read_the_run_stops():
    with pytest.raises(UnreadableImage):
        next(iter(plain_loader(Unreadable(*range(10)), skip_unreadable=True)))


def test_a_missing_image_is_named(engine, cfg, scenes, tmp_path):
    data = json.loads(scenes.read_text())
    data["images"][0]["file_name"] = "gone.jpg"
    (tmp_path / "a.json").write_text(json.dumps(data))
    name = f"gone_{tmp_path.name}"
    entry = [[name, str(tmp_path / "a.json"), str(scenes.parent / "images")]]
    cfg = changed(cfg, "SMALLOBJ.DATASETS", entry, "DATASETS.TRAIN", (name,))
    register_from_config(cfg)
    with pytest.raises(UnreadableImage, match=r"gone\.jpg \(image 1\)"):
        samples(loader_of(engine, cfg), 100)


def test_an_image_of_another_size_is_named(engine, cfg, scenes, tmp_path):
    data = json.loads(scenes.read_text())
    (tmp_path / "images").mkdir()
    for image in data["images"]:
        size = (image["width"] + (image["id"] == 1), image["height"])
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        cv2.imwrite(str(tmp_path / "images" / image["file_name"]), pixels)
    (tmp_path / "a.json").write_text(json.dumps(data))
    name = f"sizes_{tmp_path.name}"
    entry = [[name, str(tmp_path / "a.json"), str(tmp_path / "images")]]
    cfg = changed(cfg, "SMALLOBJ.DATASETS", entry, "DATASETS.TRAIN", (name,))
    register_from_config(cfg)
    with pytest.raises(UnreadableImage, match=r"000000000001\.jpg \(image 1\)"):
        samples(loader_of(engine, cfg), 100)


# --- the check can fail


def broken_laws(engine: str, cfg: Any, n: int = 32) -> set[str]:
    """Which of the laws above do not hold."""
    broken = set()
    scramble(1)
    before = global_state()
    reference = samples(loader_of(engine, cfg), n)
    if global_state() != before:
        broken.add("global state changed")
    scramble(2)
    if samples(loader_of(engine, cfg), n) != reference:
        broken.add("global state read")
    scramble(1)
    if samples(loader_of(engine, cfg, num_workers=2), n) != reference:
        broken.add("workers")
    scramble(1)
    shares = [batches(loader_of(engine, cfg, rank=r, world_size=2)) for r in (0, 1)]
    shared = {k: v for _ in range(n // 4) for share in shares for k, v in next(share).items()}
    if any(reference.get(k, v) != v for k, v in shared.items()):
        broken.add("processes")
    return broken


def rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def test_the_check_finds_nothing_where_nothing_is_wrong(engine, cfg):
    assert broken_laws(engine, cfg) == set()


SABOTAGE = {
    "np.random": lambda: np.random.uniform(-0.2, 0.2),
    "random": lambda: random.uniform(-0.2, 0.2),
    "torch": lambda: float(torch.rand(())) * 0.4 - 0.2,
}


@pytest.mark.parametrize("name", sorted(SABOTAGE))
def test_the_check_notices_a_global_generator(any_engine, cfg, monkeypatch, name):
    monkeypatch.setattr(Jitter, "sample", lambda self, rng: rotation(SABOTAGE[name]()))
    assert broken_laws(any_engine, cfg) >= {"global state changed", "global state read", "workers"}


def test_the_check_notices_a_seed_that_depends_on_the_worker(any_engine, cfg, monkeypatch):
    def worker(self: Jitter, rng: np.random.Generator) -> np.ndarray:
        info = get_worker_info()
        return rotation(0.05 * (0 if info is None else 1 + info.id))

    monkeypatch.setattr(Jitter, "sample", worker)
    assert broken_laws(any_engine, cfg) == {"workers"}


def test_the_check_notices_a_generator_that_outlives_a_draw(any_engine, cfg, monkeypatch):
    real = CopyPaste.plan

    def init(self: DrawAugmentation, *args: Any, _init: Any = DrawAugmentation.__init__, **kw: Any):
        _init(self, *args, **kw)
        rng = np.random.default_rng(0)
        self.copy_paste.plan = lambda a, h, w, _, image: real(self.copy_paste, a, h, w, rng, image)

    monkeypatch.setattr(DrawAugmentation, "__init__", init)
    assert broken_laws(any_engine, cfg) == {"workers", "processes"}


def test_the_check_notices_a_resize_that_reads_a_global_generator(engine, cfg, monkeypatch):
    module = pytest.importorskip(
        {
            "detectron2": "smallobj_d2.engines.detectron2.mapper",
            "torchvision": "smallobj_d2.engines.torchvision.mapper",
        }[engine]
    )
    state = np.random.mtrand._rand  # what the functions of np.random use
    monkeypatch.setattr(module, "draw_state", lambda seed, position: state)
    assert broken_laws(engine, cfg) >= {"global state read"}
