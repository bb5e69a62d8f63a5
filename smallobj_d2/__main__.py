"""The command ``smallobj``: each of its sub-commands is a module of ``smallobj_d2.commands``.

``python -m smallobj_d2`` is the same, and so is this file by its path, installed or not.
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

if not __package__:  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from smallobj_d2 import __version__
from smallobj_d2.errors import SmallObjError, command

COMMANDS = {
    "analyze": ("analyze", "are small objects the problem, and is the dataset sound?"),
    "visualize": ("visualize", "what the model will see: original beside augmented"),
    "train": ("train_net", "train and evaluate, with AP by size"),
    "predict": ("predict", "what a trained model finds in your images, large ones in slices"),
    "compare": ("compare", "compare runs by the size of the objects they find"),
    "detections": ("detections", "what trained models found and missed, as pictures"),
    "augment": ("augment_dataset", "an augmented dataset on disk, for any framework"),
    "tile": ("tile_dataset", "a dataset of large images cut into tiles to train on"),
    "yolo": ("yolo", "YOLO's labels to COCO and back"),
    "reproduce": ("reproduce", "rerun the paper's tables, or rows of them on your data"),
    "report": ("report", "the report on what reproduce has run"),
    "dsb2018": ("dsb2018", "the nuclei of the Data Science Bowl 2018 as COCO files"),
    "demo": ("demo", "the whole workflow in a few minutes, on synthetic scenes"),
}
"""By sub-command: its module, and what its line of the help says."""

HELP = f"""usage: smallobj COMMAND [options] [KEY VALUE ...]

{{}}

smallobj COMMAND --help says more, with examples. Version {__version__}."""


def run(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a sub-command, and return its exit code.

    Args:
        name: of `COMMANDS`.
        argv: the words after its name; None for this process's own.
    """
    module = f"smallobj_d2.commands.{COMMANDS[name][0]}"
    # Its import may lack a package, and is then an error of the user, too.
    return command(lambda words: import_module(module).main(words))(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(HELP.format("\n".join(f"  {c:12}{does}" for c, (_, does) in COMMANDS.items())))
        return 0
    if name == "--version":
        print(f"smallobj_d2 {__version__}")
        return 0
    if name not in COMMANDS:
        known = get_close_matches(name, COMMANDS, n=1) or COMMANDS
        raise SmallObjError(f"There is no command {name}; there is: {', '.join(known)}.")
    sys.argv = [f"smallobj {name}", *words]  # what argparse calls the program, and runs record
    return run(name, words)


if __name__ == "__main__":
    sys.exit(main())
