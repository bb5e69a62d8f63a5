"""tools/train_net.py, with a record of what each of its processes did.

python -m proofs.recording <arguments of train_net.py>

The environment variable RECORD names the file that draws are added to, by all processes. At its end
process r writes <that file>.<r>.pt: the gradients of its first step as the optimiser got them, the
weights that it ended with, and the files that it wrote in the run's folder.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORD = "SMALLOBJ_RECORD"
COMMAND = [sys.executable, "-m", "proofs.recording"]

Batch = tuple[tuple[int, int], ...]
"""Position of each draw, and a checksum of its pixels."""


def run(engine: str, cfg: Any, resume: bool, eval_only: bool, overwrite: bool) -> Any:
    """One process of the run; at the top level, so that a spawned process finds it."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from smallobj_d2.engines import load_engine, loader
    from smallobj_d2.engines.processes import rank

    record = Path(os.environ[RECORD])
    optimizers: list[Any] = []
    gradients: list[Any] = []
    written: set[str] = set()
    stock = loader.TrainLoader.__iter__

    def recorded(self: Any) -> Iterator[Any]:
        with record.open("a", buffering=1) as file:
            for iteration, batch in enumerate(stock(self), self._loader.batch_sampler.start):
                file.write(json.dumps([iteration, rank(), checksums(batch)]) + "\n")
                yield batch

    def before_step(optimizer: Any, *_: object) -> None:
        if not optimizers:
            optimizers.append(optimizer)
            gradients.extend(p.grad.clone() for p in parameters(optimizer))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and set(arguments[1] or "") & set("wax+"):
            path = arguments[0]
        elif event == "os.rename":
            path = arguments[1]
        else:
            return
        if not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(cfg.OUTPUT_DIR):
            written.add(os.path.relpath(os.fsdecode(path), cfg.OUTPUT_DIR))

    loader.TrainLoader.__iter__ = recorded
    hook = register_optimizer_step_pre_hook(before_step)
    sys.addaudithook(watch)
    row = load_engine(engine).main(cfg, resume, eval_only, overwrite)
    hook.remove()
    weights = [p.detach() for p in parameters(optimizers[0])] if optimizers else []
    torch.save(
        {"gradients": gradients, "weights": weights, "written": sorted(written)},
        f"{record}.{rank()}.pt",
    )
    return row


def checksums(batch: list[dict[str, Any]]) -> Batch:
    """A batch as it is recorded."""
    return tuple((s["draw"].position, zlib.crc32(s["image"].numpy().tobytes())) for s in batch)


def parameters(optimizer: Any) -> list[Any]:
    """Those that have a gradient, in the optimiser's order."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def drawn(path: Path) -> Iterator[tuple[int, int, Batch]]:
    """Iteration, process and batch; a line that a kill cut off is left out."""
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            iteration, rank, draws = json.loads(line)
            yield iteration, rank, tuple(map(tuple, draws))


def main(arguments: list[str]) -> int:
    from smallobj_d2.commands import train_net

    train_net.run = run
    return train_net.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
