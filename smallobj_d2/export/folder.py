"""What all exports do with the folder that they write to."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import locked, reading, remove_leftovers, write_json, writing

Entry = dict[str, Any]
"""An image or an annotation of a COCO JSON."""


@dataclass
class Exported:
    """A dataset on disk.

    Attributes:
        json_file: is written last of all.
        image_root: its images.
        skipped: images that could not be read, where they are to be skipped.
    """

    json_file: Path
    image_root: Path
    skipped: list[str] = field(default_factory=list)


def made_of(json_file: Path, image_root: Path, names: Iterable[str]) -> dict[str, str]:
    """The part of a recipe that says what an export is made of.

    Args:
        json_file: the annotations, of which it has a hash.
        image_root: the folder of the images.
        names: of the images, relative to it; it has a hash of these and of the sizes of the files.
    """
    files = [(name, image_root / name) for name in sorted(names)]
    sizes = [[name, path.stat().st_size if path.is_file() else None] for name, path in files]
    return {
        "source_sha256": sha256(json_file.read_bytes()).hexdigest(),
        "images_sha256": sha256(json.dumps(sizes).encode()).hexdigest(),
    }


@contextmanager
def export(
    done: Exported, recipe: Mapping[str, Any], original: Entry
) -> Iterator[tuple[list[Entry], list[Entry]]]:
    """Hold the folder of a dataset for one recipe alone, and write its JSON in the end.

    Gives two lists to fill: images and annotations. Where the block raises, no JSON is written, and
    the next call for the same recipe finds the images that are there.

    Args:
        done: where it is.
        recipe: all that its files depend on; it is in the JSON's ``info``.
        original: content of the JSON that it is made of; all else in it is kept.

    Raises:
        SmallObjError: if the folder holds something else, another process writes there now, or all
            images were skipped.
    """
    folder = done.json_file.parent
    path = folder / "recipe.json"
    if path.is_file():
        with reading(path):
            before = json.loads(path.read_bytes())
        if before != recipe:
            raise SmallObjError(
                f"{folder} holds a copy of other annotations or images, or one that was made with "
                f"other settings; see {path}. Choose another folder, or remove that one."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise SmallObjError(f"{folder} is not empty. Choose a new folder.")
    images: list[Entry] = []
    annotations: list[Entry] = []
    with locked(folder, f"Another process is writing to {folder}. Wait for it."):
        write_json(path, recipe)
        yield images, annotations
        if done.skipped and not images:
            raise SmallObjError(f"No image could be read, so nothing is left: {done.skipped[0]}")
        remove_leftovers(done.image_root, recursive=True)  # of a call that was killed
        info = original.get("info")
        info = {**(info if isinstance(info, dict) else {}), "recipe": recipe}
        new = {**original, "info": info, "images": images, "annotations": annotations}
        with writing(done.json_file) as temporary:
            temporary.write_text(json.dumps(new))
