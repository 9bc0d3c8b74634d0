"""Favourites: the metrics that each page, table and task takes unless others are asked for, in their order.

A new metric is in every list of all metrics by being registered; to be shown first somewhere it is named here.
"""

from __future__ import annotations

#: The three that say most of a batch, and what flows back through it.
FEW = ("participation_rank", "orthogonality_gap", "mean_abs_cosine")
#: The columns that a terminal or a notebook cell has room for.
BRIEF = (*FEW, "gradient_norm")
#: The columns of a page's table of layers; those that a report does not have are left out.
TABLE = (
    *FEW, "numerical_rank", "mean_norm", "odd_point_score", "dead_units", "saturated_units", "gradient_norm",
    "gradient_collinearity", "weight_gradient_norm",
)  # fmt: skip
#: The columns of `Diagnosis.layers`, and their signal.
DIAGNOSIS = dict.fromkeys(
    (*FEW, "numerical_rank_float32", "rms", "odd_point_score", "dead_units"), "activation"
) | {"gradient_norm": "gradient", "relative_gradient": "weight"}  # fmt: skip
#: What a tracker measures: what needs no eigenvalues, so that a measured step stays cheap.
TRACKED = (
    "orthogonality_gap", "participation_rank", "mean_abs_cosine", "mean_shift", "rms", "norm_spread", "dead_units",
    "saturated_units", "gradient_norm", "gradient_collinearity", "relative_gradient", "weight_norm", "relative_update",
)  # fmt: skip
#: The maps and curves of a run that stand first on its page.
FOLLOWED = ("participation_rank", "orthogonality_gap", "weight_gradient_norm", "weight_relative_update")
#: The curves of loggers, (signal, metric): collapse of the batch, scale, gradients.
LOGGED = (
    ("activation", "orthogonality_gap"), ("activation", "participation_rank"), ("activation", "mean_abs_cosine"),
    ("activation", "rms"), ("activation", "dead_units"), ("gradient", "gradient_norm"), ("weight", "gradient_norm"),
    ("weight", "relative_gradient"), ("weight", "relative_update"),
)  # fmt: skip
#: What `predict` and `simulate` say of a layer.
CHAINS = (
    "orthogonality_gap", "participation_rank", "soft_rank", "numerical_rank", "isometry_gap", "sigma_min",
    "mean_abs_cosine", "odd_point_score",
)  # fmt: skip
#: The columns that ``normscope predict`` prints, and their signal; a narrow terminal shows the first ones.
PREDICTED = {
    "participation_rank": "activation", "mean_abs_cosine": "activation", "gradient_growth": "gradient",
    "orthogonality_gap": "activation", "gradient_norm": "gradient", "isometry_gap": "activation",
    "odd_point_score": "activation",
}  # fmt: skip
#: What a race follows over time, layer by layer.
RACED = ("orthogonality_gap", "participation_rank", "gradient_norm")
#: What a page of a sweep draws, as far as it is there.
SWEPT = (
    "participation_rank", "orthogonality_gap", "lambda_max", "trained", "gradient_growth", "loss_ratio", "final_loss",
    "accuracy", "mean_abs_cosine", "gradient_norm", "isometry_gap", "numerical_rank", "odd_point_score",
)  # fmt: skip
