"""Hand-planted breaks of the library: is each caught by its room's tests, and by the claim whose subject it is?

A break is a wrong line in one file. ``make mutants`` plants one after the other in a copy of the library and runs the
tests and the claim there; ``python benchmarks/breaks.py --only sampled`` those whose name contains the word. What is
caught stands in results/breaks.csv and results/breaks.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "normscope"
RESULTS = ROOT / "results"
COLUMNS = ("break", "file", "claim", "by_claim", "tests", "by_tests", "seconds")


@dataclass(frozen=True)
class Break:
    """``old`` in ``file`` becomes ``new`` (no ``old``: ``new`` is added at the end).

    claim: whose subject it is; empty where no paper speaks of it. tests: those of the room.
    """

    name: str
    file: str
    old: str
    new: str
    claim: str
    tests: str

    def plant(self, package: Path) -> None:
        """Write it into a copy of the library."""
        path = package / self.file
        text = path.read_text("utf-8")
        if self.old and text.count(self.old) != 1:
            raise SystemExit(
                f"{self.name}: {self.old!r} must occur once in {self.file}; it does {text.count(self.old)}."
            )
        path.write_text(text.replace(self.old, self.new) if self.old else text + self.new, "utf-8")


HAND = "tests/house/test_values_by_hand.py"
G, N, F = "geometry/metrics.py", "nn/norms/batch.py", "nn/norms/features.py"
L, C, T = "theory/laws/", "curvature/", "theory/"
METRICS = "tests/geometry/test_metrics.py tests/geometry/test_configuration.py"
NORMS = "tests/nn/test_norms.py tests/nn/test_norm_contract.py"
LAWS = "tests/theory/test_theory_laws.py tests/theory/test_odd_point_laws.py"
CURVES = "tests/curvature/test_dense_oracles.py tests/curvature/test_curvature_operators.py"
SQUASH = "tests/nn/test_squash.py"
WIDE, CHAINS = "tests/theory/test_predict.py", "tests/theory/test_simulate.py"
WRONG = (
    # metrics
    Break("gap times 1.1", G, "(s.shares - 1 / s.samples).square().sum(-1)).sqrt()",
          "(s.shares - 1 / s.samples).square().sum(-1)).sqrt() * 1.1", "daneshmand2021/gap", METRICS),
    Break("gap without its diagonal", G, "(s.pairs.energy + (s.shares - 1 / s.samples).square().sum(-1)).sqrt()",
          "s.pairs.energy.sqrt()", "daneshmand2021/gap", METRICS),
    Break("rank halved", G, "return 1 / (s.pairs.energy + s.shares.square().sum(-1))",
          "return 0.5 / (s.pairs.energy + s.shares.square().sum(-1))", "daneshmand2020/lemma1", METRICS),
    Break("soft rank a thousand", G, "((values >= tau * mean) & (mean > 0)).sum(-1).double()",
          "((values >= tau * mean) & (mean > 0)).sum(-1).double() * 0 + 1000", "daneshmand2020/lemma1", METRICS),
    Break("soft rank by the largest", G, "mean = values.mean(-1, keepdim=True)", "mean = values[..., :1]",
          "daneshmand2020/lemma1", METRICS),
    Break("sigma_min a tenth", G, "return s.singular_values[..., -1]", "return s.singular_values[..., -1] * 0.1",
          "daneshmand2021/gap", METRICS),
    Break("rank threshold by min(n, d)", G, "max(s.samples, s.features) * roundoff",
          "min(s.samples, s.features) * roundoff", "", HAND),
    Break("isometry gap in bits", G, "return values.mean(-1).log() - values.log().mean(-1)",
          "return values.mean(-1).log2() - values.log2().mean(-1)", "daneshmand2021/isometry", METRICS),
    Break("rms over n", G, "(s.trace / (s.samples * s.features)).sqrt()", "(s.trace / s.samples).sqrt()",
          "nachum2024/scale-falls", METRICS),
    Break("mean cosine of |cos|", G, "return s.pairs.mean\n", "return s.pairs.mean_abs\n", "nachum2024/table", METRICS),
    Break("mean |cos| of the largest", G, 'whole batch lies on one line."""\n    return s.pairs.mean_abs',
          'whole batch lies on one line."""\n    return s.pairs.max_abs', "", METRICS),
    Break("odd score of n", "geometry/odd.py", "s.spreads / total * (n / max(n - 1, 1))", "s.spreads / total",
          "nachum2024/odd-score", METRICS),
    Break("odd index 0", G, "first_largest(found).double()", "first_largest(found).double() * 0",
          "nachum2024/detector-planted", METRICS),
    Break("coherence times 1.1", G, 'return odd_points(s)["coherence"]', 'return odd_points(s)["coherence"] * 1.1',
          "nachum2024/odd-point", METRICS),
    Break("separation squared", "geometry/odd.py", '"separation": (d2 / w2).sqrt()', '"separation": d2 / w2',
          "nachum2024/odd-score", METRICS),
    Break("odd rule without coherence", "geometry/odd.py", '(odd["coherence"] >= 0.6) & apart', "apart",
          "nachum2024/detector-false-alarms", METRICS),
    Break("no odd point ever", "geometry/odd.py", "((score >= 0.8) | far)", "((score >= 8) | far)",
          "nachum2024/detector-planted", METRICS),
    Break("several odd of two alone", "geometry/odd.py", "range(2, most + 1)", "range(2, 3)",
          "nachum2024/detector-several", METRICS),
    Break("several odd without a cluster", "geometry/odd.py", "(mean >= TIGHT * (mean + spread))", "(mean >= 0)",
          "nachum2024/detector-several", METRICS),
    Break("gradient norm squared", G, "return s.trace.clamp_min(0).sqrt()", "return s.trace.clamp_min(0)",
          "", METRICS),
    Break("recorded gradient norm squared", "probing/recorder.py", "seen.gradient_norm = frobenius(grad)",
          "seen.gradient_norm = frobenius(grad) ** 2", "daneshmand2021/gradients", "tests/probing/test_probe.py"),
    # norms
    Break("batch norm off by 1 %", N, "x / (var + eps).sqrt().reshape(shape)",
          "1.01 * x / (var + eps).sqrt().reshape(shape)", "daneshmand2021/normalization", NORMS),
    Break("batch norm, eps outside the root", N, "x / (var + eps).sqrt().reshape(shape)",
          "x / (var.sqrt() + eps).reshape(shape)", "", NORMS),
    Break("batch norm does not recentre", N, "mean = x.mean(over) if self.recenter else None", "mean = None",
          "nachum2024/parts", NORMS),
    Break("running variance biased", N, "unbiased = var * (count / (count - 1)) if self.recenter else var",
          "unbiased = var", "", NORMS),
    Break("rows of a chain not recentred", N, "        if self.recenter and not is_centred:\n            z -=",
          "        if False:\n            z -=", "", CHAINS),
    Break("Gram of recentring left as it is", N, "return centred(moments) if self.recenter else moments",
          "return moments", "nachum2024/odd-fixed-points", WIDE),
    Break("pull of recentring left as it is", N, "return centred(outer) if self.recenter else outer\n\n    def samples",
          "return outer\n\n    def samples", "", WIDE),
    Break("backward rows not recentred", N, "return centred(moment) if self.recenter else np.asarray(moment)",
          "return np.asarray(moment)", "nachum2024/gradient-rates", WIDE),
    Break("spread of a layer q_1", N, "spread = q[0] - q[1]", "spread = q[0]", "karakida2019/order-parameters",
          "tests/theory/test_fisher_theory.py"),
    Break("rms norm over n", F, "x * x.square().mean(1, keepdim=True).add(self.eps).rsqrt()",
          "x * x.square().sum(1, keepdim=True).add(self.eps).rsqrt()", "", NORMS),
    Break("layer norm's Gram by variances", F,
          "return np.divide(moments, outer, out=np.zeros_like(moments), where=outer > 0)",
          "return np.divide(moments, outer**2, out=np.zeros_like(moments), where=outer > 0)", "", WIDE),
    Break("tilt of the spectrum", "nn/norms/integrals.py", "return log_weights[keep], (values / growth)[keep]",
          "return log_weights[keep], (values / growth)[keep] ** 1.02", "daneshmand2021/contraction", WIDE),
    Break("kernel of batch norm", "nn/norms/integrals.py", "kernel = slope * c + (1 - slope) ** 2 * half_plane(c)",
          "kernel = slope * c + (1 - slope) ** 2 * half_plane(c) * 1.02", "nachum2024/gram-integral", WIDE),
    # Gaussian moments
    Break("half plane without its root", "gaussian.py", "(np.sqrt((1 - c) * (1 + c)) + (np.pi - np.arccos(c)) * c)",
          "(np.pi - np.arccos(c)) * c", "nachum2024/kernel", "tests/geometry/test_gaussian.py"),
    Break("leaky slope not squared", "gaussian.py", "return s * g + (1 - s) ** 2 * scale * half_plane(c)",
          "return s * g + (1 - s) * scale * half_plane(c)", "nachum2024/kernel", "tests/geometry/test_gaussian.py"),
    Break("derivative's moment halved", "gaussian.py", "return s + (1 - s) ** 2 * (np.pi - np.arccos(c)) / (2 * np.pi)",
          "return s + (1 - s) ** 2 * (np.pi - np.arccos(c)) / (4 * np.pi)", "karakida2019/gaussian-moments",
          "tests/geometry/test_gaussian.py"),
    # chains and wide layers
    Break("skip's gain not squared", "theory/grams.py", "gram + self.spec.skip**2 * c", "gram + self.spec.skip * c",
          "", HAND),
    Break("backward gain not squared", "theory/grams.py",
          "inner * (self.gain**2 if skip is None else 1 + (skip * self.gain) ** 2)",
          "inner * (self.gain if skip is None else 1 + (skip * self.gain) ** 2)", "", HAND),
    Break("backward skip's gain not squared", "theory/grams.py",
          "inner * (self.gain**2 if skip is None else 1 + (skip * self.gain) ** 2)",
          "inner * (self.gain**2 if skip is None else 1 + skip * self.gain**2)", "", HAND),
    Break("first layer as wide as the chain", "theory/grams.py",
          "weight_scale(self.spec, self.fan_in or self.spec.width,", "weight_scale(self.spec, self.spec.width,", "",
          HAND),
    Break("bias not squared", "theory/grams.py", "c = self.gain**2 * gram + self.bias**2",
          "c = self.gain**2 * gram + self.bias", "", HAND),
    Break("chain of products too large", "theory/_chain.py",
          "self.factor = np.matmul(triangle, product) / math.sqrt(d)",
          "self.factor = np.matmul(triangle, product) / math.sqrt(d / 2)", "daneshmand2021/vanilla-law", CHAINS),
    Break("chain without its triangle", "theory/_chain.py", "rows = min(d, k)\n        triangle = np.triu(",
          "rows = min(d, k)\n        triangle = 0.9 * np.triu(", "daneshmand2021/vanilla-law", CHAINS),
    Break("chain's skip forgotten", "theory/_chain.py", "                z *= spec.skip\n", "",
          "daneshmand2020/theorem2", CHAINS),
    Break("chain's energy in contrasts", "theory/_chain.py", "self.energy = self.samples / self.columns",
          "self.energy = 1.0", "", CHAINS),
    Break("Haar frame of the wrong size", "theory/_chain.py", "product = product * math.sqrt(fan_in)\n",
          "product = product * fan_in\n", "", CHAINS),
    Break("orthogonal weights like Gaussian ones", "nn/nets.py", "math.sqrt(fan_in / max(fan_in, fan_out))", "1.0", "",
          "tests/theory tests/nn"),
    Break("positive weights around zero", "nn/nets.py",
          "weight.uniform_(0, 2 / math.sqrt(fan_in), generator=generator)",
          "weight.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)",
          "daneshmand2020/breaking-linear", "tests/nn tests/theory"),
    # order parameters and the Fisher matrix
    Break("readout's share of kappa_2", T + "fisher.py",
          "qtilde.insert(0, gains[layer + 1] * qtilde[0] * slopes[layer])",
          "qtilde.insert(0, gains[layer] * qtilde[0] * slopes[layer])", "karakida2019/order-parameters",
          HAND),
    Break("bulk counted twice", T + "fisher.py", "return (samples - 1) / samples * self._terms(2) + first / samples",
          "return self._terms(2) + first / samples", "karakida2019/fisher-prediction",
          "tests/theory/test_fisher_theory.py"),
    Break("mean subtraction loses no sample", T + "fisher.py", "trace = c * (1 - lost / n) * (k1 - k2) / v",
          "trace = c * (k1 - k2) / v", "", "tests/theory/test_fisher_theory.py"),
    Break("Fisher without 1/n", C + "_directions.py", "root, shape, plain = math.sqrt(f.n), (f.n, f.c, -1), form.plain",
          "root, shape, plain = 1.0, (f.n, f.c, -1), form.plain", "karakida2019/dense-is-matrix-free", CURVES),
    Break("softmax factor without its mean", C + "_form.py", "return root * (r * x - g * (r * x).sum(1, keepdim=True))",
          "return root * r * x", "karakida2019/softmax-exact", CURVES),
    Break("Monte-Carlo Fisher, one draw again and again", C + "_operators.py",
          "        generator = torch.Generator().manual_seed(seed)\n        slopes = torch.stack([form.drawn(f.value, "
          "generator) for _ in range(draws)])",
          "        slopes = torch.stack([form.drawn(f.value, torch.Generator().manual_seed(seed)) "
          "for _ in range(draws)])",
          "", HAND),
    Break("Monte-Carlo Fisher not over its draws", C + "_operators.py", "root = math.sqrt(n * s)",
          "root = math.sqrt(n)", "", CURVES),
    Break("Hessian of unequal batches by their count", C + "_operators.py", "(counts[i] / sum(counts))",
          "(1 / len(counts))", "", HAND),
    Break("curve of unequal batches by their count", C + "_batches.py", "part.curve(x) * (part.n / self.n)",
          "part.curve(x) / len(self.parts)", "", CURVES),
    Break("mse's Hessian 1/c", C + "_form.py", '{"mean": 2 / c, "sum": 2.0 * n}.get(reduction, 2 / c)',
          '{"mean": 1 / c, "sum": 2.0 * n}.get(reduction, 1 / c)', "", CURVES),
    Break("Nesterov's limit", C + "_rates.py", "plain * (1 + momentum) / (1 + 2 * momentum)",
          "plain * (1 + momentum) / (1 + momentum)", "karakida2019/optimisers", "tests/theory tests/curvature"),
    Break("weight decay leaves the limit", C + "_rates.py", "sharp = lambda_max + weight_decay", "sharp = lambda_max",
          "karakida2019/optimisers", "tests/theory tests/curvature"),
    Break("descent of half a step", C + "_rates.py", "[(p - rate * g).detach()", "[(p - rate * g / 2).detach()",
          "karakida2019/critical-rate", "tests/theory tests/curvature"),
    # running statistics
    Break("distance of running statistics not halved", "probing/drift.py", "drift[name] = kl.mean().item() / 2",
          "drift[name] = kl.mean().item()", "", HAND),
    Break("distance of running statistics without eps", "probing/drift.py",
          "v, var = v.clamp_min(0) + eps, var + eps", "v, var = v.clamp_min(0), var + 0 * eps", "", HAND),
    # traces and errors
    Break("standard error with n", "linalg/traces.py", "for v in values) / (n - 1) / n)",
          "for v in values) / n / n)", "", HAND),
    Break("deflated trace forgets the basis", "linalg/traces.py",
          "known = float(a.matmat(basis).double().square().sum())", "known = 0.0", "karakida2019/deflated-trace",
          "tests/linalg"),
    Break("Hutch++ forgets its sketch", "linalg/traces.py", "known = float((q * g.matmat(q)).double().sum())",
          "known = 0.0", "", "tests/linalg"),
    Break("second moment's cross term once", "linalg/traces.py",
          "float(inside.double().square().sum()) * 2 + float(", "float(inside.double().square().sum()) + float(", "",
          "tests/linalg"),
    Break("t-interval with n", "racing/_statistics.py", "x.std(ddof=1) / math.sqrt(len(x))",
          "x.std(ddof=0) / math.sqrt(len(x))", "", "tests/racing/test_race_statistics.py"),
    Break("Holm without its steps", "racing/_statistics.py", "min(1.0, (len(ordered) - i) * value)",
          "min(1.0, len(ordered) * value)", "", "tests/racing/test_race_statistics.py"),
    Break("explosions forgotten on resume", "training/_loop.py",
          'self.step, self.diverged, self._above = state["step"], state["diverged"], state["above"]',
          'self.step, self.diverged, self._above = state["step"], state["diverged"], 0', "", HAND),
    Break("accuracy of the last batch", "training/_loop.py", "right += int((named == targets)[known].sum())",
          "right = int((named == targets)[known].sum())", "", "tests/training"),
    # initializations
    Break("whitening with the inverse power", "init/orthogonal.py", "weight = target * sigma.pow(-power) @ v.T",
          "weight = target * sigma.pow(power) @ v.T", "daneshmand2021/slice-is-identity", "tests/init/test_init.py"),
    Break("xavier by fan_in alone", "init/laws.py", "a = gain * math.sqrt(6 / (fan_in + fan_out))",
          "a = gain * math.sqrt(6 / fan_in)", "", "tests/init/test_init.py"),
    Break("he halved", "init/laws.py", "layer.set(unit * math.sqrt(2 / layer.weight[0].numel()))",
          "layer.set(unit * math.sqrt(1 / layer.weight[0].numel()))", "", "tests/init/test_init.py"),
    Break("lsuv not to unit variance", "init/lsuv.py", "layer.set(new / spread)", "layer.set(new / spread**2)",
          "daneshmand2020/pretraining-or-scale", "tests/init/test_init.py"),
    Break("breaking weights around zero", "init/laws.py", "_uniform(layer, 0, 2 / math.sqrt(",
          "_uniform(layer, -1, 2 / math.sqrt(", "", "tests/init/test_init.py"),
    # laws
    Break("Theorem 1, half the radius", L + "orthogonality.py", "3 * n / (alpha * math.sqrt(d)))",
          "0.1 * n / (alpha * math.sqrt(d)))", "daneshmand2021/theorem1", LAWS),
    Break("Theorem 5, faster", L + "orthogonality.py", "(1 - 2 / 3 * (1 / n - vhat)) * vhat + 1 / math.sqrt(d)",
          "(1 - 2 / 3 * (1 / n - vhat)) * vhat", "daneshmand2021/theorem5", LAWS),
    Break("Lemma 8, faster", L + "orthogonality.py", "c = 2 * n / (n + 2) if sharp else 2 / 3",
          "c = 2.2 * n / (n + 2) if sharp else 2 / 3", "daneshmand2021/lemma8", HAND),
    Break("contraction of n + 1", L + "orthogonality.py", "return m / (m + 2)", "return m / (m + 1)",
          "daneshmand2021/contraction", LAWS),
    Break("stationary gap of n - 1", L + "orthogonality.py", "square = (m - 1) * (m + 2) ** 2 / (4 * m * (m + 1) * d)",
          "square = (m - 1) * (m + 1) ** 2 / (4 * m * (m + 1) * d)", "daneshmand2021/stationary-gap", LAWS),
    Break("Lyapunov exponents shifted", L + "rank.py", "psi((d - np.arange(d)) / 2)))",
          "psi((d + 1 - np.arange(d)) / 2)))",
          "daneshmand2020/collapse", LAWS),
    Break("drift's last term", L + "rank.py", "8 * np.trace(square @ m) + 8 * np.square(s).sum()",
          "8 * np.trace(square @ m) + 4 * np.square(s).sum()", "daneshmand2020/drift", LAWS),
    Break("growth without its projection", L + "rank.py", "delta = delta - q @ (q.transpose(0, 2, 1) @ delta)",
          "delta = delta * 1.0", "daneshmand2020/transverse", LAWS),
    Break("reduced map's rescaling", L + "odd_point.py", "(1 + 2 * s * tau / n) ** (-(n - 2) / 2)",
          "(1 + 2 * s * tau / n) ** (-(n - 1) / 2)", "nachum2024/reduced-map", LAWS),
    Break("winner takes less", L + "odd_point.py", "return u + a / ((1 + slope**2) / 2 - a)",
          "return u + a / ((1 + slope**2) / 2)", "nachum2024/winner-takes-all", LAWS),
    Break("explosion of n - 2", L + "odd_point.py", "return (free - 1) / (free - 2) if free > 2",
          "return (free) / (free - 1) if free > 2", "nachum2024/gradient-rates", LAWS),
    Break("strength of a non-linearity", L + "isometry.py", "return 2 - c1**2 / variance", "return 2 - c1 / variance",
          "daneshmand2021/nonlinearity", LAWS),
)  # fmt: skip

#: Metric -> the claim about it ("" where the papers have none).
NAN_METRICS = {
    "orthogonality_gap": "daneshmand2021/gap", "orthogonality_gap_floor": "", "sigma_min": "daneshmand2021/gap",
    "participation_rank": "daneshmand2020/lemma1", "soft_rank": "daneshmand2020/lemma1", "entropy_rank": "",
    "numerical_rank": "daneshmand2020/fig2-right", "numerical_rank_float32": "daneshmand2020/fig1-rank",
    "isometry_gap": "daneshmand2021/isometry", "mean_cosine": "nachum2024/rescaling-alone",
    "mean_abs_cosine": "daneshmand2021/fig1", "max_abs_cosine": "", "mean_norm": "", "rms": "nachum2024/scale-falls",
    "norm_spread": "", "mean_shift": "", "dead_units": "", "saturated_units": "", "token_cosine": "",
    "odd_point_score": "nachum2024/odd-score", "odd_point_index": "nachum2024/detector-planted",
    "odd_point_coherence": "nachum2024/odd-point", "odd_point_separation": "nachum2024/odd-score",
    "odd_point_margin": "", "odd_samples": "nachum2024/detector-several", "gradient_norm": "",
    "gradient_collinearity": "",
    "alpha_req": "", "stable_rank": "", "weight_spectral_norm": "", "weight_stable_rank": "", "weight_edge_ratio": "",
}  # fmt: skip
#: File, owner and name of what a norm does, and the claim and tests about it.
NAN_NORMS = (
    (N, "BatchNorm", "forward", "daneshmand2021/normalization", NORMS),
    (N, "OverBatch", "rows", "daneshmand2021/fig2a", CHAINS),
    (N, "OverBatch", "gram", "nachum2024/odd-fixed-points", WIDE),
    (N, "OverBatch", "forward", "nachum2024/gram-integral", WIDE),
    (N, "OverBatch", "backward", "nachum2024/gradient-rates", WIDE), (N, "OverBatch", "pull", "", WIDE),
    ("nn/norms/squash.py", "DyT", "forward", "daneshmand2021/dyt", NORMS),
    ("nn/norms/squash.py", "Squash", "forward", "", SQUASH), ("nn/norms/squash.py", "Squash", "backward", "", SQUASH),
    (F, "RMSNorm", "forward", "", NORMS), (F, "OverFeatures", "rows", "", CHAINS),
    (F, "OverFeatures", "gram", "", WIDE), (F, "OverFeatures", "pull", "", WIDE),
)  # fmt: skip
#: Law -> the claim about it.
NAN_LAWS = {
    "orthogonality": {
        "gap_bound": "daneshmand2021/theorem1", "lyapunov": "", "lyapunov_bound": "daneshmand2021/theorem5",
        "average_bound": "daneshmand2021/average", "gap_from_lyapunov": "daneshmand2021/lemma4",
        "mean_spectrum": "daneshmand2021/lemma8", "fluctuation": "daneshmand2021/fluctuation",
        "contraction_bound": "daneshmand2021/lemma8", "contraction": "daneshmand2021/contraction",
        "stationary_gap": "daneshmand2021/stationary-gap", "stationary_cosine": "daneshmand2021/fig1",
        "wasserstein_bound": "daneshmand2021/gaussian", "stationary_wasserstein": "daneshmand2021/gaussian",
        "vanilla_log_sine": "daneshmand2021/vanilla-law", "vanilla_log_det": "daneshmand2021/vanilla-law",
    },
    "rank": {
        "rank_bound": "daneshmand2020/lemma1", "lyapunov_exponents": "daneshmand2020/collapse",
        "collapse_depth": "daneshmand2020/collapse", "drift": "daneshmand2020/drift",
    },
    "isometry": {
        "isometry": "", "normalization_gain": "", "nonlinearity_strength": "daneshmand2021/nonlinearity",
        "haar_contraction": "daneshmand2021/haar",
    },
    "odd_point": {
        "reduced_map": "nachum2024/reduced-map", "odd_share": "",
        "equiangular_cosine": "nachum2024/equal-angles", "winner_takes_all": "nachum2024/winner-takes-all",
        "gradient_explosion": "nachum2024/gradient-rates", "relu_angle": "nachum2024/plain-relu-angle",
        "stability": "nachum2024/odd-state-stable",
    },
}  # fmt: skip


def not_a_number() -> list[Break]:
    """NaN from each metric, norm and law."""
    found = []
    for name, claim in NAN_METRICS.items():
        code = (
            f'\n_sound = METRICS["{name}"].function\n'
            f'object.__setattr__(METRICS["{name}"], "function", lambda *a, **k: _sound(*a, **k) * float("nan"))\n'
        )
        found.append(Break(f"NaN from {name}", G, "", code, claim, METRICS))
    for file, owner, name, claim, tests in NAN_NORMS:
        code = f'\n_sound = {owner}.{name}\n{owner}.{name} = lambda *a, **k: _sound(*a, **k) * float("nan")\n'
        found.append(Break(f"NaN from {owner}.{name}", file, "", code, claim, tests))
    for room, laws in NAN_LAWS.items():
        for name, claim in laws.items():
            code = f"\n_sound = {name}\n{name} = lambda *a, **k: np.nan * np.asarray(_sound(*a, **k))\n"
            found.append(Break(f"NaN from {room}.{name}", f"{L}{room}.py", "", code, claim, LAWS))
    return found


def breaks() -> list[Break]:
    """All of them."""
    return [*WRONG, *not_a_number()]


#: Exit codes of the check of a claim: it says what it should; it does not.
SOUND, CAUGHT = 10, 11
CHECK = f"""
import sys
from normscope.claims import judge, load
load()
sys.exit({SOUND} if judge(sys.argv[1]).as_expected else {CAUGHT})
"""


def run(one: Break, *, claims: bool = True, tests: bool = True) -> dict[str, object]:
    """Plant it in a copy, and say who caught it: ``caught``, ``survived``, or nothing where none was asked."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src", Path(folder) / "src")
        one.plant(Path(folder) / "src" / "normscope")
        environment = os.environ | {
            "PYTHONPATH": f"{folder}/src",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

        def code(*command: str) -> int:
            try:
                return subprocess.run(
                    [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, timeout=600
                ).returncode
            except subprocess.TimeoutExpired:  # it hangs: caught
                return 1

        # a library that no longer imports (exit 1) is caught as well
        by_claim = (
            "" if not (claims and one.claim) else "survived" if code("-c", CHECK, one.claim) == SOUND else "caught"
        )
        options = ("-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *one.tests.split())
        by_tests = "" if not tests else "survived" if code(*options) == 0 else "caught"
    seconds = time.perf_counter() - began
    return dict(
        zip(COLUMNS, (one.name, one.file, one.claim, by_claim, one.tests, by_tests, f"{seconds:.0f}"), strict=True)
    )


def share(rows: list[dict[str, object]], column: str) -> str:
    """``70 of 72 (97 %)``."""
    asked = [r for r in rows if r[column]]
    caught = sum(r[column] == "caught" for r in asked)
    return f"{caught} of {len(asked)} ({caught / len(asked):.0%})" if asked else "none asked"


def page(rows: list[dict[str, object]]) -> str:
    """The score, and what survived."""
    missed = [r for r in rows if "survived" in (r["by_claim"], r["by_tests"])]
    lines = [
        "# Hand-planted breaks\n",
        f"{len(rows)} wrong lines, planted one at a time (`make mutants`; benchmarks/breaks.py has the list). "
        f"Of those that were planted before the tests of their room {share(rows, 'by_tests')} were caught; before the "
        f"claim whose subject they are {share(rows, 'by_claim')}.\n",
    ]
    if missed:
        lines += ["| survived | file | claim | tests |", "|---|---|---|---|"]
        lines += [
            f"| {r['break']} | {r['file']} | {r['claim'] or '-'}: {r['by_claim'] or '-'} | {r['by_tests'] or '-'} |"
            for r in missed
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Plant and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="breaks whose name contains this")
    parser.add_argument("--no-claims", action="store_true")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "breaks.csv")
    options = parser.parse_args()
    chosen = [b for b in breaks() if options.only in b.name]
    rows: list[dict[str, object]] = []
    with ThreadPoolExecutor(options.workers) as pool:
        for row in pool.map(lambda b: run(b, claims=not options.no_claims, tests=not options.no_tests), chosen):
            rows.append(row)
            print(f"{row['break']:<46} claim {row['by_claim'] or '-':<9} tests {row['by_tests'] or '-'}", flush=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    options.out.with_suffix(".md").write_text(page(rows), "utf-8")
    print(page(rows))


if __name__ == "__main__":
    main()
