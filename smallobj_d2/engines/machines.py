"""How the machines of a run meet, and why they end."""

import json
import signal
import socket
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.utils.store import barrier

from smallobj_d2.engines.processes import require_same
from smallobj_d2.errors import SmallObjError


class Machines(StaticTCPRendezvous):
    """PyTorch's static rendezvous, with one-line errors and a store that tells machines of errors.

    Machine 0 keeps the store through which all processes meet. It belongs to the agent, so that it
    outlives the processes that train. On one machine nobody else can reach it.

    Args:
        rank, number: which machine this is, of how many.
        url: where machine 0 listens; "auto" on one machine.
        patience: seconds to wait for the others.
        plan: what all machines must have been told.
        errors: the folder where the processes of this machine leave their errors.
    """

    def __init__(
        self,
        rank: int,
        number: int,
        url: str,
        patience: float,
        plan: dict[str, Any],
        errors: Path,
    ) -> None:
        host, port = _address(url, number)
        host = host if rank else "127.0.0.1"
        super().__init__(host, port, rank, number, "run", int(patience))
        self.number, self.url, self.plan, self.errors = number, url, plan, errors
        self.attempts = 0
        self.store: Any = None  # until they have met

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet at the start; after a loss again, unless the same error would only come again."""
        if self.store is None:
            self.store = self._meet()
        else:
            self._see_that_it_helps()
        # A process that is interrupted while it starts would say so in a hundred lines. It inherits
        # the mask, and takes it off when it can be brief.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        store = PrefixStore(f"agents, attempt {self.attempts}", self.store)
        self.attempts += 1
        address = RendezvousStoreInfo(self.master_addr, self.master_port)
        return RendezvousInfo(store, self.rank, self.number, address)

    def num_nodes_waiting(self) -> int:
        """None, ever; the agent asks while its processes run."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return 0

    def _meet(self) -> Any:
        """Wait for all machines, and see that they were told the same."""
        if self.number == 1:  # PyTorch would listen on all addresses
            listener = socket.create_server(("127.0.0.1", 0))
            self.master_port = listener.getsockname()[1]
            self._store = TCPStore(
                self.master_addr,
                self.master_port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        handler = signal.getsignal(signal.SIGINT)
        if self.number > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # PyTorch's waiting hears no other
        try:
            store = super().next_rendezvous().store
            if store.add(f"{self.rank} is here", 1) > 1:
                raise SmallObjError(
                    f"There is another launch with --machine-rank {self.rank}; the ranks of "
                    f"{self.number} machines are 0 to {self.number - 1}, each once."
                )
            store.set(f"plan {self.rank}", json.dumps(self.plan))
            ranks = range(self.number)
            plans = [json.loads(store.get(f"plan {other}")) for other in ranks]
            store.set(f"{self.rank} has read", "")
            if self.rank == 0:  # the store leaves with it
                store.wait([f"{other} has read" for other in ranks])
        except (dist.DistError, ValueError) as e:
            raise SmallObjError(
                f"The {self.number} machines have not met at --dist-url {self.url} within "
                f"{self.timeout.total_seconds():.0f} seconds ({first_words(e)}). It must be the "
                "address and a free port of machine 0. Launch the same command on each machine, "
                f"with --machine-rank 0 to {self.number - 1}."
            ) from e
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
        for other, plan in enumerate(plans):
            require_same(plans[0], plan, f"machine {other}", "machine 0")
        return store

    # Errors

    def _see_that_it_helps(self) -> None:
        """Raise the error that ended the last attempt, if it is one that would come again."""
        for file in self.errors.rglob("error.json"):
            error = _error_in(json.loads(file.read_bytes()))
            if isinstance(error, SmallObjError):
                raise error
        if error := self._of_another_machine():
            raise error
        print(  # noqa: T201 - there is no log in this process
            f"A process was lost. Starting all again from the last checkpoint ({self.attempts} of "
            f"--max-restarts {self.plan['--max-restarts']}).",
            flush=True,
        )

    def why(self, rank: int, failure: ProcessFailure) -> Exception:
        """The error for a process that has failed, or the one of another machine behind it."""
        error = _error_in(failure.error_file_data)
        if isinstance(error, SmallObjError):
            return error
        if other := self._of_another_machine():
            return other
        if error is None and failure.exitcode < 0:
            return SmallObjError(
                f"Process {rank} was killed by {failure.signal_name()}. If nobody did that, the "
                "machine may be out of memory. Add --resume to continue from the last checkpoint; "
                "--max-restarts 3 does so by itself."
            )
        return error or SmallObjError(
            f"Process {rank} has ended with exit code {failure.exitcode}; what it said is above."
        )

    def _of_another_machine(self) -> SmallObjError | None:
        """The error that another machine told of; its words may be on their way."""
        if self.number == 1 or self.store is None:
            return None
        try:
            self.store.wait(["error"], timedelta(seconds=5))
            return SmallObjError(self.store.get("error").decode())
        except dist.DistStoreError:
            return None
        except dist.DistError:
            return SmallObjError("Machine 0 has ended; see what it says there.")

    def leave(self, error: Exception) -> None:
        """Tell the others of an error, unless one of them was first, and wait till they know."""
        if self.store is None or self.number == 1:
            return
        said = str(error) if isinstance(error, SmallObjError) else "it has ended with a traceback."
        with suppress(dist.DistError):
            self.store.compare_set("error", "", f"Machine {self.rank} of {self.number}: {said}")
            barrier(self.store, self.number, "left", barrier_timeout=10)


def _error_in(recorded: dict[str, Any]) -> Exception | None:
    """What a process recorded as its error."""
    message = recorded["message"]
    if not isinstance(message, dict):
        return None
    kind, _, said = message["message"].partition(": ")
    if kind == SmallObjError.__name__:
        return SmallObjError(said)
    return RuntimeError(f"in one of the processes:\n{message['extraInfo']['py_callstack']}")


def _address(url: str, num_machines: int) -> tuple[str, int]:
    if url == "auto" and num_machines == 1:
        return "127.0.0.1", 0
    try:
        parts = urlsplit(url)
        if parts.scheme == "tcp" and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:  # of the port
        pass
    raise SmallObjError(
        f"--dist-url is {url}; it must be tcp://<host of machine 0>:<port>, the same on all "
        "machines. Only on one machine it may be left out."
    )


def first_words(error: Exception) -> str:
    """What an error of PyTorch's says, without the C++ behind it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].lower()
