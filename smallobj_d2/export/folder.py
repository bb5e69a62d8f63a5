"""What all exports do with the folder that they write to, and with images that stay as they are."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import locked, write_json


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
