"""The training loader of every engine: positions of the stream in, batches of samples out.

The order of batches is decided in the main process, by a batch sampler; workers turn positions
into samples. So batches are the same, in the same order, with any number of workers, and a
resumed run continues with the batch that an unbroken one would see next. Processes share a
batch, so its draws do not depend on how many there are either.
"""

import logging
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from smallobj_d2.augmentation import build_augmentation
from smallobj_d2.copy_paste.bank import ReadImage
from smallobj_d2.datasets.coco import register_from_config
from smallobj_d2.datasets.records import PackedRecords
from smallobj_d2.engines import processes
from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.registry import import_modules
from smallobj_d2.sampling import Stream
from smallobj_d2.training_set import Records, require_masks_to_learn, training_data

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
Mapper = Callable[[dict[str, Any]], Sample]


@dataclass(eq=False)
class DrawDataset(Dataset[Sample]):
    """The stream of draws as a map-style dataset: position to mapped sample.

    The mapper gets a fresh dataset dict, with the key ``draw``.

    Args:
        records: N dataset dicts.
        stream: what stands at each position.
        mapper: dataset dict to sample.
        skip_unreadable: take the next record in place of one whose image cannot be read, and
            say so in the sample's ``skipped``.
    """

    records: Sequence[dict[str, Any]] | PackedRecords
    stream: Stream
    mapper: Mapper
    skip_unreadable: bool = False

    def __len__(self) -> int:
        return len(self.stream)

    def record(self, position: int) -> dict[str, Any]:
        """The dataset dict at a position, with its ``draw``."""
        draw = self.stream[position]
        return {**self.records[draw.index], "draw": draw}

    def __getitem__(self, position: int) -> Sample:
        record = self.record(position)
        draw = record["draw"]
        skipped: list[str] = []
        while True:
            try:
                sample = self.mapper(record)
            except UnreadableImage as e:
                drawn = self.stream.drawn  # no others are to be trained on
                if not self.skip_unreadable or len(skipped) == len(drawn) - 1:
                    raise
                skipped.append(str(e))
                following = np.searchsorted(drawn, draw.index) + len(skipped)
                substitute = int(drawn[following % len(drawn)])
                record = {**self.records[substitute], "draw": draw._replace(index=substitute)}
            else:
                return {**sample, "skipped": skipped} if skipped else sample


@dataclass(eq=False)
class BatchSampler(Sampler[list[int]]):
    """Batches of positions, those of wide and of tall images apart if ``wide`` is given.

    Grouping saves padding, as in Detectron2. It delays a position until its batch is full, but
    loses none. Batches are those of all processes together, of which each takes its share: so an
    iteration has the same draws with any number of processes.

    Args:
        stream: tells which record stands at a position.
        size: positions in a batch, over all processes.
        wide: (N,) bool per record, wider than tall; None for no grouping.
        rank, world_size: which process this is, of how many.
        start: batches to leave out at the beginning; no image is read for them.
    """

    stream: Stream
    size: int
    wide: NDArray[np.bool_] | None
    rank: int = 0
    world_size: int = 1
    start: int = 0

    def __iter__(self) -> Iterator[list[int]]:
        for batch in islice(self._batches(), self.start, None):
            yield batch[self.rank :: self.world_size]

    def _batches(self) -> Iterator[list[int]]:
        buckets: tuple[list[int], list[int]] = ([], [])
        for position in count():
            bucket = buckets[0]
            if self.wide is not None:
                bucket = buckets[int(self.wide[self.stream[position].index])]
            bucket.append(position)
            if len(bucket) == self.size:
                yield bucket.copy()
                bucket.clear()


class TrainLoader:
    """The infinite training loader: iterates over batches, which are lists of samples.

    Args:
        records: N dataset dicts.
        factors: (N,) repeat factors.
        mapper: dataset dict to sample.
        seed: the run's seed, not negative.
        images_per_batch: over all processes, which must divide it.
        rank, world_size: which process this is, of how many.
        num_workers: loader processes.
        aspect_ratio_grouping: keep wide and tall images in batches apart.
        start_iter: see `start_at`.
        skip_unreadable: replace unreadable images instead of stopping.

    Attributes:
        positions: positions of the draws in the batch that was handed out last.
        skipped: how often each unreadable image was skipped, by what was wrong with it.
        left_out: copies that were wanted and not placed, by reason; see `Plan.left_out`.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        factors: NDArray[np.float64],
        mapper: Mapper,
        *,
        seed: int,
        images_per_batch: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        aspect_ratio_grouping: bool = True,
        start_iter: int = 0,
        skip_unreadable: bool = False,
    ) -> None:
        if images_per_batch < 1:
            raise SmallObjError(
                f"SOLVER.IMS_PER_BATCH is {images_per_batch}; it must be at least 1."
            )
        if images_per_batch % world_size:
            raise SmallObjError(
                f"SOLVER.IMS_PER_BATCH is {images_per_batch}, which {world_size} processes cannot "
                "share evenly. Choose a multiple."
            )
        stream = Stream(factors, seed)
        wide = None
        if aspect_ratio_grouping:
            wide = np.array([r["width"] > r["height"] for r in records])
        self.dataset = DrawDataset(PackedRecords(records), stream, mapper, skip_unreadable)
        self.positions: list[int] = []
        self.skipped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._batches = BatchSampler(stream, images_per_batch, wide, rank, world_size, start_iter)
        self._loader = DataLoader(
            self.dataset,
            batch_sampler=self._batches,
            num_workers=num_workers,
            collate_fn=list,
            worker_init_fn=settle_worker,
            generator=torch.Generator(),  # else it draws a seed from the global one
        )

    def start_at(self, iteration: int) -> None:
        """Begin with the batch of an iteration; earlier ones are left out, unread."""
        self._batches.start = iteration

    def __iter__(self) -> Iterator[list[Sample]]:
        for batch in self._loader:
            samples = []
            for sample in batch:
                for what in sample.pop("skipped", ()):
                    if what not in self.skipped:
                        logger.warning("Skipped: %s", what)
                    self.skipped[what] += 1
                self.left_out.update(sample.pop("left_out", {}))
                samples.append(sample)
            self.positions = [s["draw"].position for s in samples]
            yield samples


def loader_from_config(
    cfg: Any,
    build_mapper: Callable[..., Mapper],
    read_records: Callable[[Iterable[str]], Records],
    read_image: ReadImage,
    *,
    start_iter: int = 0,
) -> TrainLoader:
    """The one way from a config to a training loader, for this process of a run.

    Args:
        cfg: a config with ``SMALLOBJ``.
        build_mapper: ``(cfg, is_train, augmentation=...)`` to the mapper of the engine.
        read_records: dataset names to dataset dicts.
        read_image: a dataset dict to its image, as the mapper reads it, for a bank of objects.
        start_iter: see `TrainLoader`.
    """
    import_modules(cfg.SMALLOBJ.IMPORTS)
    register_from_config(cfg)
    records, factors = training_data(cfg, read_records)
    require_masks_to_learn(records, cfg)
    progress = processes.rank() == 0
    augmentation = build_augmentation(
        cfg, cfg.SEED, records, read_image, factors, progress=progress
    )
    mapper = build_mapper(cfg, True, augmentation=augmentation)
    return TrainLoader(
        records,
        factors,
        mapper,
        seed=cfg.SEED,
        images_per_batch=cfg.SOLVER.IMS_PER_BATCH,
        rank=processes.rank(),
        world_size=processes.world_size(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        start_iter=start_iter,
        skip_unreadable=cfg.SMALLOBJ.UNREADABLE_IMAGES == "skip",
    )


def settle_worker(_: int) -> None:
    """What a loader worker, which is a fork of its parent, leaves to the parent.

    Signals: Ctrl-C reaches all processes of a terminal, but one of them is enough to end the
    others. What goes wrong in a sample travels to the parent; only threads that share memory with
    it use the hook, to complain that it has gone.

    OpenCV's threads: a fork has none of them, but may have a lock that one of them held, and wait
    for it forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *_: None
    cv2.setNumThreads(0)
