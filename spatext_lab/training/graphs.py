# SPDX-License-Identifier: Apache-2.0
"""Forward and backward passes as CUDA graphs.

The kernels of a small network are done before Python has launched the next ones. A graph launches
all of a pass at once: the pocket U-Net learns several times faster with it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from spatext_lab.diffusion import SMALL

MOST = 8  # graphs of a network, each of which keeps its activations; other shapes run without


@contextmanager
def graphed(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Replays the passes of those networks that are small and on a GPU as graphs.

    Args:
        networks: functions of their arguments alone. A graph repeats kernels: what Python does
            within a pass, such as to record attention, happens once and never again.
    """
    networks = [network for network in networks if _gains(network)]
    for network in networks:
        network.forward = _Replayed(network)
    try:
        yield
    finally:
        for network in networks:
            del network.forward


def _gains(network: nn.Module) -> bool:
    weights = list(network.parameters())
    return weights[0].is_cuda and sum(weight.numel() for weight in weights) < SMALL


class _Replayed:
    """A network's forward function; a pass with gradients is captured once for each shape."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.forward, self.graphs = network, network.forward, {}

    def __call__(self, *args, **kwargs):
        leaves, form = tree_flatten((args, kwargs))
        key = (str(form), *map(_kind, leaves))
        if key not in self.graphs and len(self.graphs) < MOST and torch.is_grad_enabled():
            self.graphs[key] = _captured(self.network, self.forward, leaves, form)
        if key not in self.graphs or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        graph, form = self.graphs[key]
        return tree_unflatten(graph(*(x for x in leaves if isinstance(x, Tensor))), form)


def _kind(leaf: Any) -> Any:
    tensor = isinstance(leaf, Tensor)
    return (leaf.shape, leaf.dtype, leaf.requires_grad) if tensor else repr(leaf)


def _captured(network: nn.Module, forward, leaves: list[Any], form: Any) -> tuple[Any, Any]:
    """A function of the tensors among the leaves, and the form of what it returns."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network  # so that its weights get gradients

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            rest = iter(tensors)
            filled = [next(rest) if isinstance(x, Tensor) else x for x in leaves]
            args, kwargs = tree_unflatten(filled, form)
            outputs, self.form = tree_flatten(forward(*args, **kwargs))
            return tuple(outputs)

    flat = Flat()
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    examples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in tensors)
    on, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with torch.autocast("cuda", dtype, enabled=on, cache_enabled=False):  # a graph keeps no cache
        graph = torch.cuda.make_graphed_callables(flat, examples, allow_unused_input=True)
    return graph, flat.form
