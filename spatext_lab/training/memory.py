# SPDX-License-Identifier: Apache-2.0
"""How much memory a training run takes, before its first step.

Weights, gradients, moments and their average are counted. What a forward and a backward pass hold
is counted too, by doing both on tensors without storage (PyTorch's fake tensors): each operation
reports the shapes that it would return, and its results live as long as autograd keeps them.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from spatext_lab.training.plan import Plan

GIB = 2**30
BLOCK = 512  # bytes; CUDA's allocator rounds up to it
# Autocast on a GPU has these in single precision, autocast on the CPU has not. Of those that it
# does so with, they are the ones that a U-Net and a text encoder call.
SINGLE = ("group_norm", "layer_norm", "softmax")
# bitsandbytes keeps the moments of smaller weights in 32 bits, and a scale for so many of 8 bits.
LEAST_8BIT, PER_SCALE = 4096, 256


@dataclass(frozen=True)
class Memory:
    """Bytes on the device at the fullest moment of a step, by what they are for."""

    weights: int  # that are trained
    others: int  # of the networks beside them
    gradients: int
    moments: int  # of AdamW
    average: int
    passes: int  # activations, and what else a pass holds beyond the gradients

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def text(self) -> str:
        """One line: the sum, then its parts."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in named.items() if size)
        return f"{self.total / GIB:.1f} GiB: {parts}"


def expected(
    module: nn.Module,
    loss_at: Callable[[int, torch.Generator], Tensor],
    plan: Plan,
    *,
    bf16: bool,
    others: Sequence[nn.Module] = (),
) -> Memory:
    """The memory of training a module on a device that nothing else uses.

    Args:
        module: what is trained; a ModuleDict of networks, or one network.
        loss_at: the loss of a micro-batch, see `loop.Trainer`; it is called once, and the networks
            themselves are not.
        plan: whether gradients are accumulated, how many bits the moments have, where the average
            lies.
        bf16: whether passes run under a GPU's autocast to bfloat16.
        others: networks on the same device that are not trained.
    """
    keeps = plan.accumulate == 1  # gradients begin as nothing, and grow while activations go
    held = pass_bytes(module, loss_at, bf16=bf16, keep_gradients=keeps)
    return resident(module, plan, others, held, gradients_in=keeps)


def resident(
    module: nn.Module,
    plan: Plan,
    others: Sequence[nn.Module],
    held: int,
    gradients_in: bool = False,
) -> Memory:
    """The memory of training a module whose passes hold so many bytes.

    Args:
        module, plan, others: as for `expected`.
        held: see `pass_bytes`.
        gradients_in: whether `held` has the gradients in it.
    """
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    size = _bytes(trained)
    frozen = _bytes(w for part in (module, *others) for w in part.parameters()) - size
    held -= size if gradients_in else 0
    average = size if plan.average == "device" else 0
    # The average is moved by a temporary of its own size, when the activations are gone.
    return Memory(size, frozen, size, moment_bytes(trained, plan), average, max(held, average, 0))


def moment_bytes(weights: Sequence[Tensor], plan: Plan) -> int:
    """The bytes of AdamW's two moments of each weight."""
    if plan.adamw == "32bit":
        return 8 * sum(weight.numel() for weight in weights)
    counts = [weight.numel() for weight in weights]
    return sum(8 * n if n < LEAST_8BIT else 2 * (n + 4 * -(-n // PER_SCALE)) for n in counts)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def pass_bytes(
    module: nn.Module,
    loss_at: Callable[[int, torch.Generator], Tensor],
    *,
    bf16: bool = False,
    keep_gradients: bool = False,
) -> int:
    """The most bytes that a forward and a backward pass hold at a time, beside the weights.

    Args:
        module, loss_at, bf16: as for `expected`.
        keep_gradients: count the gradients that the backward pass leaves behind.
    """
    networks = module.values() if isinstance(module, nn.ModuleDict) else [module]
    fakes = _Fakes(keep_gradients)
    with ExitStack() as stack:
        for network in networks:
            replaced = fakes.standing_in(network)
            stack.enter_context(patch.object(network, "forward", replaced))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), _like_gpu(bf16):
            loss_at(0, torch.Generator().manual_seed(0))
            fakes.backward()
    return fakes.watch.peak


class _Fakes:
    """Networks on fake tensors, and how much their passes hold."""

    def __init__(self, keep_gradients: bool) -> None:
        self.mode, self.watch = FakeTensorMode(allow_non_fake_inputs=True), _Watch()
        self.keep, self.outputs = keep_gradients, []

    def standing_in(self, network: nn.Module) -> Callable[..., Any]:
        """A function that returns zeros of the shapes that the network would return."""
        fake = self._copy(network)

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.mode, self.watch:
                args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs))
                out = fake(*args, **kwargs)
            self.outputs += [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            device = next(network.parameters()).device
            return tree_map_only(Tensor, lambda t: _zeros(t, device), out)

        return forward

    def _copy(self, network: nn.Module) -> nn.Module:
        tensors = [*network.parameters(), *network.buffers()]
        known = {id(tensor): self._fake(tensor) for tensor in tensors}
        self.watch.leave_out(known.values())
        fake = copy.deepcopy(network, known)
        for weight in fake.parameters():
            if weight.requires_grad and not self.keep:
                weight.register_post_accumulate_grad_hook(_forget)
        return fake

    def _fake(self, tensor: Tensor) -> Tensor:
        with self.mode:
            # on the CPU: without a GPU, no backward pass can be done on fake tensors of a GPU
            shape, stride = tensor.shape, tensor.stride()
            fake = torch.empty_strided(shape, stride, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                return nn.Parameter(fake, tensor.requires_grad)
            return fake.requires_grad_(tensor.requires_grad)

    def backward(self) -> None:
        """The backward pass from all outputs."""
        ends = [out for out in self.outputs if out.requires_grad]
        with self.mode, self.watch:
            torch.autograd.backward(ends, [torch.empty_like(end) for end in ends])


def _forget(weight: Tensor) -> None:
    weight.grad = None


def _zeros(fake: Tensor, device: torch.device) -> Tensor:
    real = torch.zeros(fake.shape, dtype=fake.dtype, device=device)
    return real.requires_grad_(fake.requires_grad)


class _Watch(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have returned and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, Any] = {}

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Does not count these, whose views operations return."""
        self.known |= {id(storage := t.untyped_storage()): storage for t in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self.known:
            return

        def gone(_: weakref.ref) -> None:
            self.live -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


@contextmanager
def _like_gpu(bf16: bool) -> Iterator[None]:
    """Has the CPU's autocast keep in single precision what a GPU's does."""
    with ExitStack() as stack:
        for name in SINGLE if bf16 else ():
            stack.enter_context(patch.object(F, name, _in_single(getattr(F, name))))
        yield


def _in_single(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wide(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_floating_point() else tensor

    def called(*args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = tree_map_only(Tensor, wide, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return called
