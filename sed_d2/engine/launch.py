"""Launch of a function in one or several processes, on GPUs or CPUs, with or without torchrun."""

import os
import socket
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException, spawn


def launch(
    main: Callable[..., object],
    num_processes: int = 1,
    *,
    device: str,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
) -> None:
    """Run ``main(*args)`` in ``num_processes`` processes on this machine.

    Under torchrun, or another launcher that sets RANK, WORLD_SIZE and LOCAL_RANK, the processes
    exist already and the numbers given here are not used. Unlike Detectron2's launch this function
    needs no GPU: the backend is nccl on CUDA devices and gloo on others.

    Args:
        main: a function that can be pickled.
        num_processes: the number of processes on this machine, one per GPU; 0 means 1.
        device: the device of the model, "cuda" or "cpu".
        num_machines: the number of machines; each calls this function.
        machine_rank: the rank of this machine, 0 to ``num_machines`` - 1.
        dist_url: ``tcp://host:port`` of machine 0, or "auto" on a single machine.
        args: the arguments of ``main``.

    Raises:
        ValueError: there are fewer GPUs than processes, or the URL has another form.
        SystemExit: a spawned process failed and has printed its error.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        _run(main, device, args)
        return
    if device.startswith("cuda") and num_processes > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus {num_processes} is more than the {torch.cuda.device_count()} GPUs that "
            "torch sees: ask for fewer, or set MODEL.DEVICE cpu"
        )
    world_size = num_processes * num_machines
    if world_size <= 1:
        main(*args)
        return
    if dist_url == "auto" and num_machines == 1:
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    url = urlparse(dist_url)
    if url.scheme != "tcp" or not url.port:
        raise ValueError(f"--dist-url '{dist_url}' is not supported: use tcp://host:port")
    environment = {
        "MASTER_ADDR": str(url.hostname),
        "MASTER_PORT": str(url.port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(num_processes),
    }
    try:
        spawn(_run_spawned, (environment, machine_rank, main, device, args), nprocs=num_processes)
    except ProcessExitedException as error:
        sys.exit(error.exit_code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run_spawned(
    local_rank: int,
    environment: dict[str, str],
    machine_rank: int,
    main: Callable[..., object],
    device: str,
    args: tuple[Any, ...],
) -> None:
    """Set the environment variables of torchrun in a spawned process, and run."""
    rank = machine_rank * int(environment["LOCAL_WORLD_SIZE"]) + local_rank
    os.environ.update(environment, LOCAL_RANK=str(local_rank), RANK=str(rank))
    _run(main, device, args)


def _run(main: Callable[..., object], device: str, args: tuple[Any, ...]) -> None:
    """Run in the process group that the environment variables describe."""
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    _create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())))
    try:
        main(*args)
    finally:
        dist.destroy_process_group()


def _create_local_process_group(size: int) -> None:
    """Create the process group of each machine, which Detectron2 asks for its local rank."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(size)
        return
    for first in range(0, dist.get_world_size(), size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= dist.get_rank() < first + size:
            comm._LOCAL_PROCESS_GROUP = group
