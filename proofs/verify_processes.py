"""Train with several processes and on several machines, and compare with one process.

python -m proofs.verify_processes --engine torchvision --processes 1 2 4
python -m proofs.verify_processes --engine detectron2 --processes 1 2 4

A small model is trained on synthetic scenes on the CPU, by tools/train_net.py: with each number of
processes, and, for an even number, on two machines that share them (--num-machines 2, two launches
on this host). Each run is then resumed from its middle with another number of processes. Prints
what was compared, and exits with code 1 where something differs (docs/review/verification.md).
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from tqdm import tqdm

from proofs import DEMO, ROOT, losses_of
from proofs.kill_resume import make_scenes
from proofs.kill_resume import options as small_options
from proofs.recording import COMMAND, RECORD, checksums, drawn
from smallobj_d2.commands import CommandLine

BATCH, ITERATIONS, MIDDLE = 4, 6, 3


class Layout(NamedTuple):
    """How many machines take part, and how many processes run on each."""

    machines: int
    processes: int

    @property
    def size(self) -> int:
        return self.machines * self.processes

    def __str__(self) -> str:
        on = f" on {self.machines} machines" if self.machines > 1 else ""
        return f"{self.size} process{'es' if self.size > 1 else ''}{on}"


class Run(NamedTuple):
    """A finished training; its record lies beside its folder."""

    engine: str
    layout: Layout
    output: Path
    opts: list[str]

    def processes(self) -> list[dict[str, Any]]:
        """What each process recorded, in order."""
        paths = [f"{self._record}.{r}.pt" for r in range(self.layout.size)]
        return [torch.load(path, map_location="cpu", weights_only=True) for path in paths]

    def draws(self) -> dict[int, list[tuple[int, int]]]:
        """Iteration to position and checksum of all draws, over all processes."""
        found: dict[int, list[tuple[int, int]]] = {}
        for iteration, _, batch in drawn(self._record):
            found.setdefault(iteration, []).extend(batch)
        return {iteration: sorted(draws) for iteration, draws in found.items()}

    def cfg(self, *more: object) -> Any:
        from smallobj_d2.config import load_cfg

        return load_cfg(DEMO, [*self.opts, *map(str, more)])

    @property
    def _record(self) -> Path:
        return self.output.with_suffix(".draws")


# --- Training


def train(
    engine: str,
    layout: Layout,
    scenes: Path,
    output: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    environments: Sequence[Mapping[str, str]] = ({},),
) -> Run:
    """Launch a training on each of its machines, and wait for all.

    Args:
        engine, layout, output, resume: of the training.
        scenes: what `make_scenes` made.
        device: MODEL.DEVICE.
        environments: more variables for the machines' launches, in turn.
    """
    opts = small_options(scenes, output, ITERATIONS)
    opts += ["SOLVER.IMS_PER_BATCH", str(BATCH), "DATALOADER.NUM_WORKERS", "0"]
    opts += ["MODEL.DEVICE", device]
    run = Run(engine, layout, output, opts)
    run._record.unlink(missing_ok=True)
    command = [*COMMAND, "--config", str(DEMO), "--engine", engine, *(["--resume"] * resume)]
    command += ["--num-gpus", str(layout.processes)]
    if layout.machines > 1:
        url = f"tcp://127.0.0.1:{free_port()}"
        command += ["--num-machines", str(layout.machines), "--dist-url", url]
    environment = {**os.environ, RECORD: str(run._record), "OMP_NUM_THREADS": "1"}
    launches = [
        subprocess.Popen(
            [*command, "--machine-rank", str(machine), *opts],
            cwd=ROOT,
            env={**environment, **environments[machine % len(environments)]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for machine in range(layout.machines)
    ]
    said = [launch.communicate()[0] for launch in launches]
    if any(launch.returncode for launch in launches):
        raise RuntimeError(f"{engine}, {layout}:\n" + "\n".join(text[-3000:] for text in said))
    return run


def resume_from_the_middle(run: Run, layout: Layout, scenes: Path) -> Run:
    """Resume from the middle of a copy of a finished run, with another number of processes."""
    output = run.output.with_name(f"{run.output.name}_resumed")
    shutil.copytree(run.output, output)
    (output / "last_checkpoint").write_text(f"model_{MIDDLE - 1:07d}.pth")
    return train(run.engine, layout, scenes, output, resume=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# --- The same in this process alone


def draws_alone(run: Run) -> dict[int, list[tuple[int, int]]]:
    """What `Run.draws` must be."""
    from smallobj_d2.engines import load_engine

    loader = load_engine(run.engine).build_train_loader(run.cfg())
    batches = zip(range(ITERATIONS), loader, strict=False)
    return {iteration: sorted(checksums(batch)) for iteration, batch in batches}


def gradient_error(run: Run) -> float:
    """How far the gradients of the first step are from the mean of those of each process.

    Each process's own gradients are computed here, one process after the other, with its share of
    the batch and the boxes that it samples.

    Returns:
        The largest difference, as a share of the largest gradient.
    """
    from smallobj_d2.engines import load_engine
    from smallobj_d2.engines.seed_and_device import seed_step

    engine, cfg = load_engine(run.engine), run.cfg()
    seed_step(cfg.SEED, -1)
    if run.engine == "detectron2":
        from detectron2.solver import build_optimizer

        model = engine.Trainer.build_model(cfg)
    else:
        from smallobj_d2.engines.torchvision.trainer import build_optimizer

        model = engine.build_model(cfg).to(cfg.MODEL.DEVICE)
    optimizer = build_optimizer(cfg, model.train())
    for rank in range(run.layout.size):
        with process(rank, run.layout.size):
            batch = next(iter(engine.build_train_loader(cfg)))
            seed_step(cfg.SEED, 0)
            losses = losses_of(run.engine, model, batch)
        (sum(losses.values()) / run.layout.size).backward()
    expected = [p.grad.cpu() for group in optimizer.param_groups for p in group["params"]]
    worst = 0.0
    for recorded in run.processes():
        assert len(recorded["gradients"]) == len(expected)
        for a, b in zip(recorded["gradients"], expected, strict=True):
            worst = max(worst, float((a - b).abs().max()))
    return worst / max(float(g.abs().max()) for g in expected)


@contextmanager
def process(rank: int, world_size: int) -> Iterator[None]:
    """Be one process of several, where nothing is said to the others."""
    from smallobj_d2.engines import processes

    with (
        patch.object(processes, "rank", lambda: rank),
        patch.object(processes, "world_size", lambda: world_size),
    ):
        yield


def evaluated_alone(run: Run) -> Path:
    """The folder of an evaluation of a run's final weights by one process."""
    from smallobj_d2.engines import load_engine

    output = run.output.with_name(f"{run.output.name}_alone")
    opts = ("OUTPUT_DIR", output, "MODEL.WEIGHTS", run.output / "model_final.pth")
    load_engine(run.engine).main(run.cfg(*opts), eval_only=True)
    return output


# --- What must hold


def wrong_draws(run: Run) -> list[str]:
    """Iterations whose draws are not those of one process."""
    expected, draws = draws_alone(run), run.draws()
    first = min(draws)  # not 0 after a resume
    return [
        f"the draws of iteration {iteration}"
        for iteration in range(first, ITERATIONS)
        if draws.get(iteration) != expected[iteration]
    ]


def wrong_weights(run: Run) -> list[str]:
    """Processes whose final weights are not those of process 0, bit for bit."""
    first, *others = (p["weights"] for p in run.processes())
    return [
        f"the weights of process {rank}"
        for rank, weights in enumerate(others, 1)
        if not weights or not all(map(torch.equal, first, weights))
    ]


def wrong_evaluation(run: Run) -> list[str]:
    """What one process that evaluates the final weights finds otherwise."""
    alone = evaluated_alone(run)
    names = ("row.json", "inference/coco_instances_results.json")
    found = [[json.loads((f / name).read_text()) for name in names] for f in (run.output, alone)]
    assert found[1][1], "no detection, so nothing is compared"
    return [n for n, a, b in zip(names, *found, strict=True) if a != b]


def wrong_files(run: Run) -> list[str]:
    """Files that another process than 0 wrote, or that hold something twice."""
    wrong = []
    for rank, recorded in enumerate(run.processes()):
        own = {f"log.txt.rank{rank}"}  # Detectron2 keeps a log of each process
        if rank:
            wrong += [f"{name} of process {rank}" for name in set(recorded["written"]) - own]
        elif not {"model_final.pth", "row.json", "metrics.json", "run.json", "log.txt"} <= set(
            recorded["written"]
        ):
            wrong.append("the files of process 0")
    lines = (run.output / "metrics.json").read_text().splitlines()
    times = Counter(line for line in lines if "total_loss" in line)
    if len(times) != 1 or times.total() != 1:
        wrong.append("metrics.json")
    return wrong


def check(run: Run) -> dict[str, str]:
    """Everything that must hold of a run, by name: "equal", or what is wrong."""

    def say(wrong: list[str]) -> str:
        return "DIFFERENT: " + ", ".join(wrong) if wrong else "equal"

    error = gradient_error(run)
    return {
        "draws": say(wrong_draws(run)),
        "gradients": f"{error:.0e}" if error < 1e-5 else f"DIFFERENT: {error:.0e}",
        "weights": say(wrong_weights(run)),
        "evaluation": say(wrong_evaluation(run)),
        "files": say(wrong_files(run)),
    }


def main() -> int:
    parser = CommandLine(__doc__)
    parser.add_argument("--engine", default="torchvision", help="detectron2 or torchvision")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    if any(BATCH % n for n in args.processes):
        parser.error(f"the batches have {BATCH} images; choose from {[1, 2, 4]}")
    layouts = [Layout(1, n) for n in args.processes]
    layouts += [Layout(2, n // 2) for n in args.processes if n % 2 == 0]
    rows: dict[str, dict[str, str]] = {}
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=2 * len(layouts), unit="run") as bar,
    ):
        scenes = Path(folder) / "scenes"
        make_scenes(scenes)
        for i, layout in enumerate(layouts):
            run = train(args.engine, layout, scenes, Path(folder) / f"run{i}")
            bar.update()
            with redirect_stdout(io.StringIO()):  # an evaluation has much to say
                rows[str(layout)] = check(run)
            other = layouts[i - 1]
            resumed = resume_from_the_middle(run, other, scenes)
            bar.update()
            wrong = [*wrong_draws(resumed), *wrong_weights(resumed)]
            outcome = f"DIFFERENT: {', '.join(wrong)}" if wrong else "equal"
            rows[str(layout)]["resumed with"] = f"{other}: {outcome}"
    names = next(iter(rows.values()))
    print(f"| {args.engine} | " + " | ".join(names) + " |")
    print("|---|" + "---|" * len(names))
    for layout, row in rows.items():
        print(f"| {layout} | " + " | ".join(row.values()) + " |")
    return 1 if any("DIFFERENT" in cell for row in rows.values() for cell in row.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
