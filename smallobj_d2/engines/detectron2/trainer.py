"""Detectron2's trainer with our loader, COCO evaluation, and an exact resume."""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, defaults
from detectron2.evaluation import COCOEvaluator

from smallobj_d2.config import changed
from smallobj_d2.engines import processes, run
from smallobj_d2.engines.detectron2.checkpoints import Checkpointer
from smallobj_d2.engines.detectron2.mapper import build_mapper, build_train_loader
from smallobj_d2.engines.loader import TrainLoader, settle_worker
from smallobj_d2.engines.seed_and_device import seed_step
from smallobj_d2.errors import SmallObjError
from smallobj_d2.evaluation.ap import counted_detections, load_ground_truth


class Trainer(DefaultTrainer):
    """DefaultTrainer with our loader, COCO evaluation, and an exact resume."""

    def __init__(self, cfg: CfgNode) -> None:
        with _processes_on(cfg.MODEL.DEVICE):
            super().__init__(cfg)
        self._write_metrics = self._trainer._write_metrics
        self._trainer._write_metrics = self._check_losses

    def build_hooks(self) -> list[HookBase | None]:
        """The stock hooks, which save with our checkpointer."""
        self.checkpointer = Checkpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        hooks: list[HookBase | None] = super().build_hooks()
        return hooks

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """The stock loader with our mapper, with readable errors, and with our workers' start."""
        mapper = build_mapper(cfg, False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.worker_init_fn = settle_worker  # which it has no argument for
        return loader

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """The loader of a run that starts at iteration 0."""
        return build_train_loader(cfg)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """The stock schedule, which cannot take a step at the very end of training."""
        steps = tuple(s for s in cfg.SOLVER.STEPS if s != cfg.SOLVER.MAX_ITER)
        return super().build_lr_scheduler(changed(cfg, {"SOLVER.STEPS": steps}), optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """COCO's evaluation of what the model predicts."""
        tasks = ["bbox"]
        if cfg.MODEL.MASK_ON:
            tasks.append("segm")
        if cfg.MODEL.KEYPOINT_ON:
            tasks.append("keypoints")
        output = os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            output = os.path.join(output, dataset_name)
        evaluator = COCOEvaluator(
            dataset_name,
            tasks=tuple(tasks),
            output_dir=output,
            max_dets_per_image=counted_detections(cfg),
            kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
            allow_cached_coco=False,
        )
        evaluator._coco_api = load_ground_truth(MetadataCatalog.get(dataset_name).json_file)
        return evaluator

    @classmethod
    def test(cls, cfg: CfgNode, model: Any, evaluators: Any = None) -> Any:
        """The stock evaluation, of the same model in all processes.

        Each process has its own batch norm statistics, and evaluates a part of the images.
        """
        processes.share_statistics(model)
        return super().test(cfg, model, evaluators)

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer's; the stream of draws continues where the checkpoint left it."""
        super().resume_or_load(resume)
        last = Path(self.checkpointer.get_checkpoint_file()).name
        if self.start_iter >= self.max_iter and last != "model_final.pth":
            # Killed between the last periodic checkpoint and the final one.
            self.checkpointer.save("model_final", iteration=self.start_iter - 1)
        self._trainer.data_loader.start_at(self.start_iter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the stock method; a run that began without mixed precision may go over to it.

        Learning rate, momentum and decay are the config's, not the checkpoint's.
        """
        inner = state_dict["_trainer"]
        if isinstance(self._trainer, AMPTrainer) and "grad_scaler" not in inner:
            inner = {**inner, "grad_scaler": self._trainer.grad_scaler.state_dict()}
        asked = [{**group} for group in self.optimizer.param_groups]
        super().load_state_dict({**state_dict, "_trainer": inner})
        self.scheduler.base_lrs = [group["initial_lr"] for group in asked]
        for group, now in zip(self.optimizer.param_groups, asked, strict=True):
            before = group["initial_lr"]
            rate = group["lr"] * (now["initial_lr"] / before) if before else now["initial_lr"]
            group.update(now, params=group["params"], lr=rate)

    def run_step(self) -> None:
        """One iteration; a loss that is not finite names the draws it came from.

        The model's own randomness (which boxes are sampled) is a function of the iteration. So a
        run that was killed and resumed does what an unbroken one does.
        """
        seed_step(self.cfg.SEED, self.iter)
        try:
            super().run_step()
        except FloatingPointError as e:  # where the model itself has noticed
            raise self._not_finite(str(e)) from e

    def _check_losses(self, losses: Any, *args: Any, **kwargs: Any) -> None:
        """Each process looks at its own losses before they are put together."""
        bad = {k: v for k, v in losses.items() if not torch.isfinite(v).all()}
        if bad:
            raise self._not_finite(", ".join(f"{k} {v.item()}" for k, v in bad.items()))
        self._write_metrics(losses, *args, **kwargs)

    def _not_finite(self, which: str) -> SmallObjError:
        positions = self._trainer.data_loader.positions
        return run.not_finite(Path(self.cfg.OUTPUT_DIR), self.iter, positions, which)


@contextmanager
def _processes_on(device: str) -> Iterator[None]:
    """Let DefaultTrainer run in several processes on the CPU, where it would name a GPU to each."""
    stock = defaults.create_ddp_model
    if device == "cpu":
        defaults.create_ddp_model = partial(stock, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = stock
