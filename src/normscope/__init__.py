"""normscope: will this deep network train, why not, and what to do about it.

Measure
    `measure` one representation, `probe` every layer of a model, `diagnose` it (findings and a report).
Curvature
    `fisher`, `hessian`, `jacobian`, `ntk` of the whole batch as `LinearMap`s, their `spectrum`, and `sharpness`: the
    largest stable learning rate.
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
    A `Grid` of cells, `sweep` runs a task on each of them: on this machine's cores, a Dask cluster or any executor, with
    every finished cell in a store; ``normscope.tasks`` has the tasks.
Claims
    `verify` the statements of the four papers: measured, compared, each with a control; ``normscope.claims``.
Results
    `Profile` and `Record` (numbers with coordinates), `Diagnosis` and `Finding`, `UsageError` for bad input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normscope import report as _report  # noqa: F401  (enters what results show of themselves)
from normscope import tasks as _tasks  # noqa: F401  (enrols the tasks)
from normscope.call.step import Step
from normscope.core.errors import UsageError
from normscope.core.records import Profile, Record
from normscope.core.spec import Spec
from normscope.curvature import Sharpness, fisher, hessian, jacobian, ntk, sharpness
from normscope.findings import Finding
from normscope.findings.cures import cure
from normscope.findings.diagnosis import Diagnosis, diagnose
from normscope.geometry.metrics import measure
from normscope.geometry.shapes import configuration
from normscope.linalg import LinearMap, Spectrum, spectrum
from normscope.nn import build
from normscope.probing.passes import probe
from normscope.probing.tracker import Tracker
from normscope.racing import Race, race
from normscope.sweeping import Grid, sweep

if TYPE_CHECKING:
    from normscope.claims import verify
    from normscope.findings.why import why
    from normscope.learning_rates import Rates, rates
    from normscope.theory import predict, simulate

__all__ = [
    "Diagnosis",
    "Finding",
    "Grid",
    "LinearMap",
    "Profile",
    "Race",
    "Rates",
    "Record",
    "Sharpness",
    "Spec",
    "Spectrum",
    "Step",
    "Tracker",
    "UsageError",
    "build",
    "configuration",
    "cure",
    "diagnose",
    "fisher",
    "hessian",
    "jacobian",
    "measure",
    "ntk",
    "predict",
    "probe",
    "race",
    "rates",
    "sharpness",
    "simulate",
    "spectrum",
    "sweep",
    "verify",
    "why",
]


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for: theory and claims, which need scipy, and what trains."""
    if name in ("predict", "simulate"):
        from normscope import theory

        return getattr(theory, name)
    if name in ("rates", "Rates"):
        from normscope import learning_rates

        return getattr(learning_rates, name)
    if name == "why":
        from normscope.findings.why import why

        return why
    if name == "verify":
        from normscope.claims import verify

        return verify
    raise AttributeError(f"module 'normscope' has no attribute {name!r}")
