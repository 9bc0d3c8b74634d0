"""An activation between two fixed factors: nearer to linear, at the length that it had."""

from __future__ import annotations

from torch import Tensor, nn


class Shaped(nn.Module):
    r"""$s\,\varphi(g x)$ of an activation $\varphi$: with a small gain g it bends little, the scale s makes up for it.

    Both are fixed numbers, so the parameters before and behind it keep the scale that they have. A norm's own weight at
    g would do the same to the outputs, yet a step on that weight, or on its bias, would then weigh 1/g times as much.
    What the ``shape`` cure puts in an activation's place (Zhang, Botev, Martens 2022, arXiv 2203.08120, shape so too).
    """

    def __init__(self, activation: nn.Module, gain: float, scale: float) -> None:
        super().__init__()
        self.activation, self.gain, self.scale = activation, gain, scale

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return self.scale * self.activation(self.gain * x)

    def extra_repr(self) -> str:
        """Both factors."""
        return f"gain={self.gain:g}, scale={self.scale:g}"
