"""The detector of configurations: planted states are named, other batches raise no false alarm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from normscope.claims._chains import gaussian
from normscope.claims._tables import indicator
from normscope.claims.claim import Run
from normscope.claims.nachum2024._paper import PAPER, representations
from normscope.claims.reading import Reading, at_least, at_most, near
from normscope.core.spec import Spec
from normscope.geometry.metrics import measure
from normscope.geometry.shapes import configuration


@PAPER.claim(
    "detector-planted", "The detector names planted states: odd, ray, line, clusters, equal angles, a point.",
    where="odd_point.md 5", covers="S5.planted", quick={"noise": 0.02}, control=({"noise": 50.0}, {"turn": 1}),
    because="noise larger than the states drowns them; and each state has the label of no other, its odd sample "
    "another place", seconds=(0.1, 0.1),
)  # fmt: skip
def detector_planted(run: Run, noise: float, turn: int = 0) -> Iterator[Reading]:
    """Batches of the shapes of our table with 2 % noise: the label, the index of the odd sample, the number of
    clusters.
    """
    n, d = 16, 400
    blank = noise * gaussian(run, n, d) / np.sqrt(d)
    states = {name: blank.copy() for name in ("odd", "ray", "line", "clusters", "equiangular")}
    states["odd"][3 + turn, 0] += n - 1
    states["odd"][np.arange(n) != 3 + turn, 1] += 1
    states["ray"][:, 0] += np.linspace(1, 3, n)
    states["line"][:, 0] += np.linspace(1, 3, n) * np.where(np.arange(n) % 2, 1, -1)
    states["clusters"][:4, 0] += 3
    states["clusters"][4:, 1] += 1
    states["equiangular"][:, :n] += np.eye(n)
    states["point"] = np.ones((n, d))
    names = list(states)
    for i, label in enumerate(names):
        found = configuration(torch.from_numpy(states[names[(i + turn) % len(names)]]))
        yield near(f"{label} named", float(found.label == label), 1, 0.1, reason=f"said {found.label}")
    odd = torch.from_numpy(states["odd"])
    yield near("index of the odd sample", configuration(odd).index, 3, 0.1)
    yield near("the metric's index", measure(odd, ["odd_point_index"])["odd_point_index"], 3, 0.1)
    yield near("number of far samples", configuration(torch.from_numpy(states["clusters"])).clusters, 4, 0.1)


@PAPER.claim(
    "detector-false-alarms", "Gaussian batches, two equal clusters and normalised nets are never called odd.",
    where="odd_point.md 5, calibration", covers="S5.false", quick={"batches": 60}, full={"batches": 2000},
    control={"planted": True}, because="batches with an odd point are called odd", seconds=(0.34, 9),
)  # fmt: skip
def detector_false_alarms(run: Run, batches: int, planted: bool = False) -> Iterator[Reading]:
    """Share called odd among Gaussian batches of 4 to 64 samples in 10 and 1000 dimensions, with and without a common
    mean, two equal clusters, and one far sample before a cloud that is no cluster; the rates of reference runs are 0.
    """
    alarms = 0.0
    for r in range(batches):
        n, d = (4, 6, 8, 16, 32, 64)[r % 6], (10, 1000)[r % 2]
        x = gaussian(run, n, d, stream=r)
        if r % 4 == 1:
            x += 3
        if r % 4 == 2:
            x[: n // 2, 0] += 5 * np.sqrt(d)
        if r % 4 == 3:
            x[0] *= 5 * np.sqrt(n)
        if planted:
            x *= 0.02
            x[0, 0] += np.sqrt(d) * n
            x[1:, 1] += np.sqrt(d)
        found = configuration(torch.from_numpy(x))
        alarms += float(indicator(found.label == "odd", found.odd.score))
    yield at_most("share called odd", alarms / batches, 0, reason="rate of the reference runs")


@PAPER.claim(
    "detector-several", "Up to n/8 odd samples, together or apart, are found and named; without them none are.",
    where="odd_point.md 5", covers="S5.several", quick={"n": 64, "batches": 6}, full={"n": 128, "batches": 60},
    control=({"noise": 3.0}, {"swap": True}),
    because="noise larger than the cluster's distances drowns them; planted in the quiet batches they are found",
    seconds=(0.5, 8),
)  # fmt: skip
def detector_several(run: Run, n: int, batches: int, noise: float = 0.05, swap: bool = False) -> Iterator[Reading]:
    """Share of batches whose 2, 3 or n/8 odd samples are all named and no other is, as a group of (n - k)/k times the
    length (3.1) and each in a direction of its own; and the share called so of independent samples off the origin, of
    ten classes, of a ray with two lengths and of a point with one far direction.
    """
    d = 200
    for k in (2, 3, n // 8):
        for together in (True, False):
            hits = 0.0
            for r in range(batches):
                x = noise * gaussian(run, n, d, stream=r) / np.sqrt(d)
                x[k:, 0] += 1
                x[:k] *= (n - k) / k
                x[np.arange(k), 1 if together else 1 + np.arange(k)] += (n - k) / k
                found, count = configuration(torch.from_numpy(x)), measure(torch.from_numpy(x), "odd_samples")
                named = found.odds == tuple(range(k)) and count["odd_samples"] == k
                hits += float(indicator(named, count["odd_samples"]))
            where = "together" if together else "apart"
            yield near(f"{k} odd samples {where}, share named", hits / batches, 1, 0.1, reason="all of ours")
    alarms = 0.0
    for r in range(4 * batches):
        g = gaussian(run, n, d, stream=100 + r)
        classes = gaussian(run, 10, d, stream=200 + r)[np.arange(n) % 10]
        lengths = np.where(np.arange(n) < 4, 9.0, 1.0)[:, None]
        x = (g + 5, classes + 0.02 * g + 1, lengths * (1 + 1e-6 * g), 1 + 1e-3 * g[:, :1] * g[:1])[r % 4]
        if swap:
            x = 0.01 * g + 1
            x[:3, 0] += 20 * np.sqrt(d)
        several = measure(torch.from_numpy(x), "odd_samples")["odd_samples"]
        alarms += float(indicator(several > 1, several))
    yield at_most("share of other batches with several odd samples", alarms / (4 * batches), 0, reason="none of ours")


@PAPER.claim(
    "detector-on-nets", "On random nets the detector says odd, ray, equal angles as the switches ask.",
    where="odd_point.md 5, label run", covers="S5.nets", quick={"n": 16, "d": 200, "layers": 250, "nets": 8},
    full={"n": 16, "d": 300, "layers": 400, "nets": 30}, control={"swap": True, "nets": 2},
    because="with the switches exchanged so are the labels", seconds=(12, 100),
)  # fmt: skip
def detector_on_nets(run: Run, n: int, d: int, layers: int, nets: int, swap: bool = False) -> Iterator[Reading]:
    """Share of nets with explicit weights whose last layer gets the expected label; the reference runs: 29 of 30, 36 of
    36, 48 of 48. Where 29 of 30 are right, fewer than six of eight are once in 500 times. Equal angles settle within a
    hundred layers. The width is 200, as at 100 noise lets a tenth of the nets with rescaling alone look heavy.
    """
    expected = {"batch_recenter": "odd", "none": "ray", "batch": "equiangular", "batch_rescale": "equiangular"}
    turned = {"batch_recenter": "batch", "none": "batch_rescale", "batch": "batch_recenter", "batch_rescale": "none"}
    for i, (norm, label) in enumerate(expected.items()):
        hits, depth = 0, 100 if label == "equiangular" else layers
        for r in range(nets):
            spec = Spec(depth=depth, width=d, norm=turned[norm] if swap else norm)
            *_, h = representations(spec, gaussian(run, n, d, stream=r), run.generator(100 * (i + 1) + r))
            hits += configuration(torch.from_numpy(h)).label == label
        yield at_least(f"{norm} called {label}", hits / nets, 0.75, reason="29 of 30, with room for chance")
