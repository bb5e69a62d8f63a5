"""What all tests share: the same examples at every run, no deadline, no GPU, and one thread."""

import os
import signal
import sys

import pytest
from hypothesis import settings

from smallobj_d2.config import has_detectron2
from smallobj_d2.datasets import coco

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

# What is equal to the last bit is so on the CPU. For GPUs there is `python -m proofs.gpu`.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A shell that starts the suite in the background has Ctrl-C ignored, here and in what is started.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """More of them get in each other's way on models as small as those here."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_log_outlives_its_test():
    """A run logs to the terminal as it is then, which pytest takes away with the test."""
    yield
    if "smallobj_d2.engines.folder" in sys.modules:
        sys.modules["smallobj_d2.engines.folder"].close_logging()


@pytest.fixture
def forget_datasets(monkeypatch):
    """Names of datasets that a test registers are gone after it; call it to forget them earlier."""

    def forget():
        coco._registered.clear()
        if has_detectron2():
            from detectron2.data import DatasetCatalog, MetadataCatalog

            for name in {*DatasetCatalog} - known:
                DatasetCatalog.remove(name)
                MetadataCatalog.pop(name, None)  # not every test has asked for it

    monkeypatch.setattr(coco, "_registered", {})
    known: set[str] = set()
    if has_detectron2():
        from detectron2.data import DatasetCatalog

        known = {*DatasetCatalog}
    yield forget
    forget()
