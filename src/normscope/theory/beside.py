"""A prediction laid beside what was measured on a model, where the model has one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from normscope.call.step import Step
from normscope.core.errors import UsageError
from normscope.core.favourites import CHAINS
from normscope.core.records import Profile
from normscope.theory.predicted import predict
from normscope.theory.program import predict_model
from normscope.theory.recognise import layer_names, spec_of

#: Seconds a layer over n^3: an eigendecomposition (9 n^3 operations) and a dozen nodes (n^3 each) at 3e10 a second.
_SECONDS = 21 / 3e10


def overlay(
    model: nn.Module,
    inputs: Tensor,
    measured: Profile,
    *,
    metrics: Sequence[str] | None = None,
    gradients: bool = False,
    log2_points: int = 9,
    budget: float = 20.0,
) -> Profile | None:
    """The infinite-width prediction for a plain MLP, in the layers and names of its measured profile, or ``None``.

    inputs: the batch that was measured, (n, ...). measured: what `probe` returned for it, with the outputs of the
        model's layers (`layer_names`) among its records. metrics: default the usual ones that were measured.
    gradients: the backward recursion too (seconds for more than 64 samples with batch norm). Its norms are
        relative to the last layer's, and loss gradients of independent samples are assumed.

    ``None``, without a word, for a model that `spec_of` does not know, whose layers were not measured, or whose spec
    has no recursion. ``eps`` of the norms is taken as 0. ``UsageError`` where the Grams of that many samples would take
    more than ``budget`` seconds of one core, by a count of operations; so seldom more than a gigabyte.
    """
    spec, names = spec_of(model), layer_names(model)
    layers = {r.name: r.layer for r in measured.records if r.source == "measured" and r.call == 0}
    if spec is None or not names or not set(names) <= set(layers) or inputs.dim() < 2:
        return None
    n = len(inputs)
    seconds = spec.depth * n**3 * _SECONDS
    if seconds > budget:
        raise UsageError(
            f"the Grams of {n} samples in {spec.depth} layers would take about {seconds:.0f} s, more than "
            f"budget={budget:g}. Measure fewer samples, or raise the budget of overlay()."
        )
    known = {r.metric for r in measured.records if r.signal == "activation"}
    wanted = [m for m in CHAINS if m in known] if metrics is None else list(metrics)
    try:
        found = predict(spec, inputs=inputs.flatten(1), metrics=wanted, gradients=gradients, log2_points=log2_points)
    except UsageError:
        return None
    place = {0: (0, "")} | {i: (layers[name], name) for i, name in enumerate(names, 1)}
    records = tuple(r._replace(layer=place[r.layer][0], name=place[r.layer][1]) for r in found.records)
    return Profile(records, measured.parameters, {**found.facts, "spec": str(spec)})


def program_overlay(
    at: Step, measured: Profile, *, metrics: Sequence[str], gradients: bool = False, sites: int = 512,
    budget: float = 1.0,
) -> Profile | None:  # fmt: skip
    """The prediction of a model's own program, in the layers of its measured profile; ``None`` where no layer has one.

    sites: samples x positions up to which a tensor has a law; layers without one are left out. ``UsageError`` where it
    takes more than ``budget`` seconds.
    """
    found = predict_model(
        at, metrics=metrics, gradients=gradients, seed=at.seed, sites=sites, budget=budget, partly=True
    )
    without = set(found.facts["measured"])
    place = {(r.name, r.call): r.layer for r in measured.records if r.source == "measured"}
    records = [
        r._replace(layer=place[r.name, r.call])
        for r in found.records
        if (r.name, r.call) in place and r.name not in without and r.layer
    ]
    return Profile(tuple(records), measured.parameters, found.facts) if records else None
