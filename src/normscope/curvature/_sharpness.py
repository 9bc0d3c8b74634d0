"""Sharpness: the largest curvature of a whole batch, what it is made of, and the learning rate it allows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import MANY, UsageError, finite_number, flag, whole_number
from normscope.core.faces import Shown
from normscope.curvature._budget import Budget
from normscope.curvature._compare import other_modes, variants
from normscope.curvature._operators import fisher
from normscope.curvature._rates import Descent, descend, stable_rates
from normscope.linalg import Estimate, LinearMap, Ritz, hutchinson, lanczos, moments, orthonormalise, spectrum
from normscope.linalg.eigen import Progress
from normscope.linalg.maps import Directions
from normscope.linalg.spectra import DENSE_SIDE, DENSE_WRITTEN, MOST_DIRECTIONS, Spectrum, smaller_side

#: An eigenvalue counts as an outlier when it exceeds the bulk's edge by this factor (chosen by us).
OUTLIER = 1.5
#: Lanczos steps for the edge of what the mean directions leave (chosen by us: within 10 % on the nets of the tests).
EDGE_STEPS = 6
#: Seconds that may go into what lies beside lambda_max and was not asked for by name (chosen by us: a minute).
BUDGET = 60.0


#: What a largest eigenvalue of zero means.
FLAT = "no curvature is left in these digits, as behind a saturated softmax or dead units"


@dataclass(frozen=True)
class Sharpness(Shown):
    r"""The curvature of a model's loss on one batch, as its Fisher / Gauss-Newton matrix F (p, p) sees it, per sample.

    lambda_max: largest eigenvalue; ``residual``: ||F w - lambda_max w|| of the unit eigenvector found, so that an
        eigenvalue lies within it; ``error``: what lambda_max may be off by (``Spectrum.errors``).
    mean, second_moment: tr F / p and tr F^2 / p with standard errors (NaN where not computed); ``outliers``: number of
        eigenvalues more than 1.5 times above the largest one that the outputs' mean gradients leave (``None`` where not
        counted).
    mean_gradient_share: share of tr F in the span of the mean gradients of the outputs,
        $\sum_k\|E\nabla f_k\|^2/\mathrm{tr} F$ for ``mse``: what subtracting the outputs' batch mean would remove;
        ``mean_gradient_share_stderr``: standard error, from the trace's and its own probes.
    layers: the top eigenvector's share of each module's parameters; shares sum to 1, and lambda_max times a share is a
        lower bound of that module's own sharpness.
    products: products with F spent in all. ``facts``: mode, batch size, dtype, loss, route.
    modes: lambda_max of the same inputs in other modes, ``whole batch``, ``mean over batches``, ``eval``.
    what_if: lambda_max with a norm put after the last layer. ``errors``: what the values of both may be off by.
    descent: short runs at multiples of the rate.
    skipped: what was not computed because it would have taken too long, with its cost (argument ``budget``).
    """

    face = "sharpness"
    lambda_max: float
    residual: float
    error: float
    mean: float
    mean_stderr: float
    second_moment: float
    second_moment_stderr: float
    outliers: int | None
    mean_gradient_share: float | None
    mean_gradient_share_stderr: float | None
    layers: Mapping[str, float]
    products: float
    converged: bool
    method: str
    loss: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    modes: Mapping[str, float] = field(default_factory=dict)
    what_if: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    descent: tuple[Descent, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
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
        each = f" x {f['positions']} positions" if f.get("positions", 1) > 1 else ""
        where = f"{f.get('mode')} mode, batch {f.get('batch_size')}{each}, {f.get('dtype')}, loss {self.loss}"
        lines = [
            f"Sharpness ({where})",
            f"  lambda_max      {self.lambda_max:.5g} +- {self.error:.1g}   ({self.method}, {self.products:g} "
            "products)",
            f"  max stable lr   {self.max_stable_lr:.4g} = 2 / lambda_max, linear stability of gradient descent"
            if self.lambda_max > 0
            else f"  max stable lr   cannot be told: {FLAT}",
        ]
        if not math.isnan(self.mean):
            spread = f"{self.mean:.4g} +- {self.mean_stderr:.1g}, second moment {self.second_moment:.4g}"
            lines.append(f"  mean eigenvalue {spread}")
        if self.outliers is not None:
            lines.append(f"  outliers        {self.outliers} of {f.get('outputs')} outputs")
        if self.mean_gradient_share is not None:
            off = f" +- {100 * self.mean_gradient_share_stderr:.1g}" if self.mean_gradient_share_stderr else ""
            lines.append(f"  mean gradients  {100 * self.mean_gradient_share:.1f}{off} % of the trace")
        top = sorted(self.layers.items(), key=lambda item: -item[1])[:4]
        lines.append("  layers          " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in top))
        for title, table in (("mode", self.modes), ("what if", self.what_if)):
            for name, value in table.items():
                lines.append(f"  {title:<15} {name}: lambda_max {value:.4g} +- {self.errors.get(name, 0.0):.1g}")
        for run in self.descent:
            said = "diverged" if not run.finite else "exceeded its first value" if run.exceeded else "fell"
            lines.append(
                f"  descent         at {run.rate:.3g}: loss {run.losses[0]:.4g} -> {run.losses[-1]:.4g}, {said}"
            )
        lines += [f"  not computed    {name}: {cost}" for name, cost in self.skipped.items()]
        lines += [f"  warning: {w}" for w in self.warnings]
        return "\n".join(lines)


@alone
def sharpness(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    *,
    data: Any = None,
    tol: float = 1e-3,
    probes: int = 8,
    compare_modes: bool = True,
    what_if: bool = False,
    descent: int = 0,
    budget: float = BUDGET,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Sharpness:
    r"""Sharpness of a model's loss on a batch: lambda_max of ``fisher`` and what it means for the learning rate.

    model, inputs, targets, loss, data, samples: a `Step`, or what one is made of (``docs/inputs.md``). ``mse`` and
        ``cross_entropy`` have torch's value; without targets and loss it is ``squared_error``,
        $\frac1{2n}\sum\|f-y\|^2$. ``data``: the mean over the batches, each normalised by itself.
    tol: relative error wanted of lambda_max. ``probes``: random probes for the trace (0: no moments, no outliers).
    compare_modes: also lambda_max in eval mode, and of all batches as one, where the model has batch statistics.
    what_if: also lambda_max with each of ``VARIANTS`` put after the last layer.
    descent: steps of a check at 0.5, 1 and 2 times the rate (needs targets). 2 / lambda_max is a threshold of *linear*
        stability: it is conservative where the top eigenvector carries no residual, and nets may catapult past it.
    budget: seconds for the moments, outliers, mean-gradient share and other modes together. Fewer probes are taken, and
        what still does not fit by the cost of a product is left out and named in ``skipped``: on a large net lambda_max
        comes first. The values themselves do not depend on the clock, only which there are and their errors.
    options: ``parameters``, ``outputs``, ``dtype``, ``route``, ``memory``, ``checkpoint`` of ``jacobian``.
    """
    finite_number("tol", tol, above=0, below=1, do="It is a relative error; the default is 1e-3.")
    whole_number("probes", probes)
    compare_modes, what_if = flag("compare_modes", compare_modes), flag("what_if", what_if)
    whole_number("descent", descent, do="It counts steps; 0 leaves the check out.", most=MANY)
    if not (isinstance(budget, float) and budget == math.inf):
        finite_number("budget", budget, least=0, do="It is in seconds; use math.inf for everything.")
    step = Step.of(model, inputs, targets, loss, mode=mode, seed=seed, data=data, samples=samples)
    if descent and (step.targets is None or not step.alone):
        raise UsageError("sharpness(descent=...) needs targets and one batch. Pass both, or leave descent away.")
    a = fisher(step, **options)
    found = _Found.of(a, tol, probes, budget, step.seed, progress)
    top, purse, p = found.spectrum, found.budget, a.shape[0]
    layers, facts = _shares(a, found.vector), {**a.facts, "side": top.side}
    named = a.factor is not None
    del a  # its graph is not needed any more, and the other modes have one of their own
    modes: dict[str, float] = {}
    table: dict[str, float] = {}
    errors: dict[str, float] = {}
    warnings: list[str] = []
    spent = found.products
    if compare_modes and named:
        modes, errors, warnings = other_modes(step, facts["functional_norms"], top, 10 * tol, purse, options)
    if what_if and named and step.alone:
        table, more, products = variants(step, 10 * tol, options)
        errors, spent = {**errors, **more}, spent + products
    runs: tuple[Descent, ...] = ()
    if descent and top.largest > 0:
        rates = [x * 2 / top.largest for x in (0.5, 1.0, 2.0)]
        runs = descend(step, rates=rates, steps=descent, **options)
    if facts["unreached"]:
        warnings.append(next(n for n in facts["notes"] if "do not reach" in n))
    if not top.converged:
        warnings.append(
            f"lambda_max has not converged: it may be off by {float(top.errors[0]):.2g}. Raise tol or max_products."
        )
    return Sharpness(
        lambda_max=top.largest,
        residual=float(top.residuals[0]),
        error=float(top.errors[0]),
        mean=found.trace[0] / p,
        mean_stderr=found.trace[1] / p,
        second_moment=found.square[0] / p,
        second_moment_stderr=found.square[1] / p,
        outliers=found.outliers,
        mean_gradient_share=None if found.share is None else found.share[0],
        mean_gradient_share_stderr=None if found.share is None else found.share[1],
        layers=layers,
        products=spent,
        converged=top.converged,
        method=top.method,
        loss=facts["loss"],
        facts=facts,
        modes=modes,
        what_if=table,
        errors=errors,
        descent=runs,
        skipped=purse.skipped,
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
    share: tuple[float, float] | None
    products: float
    budget: Budget

    @staticmethod
    def of(a: LinearMap, tol: float, probes: int, budget: float, seed: int, progress: Progress | None) -> _Found:
        """The whole solve: top eigenvalue, moments, outliers, mean-gradient share."""
        g, _side = smaller_side(a)
        known = g.directions if g.factor is not None else None
        generator = torch.Generator().manual_seed(seed + 1)
        mean = _mean_directions(known) if known is not None and known.count <= MOST_DIRECTIONS else None
        large = g.shape[0] > (DENSE_SIDE if g.factor is None or g.factor.outer is None else DENSE_WRITTEN)
        method = "directions" if mean is not None and probes and large else "auto"
        began = time.perf_counter()
        top = spectrum(a, tol=tol, method=method, seed=seed, progress=progress)
        purse = Budget(budget, (time.perf_counter() - began) / max(top.products, 1))
        trace = square = (math.nan, math.nan)
        share, outliers, more = None, None, 0.0
        if top.method == "dense":
            mean = _mean_directions(known) if known is not None else None
            u, trace, square, share, outliers = _all(g, mean)
        else:
            ritz = top.ritz
            assert ritz is not None
            u = ritz.vectors[:, :1]
            probes = purse.probes("mean eigenvalue, second moment", probes)
            if probes:
                both = moments(g, ritz.basis, ritz.projected, probes, generator=generator)
                trace = (both.trace.value, both.trace.stderr)
                square = (both.square.value, both.square.stderr)
                share, outliers, spent = _mean_gradients(g, ritz, mean, top.method, both.trace, purse, generator)
                more = both.products + spent
        vector = u if g is a or a.factor is None or g.shape[0] == a.shape[0] else a.factor.matmat(u.to(a.dtype))
        return _Found(top, vector[:, 0], trace, square, outliers, share, top.products + more, purse)


def _all(g: LinearMap, mean: Tensor | None) -> tuple[Tensor, Any, Any, tuple[float, float] | None, int | None]:
    """Top eigenvector, moments, mean-gradient share and number of outliers of a matrix that is written down."""
    matrix = g.dense().double().cpu()
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    trace, square = (float(values.sum()), 0.0), (float(values.square().sum()), 0.0)
    share = outliers = None
    if mean is not None and trace[0] > 0:
        rest = mean.cpu()
        share = (float((rest * (matrix @ rest)).sum()) / trace[0], 0.0)
        left = matrix - rest @ (rest.T @ matrix)
        edge = float(torch.linalg.eigvalsh(left - (left @ rest) @ rest.T)[-1])
        outliers = int((values > OUTLIER * max(edge, 1e-12 * float(values[-1]))).sum())
    return vectors[:, -1:].to(g.device), trace, square, share, outliers


def _mean_gradients(
    g: LinearMap,
    ritz: Ritz,
    mean: Tensor | None,
    method: str,
    trace: Estimate,
    purse: Budget,
    generator: torch.Generator,
) -> tuple[tuple[float, float] | None, int | None, float]:
    """Share of the trace on the mean directions and its standard error, number of outliers, products spent."""
    if g.directions is None or g.factor is None or trace.value <= 0:
        return None, None, 0.0
    a, spent = g.factor.T, 0.0
    if mean is None:  # many outputs: the trace over their directions by probes, each one mixture of all
        weights = _orthonormal(g.directions)
        if weights is None:
            purse.skipped["mean-gradient share"] = f"{g.directions.count} outputs, more than {DENSE_WRITTEN}"
            return None, None, 0.0
        probes = 2 * purse.probes("mean-gradient share", 4)
        if not probes:
            return None, None, 0.0
        make = g.directions.make

        def image(z: Tensor) -> Tensor:
            return a.matmat(make(weights @ z.to(weights)))

        rows = LinearMap((a.shape[0], weights.shape[1]), image, lambda z: z, a.dtype, a.device)
        inside = hutchinson(rows, probes, generator=generator)
        return _ratio(inside.value, inside.stderr, trace), None, inside.products
    b = mean.shape[1]
    if method == "directions":  # the basis starts with these very directions
        projected = ritz.projected[:b, :b]
    elif purse.affords("mean-gradient share", b / 2):
        y = a.matmat(mean)
        projected, spent = (y.T @ y).double().cpu(), b / 2
    else:
        return None, None, 0.0
    share = _ratio(float(projected.diagonal().sum()), 0.0, trace)
    if not purse.affords("number of outliers", EDGE_STEPS):
        return share, None, spent

    def outside(x: Tensor) -> Tensor:
        x = x - mean @ (mean.T @ x)
        x = g.matmat(x).to(mean)
        return x - mean @ (mean.T @ x)

    rest = LinearMap(g.shape, outside, outside, torch.float64, g.device)
    edge = lanczos(rest, max_products=EDGE_STEPS, tol=0.05, generator=generator)
    values = torch.linalg.eigvalsh(projected)
    return share, int((values > OUTLIER * float(edge.values[0])).sum()), spent + edge.products


def _mean_directions(known: Directions) -> Tensor | None:
    """An orthonormal basis (m, r) of the directions; of few the one that ``from_directions`` starts from."""
    if known.count <= MOST_DIRECTIONS:
        return orthonormalise(known.make(torch.eye(known.count, dtype=torch.float64)).double())
    weights = _orthonormal(known)
    return None if weights is None else known.make(weights).double()


def _orthonormal(directions: Directions) -> Tensor | None:
    """Weights (count, r) of r orthonormal vectors that span the directions; ``None`` where that would take long."""
    if directions.gram is None:
        return torch.eye(directions.count)
    if directions.count > DENSE_WRITTEN:
        return None
    values, vectors = torch.linalg.eigh(directions.gram().double())
    kept = values > 1e-9 * values[-1]  # rounding; the softmax has one direction less than outputs
    return vectors[:, kept] / values[kept].sqrt()


def _ratio(part: float, error: float, whole: Estimate) -> tuple[float, float]:
    """part / whole and its standard error, the two independent."""
    share = part / whole.value
    return share, math.hypot(error, share * whole.stderr) / whole.value


def _shares(a: LinearMap, vector: Tensor) -> dict[str, float]:
    """Squared norm of the eigenvector's part in each module, summing to 1."""
    energy = vector.double().square()
    total = float(energy.sum())
    shares: dict[str, float] = {}
    sizes = dict(a.facts["parameter_sizes"])
    for (name, _), part in zip(sizes.items(), energy.split(list(sizes.values())), strict=True):
        module = name.rpartition(".")[0] or name
        shares[module] = shares.get(module, 0.0) + (float(part.sum()) / total if total > 0 else 0.0)
    return shares
