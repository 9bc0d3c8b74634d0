"""Matrices known by their products: extremal eigenvalues, traces and densities, each with its error."""

from normscope.linalg.eigen import Ritz, from_directions, lanczos, orthonormalise
from normscope.linalg.maps import Directions, LinearMap
from normscope.linalg.moments import Estimate, Moments, hutchinson, hutchpp, moments
from normscope.linalg.spectrum import Density, Spectrum, slq, spectrum

__all__ = [
    "Density",
    "Directions",
    "Estimate",
    "LinearMap",
    "Moments",
    "Ritz",
    "Spectrum",
    "from_directions",
    "hutchinson",
    "hutchpp",
    "lanczos",
    "moments",
    "orthonormalise",
    "slq",
    "spectrum",
]
