# SPDX-License-Identifier: Apache-2.0
"""Processes that share a run: they meet, add up their gradients, and process 0 writes and prints.

Each holds the whole model. A step's micro-batches are dealt out (`loop.Trainer`), so the result
depends on how many micro-batches a step has, and not on how many processes share them. Every
function here is the plain thing where there is one process.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch import Tensor

from spatext_lab.training import launch, peers
from spatext_lab.training.plan import Device, device_of

START = timedelta(minutes=10)  # for all processes to come, and for sums on GPUs


def join(device: Device) -> Accelerator:
    """Meets the other processes, the first time that it is called; each gets a GPU of its own.

    Raises:
        ValueError: more processes than GPUs on this machine, `accelerate launch` that started one
            process of several, and what `device_of` raises.
        ConnectionError: a process does not come.
    """
    cpu = device_of(device) == "cpu"
    if launch.count() > 1 and not dist.is_initialized():
        _meet(cpu)
    asked = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    if asked and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "accelerate launch --cpu has started 1 process, whatever its --num_processes is: "
            "use torchrun --nproc_per_node N"
        )
    # bfloat16 pays on a GPU; without special instructions a CPU is far slower with it.
    return Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16")


def share(accumulate: int) -> range:
    """Which of a step's micro-batches this process computes.

    Raises:
        ValueError: they cannot be dealt out evenly.
    """
    each, over = divmod(accumulate, launch.count())
    if over:
        raise ValueError(
            f"accumulate is {accumulate}, for {launch.count()} processes; "
            "pass a multiple of their number"
        )
    return range(each * launch.rank(), each * (launch.rank() + 1))


def _meet(cpu: bool) -> None:
    if not cpu and launch.count_here() > torch.cuda.device_count():
        raise ValueError(
            f"{launch.count_here()} processes were started on this machine, which has "
            f"{torch.cuda.device_count()} GPUs: start one for each, or pass --device cpu"
        )
    try:
        PartialState(cpu=cpu, timeout=START)
        peers.words(), peers.places()
    except RuntimeError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConnectionError(
            f"not all {launch.count()} processes have come in {START.total_seconds():.0f} s. Is "
            "the same command running on every machine, with the same number of machines and of "
            f"processes, and can each reach {where}? ({error})"
        ) from None


# --- what they tell each other --------------------------------------------------------------------


def total(number: float) -> float:
    """The sum of a number over the processes, the same in each; waits for whoever is late."""
    if launch.count() == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64)
    with peers.together():
        dist.all_reduce(shared, group=peers.words())
    return shared.item()


def add_up(flat: Tensor) -> None:
    """Replaces a tensor by its sum over the processes.

    With n processes each sends and receives 2 (n - 1) / n times its size, on GPUs by NCCL. That
    does not overlap with the backward pass, as it does in DistributedDataParallel: 860 million
    weights in single precision are 3.4 GB, a tenth of a second over NVLink and half a minute over
    a network of 1 Gbit/s. Several micro-batches in each process make it rarer.
    """
    if launch.count() > 1:
        with peers.together():
            dist.all_reduce(flat)


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Puts process 0's values into these tensors of every process."""
    if launch.count() == 1:
        return
    for tensor in tensors:
        whole = tensor.detach().contiguous()
        with peers.together():
            dist.broadcast(whole, 0, group=None if whole.is_cuda else peers.words())
        tensor.copy_(whole)


def told(value: Any) -> Any:
    """What process 0 passes; the others' argument is ignored."""
    if launch.count() == 1:
        return value
    box = [value]
    with peers.together():
        dist.broadcast_object_list(box, 0, group=peers.words())
    return box[0]


def check_alike(what: dict[str, Any]) -> None:
    """Compares what the processes were given with what process 0 was.

    Raises:
        ValueError: in every process, if one of them was given something else.
    """
    if launch.count() == 1:
        return
    everyone: list[Any] = [None] * launch.count()
    with peers.together():
        dist.all_gather_object(everyone, what, group=peers.words())
    for number, other in enumerate(everyone):
        for name, value in everyone[0].items():
            if other.get(name) != value:
                where = peers.places()[number].machine
                raise ValueError(
                    f"{name} is not the same in process {number} on {where} as in "
                    "process 0: give all the same options, and every machine the same files"
                )


def _wait() -> None:
    """Until all processes are here."""
    if launch.count() > 1:
        with peers.together():
            dist.barrier(group=peers.words())


@contextmanager
def first_here() -> Iterator[None]:
    """One process of each machine goes through the block, then the others, who find its files."""
    if not launch.is_first_here():
        _wait()
    yield
    if launch.is_first_here():
        _wait()


def leave() -> None:
    """Parts from the other processes when all are done."""
    if dist.is_initialized():
        _wait()
        dist.destroy_process_group()
