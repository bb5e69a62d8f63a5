"""Starts the processes of a run, on one machine or several, by PyTorch's elastic agent.

It is the agent of ``torchrun``: it starts processes, watches them, ends all when one fails, brings
their errors here, and starts them again if asked. What is added is a rendezvous that says why
machines do not meet. ``torchrun -m smallobj_d2 train ...`` works as well.
"""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    get_error_handler,
    record,
)
from torch.distributed.rendezvous import rendezvous

from smallobj_d2.engines.machines import Machines, first_words
from smallobj_d2.engines.processes import restarts
from smallobj_d2.errors import SmallObjError

_PATIENCE = 600.0  # seconds to wait for the other machines at the start


def launch(
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    *,
    device: str = "cuda",
    args: tuple[Any, ...] = (),
    max_restarts: int = 0,
    imports: Sequence[str] = (),
) -> Any:
    """Call ``main(*args)`` in every process of a run, and return what it returns in process 0.

    A process of ``torchrun`` is one of those processes already, and becomes it.

    Args:
        main: importable by name.
        num_processes: on this machine, one per GPU; without a GPU, processes on the CPU.
        num_machines, machine_rank: over how many machines, and which this is.
        dist_url: where machine 0 listens, such as ``tcp://host:port``; "auto" for one machine.
        device: the config's ``MODEL.DEVICE``.
        args: of `main`; must pickle.
        max_restarts: how often to start all processes again when one is lost.
        imports: modules that all processes need, imported once for all of them.

    Returns:
        The result of process 0; None on machines that have no part in it.

    Raises:
        SmallObjError: as `main` raised it in whichever process came first, on every machine; or if
            a process was killed, or the machines do not meet or do not fit together.
        KeyboardInterrupt: if stopped by SIGINT; all processes have ended then.
    """
    cuda = device.startswith("cuda") and torch.cuda.is_available()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if (num_processes, num_machines, max_restarts) != (1, 1, 0):
            raise SmallObjError(
                "RANK and WORLD_SIZE are set, so torchrun (or the like) starts the processes; "
                "give --nproc-per-node, --nnodes and --max-restarts to it, not --num-gpus, "
                "--num-machines and --max-restarts to this."
            )
        with _process_group(cuda):
            return record(main)(*args)
    if num_processes < 1 or max_restarts < 0 or not 0 <= machine_rank < num_machines:
        raise SmallObjError(
            f"--num-gpus {num_processes}, --num-machines {num_machines}, --machine-rank "
            f"{machine_rank} and --max-restarts {max_restarts} do not fit together; ranks of "
            "machines start at 0."
        )
    if cuda and num_processes > torch.cuda.device_count():
        raise SmallObjError(
            f"--num-gpus is {num_processes}, but this machine has {torch.cuda.device_count()} GPUs."
        )
    if num_processes * num_machines == 1 and not max_restarts:
        return main(*args)
    # What a killed process leaves is cleaned up; there is no need to say so.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    kind = "GPUs" if cuda else "processes on the CPU"
    plan = {
        "--num-machines": num_machines,
        f"--num-gpus ({kind})": num_processes,
        "--max-restarts": max_restarts,
    }
    with tempfile.TemporaryDirectory(prefix="smallobj-") as errors, _signals_restored():
        machines = Machines(machine_rank, num_machines, dist_url, _PATIENCE, plan, Path(errors))
        spec = WorkerSpec(
            role="run",
            local_world_size=num_processes,
            entrypoint=_process,
            args=(main, cuda, num_machines == 1, args),
            rdzv_handler=machines,
            max_restarts=max_restarts,
            monitor_interval=0.1,
        )
        # Processes are forked from one that has imported what they need, and has done nothing else.
        multiprocessing.set_forkserver_preload([__name__, *imports])
        agent = LocalElasticAgent(spec, DefaultLogsSpecs(log_dir=errors), start_method="forkserver")
        try:
            result = agent.run()
            if result.is_failed():
                raise machines.why(*next(iter(result.failures.items())))
        except SignalException as e:
            if e.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + e.sigval)
        except Exception as e:
            machines.leave(e)
            raise
    return result.return_values.get(0)


# --- In each process


def _process(main: Callable[..., Any], cuda: bool, one_machine: bool, args: tuple[Any, ...]) -> Any:
    signal.signal(signal.SIGINT, _interrupt_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, which share data then
    threading.Thread(target=_follow_launcher, daemon=True).start()
    if one_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if not cuda and "OMP_NUM_THREADS" not in os.environ:
        processes = int(os.environ["LOCAL_WORLD_SIZE"])
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    try:
        with _process_group(cuda):
            return main(*args)
    except Exception as e:
        error: Exception = e
        if isinstance(e, SmallObjError):
            error = SmallObjError(str(e)).with_traceback(e.__traceback__)
        else:
            time.sleep(1)  # it may be that another process is gone; that is to be seen first
        get_error_handler().record_exception(error)
        sys.exit(1)


def _follow_launcher() -> None:
    """Stop as by Ctrl-C when the launcher is gone, however it went."""
    if launcher := multiprocessing.parent_process():
        launcher.join()
        os.kill(os.getpid(), signal.SIGINT)


def _interrupt_once(*_: object) -> None:
    """The terminal and the agent may both send a signal; cleaning up needs no second one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _process_group(cuda: bool) -> Iterator[None]:
    """Join the other processes, as the agent's environment variables say."""
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    try:
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore(f"attempt {restarts()}", store),
            world_size=size,
            rank=rank,
        )
    except (RuntimeError, ValueError) as e:
        raise SmallObjError(
            f"The processes cannot connect to one another: {first_words(e)}. On several "
            "machines, name the network interface in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."
        ) from e
    yield
    dist.barrier()
    dist.destroy_process_group()


# --- On each machine


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Undo what the agent does to signals, and say nothing of what it logs."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {s: signal.getsignal(s) for s in handled}
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        with suppress(ValueError):  # not the main thread, where the agent changes nothing
            for number, handler in before.items():
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
