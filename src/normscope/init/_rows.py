"""The inputs of a layer as the rows of a matrix: samples and tokens of a linear layer, patches of a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscope.init._layers import Layer


def windows(layer: Layer, x: Tensor) -> Tensor:
    """Views (n, *positions, c_in, *kernel) of what each output position of a convolution sees; no copy but the padding.

    For a linear layer (n, *positions, d). Padding (and its mode), stride and dilation are the layer's.
    """
    module = layer.module
    if isinstance(module, nn.Linear):
        return x
    dims = len(module.kernel_size)
    x = x if x.dim() == dims + 2 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = nn.functional.pad(x, list(module._reversed_padding_repeated_twice), mode=mode)
    for axis in range(dims):
        size, step, gap = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
        x = x.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
    return x.movedim(1, 1 + dims)


def input_rows(layer: Layer, x: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, bool]:
    """Rows (groups, N, fan_in) that the layer's weight meets, and whether they are a part of all rows.

    At most ``most`` rows, drawn without replacement. Patches are shuffled in any case: neighbours look alike, and the
    first rows of one image are its border. Memory: only the chosen rows are copied.
    """
    seen = windows(layer, x)
    groups, fan_in = layer.groups, layer.weight[0].numel()
    positions = seen.shape[: seen.dim() - layer.weight.dim() + 1]
    total = int(torch.tensor(positions).prod())
    if total > most or isinstance(layer.module, nn.modules.conv._ConvNd):
        chosen = torch.randperm(total, generator=generator, device=generator.device)[:most].to(x.device)
        rows = seen[torch.unravel_index(chosen, positions)]
    else:
        rows = seen.reshape(total, -1)
    return rows.reshape(len(rows), groups, fan_in).transpose(0, 1), total > most
