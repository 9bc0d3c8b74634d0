"""normscope: will this deep network train, why not, and what to do about it.

Measure
    `measure` one representation, `probe` every layer of a model, `diagnose` it (findings and a report); `similarity`
    of all pairs of layers.
Curvature
    `fisher`, `hessian`, `jacobian`, `ntk` of the whole batch as `LinearMap`s, their `spectrum`, and `sharpness`: the
    largest stable learning rate.
Learning rates
    `rates` tries which train: the largest and the best; `transfer` says what that of small nets is for a large one;
    `rate_range` is the range test, `overfit` one batch learnt by heart, `gradient_noise` how large a batch to take.
Cure
    `cure` a model with weights that let it train; ``normscope.init`` has the cures, their controls, and what they did.
Train
    `race` variants of a network on the same batches: a `Race` of curves, intervals and tests, stopped and resumed;
    `Tracker`: each layer's geometry and gradients while your own loop trains.
Describe
    `Spec` a network as data, `build` the module it describes; ``normscope.nn`` has the norms, taken apart.
Theory
    `predict` what a spec does at infinite width, `simulate` it at finite width, exact in law; ``normscope.theory``.
Sweeps
    A `Grid` of cells, `sweep` runs a task on each of them: on this machine's cores, a Dask cluster or any executor,
    with every finished cell in a store; ``normscope.tasks`` has the tasks.
Claims
    `verify` the statements of the four papers: measured, compared, each with a control; ``normscope.claims``.
Tests
    ``normscope.testing``: `assert_trainable` for your own test files.
Results
    `Profile` and `Record` (numbers with coordinates), `Diagnosis` and `Finding`, `UsageError` for bad input.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normscope.call.step import Step
    from normscope.claims import verify
    from normscope.core.errors import TrainingStopped, UsageError
    from normscope.core.records import Profile, Record
    from normscope.core.spec import Spec
    from normscope.curvature import Sharpness, fisher, hessian, jacobian, ntk, sharpness
    from normscope.findings import Finding
    from normscope.findings.cures import cure
    from normscope.findings.diagnosis import Diagnosis, diagnose
    from normscope.findings.why import why
    from normscope.geometry.metrics import measure
    from normscope.geometry.shapes import configuration
    from normscope.learning_rates import (
        GradientNoise,
        Overfit,
        RateRange,
        Rates,
        gradient_noise,
        overfit,
        rate_range,
        rates,
    )  # fmt: skip
    from normscope.learning_rates.transfer import Transfer, transfer
    from normscope.linalg import LinearMap, Spectrum, spectrum
    from normscope.nn import build
    from normscope.probing.passes import probe
    from normscope.probing.similarity import Similarity, similarity
    from normscope.probing.tracker import Tracker
    from normscope.racing import Race, race
    from normscope.sweeping import Grid, sweep
    from normscope.theory import predict, simulate

__all__ = [
    "Diagnosis", "Finding", "GradientNoise", "Grid", "LinearMap", "Overfit", "Profile", "Race", "RateRange",
    "Rates", "Record", "Sharpness", "Similarity", "Spec", "Spectrum", "Step", "Tracker", "TrainingStopped",
    "Transfer", "UsageError",
    "build", "configuration", "cure", "diagnose", "fisher", "gradient_noise", "hessian", "jacobian", "measure",
    "ntk", "overfit", "predict", "probe", "race", "rate_range", "rates", "sharpness", "similarity", "simulate",
    "spectrum", "sweep", "transfer", "verify", "why",
]  # fmt: skip

#: Where each name is made: the module below ``normscope`` that is imported when the name is first asked for.
_HOMES = {
    "Diagnosis": "findings.diagnosis", "Finding": "findings", "GradientNoise": "learning_rates", "Grid": "sweeping",
    "LinearMap": "linalg", "Overfit": "learning_rates", "Profile": "core.records", "Race": "racing",
    "RateRange": "learning_rates", "Rates": "learning_rates", "Record": "core.records", "Sharpness": "curvature",
    "Similarity": "probing.similarity", "Spec": "core.spec", "Spectrum": "linalg", "Step": "call.step",
    "Tracker": "probing.tracker", "TrainingStopped": "core.errors", "Transfer": "learning_rates.transfer",
    "UsageError": "core.errors", "build": "nn",
    "configuration": "geometry.shapes", "cure": "findings.cures", "diagnose": "findings.diagnosis",
    "fisher": "curvature", "gradient_noise": "learning_rates", "hessian": "curvature", "jacobian": "curvature",
    "measure": "geometry.metrics", "ntk": "curvature", "overfit": "learning_rates", "predict": "theory",
    "probe": "probing.passes", "race": "racing", "rate_range": "learning_rates", "rates": "learning_rates",
    "sharpness": "curvature", "similarity": "probing.similarity", "simulate": "theory", "spectrum": "linalg",
    "sweep": "sweeping", "transfer": "learning_rates.transfer", "verify": "claims", "why": "findings.why",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """A name, or a room such as ``normscope.nn``, where it is first asked for: ``import normscope`` imports nothing."""
    if name in _HOMES:
        globals()[name] = getattr(import_module(f"normscope.{_HOMES[name]}"), name)
        return globals()[name]
    if find_spec(f"normscope.{name}"):
        return import_module(f"normscope.{name}")
    raise AttributeError(f"module 'normscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
