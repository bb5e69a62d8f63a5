"""Image files: what training does with each kind, and what is wrong with one.

Training reads grayscale, palette, transparent and CMYK images as RGB, as Pillow converts them, and
turns images as their EXIF says. Images of 16 or 32 bits in one channel it refuses: Pillow keeps
0 to 255 and makes everything above white. (16-bit colour PNG and TIFF are fine: Pillow reads their
upper 8 bits.)
"""

import os
import unicodedata
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from smallobj_d2.datasets.reading import require_regular
from smallobj_d2.errors import UnreadableImage

T = TypeVar("T")
R = TypeVar("R")

SUFFIXES = tuple(
    f".{s}" for s in ["bmp", "jpeg", "jpg", "mpo", "pgm", "png", "ppm", "tif", "tiff", "webp"]
)
"""By which images are found in a folder."""

TOO_MANY_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 40)
"""Pillow refuses larger images, as they may be made to exhaust memory."""

_DEEP = ("I", "F")  # and "I;16", "I;16B", ...
_ORIENTATION = 0x0112
_Turn = Image.Transpose
_TURNS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""
_ON_ITS_SIDE = (5, 6, 7, 8)
_KINDS = {
    **dict.fromkeys(("1", "L"), "image-gray"),
    **dict.fromkeys(("LA", "PA", "RGBA", "La", "RGBa"), "image-transparent"),
    "P": "image-palette",
    "CMYK": "image-cmyk",
}

Pixels = NDArray[np.uint8]

Defects = list[tuple[str, str]]
"""Kind, a key of `smallobj_d2.datasets.findings.KINDS`, and what is wrong."""


@contextmanager
def opened(
    record: Mapping[str, Any], open_file: Callable[[str, str], Any] = open
) -> Iterator[Image.Image]:
    """The image file of a dataset dict, opened by Pillow but not yet decoded.

    Whatever goes wrong with the file, here or inside the ``with``, becomes one kind of error.

    Args:
        record: a dataset dict.
        open_file: opens a path for reading bytes.

    Raises:
        UnreadableImage: naming the file and the image's id.
    """
    label = f"{record['file_name']} (image {record.get('image_id')})"
    try:
        require_regular(record["file_name"])
        with open_file(record["file_name"], "rb") as file:
            image = _open(file)
            if "height" in record and "width" in record:
                # Before decoding, as a file may claim to be of any size.
                as_it_lies = image.size == (record["width"], record["height"])
                require_size(record, image.size if as_it_lies else _upright(image))
            if is_deep(image.mode):
                raise UnreadableImage(
                    f"{label} cannot be read: it has 16 bits or more ({image.mode}), and most of "
                    "it would be white. Save it with 8 bits."
                )
            if image.format == "TIFF":
                image.load()  # turns it upright; else whoever does so too would turn it twice
            yield image
    except UnreadableImage:
        raise
    except FileNotFoundError as e:
        raise UnreadableImage(f"{label} cannot be read: it is not there.") from e
    except Exception as e:  # Pillow's readers of damaged files raise nearly anything
        raise UnreadableImage(f"{label} cannot be read: {_why(e)}.") from e


def _open(file: Any) -> Image.Image:
    """Pillow's open; of a PNG the checksums are looked at, as its decoder passes over damage."""
    image = Image.open(file)
    if image.format == "PNG":
        image.verify()
        file.seek(0)
        image = Image.open(file)
    return image


def _why(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it claims to be larger than memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def require_size(record: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Refuse an image of a size that its dataset dict does not say.

    Args:
        record: a dataset dict.
        size: width and height.

    Raises:
        UnreadableImage: naming the file and the image's id.
    """
    if size != (record["width"], record["height"]):
        turned = size[::-1] == (record["width"], record["height"])
        raise UnreadableImage(
            f"{record['file_name']} (image {record.get('image_id')}) is {size[0]} x {size[1]} "
            f"pixels, but its annotations say {record['width']} x {record['height']}. "
            + (
                "If its EXIF turns it, annotate it as viewers show it, or save it without EXIF."
                if turned
                else "Correct the size in the JSON, or put the annotated image there."
            )
        )


def is_deep(mode: str) -> bool:
    """Whether an image of that mode of Pillow's has 16 bits or more, which RGB would clip."""
    return mode in _DEEP or mode.startswith("I;")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises nearly anything, and counts as none
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image) -> tuple[int, int]:
    """Width and height as its EXIF turns it."""
    return image.size[::-1] if _orientation(image) in _ON_ITS_SIDE else image.size


def require_files(records: Iterable[Mapping[str, Any]]) -> None:
    """Refuse dataset dicts whose files are not there, by listing each folder once.

    Raises:
        UnreadableImage: naming the first few, and how many there are.
    """
    there: dict[str, set[str]] = {}
    missing = []
    for record in records:
        if "://" in record["file_name"]:  # Detectron2's path manager may know where that is
            continue
        folder, name = os.path.split(record["file_name"])
        if folder not in there:
            there[folder] = _files_in(folder or ".")
        if name not in there[folder]:
            missing.append(f"{record['file_name']} (image {record.get('image_id')})")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UnreadableImage(
            f"{', '.join(missing[:3])}{more} cannot be read: not there. Put the files there, or "
            "remove the images from the JSON."
        )


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if e.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as e:
        raise UnreadableImage(
            f"The image folder {folder} cannot be read: {e.strerror}. Correct its permissions."
        ) from e


def require_readable(records: Iterable[Mapping[str, Any]]) -> None:
    """Refuse dataset dicts whose image files cannot be read to their end.

    Raises:
        UnreadableImage: naming the first file and what is wrong with it.
    """
    for _, looked in in_order(read_rgb, records):
        looked.result()


# --- Looking at all of them


def look_at_images(
    images: Sequence[tuple[str, Any, Any]], image_root: str, *, workers: int | None = None
) -> list[Defects]:
    """Open every image to its end, several at a time, with a progress bar.

    Args:
        images: of each its path, and the height and width that it should have.
        image_root: the folder that they should be in.
        workers: threads; as many as there are cores unless said.

    Returns:
        What is wrong with each.
    """
    looks = in_order(partial(look_at, os.path.realpath(image_root)), images, workers)
    bar = tqdm(looks, total=len(images), unit="img", desc="images", disable=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's, about sizes and damaged EXIF
        return [found.result() for _, found in bar]


def look_at(image_root: str, image: tuple[str, Any, Any]) -> Defects:
    """What is wrong with one image file."""
    path, height, width = image
    try:
        require_regular(path)
        if os.path.getsize(path) == 0:
            return [("image-zero-bytes", "the file has no bytes")]
        with open(path, "rb") as file:
            return _look_into(file, height, width) + _look_at_link(path, image_root)
    except FileNotFoundError:
        return [("image-missing", f"the file is not there{_nearly(Path(path))}")]
    except OSError as e:
        return [("image-unreadable", f"the file cannot be read: {e.strerror or e}")]


def _look_into(file: Any, height: Any, width: Any) -> Defects:
    found: Defects = []
    try:
        image = _open(file)
        mode, orientation = image.mode, _orientation(image)
        image.load()
        w, h = image.size
        upright = _upright(image)
    except Exception as e:  # Pillow's readers of damaged files raise nearly anything
        return [("image-damaged", f"the image cannot be read: {_why(e)}")]
    if is_deep(mode):
        found.append(("image-16-bit", f"it has 16 bits or more (Pillow's mode {mode})"))
    elif mode != "RGB":
        found.append((_KINDS.get(mode, "image-other"), f"its mode is {mode}"))
    if orientation in _TURNS:
        found.append(("image-turned", f"EXIF turns it (orientation {orientation})"))
    if upright != (width, height):
        what = f"it is {upright[0]} x {upright[1]} pixels, but the JSON says {width} x {height}"
        if (w, h) == (width, height):
            what += ", its size before EXIF turns it"
        found.append(("image-size", what))
    if (frames := _frames(image)) > 1:
        found.append(("image-frames", f"it has {frames} frames"))
    return found


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # damage after the first frame, the only one that is read
        return 1


def _look_at_link(path: str, image_root: str) -> Defects:
    real = os.path.realpath(path)
    if os.path.commonpath([real, image_root]) == image_root:
        return []
    return [("image-link", f"it is a link out of the image folder, to {real!a}")]


def _nearly(path: Path) -> str:
    """A file of nearly that name, where there is one."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    try:
        names = os.listdir(path.parent)
    except OSError:
        return ", nor is its folder"
    close = next((n for n in names if plain(n) == plain(path.name)), None)
    return f", but there is {close!a}" if close else ""


def read_rgb(record: Mapping[str, Any]) -> Pixels:
    """The image of a dataset dict, turned upright as its EXIF says: (H, W, 3), writable.

    Raises:
        UnreadableImage: naming the file and the image's id.
    """
    with opened(record) as file:
        turn = _TURNS.get(_orientation(file))
        upright = file if turn is None else file.transpose(turn)
        image: Pixels = np.array(upright.convert("RGB"))
    if "height" in record and "width" in record:
        require_size(record, (image.shape[1], image.shape[0]))
    return image


def upright_size(record: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the image of a dataset dict, turned upright as its EXIF says.

    Raises:
        UnreadableImage: naming the file and the image's id.
    """
    with opened(record) as image:
        width, height = _upright(image)
        return height, width


def resize(image: Pixels, size: tuple[int, int], *, fast: bool = False) -> Pixels:
    """Resize an image bilinearly, as Detectron2 does.

    Args:
        image: (H, W, 3) uint8.
        size: height and width to resize to.
        fast: let OpenCV enlarge images; no pixel differs by more than 2 of 255. (It is left alone
            to make images smaller, because it does not average over what it leaves out.)
    """
    height, width = size
    if image.shape[:2] == size:
        return image
    if fast and height >= image.shape[0] and width >= image.shape[1]:
        larger = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(larger, np.uint8)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


@lru_cache(maxsize=256)
def nearest_pixels(before: int, after: int) -> NDArray[np.int32]:
    """Which of `before` pixels in a row each of `after` shows, where Detectron2 resizes a mask."""
    row = Image.fromarray(np.arange(before, dtype=np.int32)[None])
    return np.asarray(row.resize((after, 1), Image.Resampling.NEAREST), np.int32).ravel()


def in_order(
    work: Callable[[T], R],
    items: Iterable[T],
    workers: int | None = None,
    ahead: int | None = None,
) -> Generator[tuple[T, "Future[R]"], None, None]:
    """Items in their order, each with what threads make of it.

    Args:
        work: on one item.
        items: taken as they are needed.
        workers: threads; as many as there are cores unless said.
        ahead: how many to work on before they are asked for, twice as many as there are threads
            unless said; no more results are in memory.
    """
    workers = workers or len(os.sched_getaffinity(0))
    ahead = 2 * workers if ahead is None else ahead
    waiting: deque[tuple[T, Future[R]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
