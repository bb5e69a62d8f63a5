from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="smallobj_d2",
    version="0.1.0",
    description="Better detection and segmentation of small objects, for Detectron2",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["smallobj_d2", "smallobj_d2.*"]),
    package_data={"smallobj_d2": ["py.typed", "visualization/templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "fvcore>=0.1.5",
        "iopath>=0.1.7",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib",
        "numpy>=1.24",
        "opencv-python-headless>=4.8",
        "pillow>=10.1",
        "pycocotools>=2.0.7",
        "pyyaml>=6.0",
        "scipy>=1.9",
        "shapely>=2.0",
        "tensorboard",
        "torch>=2.1",
        "torchvision>=0.16",
        "tqdm",
    ],
    extras_require={
        "slices": ["sahi>=0.12"],
        "slurm": ["submitit"],
        "test": ["hypothesis", "import-linter", "mypy", "pytest", "ruff", "scipy", "types-PyYAML"],
    },
)
