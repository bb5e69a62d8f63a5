"""Checkpoints that are written whole or not at all, and execute nothing when read."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from smallobj_d2.engines.folder import last_checkpoint
from smallobj_d2.engines.weights import read_file, require_whole, resuming, save_checkpoint
from smallobj_d2.errors import SmallObjError


class Checkpointer(DetectionCheckpointer):
    """DetectionCheckpointer that writes whole files or none, and executes nothing that it reads."""

    _whole = False
    _exact = False

    @classmethod
    def load_whole(cls, model: nn.Module, path: Path) -> None:
        """Load a file that must have all parameters of the model."""
        checkpointer = cls(model)
        checkpointer._whole = True
        checkpointer.load(str(path))

    def save(self, name: str, **kwargs: Any) -> None:
        """As the stock method, for files that are written whole."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: o.state_dict() for key, o in self.checkpointables.items()}, **kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        save_checkpoint(path, data)
        self.logger.info("Saved %s", path)

    def get_checkpoint_file(self) -> str:
        """As the stock method, but a checkpoint that is gone is named."""
        return str(last_checkpoint(Path(self.save_dir)) or "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the stock method, but a run is gone on with as a whole, or not at all.

        Raises:
            SmallObjError: if the last checkpoint is not one of this model.
        """
        last = self.get_checkpoint_file() if resume else ""
        self._exact = bool(last)
        with resuming(last) if last else nullcontext():
            return dict(super().resume_or_load(path, resume=resume))

    def _load_file(self, filename: str) -> Any:
        """As the stock methods, for files that hold no more than weights and basic types."""
        data = read_file(filename)
        if not isinstance(data, dict):
            raise SmallObjError(f"{filename} is not a checkpoint: it holds {type(data).__name__}.")
        if filename.endswith(".pkl"):
            if "model" in data and "__author__" in data:  # Detectron2's model zoo
                return data
            blobs = data.get("blobs", data)  # Caffe2's
            blobs = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
            return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        return data if "model" in data else {"model": data}

    def _load_model(self, checkpoint: Any) -> Any:
        """As the stock method, but a model that is to be whole, and is not, is an error."""
        incompatible = super()._load_model(checkpoint)
        others = [name for name, _, _ in incompatible.incorrect_shapes]
        if self._whole:
            require_whole(self.model, {*incompatible.missing_keys, *others})
        differ = sorted({*incompatible.missing_keys, *incompatible.unexpected_keys, *others})
        if self._exact and differ:
            raise KeyError(f"{len(differ)} parameters differ, {differ[0]} among them")
        return incompatible
