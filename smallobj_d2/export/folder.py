"""What all exports do with the folder that they write to, and with images that stay as they are."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallobj_d2.errors import SmallObjError, UnreadableImage
from smallobj_d2.files import disk_errors, locked, write_json


@contextmanager
def claimed(folder: Path, recipe: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder for one recipe alone: all that its files depend on.

    Raises:
        SmallObjError: if it holds something else, or another process writes there now.
    """
    path = folder / "recipe.json"
    if path.is_file():
        if json.loads(path.read_bytes()) != recipe:
            raise SmallObjError(
                f"{folder} holds the copy of another dataset, config or seed; see {path}. Choose "
                "another folder, or remove that one."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise SmallObjError(f"{folder} is not empty. Choose a new folder.")
    with locked(folder, f"Another process is writing to {folder}. Wait for it."):
        write_json(path, recipe)
        yield


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to an image, or where that cannot be a symbolic one.

    Raises:
        UnreadableImage: if the image is not there.
    """
    if target.exists():
        return
    source = source.resolve()
    if not source.is_file():
        raise UnreadableImage(f"{source} cannot be read: it is not there.")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link to what is no longer there
        try:
            os.link(source, target)
        except OSError:  # another disk, or files of somebody else
            target.symlink_to(source)
