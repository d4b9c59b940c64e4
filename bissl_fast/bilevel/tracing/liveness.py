"""How much memory a traced graph holds at once, read off its shapes."""

from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves


def peak_bytes(graph: fx.Graph) -> int:
    """Most bytes alive at once while a graph runs, its inputs not counted and each value freed after its last use.

    A value that shares memory with another (a view) counts once, and lives as long as the last of them. Kernels take
    memory of their own while they run (a convolution copies what it reads into blocks): the largest value counts twice.
    """
    order = list(graph.nodes)
    storages: dict[fx.Node, set[int]] = {}
    sizes: dict[int, int] = {}
    free: set[int] = set()
    for node in order:
        storages[node] = set()
        for leaf in tree_leaves(node.meta.get("val")):
            if isinstance(leaf, torch.Tensor):
                key = storage_key(leaf)
                storages[node].add(key)
                sizes[key] = max(sizes.get(key, 0), leaf.untyped_storage().nbytes())
        if node.op in ("placeholder", "get_attr"):
            free |= storages[node]
    last_use: dict[int, int] = {}
    for position, node in enumerate(order):
        for reader in (node, *node.all_input_nodes):
            for key in storages[reader]:
                last_use[key] = position
    alive: set[int] = set()
    most = 0
    for position, node in enumerate(order):
        alive |= storages[node] - free
        most = max(most, sum(sizes[key] for key in alive))
        alive = {key for key in alive if last_use[key] > position}
    return most + max(sizes.values(), default=0)


def storage_key(tensor: Any) -> int:
    """The identity of a tensor's memory, also of a fake one."""
    return int(tensor.untyped_storage()._cdata)
