"""Processes of the tests' own: forks, which need not import everything again."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from signal import SIGKILL


def fork(what: Callable[[], object]) -> BaseProcess:
    """Do something in a process and a session of its own."""

    def leader() -> None:
        os.setsid()
        what()

    process = multiprocessing.get_context("fork").Process(target=leader)
    process.start()
    return process


@contextmanager
def elsewhere(held: Callable[[], object]) -> Iterator[None]:
    """Let another process be inside a context manager."""
    inside, hold = multiprocessing.Event(), multiprocessing.Event()

    def what() -> None:
        with held():
            inside.set()
            hold.wait()

    process = fork(what)
    try:
        assert inside.wait(60)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, SIGKILL)
        process.join()
