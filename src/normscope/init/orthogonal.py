"""Iterative orthogonalization (Daneshmand, Joudaki, Bach 2021, section 5), and the control that separates its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError, finite_number, flag, unknown
from normscope.core.tensors import rms
from normscope.init._cures import in_place, register
from normscope.init._layers import (
    Layer,
    Treatment,
    all_or_nothing,
    generator_of,
    haar,
    in_order,
    input_rows,
    require,
    walk,
)

if TYPE_CHECKING:
    from jaxtyping import Float

BASES = ("sliced", "polar", "haar")
SCALES = ("rms", "paper")


@register(
    "orthogonal", "daneshmand2021, eq. 6", auto="middle",
    doc="Weights that make each layer's outputs on this batch more orthogonal; scale kept at 1.",
)  # fmt: skip
def orthogonal(
    model: nn.Module,
    inputs: Any,
    *,
    power: float = 0.5,
    basis: str = "sliced",
    scale: str = "rms",
    ends: bool = False,
    rows: int | None = None,
    cut: float = 3e-4,
    generator: torch.Generator | None = None,
) -> Treatment:
    r"""Set each weight so that the layer's outputs on this batch are more orthogonal than its inputs; in place.

    The layer's input on the batch, under the layers treated before it, is $X = U S V^T$ (N, fan_in), samples as rows.
    Then

    $W = c\, U' S^{-p} V^T$, so that $X W^T = c\, U S^{1-p} U'^T$

    with $U'$ (out, k) and k = min(out, numerical rank of X); where U' has orthonormal columns the singular values of
    the output are $c\,\sigma_i^{1-p}$, and its orthogonality gap is below that of X unless that is 0 (App. E). Biases
    become 0.

    inputs: a batch as ``forward`` takes it. The more samples, the less is left to the completion below.
    power: 0.5 as in the paper's eq. 6; 1 as in its experiments (every kept direction equally strong).
    basis: ``"sliced"``: U' = the first rows of U (random patches for a convolution; repeated where there are fewer than
        outputs), which are *not* orthonormal; ``"polar"``: the nearest matrix with orthonormal columns; ``"haar"``:
        random.
    scale: ``"rms"``: c gives the layer's output root mean square 1 on the batch, or that of its input if that is below
        1 and was not rectified (see `target_rms`). ``"paper"``: Frobenius norm 1 over the batch; logits then start near
        0.01, and the first treated layer gets gradients hundreds of times larger than the others.
    ends: also treat the first and the last layer that run. The paper leaves them as they are; with ``scale="rms"`` the
        first one is only scaled, so that no step in scale follows it.
    rows: most rows (samples, tokens, patches) looked at; default max(2048, 4 out), drawn at random.
    cut: directions weaker than ``cut`` times the strongest count as absent. A unit that one sample barely wakes is such
        a direction: the power -p takes it for a strong one, and it takes over on other samples (measured, 80 ReLU nets
        of 30 layers: with a cut of 1e-6 V of the last layer is .98 for one of them and above .25 for two more).
    generator: of the random choices; default seed 0.

    Directions that the batch does not have (fewer samples than inputs, or cut away) are not killed: they go, as nearly
    as the identity would send them, to the outputs that U' leaves, with the gain of the batch as a whole. With p = 1/2
    App. E speaks of the kept directions.

    A convolution is treated as the matrix that acts on its unfolded input, group by group: the k strongest of its
    c k^2 directions are kept. Returns the model; ``CURES["orthogonal"].apply`` also says which layers were left alone.

    Misleads: in ReLU nets the sliced form tends to multiples of the identity within ten layers, and identity layers
    train as well (`identity_`); with a random U' gradients explode with depth. So what helps there is not orthogonality
    alone. With skip connections the layers are treated in the order in which they run, each on what it really sees; the
    sum behind a skip is not orthogonalized.
    """
    if basis not in BASES:
        raise unknown("basis", basis, BASES)
    _check_scale(scale)
    if not 0 < power <= 1:
        raise UsageError(f"power must lie in (0, 1]; got {power!r}. The paper has 0.5 in its text and 1 in its code.")
    finite_number("cut", cut, least=0, below=1)
    generator = generator_of(generator)
    short: list[str] = []

    def weight(layer: Layer, x: Tensor) -> Tensor:
        most = max(2048, 4 * layer.weight.shape[0]) if rows is None else rows
        blocks, _ = input_rows(layer, x, most, generator)
        limit = max(cut, 10 * torch.finfo(x.dtype).eps)  # the rounding of X's entries makes about as much
        out = layer.weight.shape[0] // layer.groups
        made = [orthogonalizer(block.double(), out, power, basis, limit, generator) for block in blocks]
        if min(blocks.shape[1:]) < min(out, blocks.shape[2]):
            short.append(layer.name)
        return torch.cat(made)

    treatment = sweep(model, inputs, weight, scale=scale, ends=ends, generator=generator)
    if short:
        treatment.notes = (
            *treatment.notes,
            f"{len(short)} layers have more inputs than the batch has rows (the first is {short[0]}): the directions "
            "that the batch lacks were completed; a larger batch says more",
        )
    return treatment


orthogonal_representations_ = in_place(orthogonal, "orthogonal_representations_")


@register(
    "haar", "control of daneshmand2021, section 5", control=True, auto="middle",
    doc="`orthogonal` with a random basis: gradients explode with depth (negative control).",
)  # fmt: skip
def whitened(model: nn.Module, inputs: Any, *, generator: torch.Generator | None = None, **options: Any) -> Treatment:
    """The negative control of `orthogonal_representations_`: the same with a Haar-random U' (``basis="haar"``).

    Whitening a ReLU representation into a random basis multiplies gradients layer by layer: deep nets diverge.
    """
    return orthogonal(model, inputs, basis="haar", generator=generator, **options)


haar_ = in_place(whitened, "haar_")


def _check_scale(scale: str) -> None:
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)


def sweep(
    model: nn.Module, inputs: Any, weight: Any, *, scale: str, ends: bool, generator: torch.Generator
) -> Treatment:
    """Give every layer ``weight(layer, input)``, scaled, in one pass from the first to the last.

    The first and the last layer that run keep their weights unless ``ends``; with ``scale="rms"`` the first is scaled.
    """
    _check_scale(scale)
    ends = flag("ends", ends)
    model, order, left, seed = in_order(model, inputs, generator)
    only_scaled: list[Layer] = []
    if not ends and order:
        if len(order) > 1:
            left[order[-1].name] = "the last layer keeps its law"
        left[order[0].name] = "the first layer keeps its law" + (", scaled" if scale == "rms" else "")
        only_scaled, order = [order[0]] if scale == "rms" else [], order[1:-1]
    require(order, left)
    done: list[str] = []

    def visit(layer: Layer, x: Tensor) -> None:
        was = layer.weight.detach().clone()
        new = was.double() if layer in only_scaled else weight(layer, x)
        new = new / new.abs().max().clamp_min(1e-300)  # fits every floating type
        layer.set(new, bias=layer not in only_scaled)
        y = layer.linear(x)
        size = rms(y) * (y.numel() ** 0.5 if scale == "paper" else 1)
        size /= target_rms(x) if scale == "rms" and layer not in only_scaled else 1
        if not (0 < size < float("inf")):
            layer.set(was, bias=False)
            left[layer.name] = "its output is zero on this batch" if size == 0 else "its output is not finite"
            return
        layer.set(new / size, bias=layer not in only_scaled)
        if layer not in only_scaled:
            done.append(layer.name)

    with all_or_nothing(order + only_scaled):
        walk(model, inputs, only_scaled + order, visit, seed=seed)
        require(done, left)
    return Treatment(model, tuple(done), left)


def target_rms(x: Tensor) -> float:
    """Root mean square that a treated layer's output gets: 1, or that of its input x if it is smaller and x is signed.

    A rectifier takes about half of the energy of each layer, and that must be made up for. An activation that keeps
    signs and loses energy is one that saturates (tanh): making up for it would drive it further in, layer by layer.
    Signed: at least a quarter of the energy is negative (chosen by us: half behind tanh, a few percent behind GELU,
    none behind ReLU).
    """
    wide = x.double()
    signed = float(wide.clamp_max(0).square().sum()) >= 0.25 * float(wide.square().sum())
    size = rms(x)
    return min(1.0, size) if signed and size > 0 else 1.0


def orthogonalizer(
    x: Float[Tensor, "n d"], out: int, power: float, basis: str, cut: float, generator: torch.Generator
) -> Float[Tensor, "out d"]:
    r"""$U' S^{-p} V^T$ of rows x in float64, completed to full rank min(out, d), not scaled."""
    sigma, v = directions(x, cut)
    d, k = x.shape[1], min(out, len(sigma))
    if not len(sigma):
        return torch.zeros(out, d, dtype=x.dtype, device=x.device)
    sigma, v = sigma[:k], v[:, :k]
    target = haar(out, k, generator).to(x)
    if basis != "haar":
        # U = X V / S, so its rows are those of X: unit j responds to sample j.
        target = x[torch.arange(out, device=x.device) % len(x)] @ v / sigma
        if basis == "polar":
            a, _, b = torch.linalg.svd(target, full_matrices=False)
            target = a @ b
    weight = target * sigma.pow(-power) @ v.T
    missing = min(out, d) - k
    if missing > 0:
        gain = torch.linalg.matrix_norm(target * sigma.pow(1 - power)) / sigma.norm()
        near = haar(out, d, generator).to(x) if basis == "haar" else torch.eye(out, d, dtype=x.dtype, device=x.device)
        weight = weight + gain * completion(target, v, near)
    return weight


def completion(
    target: Float[Tensor, "out k"], v: Float[Tensor, "d k"], near: Float[Tensor, "out d"]
) -> Float[Tensor, "out d"]:
    """The partial isometry nearest to ``near`` from the complement of v's columns to that of target's columns."""
    free_in, free_out = complement(v), complement(target)
    a, _, b = torch.linalg.svd(free_out.T @ near @ free_in, full_matrices=False)
    return free_out @ (a @ b) @ free_in.T


def complement(a: Float[Tensor, "d k"]) -> Float[Tensor, "d rest"]:
    """An orthonormal basis of what is orthogonal to the columns of a (d >= k)."""
    q, _ = torch.linalg.qr(a, mode="complete")
    return q[:, a.shape[1] :]


def directions(x: Float[Tensor, "n d"], cut: float) -> tuple[Float[Tensor, " k"], Float[Tensor, "d k"]]:
    """Singular values above ``cut`` times the largest, and right singular vectors, of rows in float64.

    Through the smaller Gram matrix where its squared condition still resolves the cut (cut^2 > 1000 eps: float32 data
    and coarser); else by a singular value decomposition.
    """
    n, d = x.shape
    if cut**2 > 1000 * torch.finfo(x.dtype).eps:
        values, vectors = torch.linalg.eigh(x.T @ x if d <= n else x @ x.T)
        sigma, vectors = values.clamp_min(0).sqrt().flip(0), vectors.flip(1)
        kept = sigma > cut * sigma[0]
        sigma, vectors = sigma[kept], vectors[:, kept]
        if d > n and len(sigma):
            vectors, r = torch.linalg.qr(x.T @ vectors)
            vectors = vectors * r.diagonal().sgn()
        return sigma, vectors
    r = torch.linalg.qr(x, mode="r").R if n > d else x
    _, sigma, right = torch.linalg.svd(r, full_matrices=False)
    kept = sigma > cut * sigma[0]
    return sigma[kept], right[kept].T
