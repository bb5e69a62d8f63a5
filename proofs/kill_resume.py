"""Kill a training at random moments, resume it, and compare it with one that was left alone.

python -m proofs.kill_resume --kills 20 --engine torchvision
python -m proofs.kill_resume --kills 20 --engine detectron2

A small model is trained on synthetic scenes on the CPU: once to its end, and then again under
kill -9 and --resume, as often as asked. Whenever such a run reaches its end, its
weights, optimizer and table row must be those of the unbroken run, bit for bit, and so must every
draw on the way, pixels included.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from proofs import DEMO, NARROW, ROOT, datasets_of, words_of
from proofs.recording import COMMAND, RECORD, Batch, drawn
from smallobj_d2.commands import CommandLine

SMALL: dict[str, object] = {
    **NARROW,
    "DATASETS.TRAIN": "('scenes_train',)",
    "DATASETS.TEST": "('scenes_val',)",
    "DATALOADER.NUM_WORKERS": 1,
    "INPUT.MIN_SIZE_TRAIN": "(96, 128)",
    "INPUT.MAX_SIZE_TRAIN": 160,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 160,
    "MODEL.DEVICE": "cpu",
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.STEPS": "(12,)",
    "SOLVER.WARMUP_ITERS": 5,
    "SEED": 5,
}


def options(scenes: Path, output: Path, iterations: int) -> list[str]:
    """Overrides of configs/demo.yaml for a training of seconds."""
    return words_of(
        {
            **SMALL,
            "SMALLOBJ.DATASETS": datasets_of(scenes),
            "SOLVER.MAX_ITER": iterations,
            "SOLVER.CHECKPOINT_PERIOD": 3,
            "OUTPUT_DIR": output,
        }
    )


def make_scenes(folder: Path) -> None:
    from smallobj_d2.datasets.synthetic import make_dataset

    make_dataset(folder, "scenes_train", 12, seed=1, size=128, progress=False)
    make_dataset(folder, "scenes_val", 3, seed=2, size=128, progress=False)


def start(engine: str, opts: list[str], draws: Path, *, resume: bool) -> "subprocess.Popen[bytes]":
    """Start a training in a process of its own."""
    command = [*COMMAND, "--config", DEMO, "--engine", engine]
    command += [*(["--resume"] if resume else []), *opts]
    environment = {**os.environ, RECORD: str(draws), "OMP_NUM_THREADS": "1"}
    log = draws.with_suffix(".log").open("ab")
    with log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


# --- Killing and comparing


def kill_at(process: "subprocess.Popen[bytes]", draws: Path, delay: float, started: bool) -> bool:
    """Kill a process some seconds after its start, or after its first draw; False if it ended."""
    lines = count_lines(draws)
    while started and process.poll() is None and count_lines(draws) == lines:
        time.sleep(0.005)
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        sys.exit(f"The training ended with code {process.returncode}:\n{tail(draws)}")
    return False


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def tail(draws: Path) -> str:
    return draws.with_suffix(".log").read_text(errors="replace")[-3000:]


def ever_drawn(path: Path) -> dict[int, set[Batch]]:
    """Iteration to all that was ever drawn for it."""
    found: dict[int, set[Batch]] = defaultdict(set)
    for iteration, _, batch in drawn(path):
        found[iteration].add(batch)
    return dict(found)


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two nested values are not equal bit for bit."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [place]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in differences(a[k], b[k], f"{place}.{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{place}.{i}")]
    return [] if a == b else [place]


def compare(whole: Path, broken: Path) -> list[str]:
    """What differs between two finished runs; their draws lie beside their folders."""
    import torch

    finals = [torch.load(f / "model_final.pth", weights_only=True) for f in (whole, broken)]
    wrong = [f"checkpoint{d}" for d in differences(*finals)]
    rows = [json.loads((f / "row.json").read_text()) for f in (whole, broken)]
    wrong += [f"row.json{d}" for d in differences(*rows)]
    draws = [ever_drawn(f.with_suffix(".draws")) for f in (whole, broken)]
    return wrong + [f"draws{d}" for d in differences(*draws)]


def experiment(
    engine: str,
    kills: int,
    iterations: int,
    folder: Path,
    rng: random.Random,
    progress: bool = True,
) -> dict[str, Any]:
    """Train once unbroken and then under as many kills as asked.

    Returns:
        Figures, with what differed in ``wrong``.
    """
    scenes = folder / "scenes"
    make_scenes(scenes)
    whole, draws = folder / "whole", folder / "whole.draws"
    begun = time.monotonic()
    process = start(engine, options(scenes, whole, iterations), draws, resume=False)
    while process.poll() is None and not count_lines(draws):
        time.sleep(0.01)
    trains = time.monotonic()
    if process.wait():
        sys.exit(tail(draws))
    start_up, training = trains - begun, time.monotonic() - trains

    figures: dict[str, Any] = {
        "engine": engine,
        "kills": 0,
        "runs": 0,
        "resumed at": [],
        "wrong": [],
    }
    bar = tqdm(total=kills, unit="kill", desc=engine, disable=not progress)
    while figures["kills"] < kills or not figures["runs"]:
        output = folder / f"broken{figures['runs']}"
        opts, draws = options(scenes, output, iterations), output.with_suffix(".draws")
        resume = False
        while True:
            process = start(engine, opts, draws, resume=resume)
            if figures["kills"] >= kills:
                if process.wait():
                    sys.exit(tail(draws))
                break
            # One in six while it starts up, the others while it trains, saves or evaluates.
            early = rng.random() < 1 / 6
            delay = rng.uniform(0, start_up if early else training / 2)
            if not kill_at(process, draws, delay, not early):
                break
            figures["kills"] += 1
            pointer = output / "last_checkpoint"
            figures["resumed at"].append(pointer.read_text() if pointer.exists() else "the start")
            resume = True
            bar.update()
        figures["runs"] += 1
        figures["wrong"] += compare(whole, output)
        shutil.rmtree(output)
    bar.close()
    return figures


def main() -> int:
    parser = CommandLine(__doc__)
    parser.add_argument("--engine", default="torchvision", help="detectron2 or torchvision")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = experiment(
            args.engine, args.kills, args.iterations, Path(folder), random.Random(args.seed)
        )
    print(json.dumps(figures, indent=1))
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
