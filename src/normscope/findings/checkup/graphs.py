"""Several graphs in one batch: whether the edges name the nodes of all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from normscope.call.arguments import tensors
from normscope.findings.checkup.scene import Scene


def of_graphs(scene: Scene) -> dict[str, Any]:
    """Of features of nodes (N, d), edges (2, e) and the graph of each node (N,): whether the edges, more than half as
    many as the nodes, name those of the size of one graph only. And how many of the edges (2, e) go both ways, as they
    are and as pairs that follow each other in memory.
    """
    given = [t for t in tensors((scene.at.args, scene.at.kwargs)) if t.dim() in (1, 2)]
    whole = [t for t in given if not t.is_floating_point() and not t.is_complex() and t.numel() > 2]
    for t in (t for t in whole if t.dim() == 2 and len(t) == 2 and t.shape[1] >= 32 and t.shape[1] % 2 == 0):
        read, pairs = _both_ways(t.T), _both_ways(t.reshape(-1, 2))
        if read < 0.5 and pairs > 0.99:
            return {"both_ways": read, "pairs": pairs, "shape": list(t.shape)}
    for nodes in (t for t in given if t.is_floating_point() and t.dim() == 2):
        edges = next((t for t in whole if t.dim() == 2 and len(t) == 2 and t.shape[1] > len(nodes) / 2), None)
        graph = next((t for t in whole if t.shape == nodes.shape[:1] and _sorted(t)), None)
        if edges is None or graph is None:
            continue
        largest, named = int(graph.unique(return_counts=True)[1].max()), int(edges.max()) + 1
        if named <= largest < len(nodes) / 2:
            return {"nodes": len(nodes), "named": named, "graphs": len(graph.unique())}
    return {}


def _both_ways(edges: Tensor) -> float:
    """The share of the edges (e, 2) whose reverse is one too."""
    every = {(int(a), int(b)) for a, b in edges.tolist()}
    return sum((b, a) in every for a, b in every) / len(every)


def _sorted(t: Tensor) -> bool:
    return bool((t.diff() >= 0).all()) and int(t[0]) < int(t[-1])
