"""The paper: what it says in two sentences, and its statements that no claim covers."""

from __future__ import annotations

from normscope.claims.claim import PAPERS, Paper

PAPER = PAPERS.add(
    "daneshmand2021",
    Paper(
        "daneshmand2021",
        "Batch Normalization Orthogonalizes Representations in Deep Random Networks",
        "Daneshmand, Joudaki, Bach",
        "NeurIPS 2021, arXiv 2106.03970",
        "Linear layers with Gaussian weights and batch norm (no recentring) drive the hidden batch towards "
        "orthogonality as depth grows, up to a floor that falls with the width.",
        {
            "Tab.2": "a table of notation: nothing to check",
            "L9": "Sawa's formula for expectations of ratios, used inside a proof; the integral it gives is checked by "
            "lemma8",
            "F-mean-field": "a later paper on mean-field accuracy at finite width, known to us by title only; fig6 "
            "measures the same thing for this chain",
            "L10": "convexity of an integrand, used inside a proof",
        },
    ),
)
