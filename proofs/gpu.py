"""Everything that has to be seen on a GPU, step by step, on a machine without a network.

python -m proofs.gpu --pack .gpu              # before, with a network: data and wheels
python -m proofs.gpu --data .gpu --out out    # all steps, each with a time limit
python -m proofs.gpu speed stock cost --data .gpu --out out --minutes 9
python -m proofs.gpu --device cpu --iterations 2     # the same steps, tried without a GPU

A step that fails or outruns its time stops no other. After each, the folder of --out has
summary.md, summary.json, pictures, and files.tar.gz: logs and the small files of all runs, in the
layout that tools/report.py reads. docs/gpu.md says what each step is for.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from proofs import ROOT
from proofs._gpu import evidence, speed, works
from proofs._gpu.job import PATIENCE, Job, last_line, write_json
from proofs._gpu.pack import pack
from smallobj_d2.commands import CommandLine

ENGINES = ("torchvision", "detectron2")
RESERVE = 10.0  # seconds to keep for the summary
SMALL_FILE = 2 << 20  # bytes; what is larger stays behind

STEPS: dict[str, tuple[Callable[[Job], None], float]] = {
    "machine": (works.machine, 60),
    "processes": (works.processes, 240),
    "numbers": (works.numbers, 120),
    "training": (works.training, 480),
    "speed": (speed.speed, 560),
    "stock": (speed.stock, 240),
    "cost": (speed.cost, 60),
    "tiny": (evidence.tiny, 560),
    "small": (evidence.small, 560),
    "nuclei": (evidence.nuclei, 560),
}
"""In the order of what is most likely to break; with the seconds that each may take."""


# --- Running the steps


def run_step(name: str, args: argparse.Namespace, limit: float, argv: list[str]) -> dict[str, Any]:
    """A step in a process of its own; what became of it."""
    begun = time.monotonic()
    (Path(args.work) / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(Path(args.work) / name, ignore_errors=True)
    log = Path(args.work) / name / "log.txt"
    log.parent.mkdir(parents=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "proofs.gpu", *argv, "--only", name, "--limit", str(limit)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,  # so that all that it starts can be ended
        )
    outcome = ""
    try:
        if process.wait(limit):
            outcome = f"failed: {last_line(log)}"
    except subprocess.TimeoutExpired:
        outcome = f"ended after {limit:.0f} seconds"
    finally:
        for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(patience)
    path = Path(args.work) / f"{name}.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    wrong = [row["what"] for row in rows if row["ok"] is False]
    seconds = round(time.monotonic() - begun)
    outcome = outcome or ("; ".join(wrong) if wrong else "ok")
    return {"step": name, "outcome": outcome, "seconds": seconds, "rows": rows}


def write_summary(
    out: Path, work: Path, about: Mapping[str, Any], steps: list[dict[str, Any]]
) -> None:
    """summary.json, summary.md and files.tar.gz, of all that is there so far."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "summary.json", {**about, "steps": steps})
    lines = [f"# {about['command']}", ""]
    lines += [f"* {s['step']}: {s['outcome']} ({s['seconds']} s)" for s in steps]
    for s in steps:
        lines += ["", f"## {s['step']}", "", "| | | |", "|---|---|---|"]
        for row in s["rows"]:
            verdict = {True: "yes", False: "NO", None: ""}[row["ok"]]
            figures = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("what", "ok"))
            lines.append(f"| {row['what']} | {verdict} | {figures.replace('|', '/')} |")
    (out / "summary.md").write_text("\n".join(lines) + "\n")
    with tarfile.open(out / "files.tar.gz", "w:gz") as tar:
        for path in sorted(small_files(work)):
            with contextlib.suppress(FileNotFoundError):
                tar.add(path, arcname=str(path.relative_to(work)))


def small_files(work: Path) -> Iterator[Path]:
    """Logs and records of runs, but neither data nor weights."""
    for folder, inside, names in os.walk(work):
        inside[:] = [d for d in inside if d not in ("images", "inference", "scenes")]
        for name in names:
            path = Path(folder, name)
            if (
                path.suffix in (".json", ".txt", ".yaml", ".draws")
                and path.stat().st_size < SMALL_FILE
            ):
                yield path


def main() -> int:
    parser = CommandLine(__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of: {', '.join(STEPS)}")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="collect what must be carried")
    parser.add_argument("--packed", nargs="+", default=["coco"], metavar="DATASET")
    parser.add_argument("--python", default="3.12", help="of the machine that wheels are for")
    parser.add_argument("--data", type=Path, default=Path(".gpu"), help="what was packed")
    parser.add_argument("--out", type=Path, default=Path("output/gpu/out"), help="for the results")
    parser.add_argument("--work", type=Path, default=Path("output/gpu/work"), help="for the runs")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the steps")
    parser.add_argument("--iterations", type=int, help="of each training, at most")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all steps together")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--rows", nargs="+", help="of tiny, small and nuclei; see reproduce.py")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs of small and nuclei at a time")
    parser.add_argument("--only", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := [s for s in args.steps if s not in STEPS]:
        parser.error(f"there is no step {unknown[0]}; there are {', '.join(STEPS)}")
    for name in ("data", "out", "work"):
        setattr(args, name, getattr(args, name).absolute())
    if args.pack:
        return pack(args.pack.absolute(), args.packed, args.python)
    if (args.data / "datasets").is_dir():
        os.environ["DETECTRON2_DATASETS"] = str(args.data / "datasets")
    os.environ.setdefault("DETECTRON2_DATASETS", str(ROOT / "datasets"))
    if args.only:
        STEPS[args.only][0](Job(args.only, args, time.monotonic() + args.limit))
        return 0

    until = time.monotonic() + 60 * args.minutes
    about = {"command": " ".join(sys.argv), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    done: list[dict[str, Any]] = []
    argv = sys.argv[1:]
    for name in args.steps or STEPS:
        limit = min(STEPS[name][1], until - time.monotonic() - RESERVE)
        if limit < RESERVE:
            done.append({"step": name, "outcome": "no time was left", "seconds": 0, "rows": []})
        else:
            done.append(run_step(name, args, limit, argv))
        print(f"{name}: {done[-1]['outcome']} ({done[-1]['seconds']} s)", flush=True)
        write_summary(args.out, args.work, about, done)
    print((args.out / "summary.md").read_text())
    return 0 if all(s["outcome"] == "ok" for s in done) else 1


if __name__ == "__main__":
    sys.exit(main())
