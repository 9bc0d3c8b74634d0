"""Theory of a model's own program: every tensor stands for its law at infinite width."""

from normscope.theory.program.chains import predict_spec
from normscope.theory.program.predict import predict_model

__all__ = ["predict_model", "predict_spec"]
