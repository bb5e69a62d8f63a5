"""The training loop: SGD by iterations, checkpoints that resume exactly, Detectron2's metrics."""

import json
import logging
import math
import resource
import statistics
import sys
import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from smallobj_d2.engines import processes, run
from smallobj_d2.engines.folder import last_checkpoint
from smallobj_d2.engines.seed_and_device import seed_step
from smallobj_d2.engines.torchvision.mapper import inputs_on
from smallobj_d2.engines.weights import read_file, resuming, save_checkpoint
from smallobj_d2.errors import SmallObjError, clock

logger = logging.getLogger(__name__)

PERIOD = 20
"""Iterations between lines of the log and of metrics.json, as in Detectron2."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.SGD:
    """SGD with Detectron2's settings for norms and biases."""
    s = cfg.SOLVER
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            rate, decay = s.BASE_LR, s.WEIGHT_DECAY
            if isinstance(module, _NORMS) and s.WEIGHT_DECAY_NORM is not None:
                decay = s.WEIGHT_DECAY_NORM
            if name == "bias":
                rate *= s.BIAS_LR_FACTOR
                decay = decay if s.WEIGHT_DECAY_BIAS is None else s.WEIGHT_DECAY_BIAS
            groups[rate, decay].append(parameter)
    return torch.optim.SGD(
        [
            {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        lr=s.BASE_LR,
        momentum=s.MOMENTUM,
        nesterov=s.NESTEROV,
    )


def build_schedule(cfg: Any) -> Callable[[int], float]:
    """Detectron2's WarmupMultiStepLR: iteration to the factor that the learning rate has then.

    The learning rate is a function of the iteration, so there is no state of it to save.
    """
    s = cfg.SOLVER
    steps = sorted(step for step in s.STEPS if step <= s.MAX_ITER)
    if len(steps) < len(s.STEPS):
        logger.warning(
            "SOLVER.STEPS is %s, of which those after SOLVER.MAX_ITER %d never come: the learning "
            "rate does not fall there.",
            tuple(s.STEPS),
            s.MAX_ITER,
        )
    warmup = min(s.WARMUP_ITERS, s.MAX_ITER)

    def factor(iteration: int) -> float:
        if iteration >= warmup:
            return float(s.GAMMA ** bisect_right(steps, iteration))
        if s.WARMUP_METHOD == "constant":
            return float(s.WARMUP_FACTOR)
        end = s.GAMMA ** bisect_right(steps, warmup)
        done = iteration / warmup
        return float(s.WARMUP_FACTOR * (1 - done) + end * done)

    return factor


@dataclass(eq=False)
class Trainer:
    """Trains a model for a number of iterations.

    Every iteration starts torch's generator afresh from the seed, the iteration and the process, so
    that a resumed run continues bit for bit as if it had not stopped (on a CPU; a GPU adds in no
    fixed order).

    Args:
        model: returns named losses; on its device already.
        optimizer: its groups keep their base rate as ``initial_lr``.
        schedule: iteration to the factor of the learning rate.
        seed: the run's seed.
        max_iter: iterations in all.
        output: the run's folder.
        checkpoint_period: iterations between checkpoints.
        amp: mixed precision: float16 on a GPU, bfloat16 on a CPU. Weights, gradients and
            checkpoints stay in float32.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    seed: int
    max_iter: int
    output: Path
    checkpoint_period: int
    amp: bool = False
    next_iteration: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        # bfloat16 has the range of float32, so that no gradient is lost for want of a scale.
        half = self.amp and self.device.type == "cuda"
        self.scaler = GradScaler(self.device.type, enabled=half)

    @classmethod
    def from_config(cls, cfg: Any, model: nn.Module) -> "Trainer":
        """Build from SOLVER, SEED and OUTPUT_DIR."""
        return cls(
            model,
            build_optimizer(cfg, model),
            build_schedule(cfg),
            seed=cfg.SEED,
            max_iter=cfg.SOLVER.MAX_ITER,
            output=Path(cfg.OUTPUT_DIR),
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            amp=cfg.SOLVER.AMP.ENABLED,
        )

    def train(
        self,
        batches: Iterable[list[dict[str, Any]]],
        evaluate: Callable[[nn.Module], tuple[dict[str, Any], Mapping[str, float]]] | None = None,
        *,
        eval_period: int = 0,
    ) -> dict[str, Any]:
        """Train from `next_iteration` to the end.

        Args:
            batches: those of this process, beginning with the next iteration's.
            evaluate: model to results, and numbers for metrics.json; called in all processes at
                once.
            eval_period: iterations between evaluations, 0 for one at the end only.

        Returns:
            The results of the evaluation at the end.
        """
        self._lay_out()
        network: nn.Module = self.model
        if processes.world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = DistributedDataParallel(self.model, device_ids=ids)
        network.train()
        first = self.next_iteration
        with Metrics(self.output, first, self.max_iter, self.device) as metrics:

            def results() -> dict[str, Any]:
                if evaluate is None:
                    return {}
                processes.share_statistics(self.model)
                self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
                found, numbers = evaluate(self.model)
                metrics.write(self.next_iteration - 1, numbers)
                self._lay_out()
                self.model.train()
                return found

            iterator = iter(batches)
            for iteration in range(first, self.max_iter):
                start = time.perf_counter()
                batch = next(iterator)
                waited = time.perf_counter() - start
                losses = self._step(network, batch, iteration)
                self.next_iteration = done = iteration + 1
                metrics.add(
                    iteration,
                    losses,
                    lr=self.optimizer.param_groups[0]["lr"],
                    data_time=waited,
                    time=time.perf_counter() - start,
                )
                if done % self.checkpoint_period == 0:
                    self.save(f"model_{iteration:07d}.pth")
                if eval_period and done % eval_period == 0 and done < self.max_iter:
                    results()
            if first >= self.max_iter:
                logger.info("All %d iterations are done: nothing is left to train.", self.max_iter)
            last = last_checkpoint(self.output)
            # A run may have been killed between the last periodic checkpoint and the final one.
            if first < self.max_iter or last is None or last.name != "model_final.pth":
                self.save("model_final.pth")
            return results()

    def _lay_out(self) -> None:
        """Weights channels last for bfloat16 on a CPU, whose convolutions are faster so.

        Evaluation has them as they were, so that a checkpoint gives the same row bit for bit.
        """
        if self.amp and self.device.type == "cpu":
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _step(
        self, network: nn.Module, batch: Sequence[dict[str, Any]], iteration: int
    ) -> dict[str, float]:
        seed_step(self.seed, iteration)
        factor = self.schedule(iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        images, targets = inputs_on(self.device, batch)
        with torch.autocast(self.device.type, enabled=self.amp):
            losses: dict[str, Tensor] = network(images, targets)
            total = sum(losses.values(), torch.zeros((), device=self.device))
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            which = ", ".join(f"{k} {v}" for k, v in values.items() if not math.isfinite(v))
            draws = [sample["draw"].position for sample in batch]
            raise run.not_finite(self.output, iteration, draws, which)
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return values

    # --- Checkpoints

    def save(self, name: str) -> None:
        """Write a checkpoint, and only then say in last_checkpoint that it is the last."""
        if processes.rank() != 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.next_iteration - 1,
            "seed": self.seed,
        }
        save_checkpoint(self.output / name, state)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            SmallObjError: if it is not one of this model and this run.
        """
        state = read_file(path)
        if not isinstance(state, dict):
            raise SmallObjError(f"{path} is not a checkpoint: it holds a {type(state).__name__}.")
        with resuming(path):
            self.model.load_state_dict(state["model"])
            asked = [{**g, "params": None} for g in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, now in zip(self.optimizer.param_groups, asked, strict=True):
                group.update(now, params=group["params"])  # rates and decay are the config's
            if state["scaler"]:  # empty after a run without mixed precision, or on a CPU
                self.scaler.load_state_dict(state["scaler"])
            self.next_iteration = int(state["iteration"]) + 1
            seed = state["seed"]
        if seed != self.seed:
            raise SmallObjError(f"{path} has seed {seed}, but SEED is {self.seed}: set it to that.")
        logger.info("Resuming from %s at iteration %d.", path, self.next_iteration)


class Metrics:
    """Losses and times: a line per `PERIOD` iterations in the log (or a bar on a terminal), in
    metrics.json, and in TensorBoard. Process 0 only; in the others it does nothing.
    """

    def __init__(self, output: Path, start: int, end: int, device: torch.device) -> None:
        self.output, self.start, self.end, self.device = output, start, end, device
        self.active = processes.rank() == 0
        self._recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=PERIOD))
        self._bar: Any = None
        self._board: Any = None

    def __enter__(self) -> "Metrics":
        if self.active:
            if sys.stderr.isatty():
                self._bar = tqdm(total=self.end, initial=self.start, unit="it", dynamic_ncols=True)
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.output), purge_step=self.start)
            except ImportError:
                logger.info("TensorBoard is not installed; metrics.json has the same numbers.")
        return self

    def __exit__(self, *_: object) -> None:
        for closable in (self._bar, self._board):
            if closable is not None:
                closable.close()

    def add(self, iteration: int, losses: Mapping[str, float], **values: float) -> None:
        """Count one iteration; write every `PERIOD` and at the end."""
        if not self.active:
            return
        for name, value in {"total_loss": sum(losses.values()), **losses, **values}.items():
            self._recent[name].append(value)
        if self._bar is not None:
            self._bar.update()
        if (iteration + 1) % PERIOD and iteration + 1 != self.end:
            return
        row = {name: statistics.median(recent) for name, recent in self._recent.items()}
        row["lr"] = values["lr"]
        row["eta_seconds"] = row["time"] * (self.end - iteration - 1)
        self.write(iteration, row)
        parts = " ".join(f"{k.removeprefix('loss_')} {row[k]:.3f}" for k in losses)
        memory = f"{_memory(self.device):.0f} MB"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {row['total_loss']:.3f}, {memory}")
            return
        logger.info(
            "iter %d/%d  loss %.3f (%s)  lr %.3g  %.2f s/it (data %.2f)  left %s  %s",
            iteration + 1,
            self.end,
            row["total_loss"],
            parts,
            row["lr"],
            row["time"],
            row["data_time"],
            clock(row["eta_seconds"]),
            memory,
        )

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append a line to metrics.json, and the same to TensorBoard."""
        if not self.active:
            return
        line = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with (self.output / "metrics.json").open("a") as file:
            file.write(json.dumps({"iteration": iteration, **line}, sort_keys=True) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)


def _memory(device: torch.device) -> float:
    """The most memory used so far, in MB: of the GPU, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
