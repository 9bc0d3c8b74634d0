"""Which parametrisation would make a learning rate transfer, a line a kind of layer."""

from __future__ import annotations

from collections.abc import Collection

#: Maximal update parametrisation: Yang et al. 2022 (arXiv 2203.03466), table 3, against the standard one.
WIDTH = {
    "adam": (
        "input weights, biases, gains of norms: as they are, variance 1 / fan_in, rate of no width",
        "hidden weights: variance 1 / fan_in, rate times 1 / fan_in",
        "output weights: variance 1 / fan_in^2, rate times 1 / fan_in",
    ),
    "sgd": (
        "input weights and biases: variance 1 / fan_in, rate times fan_out",
        "hidden weights: variance 1 / fan_in, rate of no width",
        "output weights: variance 1 / fan_in^2, rate times 1 / fan_in",
    ),
}
#: Yang et al. 2023 (arXiv 2310.02244), for blocks of one layer.
DEPTH = {
    "adam": "residual nets of depth L: multiply each branch by 1 / sqrt(L), rate of its weights times 1 / sqrt(L)",
    "sgd": "residual nets of depth L: multiply each branch by 1 / sqrt(L), rate of no depth",
}
PLAIN = "nets without skips have no such scale: take the rate of the target's depth, or add skips"


def advice(optimizer: str, off: Collection[str]) -> tuple[str, ...]:
    """What to change for the axes, ``width`` and ``depth``, over which the rate does not transfer."""
    kind = "adam" if "ada" in optimizer.lower() else "sgd"
    lines = [f"for width (muP, {kind}): {line}" for line in WIDTH[kind]] if "width" in off else []
    return tuple(lines + ([f"for depth: {DEPTH[kind]}", f"for depth: {PLAIN}"] if "depth" in off else []))
