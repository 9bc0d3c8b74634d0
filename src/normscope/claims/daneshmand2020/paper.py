"""The paper: what it says in two sentences, and its statements that no claim covers."""

from __future__ import annotations

from normscope.claims.claim import PAPERS, Paper

PAPER = PAPERS.add(
    "daneshmand2020",
    Paper(
        "daneshmand2020",
        "Batch Normalization Provably Avoids Rank Collapse for Randomly Initialised Deep Networks",
        "Daneshmand, Kohler, Bach, Hofmann, Lucchi",
        "NeurIPS 2020, arXiv 2003.01652",
        "A deep random net without batch norm maps every batch onto one line; with it the rank stays of the order of "
        "the square root of the width at every depth.",
        {
            "Th.14": "the formal version of Theorem 2: its technical assumptions and constant were not available to us",
            "Fig.5": "VGG19 trained with parts of batch norm: no hyper-parameters published, and in training mode the "
            "published code's three arms all equal full batch norm",
        },
    ),
)
