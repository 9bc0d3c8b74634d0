"""Linear algebra: Gram matrices as arrays; matrices known by their products, their eigenvalues, traces and
densities.
"""

from normscope.linalg.eigen import Ritz, from_directions, lanczos, orthonormalise
from normscope.linalg.grams import (
    Array,
    centred,
    checked_gram,
    checked_inputs,
    contrasts,
    gram_factor,
    input_factor,
    looks_like_gram,
)
from normscope.linalg.maps import Directions, LinearMap
from normscope.linalg.spectra import Density, Spectrum, slq, spectrum
from normscope.linalg.traces import Estimate, Moments, hutchinson, hutchpp, moments

__all__ = [
    "Array",
    "Density",
    "Directions",
    "Estimate",
    "LinearMap",
    "Moments",
    "Ritz",
    "Spectrum",
    "centred",
    "checked_gram",
    "checked_inputs",
    "contrasts",
    "from_directions",
    "gram_factor",
    "hutchinson",
    "hutchpp",
    "input_factor",
    "lanczos",
    "looks_like_gram",
    "moments",
    "orthonormalise",
    "slq",
    "spectrum",
]
