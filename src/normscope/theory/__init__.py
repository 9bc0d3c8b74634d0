"""What theory says of a `Spec`: recursions at infinite width, simulation exact in law at finite width, laws.

`predict`: infinite width, forwards and backwards, of a spec or of a model's own program (`theory.program`).
`simulate`: finite width, exact in law.
`predicted_grams`, `simulated_grams`: the Gram matrices of both, layer by layer.
`spec_of`: the spec of a plain model; `layer_names`: where its layers are;
`overlay`, `program_overlay`: the prediction in the layers of a measured profile;
`predicted_sharpness`: beside its largest eigenvalue.
`fisher_statistics`, `order_parameters`, `wide_ntk`: the Fisher matrix and the kernel of a wide net.
``theory.laws``: bounds and laws.
"""

from normscope.theory.beside import overlay, program_overlay
from normscope.theory.fisher import fisher_statistics, order_parameters, softmax_outliers, wide_ntk
from normscope.theory.predicted import predict, predicted_grams
from normscope.theory.recognise import layer_names, spec_of
from normscope.theory.sharpness import predicted_sharpness
from normscope.theory.simulated import simulate, simulated_grams

__all__ = [
    "fisher_statistics",
    "layer_names",
    "order_parameters",
    "overlay",
    "predict",
    "predicted_grams",
    "predicted_sharpness",
    "program_overlay",
    "simulate",
    "simulated_grams",
    "softmax_outliers",
    "spec_of",
    "wide_ntk",
]
