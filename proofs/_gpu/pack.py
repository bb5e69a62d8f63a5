"""What a machine without a network has to be given: images, and wheels of light packages."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from proofs import ROOT, datasets_of
from proofs._gpu.job import scenes, write_json
from proofs._gpu.works import TRAINING, draws_on_the_cpu

OF_THE_MACHINE = {
    # What comes with any PyTorch image, or is large: let the machine's own do.
    *("torch", "torchvision", "numpy", "matplotlib", "pillow", "scipy", "tensorboard", "tqdm"),
    *("opencv-python-headless", "pyyaml", "jinja2", "hypothesis", "pytest", "psutil"),
}
NOT_NEEDED = {
    # Neither by training nor by the steps.
    *("ruff", "mypy", "import-linter", "submitit", "pytest-xdist", "types-pyyaml"),
    *("albumentations", "datasets", "lightning", "transformers"),
}
OF_OTHERS = ("yacs", "termcolor", "tabulate", "portalocker")
"""What fvcore and iopath import."""
OF_DETECTRON2 = (
    "omegaconf==2.3.0",
    "hydra-core==1.3.2",
    "antlr4-python3-runtime==4.9.3",
    "cloudpickle",
)
"""What Detectron2 imports, for where somebody has built it."""
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]


def pack(folder: Path, datasets: list[str], python: str) -> int:
    """Fill a folder: datasets/, wheels/, and expected.json, the draws of this machine.

    Args:
        folder: the target.
        datasets: folders under DETECTRON2_DATASETS.
        python: version of the machine that it is for, such as 3.12.
    """
    from smallobj_d2.datasets.coco import datasets_root
    from smallobj_d2.engines.folder import versions

    for name in datasets:
        source = datasets_root() / name
        if not source.is_dir():
            sys.exit(f"error: there is no {source}; set DETECTRON2_DATASETS, or --packed.")
        shutil.copytree(source, folder / "datasets" / name, dirs_exist_ok=True)
    pinned = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").open()]
    ours = [
        p for p in pinned if p and p.partition("==")[0].lower() not in OF_THE_MACHINE | NOT_NEEDED
    ]
    for package in (*ours, *OF_OTHERS, *OF_DETECTRON2):
        fetch(package, folder / "wheels", python)
    with tempfile.TemporaryDirectory() as made:
        scenes(Path(made), **TRAINING)
        opts = {"SMALLOBJ.DATASETS": datasets_of(Path(made)), "SEED": 1}
        draws = draws_on_the_cpu("torchvision", opts, 10)
    write_json(folder / "expected.json", {"versions": versions(), "draws": draws})
    for part in (folder, *sorted(folder.iterdir())):
        files = [p for p in part.rglob("*") if p.is_file()] or [part]
        print(f"{sum(p.stat().st_size for p in files) / 2**20:7.1f} MiB  {part}")
    return 0


def fetch(package: str, folder: Path, python: str) -> None:
    """A package's wheel for the other machine; one of pure Python is made from its source."""
    words = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    other = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        other += ["--platform", platform]
    pip = [sys.executable, "-m", "pip"]
    command = [*pip, "download", *words, *other, "-d", str(folder), package]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        subprocess.run([*pip, "wheel", *words, "-w", str(folder), package], check=True)
    print(package)
