"""normscope: will this deep network train, why not, and what to do about it.

Measure
    `measure` one representation, `probe` every layer of a model, `diagnose` it (findings and a report).
Curvature
    `fisher`, `hessian`, `jacobian`, `ntk` of the whole batch as `LinearMap`s, their `spectrum`, and `sharpness`: the
    largest stable learning rate.
Describe
    `Spec` a network as data, `build` the module it describes; ``normscope.nn`` has the norms, taken apart.
Results
    `Profile` and `Record` (numbers with coordinates), `Diagnosis` and `Finding`, `UsageError` for bad input.
"""

from __future__ import annotations

from normscope._errors import UsageError
from normscope._records import Profile, Record
from normscope.configuration import configuration
from normscope.curvature import Sharpness, fisher, hessian, jacobian, ntk, sharpness
from normscope.diagnose import Diagnosis, diagnose
from normscope.findings import Finding
from normscope.linalg import LinearMap, Spectrum, spectrum
from normscope.metrics import measure
from normscope.nn import build
from normscope.probe import probe
from normscope.spec import Spec

__all__ = [
    "Diagnosis",
    "Finding",
    "LinearMap",
    "Profile",
    "Record",
    "Sharpness",
    "Spec",
    "Spectrum",
    "UsageError",
    "build",
    "configuration",
    "diagnose",
    "fisher",
    "hessian",
    "jacobian",
    "measure",
    "ntk",
    "probe",
    "sharpness",
    "spectrum",
]
