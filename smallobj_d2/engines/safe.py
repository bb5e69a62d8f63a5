"""Weights and checkpoints: written whole, and read without executing anything in them.

A pickle is a program. ``.pth`` is read with torch's ``weights_only``, and ``.pkl`` by an unpickler
that knows arrays and basic types and refuses all else.
"""

import errno
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import writing


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
    except MemoryError:
        raise
    except Exception as e:  # a damaged pickle or archive can raise nearly anything
        # torch's own advice is to try again and let the file do what it wants; it is left out.
        asked = re.search(r"GLOBAL:? (\S+)", str(e))
        if asked is None:
            raise SmallObjError(
                f"{path} is not a weights file, or is damaged: {type(e).__name__}."
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


def write_file(path: Path, value: Any) -> None:
    """``torch.save``, whole or not at all; see `smallobj_d2.files.writing`."""
    with writing(path) as temporary:
        try:
            torch.save(value, temporary)
        except RuntimeError as e:  # how it reports a failed write
            if "PytorchStreamWriter" not in str(e) and "inline_container" not in str(e):
                raise
            raise OSError(errno.ENOSPC, "the disk may be full") from e


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
