"""What a user types: one module per command, with its name and its place in ``__main__.COMMANDS``.

The files under ``tools/`` call them, too.
"""

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from fvcore.common.config import CfgNode

from smallobj_d2.config import EXPERIMENTS, changed, load_cfg
from smallobj_d2.datasets.coco import with_paths
from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import disk_errors

PROGRAM = str(Path(__file__).resolve().parents[1] / "__main__.py")
"""The command ``smallobj`` as a file that any Python can run, installed or not."""


class CommandLine(argparse.ArgumentParser):
    """The parser of a command, whose help begins with the module's docstring.

    Args:
        doc: that docstring.
        config, engine: whether it has ``--config-file`` and ``--engine``.
        how: for the parser itself.
    """

    def __init__(
        self, doc: str | None = None, *, config: bool = False, engine: bool = False, **how: Any
    ) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=formatter, **how)
        if config:
            words = "a config's name, such as orig_aug, or the path of your own file"
            names = ("--config-file", "--config")
            self.add_argument(*names, required=True, metavar="CONFIG", help=words)
        if engine:
            self.option("--engine", "auto, detectron2 or torchvision", "auto")

    def option(self, name: str, words: str | None = None, default: Any = None, **how: Any) -> None:
        """Add an option. A default gives it its type, and is named in the help."""
        if default is not None:
            how.setdefault("type", path if isinstance(default, Path) else type(default))
            words = f"{words or ''} (default %(default)s)".strip()
        self.add_argument(name, help=words, default=default, **how)

    def flag(self, name: str, words: str) -> None:
        """Add a switch that is off unless it is given."""
        self.add_argument(name, action="store_true", help=words)


def config_from(args: argparse.Namespace) -> CfgNode:
    """The config of ``--config-file`` on the dataset that flags name; its seed is 0 if not set."""
    dataset = ["DATASETS.TRAIN", f"('{args.dataset}',)"] if args.dataset else []
    cfg = load_cfg(args.config_file, [*args.opts, *dataset])
    return with_dataset(changed(cfg, {"SEED": max(cfg.SEED, 0)}), args)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags and ``KEY VALUE`` overrides in any order; the overrides become ``opts``."""
    parser.epilog = "KEY VALUE pairs, before, after or between the options, override the config."
    args, opts = parser.parse_known_args(argv)
    args.opts = opts
    for word in args.opts:
        if word.startswith("--"):
            parser.error(f"there is no option {word.partition('=')[0]}")
    return args


def require(
    args: argparse.Namespace, *names: str, least: float = 1, most: float = math.inf
) -> None:
    """Refuse numbers that mean nothing; an option that was not given may be None.

    Args:
        args: of the command.
        names: of options, each with one number or several.
        least, most: what they may be.

    Raises:
        SmallObjError: naming the option.
    """
    words = f"from {least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
    for name in names:
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not least <= number <= most:
                option = name.replace("_", "-")
                raise SmallObjError(f"--{option} is {number}; it must be {words}.")


@contextmanager
def resumable() -> Iterator[None]:
    """Say after Ctrl-C that the same command resumes the work."""
    try:
        yield
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt("Stopped. The same command resumes here.") from e


def path(text: str) -> Path:
    """A path as a user types it: ``~`` is the home folder."""
    return Path(os.path.expanduser(text))


def add_dataset_options(parser: argparse.ArgumentParser, what: str, prefix: str = "") -> None:
    """Give a command ``--json`` and ``--images``, for a dataset that has no name."""
    words = f"{what}: its COCO instance annotations"
    parser.add_argument(f"--{prefix}json", type=path, metavar="FILE", help=words)
    words = f"the images of --{prefix}json"
    parser.add_argument(f"--{prefix}images", type=path, metavar="FOLDER", help=words)


def with_dataset(cfg: Any, args: argparse.Namespace, key: str = "TRAIN", prefix: str = "") -> Any:
    """The config with the dataset that `add_dataset_options` took from the command line, if any.

    Args:
        cfg: a config with ``SMALLOBJ``; left as it is.
        args: of the command.
        key: which of DATASETS it takes the place of, TRAIN or TEST.
        prefix: as given to `add_dataset_options`.
    """
    flags = (f"{prefix}json", f"{prefix}images")
    json_file, image_root = (getattr(args, flag.replace("-", "_")) for flag in flags)
    if json_file is None and image_root is None:
        return cfg
    if json_file is None or image_root is None:
        raise SmallObjError(
            f"--{flags[0]} and --{flags[1]} belong together: give both, or neither."
        )
    if key == "TRAIN" and getattr(args, "dataset", None):
        raise SmallObjError("Give either --dataset, or --json and --images.")
    return with_paths(cfg, json_file, image_root, key)


def scale_file(text: str) -> Path:
    """The file of a scale: a name of ``experiments/scales``, or the path of a YAML file."""
    own = path(text)
    named = EXPERIMENTS / "scales" / f"{text}.yaml"
    return own if own.suffix in (".yaml", ".yml") else named


def writable(file: Path, suffixes: Sequence[str] = (".png", ".jpg", ".jpeg")) -> Path:
    """A file that is to be written in the end, looked at before the work.

    Raises:
        SmallObjError: if it cannot be written, or has another suffix than those.
    """
    if file.suffix.lower() not in suffixes:
        raise SmallObjError(f"--out {file}: its name must end in {' or '.join(suffixes)}.")
    folder = writable_folder(file.parent)
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise SmallObjError(f"--out {file} cannot be written.")
    return file


def writable_folder(folder: Path) -> Path:
    """A folder that is to be filled; it is made if it is not there.

    Raises:
        SmallObjError: if it cannot be made or written to.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
