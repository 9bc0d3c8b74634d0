"""A spec whose recursion does not close on Gram matrices: by the program of the net that is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from normscope.core.records import Profile, Record, flat
from normscope.core.spec import Spec
from normscope.nn.nets import build
from normscope.theory._start import Start
from normscope.theory.program.predict import predict_model

#: Nets' worth of neurons that averages take.
_DRAWS = 16


def predict_spec(spec: Spec, start: Start, names: Sequence[str], gradients: bool, seed: int) -> Profile:
    """See `normscope.predict`: layers 0 to depth, gradients from layer 1 on relative to the last."""
    x = start.inputs if start.inputs is not None else start.factor.T * math.sqrt(len(start.factor))
    net = build(replace(spec, outputs=None, output_norm="none"), x.shape[1], seed=seed, dtype=torch.float64)
    inputs = torch.from_numpy(np.array(x, dtype=np.float64))
    found = predict_model(net, inputs, metrics=names, gradients=gradients, seed=seed, draws=_DRAWS)
    records: list[Record] = [r._replace(name="", kind="") for r in found.records]
    notes = ["what the skip passes on is not Gaussian: averages over drawn neurons, batch norms with eps 1e-5"]
    facts = {**found.facts, "method": "the program of the net that is built", "notes": notes}
    return Profile(tuple(records), flat(spec.parameters()), facts)
