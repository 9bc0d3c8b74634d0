"""Sharpness: the largest curvature of a whole batch, what it is made of, and the learning rate it allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope._errors import UsageError
from normscope.curvature._batches import is_several
from normscope.curvature._isolate import has_batch_statistics
from normscope.curvature._loss import LossLike, make_loss
from normscope.curvature._operators import fisher
from normscope.curvature._rates import Descent, descend, stable_rates
from normscope.curvature._variants import VARIANTS, last_layer
from normscope.linalg import LinearMap, Ritz, hutchinson, lanczos, moments, orthonormalise, spectrum
from normscope.linalg.eigen import Progress
from normscope.linalg.spectrum import DENSE_SIDE, DENSE_WRITTEN, MOST_DIRECTIONS, Spectrum, smaller_side

#: An eigenvalue counts as an outlier when it exceeds the bulk's edge by this factor (chosen by us).
OUTLIER = 1.5
#: Lanczos steps for the edge of what the mean directions leave (chosen by us: within 10 % on the nets of the tests).
EDGE_STEPS = 6


@dataclass(frozen=True)
class Sharpness:
    r"""The curvature of a model's loss on one batch, as its Fisher / Gauss-Newton matrix F (p, p) sees it, per sample.

    lambda_max: largest eigenvalue; ``residual``: ||F w - lambda_max w|| of the unit eigenvector found, so that an
        eigenvalue lies within it; ``error``: what lambda_max may be off by (``Spectrum.errors``).
    mean, second_moment: tr F / p and tr F^2 / p with standard errors; ``outliers``: number of eigenvalues more than 1.5
        times above the largest one that the outputs' mean gradients leave (``None`` where not counted).
    mean_gradient_share: share of tr F in the span of the mean gradients of the outputs,
        $\sum_k\|E\nabla f_k\|^2/\mathrm{tr} F$ for ``mse``: what subtracting the outputs' batch mean would remove.
    layers: the top eigenvector's share of each module's parameters; shares sum to 1, and lambda_max times a share is a
        lower bound of that module's own sharpness.
    products: products with F spent in all. ``facts``: mode, batch size, dtype, loss, route.
    modes: lambda_max of the same inputs in other modes, ``whole batch``, ``mean over batches``, ``eval``.
    what_if: lambda_max with a norm put after the last layer. ``descent``: short runs at multiples of the rate.
    """

    lambda_max: float
    residual: float
    error: float
    mean: float
    mean_stderr: float
    second_moment: float
    second_moment_stderr: float
    outliers: int | None
    mean_gradient_share: float | None
    layers: Mapping[str, float]
    products: float
    converged: bool
    method: str
    loss: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    modes: Mapping[str, float] = field(default_factory=dict)
    what_if: Mapping[str, float] = field(default_factory=dict)
    descent: tuple[Descent, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def max_stable_lr(self) -> float:
        """2 / lambda_max, the linear-stability threshold of gradient descent on this loss (infinite for F = 0)."""
        return 2 / self.lambda_max if self.lambda_max > 0 else math.inf

    def rates(self, momentum: float = 0.9, weight_decay: float = 0.0) -> dict[str, float]:
        """The threshold for gradient descent, heavy ball, Nesterov and EMA momentum; see ``stable_rates``."""
        return stable_rates(self.lambda_max, momentum, weight_decay)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings, lists and dictionaries."""
        return {**asdict(self), "max_stable_lr": self.max_stable_lr, "rates": self.rates()}

    def __repr__(self) -> str:
        f = self.facts
        where = f"{f.get('mode')} mode, batch {f.get('batch_size')}, {f.get('dtype')}, loss {self.loss}"
        lines = [
            f"Sharpness ({where})",
            f"  lambda_max      {self.lambda_max:.5g} +- {self.error:.1g}   ({self.method}, {self.products:g} products)",
            f"  max stable lr   {self.max_stable_lr:.4g} = 2 / lambda_max, linear stability of gradient descent",
            f"  mean eigenvalue {self.mean:.4g} +- {self.mean_stderr:.1g}, second moment {self.second_moment:.4g}",
        ]
        if self.outliers is not None:
            lines.append(f"  outliers        {self.outliers} of {f.get('outputs')} outputs")
        if self.mean_gradient_share is not None:
            lines.append(f"  mean gradients  {100 * self.mean_gradient_share:.1f} % of the trace")
        top = sorted(self.layers.items(), key=lambda item: -item[1])[:4]
        lines.append("  layers          " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in top))
        for title, table in (("mode", self.modes), ("what if", self.what_if)):
            lines += [f"  {title:<15} {name}: lambda_max {value:.4g}" for name, value in table.items()]
        for run in self.descent:
            said = "diverged" if not run.finite else "exceeded its first value" if run.exceeded else "fell"
            lines.append(
                f"  descent         at {run.rate:.3g}: loss {run.losses[0]:.4g} -> {run.losses[-1]:.4g}, {said}"
            )
        lines += [f"  warning: {w}" for w in self.warnings]
        return "\n".join(lines)


def sharpness(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: LossLike = "mse",
    *,
    tol: float = 1e-3,
    probes: int = 8,
    compare_modes: bool = True,
    what_if: bool = False,
    descent: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Sharpness:
    r"""Sharpness of a model's loss on a batch: lambda_max of ``fisher`` and what it means for the learning rate.

    The loss is that of ``fisher``: ``mse`` is $\frac1{2n}\sum\|f-y\|^2$. For torch's ``MSELoss()`` pass that module, or multiply
    ``max_stable_lr`` by c / 2.

    inputs, targets: as for ``fisher``; a list of batches gives the mean over the batches, each normalised by itself.
    tol: relative error wanted of lambda_max. ``probes``: random probes for the trace (0: no moments, no outliers).
    compare_modes: also lambda_max in eval mode, and of all batches as one, where the model has batch statistics.
    what_if: also lambda_max with each of ``VARIANTS`` put after the last layer.
    descent: steps of a check at 0.5, 1 and 2 times the rate (needs targets). 2 / lambda_max is a threshold of *linear*
        stability: it is conservative where the top eigenvector carries no residual, and nets may catapult past it.
    options: ``parameters``, ``outputs``, ``mode``, ``dtype``, ``route``, ``memory``, ``checkpoint`` of ``jacobian``.
    """
    made = make_loss(loss)
    if descent and (targets is None or is_several(inputs)):
        raise UsageError("sharpness(descent=...) needs targets and one batch.")
    a = fisher(model, inputs, targets, loss, seed=seed, **options)
    found = _Found.of(a, tol, probes, seed, progress)
    top = found.spectrum
    modes, warnings = _modes(model, inputs, loss, top.largest, tol, seed, options) if compare_modes else ({}, [])
    spent = found.products
    table: dict[str, float] = {}
    if what_if and made.call is None and not is_several(inputs):
        for variant in VARIANTS:
            if variant != "none":
                s = spectrum(last_layer(model, inputs, variant, loss, seed=seed, **options), tol=10 * tol, seed=seed)
                table[variant] = s.largest
                spent += s.products
    runs: tuple[Descent, ...] = ()
    if descent and top.largest > 0:
        rates = [x * 2 / top.largest for x in (0.5, 1.0, 2.0)]
        runs = descend(model, inputs, targets, loss, rates=rates, steps=descent, seed=seed, **options)
    if not top.converged:
        warnings.append(
            f"lambda_max has not converged: residual {float(top.residuals[0]):.2g}. Raise tol or max_products."
        )
    p = a.shape[0]
    trace, square = found.trace, found.square
    return Sharpness(
        lambda_max=top.largest,
        residual=float(top.residuals[0]),
        error=float(top.errors[0]),
        mean=trace[0] / p,
        mean_stderr=trace[1] / p,
        second_moment=square[0] / p,
        second_moment_stderr=square[1] / p,
        outliers=found.outliers,
        mean_gradient_share=found.share,
        layers=_shares(model, a, found.vector),
        products=spent,
        converged=top.converged,
        method=top.method,
        loss=made.name,
        facts={**a.facts, "side": top.side},
        modes=modes,
        what_if=table,
        descent=runs,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class _Found:
    """What the solver found; ``vector``: the top eigenvector of the p x p matrix, up to scale."""

    spectrum: Spectrum
    vector: Tensor
    trace: tuple[float, float]
    square: tuple[float, float]
    outliers: int | None
    share: float | None
    products: float

    @staticmethod
    def of(a: LinearMap, tol: float, probes: int, seed: int, progress: Progress | None) -> _Found:
        """The whole solve: top eigenvalue, moments, outliers, mean-gradient share."""
        g, _side = smaller_side(a)
        known = g.directions if g.factor is not None else None
        generator = torch.Generator().manual_seed(seed + 1)
        mean = None
        if known is not None and known.count <= MOST_DIRECTIONS:
            mean = orthonormalise(known.make(torch.eye(known.count, dtype=torch.float64)).double())
        large = g.shape[0] > (DENSE_SIDE if g.factor is None or g.factor.outer is None else DENSE_WRITTEN)
        method = "directions" if mean is not None and probes and large else "auto"
        top = spectrum(a, tol=tol, method=method, seed=seed, progress=progress)
        spent = top.products
        if top.method == "dense":
            matrix = g.dense().double().cpu()
            values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
            u = vectors[:, -1:].to(g.device)
            trace, square = (float(values.sum()), 0.0), (float(values.square().sum()), 0.0)
            share = outliers = None
            if mean is not None and trace[0] > 0:
                rest = mean.cpu()
                share = float((rest * (matrix @ rest)).sum()) / trace[0]
                left = matrix - rest @ (rest.T @ matrix)
                edge = float(torch.linalg.eigvalsh(left - (left @ rest) @ rest.T)[-1])
                outliers = int((values > OUTLIER * max(edge, 1e-12 * float(values[-1]))).sum())
        else:
            ritz = top.ritz
            assert ritz is not None
            u = ritz.vectors[:, :1]
            trace = square = (math.nan, math.nan)
            share = outliers = None
            if probes:
                both = moments(g, ritz.basis, ritz.projected, probes, generator=generator)
                trace = (both.trace.value, both.trace.stderr)
                square = (both.square.value, both.square.stderr)
                spent += both.products
                share, outliers, more = _mean_gradients(g, ritz, mean, top.method, trace[0], generator)
                spent += more
        vector = u if g is a or a.factor is None or g.shape[0] == a.shape[0] else a.factor.matmat(u.to(a.dtype))
        return _Found(top, vector[:, 0], trace, square, outliers, share, spent)


def _mean_gradients(
    g: LinearMap, ritz: Ritz, mean: Tensor | None, method: str, trace: float, generator: torch.Generator
) -> tuple[float | None, int | None, float]:
    """Share of the trace on the mean directions, number of outliers, products spent."""
    if g.directions is None or g.factor is None or trace <= 0:
        return None, None, 0.0
    a = g.factor.T
    if mean is None:  # many outputs: the trace over their directions by probes, each one mixture of all
        make, count = g.directions.make, g.directions.count
        rows = LinearMap((a.shape[0], count), lambda z: a.matmat(make(z)), lambda z: z, a.dtype, a.device)
        return hutchinson(rows, 8, generator=generator).value / trace, None, 4.0
    b = mean.shape[1]
    spent = 0.0
    if method == "directions":  # the basis starts with these very directions
        projected = ritz.projected[:b, :b]
    else:
        y = a.matmat(mean)
        projected, spent = (y.T @ y).double().cpu(), b / 2
    share = float(projected.diagonal().sum()) / trace

    def outside(x: Tensor) -> Tensor:
        x = x - mean @ (mean.T @ x)
        x = g.matmat(x).to(mean)
        return x - mean @ (mean.T @ x)

    rest = LinearMap(g.shape, outside, outside, torch.float64, g.device)
    edge = lanczos(rest, max_products=EDGE_STEPS, tol=0.05, generator=generator)
    values = torch.linalg.eigvalsh(projected)
    return share, int((values > OUTLIER * float(edge.values[0])).sum()), spent + edge.products


def _shares(model: nn.Module, a: LinearMap, vector: Tensor) -> dict[str, float]:
    """Squared norm of the eigenvector's part in each module, summing to 1."""
    energy = vector.double().square()
    total = float(energy.sum())
    shares: dict[str, float] = {}
    sizes = dict(a.facts["parameter_sizes"])
    for (name, _), part in zip(sizes.items(), energy.split(list(sizes.values())), strict=True):
        module = name.rpartition(".")[0] or name
        shares[module] = shares.get(module, 0.0) + (float(part.sum()) / total if total > 0 else 0.0)
    return shares


def _modes(
    model: nn.Module, inputs: Any, loss: LossLike, here: float, tol: float, seed: int, options: Mapping[str, Any]
) -> tuple[dict[str, float], list[str]]:
    """lambda_max of the same inputs in the other modes, and a warning where they differ by more than twice."""
    if not has_batch_statistics(model) or (callable(loss) and make_loss(loss).call is not None):
        return {}, []
    several = is_several(inputs)
    more = {k: v for k, v in options.items() if k != "mode"}
    mode = options.get("mode") or ("train" if model.training else "eval")
    table = {f"{mode}, mean over batches" if several else f"{mode}, whole batch": here}
    if several and mode == "train" and all(isinstance(x, Tensor) for x in inputs):
        whole = fisher(model, torch.cat(inputs), None, loss, mode=mode, seed=seed, **more)
        table["train, whole batch"] = spectrum(whole, tol=10 * tol, seed=seed).largest
    other = "eval" if mode == "train" else "train"
    try:
        table[other] = spectrum(
            fisher(model, inputs, None, loss, mode=other, seed=seed, **more), tol=10 * tol, seed=seed
        ).largest
    except (UsageError, ValueError):  # one sample a channel, or non-finite without normalization
        return table, []
    low, high = min(table.values()), max(table.values())
    if high <= 2 * low:
        return table, []
    said = ", ".join(f"{name} {value:.3g}" for name, value in table.items())
    return table, [
        f"lambda_max differs by {high / max(low, 1e-300):.1f}x between modes ({said}): a rate chosen in one is wrong in another."
    ]
