"""Starts the processes of a run, on one machine or several, and says why they do not meet."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from smallobj_d2.errors import SmallObjError


def launch(
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    *,
    device: str = "cuda",
    args: tuple[Any, ...] = (),
    patience: float = 600.0,
) -> Any:
    """Call ``main(*args)`` in every process of a run, and return what it returns in process 0.

    Args:
        main: importable by name.
        num_processes: on this machine, one per GPU; without a GPU, processes on the CPU.
        num_machines, machine_rank: over how many machines, and which this is.
        dist_url: where machine 0 listens, such as ``tcp://host:port``; "auto" for one machine.
        device: the config's ``MODEL.DEVICE``.
        args: of `main`; must pickle.
        patience: seconds to wait for the other machines at the start.

    Raises:
        SmallObjError: as `main` raised it in whichever process came first, on every machine; or if
            the machines do not meet, or do not fit together.
    """
    if num_processes < 1 or not 0 <= machine_rank < num_machines:
        raise SmallObjError(
            f"--num-gpus {num_processes}, --num-machines {num_machines} and --machine-rank "
            f"{machine_rank} do not fit together; ranks of machines start at 0."
        )
    cuda = device.startswith("cuda") and torch.cuda.is_available()
    if cuda and num_processes > torch.cuda.device_count():
        raise SmallObjError(
            f"--num-gpus is {num_processes}, but this machine has {torch.cuda.device_count()} GPUs."
        )
    if num_processes * num_machines == 1:
        return main(*args)
    with Machines(machine_rank, num_machines, dist_url, patience) as machines:
        kind = "GPUs" if cuda else "processes on the CPU"
        machines.meet({"--num-machines": num_machines, f"--num-gpus ({kind})": num_processes})
        return _run_processes(main, num_processes, machines, cuda, args)


class Machines:
    """The machines of a run: how they find each other, and learn of each other's errors.

    Machine 0 keeps the store through which all processes meet. It belongs to the launching process,
    so that it outlives whatever happens in those that train.

    Args:
        rank, number: which machine this is, of how many.
        url: where machine 0 listens; "auto" on one machine.
        patience: seconds to wait for the others.
    """

    def __init__(self, rank: int, number: int, url: str, patience: float) -> None:
        self.rank, self.number, self.url, self.patience = rank, number, url, patience
        self.host, self.port = _address(url, number)
        if rank == 0:
            self.host = "127.0.0.1"  # it listens on all its addresses
        self.until = time.monotonic() + patience
        if rank:
            self._knock()
        try:
            self.store = dist.TCPStore(
                self.host, self.port, is_master=rank == 0, wait_for_workers=False
            )
        except (dist.DistError, ValueError) as e:
            raise SmallObjError(
                f"--dist-url {url} cannot be used: {_first_words(e)}. Choose another port, the "
                "same on all machines; exactly one launch has --machine-rank 0."
            ) from e
        self.port = self.store.port

    def meet(self, plan: dict[str, Any]) -> None:
        """Wait for all machines.

        Raises:
            SmallObjError: if one does not come, comes twice, or has another plan than machine 0.
        """
        with self._while_machine_0_is_there():
            if self.store.add(f"{self.rank} is here", 1) > 1:
                raise SmallObjError(
                    f"There is another launch with --machine-rank {self.rank}; the ranks of "
                    f"{self.number} machines are 0 to {self.number - 1}, each once."
                )
            self.store.set(f"plan {self.rank}", json.dumps(plan))
            first = plan
            for other in range(self.number):
                if not self._wait_for(f"plan {other}"):
                    raise SmallObjError(
                        f"Machine {other} of {self.number} has not come to {self.url} within "
                        f"{self.patience:.0f} seconds. Launch the same command on it with "
                        f"--machine-rank {other}, and see that no firewall keeps the port closed."
                    )
                its = json.loads(self.store.get(f"plan {other}"))
                first = first if other else its
                require_same(first, its, f"machine {other}", "machine 0")

    def say(self, error: str) -> None:
        """Let the other machines know of an error, unless one of them was first."""
        with suppress(dist.DistError):
            self.store.compare_set("error", "", f"Machine {self.rank} of {self.number}: {error}")

    def heard(self) -> str:
        """Why another machine has left; its words may be on their way."""
        self.until = time.monotonic() + 5
        with self._while_machine_0_is_there():
            if self._wait_for("error"):
                return self.store.get("error").decode()
        return "Another machine has ended without a word; see what is said there."

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave, machine 0 last, as the others may still have to hear of its errors."""
        with suppress(dist.DistError):
            here = [r for r in range(1, self.number) if self.store.check([f"{r} is here"])]
            if self.rank:
                self.store.set(f"{self.rank} has left", "")
            self.until = time.monotonic() + 10
            for other in here if self.rank == 0 else ():
                self._wait_for(f"{other} has left")

    def _knock(self) -> None:
        """Wait until somebody listens; a store that waits for itself is long and loud about it."""
        while True:
            try:
                with socket.create_connection((self.host, self.port), timeout=5):
                    return
            except (OSError, OverflowError) as e:
                if time.monotonic() > self.until:
                    raise SmallObjError(
                        f"Nothing has answered at --dist-url {self.url} for {self.patience:.0f} "
                        f"seconds ({e}). It must be the address of the machine whose launch has "
                        "--machine-rank 0, with the same port there."
                    ) from e
                time.sleep(0.2)

    def _wait_for(self, key: str) -> bool:
        while not self.store.check([key]):
            if time.monotonic() > self.until:
                return False
            time.sleep(0.05)
        return True

    @contextmanager
    def _while_machine_0_is_there(self) -> Iterator[None]:
        try:
            yield
        except dist.DistError as e:
            raise SmallObjError("Machine 0 has ended; see what it says there.") from e


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


def require_same(first: dict[str, Any], other: dict[str, Any], who: str, whose: str) -> None:
    """Compare what two machines or processes were told.

    Raises:
        SmallObjError: naming each thing that is not the same.
    """
    wrong = [
        f"{key} is {other.get(key)} on {who}, but {first.get(key)} on {whose}"
        for key in sorted(first.keys() | other.keys())
        if first.get(key) != other.get(key)
    ]
    if wrong:
        raise SmallObjError(f"{'; '.join(wrong[:5])}. All parts of a run must be told the same.")


_OTHER_END_CLOSED = ("by peer", "ncclRemoteError")
"""What gloo and NCCL say in a process when another one has gone."""


def _run_processes(
    main: Callable[..., Any],
    num_processes: int,
    machines: Machines,
    cuda: bool,
    args: tuple[Any, ...],
) -> Any:
    reports = mp.get_context("spawn").SimpleQueue()
    place = (num_processes, machines.number, machines.rank, machines.host, machines.port)
    try:
        mp.start_processes(
            _process,
            (main, *place, cuda, reports, args),
            nprocs=num_processes,
            start_method="spawn",
        )
    except (mp.ProcessExitedException, mp.ProcessRaisedException) as e:
        if reports.empty():
            if machines.number > 1 and any(words in str(e) for words in _OTHER_END_CLOSED):
                raise SmallObjError(machines.heard()) from None
            machines.say("it has ended with a traceback.")
            raise
    outcome = None if reports.empty() else reports.get()
    if isinstance(outcome, SmallObjError):
        machines.say(str(outcome))
        raise outcome
    return outcome


def _process(
    local_rank: int,
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    host: str,
    port: int,
    cuda: bool,
    reports: Any,
    args: tuple[Any, ...],
) -> None:
    if cuda:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_processes))
    os.environ["LOCAL_WORLD_SIZE"] = str(num_processes)
    try:
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=dist.TCPStore(host, port, is_master=False, wait_for_workers=False),
                world_size=num_processes * num_machines,
                rank=machine_rank * num_processes + local_rank,
            )
        except RuntimeError as e:
            raise SmallObjError(
                f"The processes cannot connect to one another: {_first_words(e)}. On several "
                "machines, name the network interface in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."
            ) from e
        result = main(*args)
    except SmallObjError as e:
        reports.put(SmallObjError(str(e)))
        # The others wait for this one in some collective call; leaving makes the parent end them.
        os._exit(2)
    if local_rank == 0:
        reports.put(result)
    dist.barrier()
    dist.destroy_process_group()


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
