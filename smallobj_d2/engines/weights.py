"""Weights and checkpoints: found, read without executing anything in them, and written whole.

A pickle is a program. ``.pth`` is read with torch's ``weights_only``, and ``.pkl`` by an unpickler
that knows arrays and basic types and refuses all else.
"""

import errno
import logging
import os
import pickle
import re
import socket
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from smallobj_d2.config import unset_variable
from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import writing

_ZOO = "https://dl.fbaipublicfiles.com/detectron2/"
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


@contextmanager
def resuming(path: str | Path) -> Iterator[None]:
    """Turn what torch may raise for a checkpoint of another model, or of none, into one line."""
    try:
        yield
    except SmallObjError:
        raise
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as e:
        why = " ".join(str(e).split())[:200]
        raise SmallObjError(
            f"{path} is not a checkpoint of this model ({why}). Resume with the config of that "
            "run, or choose another OUTPUT_DIR."
        ) from e


def require_whole(model: torch.nn.Module, missing: Collection[str]) -> None:
    """Refuse to evaluate a model of which a part is still random.

    Args:
        model: the model.
        missing: names of its parameters and buffers that were not loaded.

    Raises:
        SmallObjError: naming the modules whose parameters are missing.
    """
    names = [name for name, _ in model.named_parameters()]
    absent = [name for name in names if name in missing]
    if absent:
        modules = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in absent))
        more = f" and {len(modules) - 5} more" if len(modules) > 5 else ""
        raise SmallObjError(
            f"MODEL.WEIGHTS cannot be evaluated: {len(absent)} of the model's {len(names)} "
            f"parameters are not in it, those of {', '.join(modules[:5])}{more}. It must be the "
            "checkpoint of a trained model with the same MODEL keys; weights that the torchvision "
            "engine trained are for --engine torchvision."
        )


def check_weights(cfg: Any) -> Path | None:
    """Where the file of MODEL.WEIGHTS is, downloaded and cached if it has an address.

    Returns:
        A local path, or None if the config asks for no weights.

    Raises:
        SmallObjError: if it cannot be had, naming the options.
    """
    name = os.path.expandvars(cfg.MODEL.WEIGHTS)
    if unset := unset_variable(name):
        raise SmallObjError(
            f"MODEL.WEIGHTS is {name}, but the environment variable {unset} is not set. Set it "
            "to the path or the address of the weights file."
        )
    if not name:
        return None
    ways = (
        'Options: MODEL.WEIGHTS <path of a local .pkl or .pth file>, or MODEL.WEIGHTS "" to train '
        "from random weights (with MODEL.RESNETS.NORM GN or BN and MODEL.BACKBONE.FREEZE_AT 0)."
    )
    url = _ZOO + name.removeprefix("detectron2://") if name.startswith("detectron2://") else name
    if "://" not in url:
        path = Path(name).expanduser()
        if not path.is_file():
            raise SmallObjError(f"MODEL.WEIGHTS: there is no file {path}. {ways}")
        return path

    from iopath.common.file_io import HTTPURLHandler, PathManager

    manager = PathManager()
    manager.register_handler(HTTPURLHandler())  # Detectron2's own kind, so the cache is the same
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    quiet = logging.getLogger("iopath")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        return Path(manager.get_local_path(url))
    except Exception as e:  # addresses fail in many ways, all of which mean that it cannot be had
        raise SmallObjError(f"MODEL.WEIGHTS: {url} cannot be fetched ({e}). {ways}") from e
    finally:
        quiet.setLevel(level)
        socket.setdefaulttimeout(before)


# --- Files


def read_file(path: str | Path) -> Any:
    """What a ``.pkl``, ``.pth`` or ``.pyth`` file holds.

    Raises:
        SmallObjError: if it is damaged, or asks for more than arrays and basic types; then with
            the way to convert it.
    """
    path = Path(path)
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return _ArraysOnly(file, encoding="latin1").load()
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as e:
        raise SmallObjError(f"{path} cannot be read: {e.strerror}.") from e
    except MemoryError as e:
        raise SmallObjError(
            f"{path} asks for more memory than there is. Its size is "
            f"{path.stat().st_size / 2**20:.0f} MB; if that much should be free, it is damaged."
        ) from e
    except Exception as e:  # a damaged pickle or archive can raise nearly anything
        # torch's own advice is to try again and let the file do what it wants; it is left out.
        asked = re.search(r"GLOBAL:? (\S+)", str(e))
        if asked is None:
            raise SmallObjError(
                f"{path} is not a weights file, or is damaged: {type(e).__name__}. To go on from "
                "an earlier checkpoint of a run, write its name into last_checkpoint."
            ) from e
        read = "torch.load(sys.argv[1], weights_only=False)"
        if path.suffix == ".pkl":
            read = "pickle.load(open(sys.argv[1], 'rb'), encoding='latin1')"
        raise SmallObjError(
            f"{path} is not loaded, as it asks for {asked[1]}, which could be made to do anything; "
            "weights need arrays and basic types only. If you trust whoever made it, convert it "
            f'once: python3 -c "import pickle, sys, torch; f = {read}; '
            "torch.save(f.get('model', f.get('state_dict', f)), sys.argv[2])\" "
            f"{path.name} weights.pth"
        ) from e


def save_checkpoint(path: Path, state: Any) -> None:
    """``torch.save``, whole or not at all, and only then name it in last_checkpoint as the last.

    A run that is killed here still has the checkpoint before; see `smallobj_d2.files.writing`.
    """
    with writing(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as e:  # how it reports a failed write
            if "PytorchStreamWriter" not in str(e) and "inline_container" not in str(e):
                raise
            raise OSError(errno.ENOSPC, "the disk may be full") from e
    with writing(path.with_name("last_checkpoint")) as temporary:
        temporary.write_text(path.name)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler for arrays and basic types. Whatever else a file asks for is refused."""

    _allowed: ClassVar[dict[str, Any]] = {
        "_reconstruct": np.zeros(0).__reduce__()[0],
        "scalar": np.float32(0).__reduce__()[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
        "OrderedDict": OrderedDict,
    }
    _modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "collections")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._modules and name in self._allowed:
            return self._allowed[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _encode(text: str, encoding: str) -> bytes:
    """What array data turns into when Python 3 pickles it by an old protocol."""
    return text.encode(encoding)
