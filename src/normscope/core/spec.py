"""A network as pure data: what `build` builds, `predict` predicts and `simulate` simulates."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from normscope.core.errors import UsageError, finite_number, unknown, whole_number
from normscope.core.registry import Registry

#: Norms and activations by name: each is registered with all that is known of it, on a higher floor.
NORMS: Registry[Any] = Registry("norm", home="normscope.nn.norms")
ACTIVATIONS: Registry[Any] = Registry("activation", home="normscope.nn.activations")
#: Modules that act on each entry and bend, those of `ACTIVATIONS` among them, by the name of their class.
POINTWISE: Registry[Any] = Registry("pointwise module", home="normscope.nn.activations")
#: Laws of the weights W (out, in); every law but ``identity`` has i.i.d. rows or is Haar.
WEIGHTS = {
    "gaussian": "N(0, gain^2 / fan_in)",
    "uniform": "U(-a, a) with a = gain sqrt(3 / fan_in)",
    "orthogonal": "gain times Haar-orthogonal rows or columns",
    "xavier": "U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out))",
    "xavier_normal": "N(0, 2 gain^2 / (fan_in + fan_out))",
    "torch": "U(-a, a) with a = 1 / sqrt(fan_in), PyTorch's default; gain is not used",
    "positive": "U(0, 2a) with a = 1 / sqrt(fan_in): same variance as torch's default, positive mean (breaks batch "
    "norm)",
    "identity": "gain times the identity: the control of every orthogonality claim",
}
FAMILIES = ("mlp", "vgg", "resnet")
#: Layers and sizes at most: chosen by us; what is built must fit in memory besides.
MOST = {"depth": 1_000_000, "width": 10_000_000, "outputs": 10_000_000}


@dataclass(frozen=True, kw_only=True)
class Spec:
    r"""A chain of ``depth`` layers of equal ``width``: $h^l = \varphi(\mathrm{norm}(W^l h^{l-1} + b^l))$.

    depth: number of weight layers of the hidden chain (the readout is not counted).
    width: features (``mlp``) or channels of the first stage (``vgg``, ``resnet``).
    norm: one of `NORMS`; ``norm_first``: norm, then activation (the usual order); else activation, then norm.
    activation: one of `ACTIVATIONS`, in torch's lower-case names; ``leaky_relu`` has slope 0.01 unless written
        ``leaky_relu(0.2)``.
    skip: strength gamma of the residual form $h + \gamma (W h + b)$ in the place of $W h + b$ (Daneshmand et al. 2020);
        ``None``: no skip connection. The first layer has none unless the input is as wide.
    weights: law of the weights, see ``WEIGHTS``; ``gain`` ``None`` means sqrt(2) for ReLU, sqrt(2/(1+a^2)) for leaky
        ReLU of slope a, else 1, so that a plain net keeps its scale (He et al. 2015).
    bias: ``None`` no bias; a number: N(0, bias^2) biases. With ``weights="torch"`` a bias that is not
        ``None`` follows PyTorch's law U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    outputs: size of a linear readout after the chain, ``None`` for none; ``output_norm``: a norm on that output.
    family: ``mlp``, or the convolutional reference nets ``vgg`` and ``resnet``.
    """

    depth: int = 32
    width: int = 256
    norm: str = "none"
    activation: str = "relu"
    norm_first: bool = True
    skip: float | None = None
    weights: str = "gaussian"
    gain: float | None = None
    bias: float | None = None
    outputs: int | None = None
    output_norm: str = "none"
    family: str = "mlp"

    def __post_init__(self) -> None:
        for field in ("depth", "width", "outputs"):
            if (value := getattr(self, field)) is not None or field != "outputs":
                object.__setattr__(self, field, whole_number(f"Spec.{field}", value, 1, most=MOST[field]))
        for field, known in (("norm", NORMS), ("output_norm", NORMS), ("weights", WEIGHTS), ("family", FAMILIES)):
            value = getattr(self, field)
            if not isinstance(value, str) or value not in known:
                raise unknown(field, value, known)
        activation(self.activation)
        for field in ("skip", "gain", "bias"):
            if (value := getattr(self, field)) is not None:
                least = None if field == "skip" else 0
                object.__setattr__(self, field, finite_number(f"Spec.{field}", value, least=least))
        if not isinstance(self.norm_first, bool):
            raise UsageError(f"Spec.norm_first must be True or False; got {self.norm_first!r}.")

    @property
    def effective_gain(self) -> float:
        """The gain in force: ``gain``, or the one that keeps the scale of a plain net (He et al. 2015)."""
        if self.gain is not None:
            return self.gain
        slope = activation(self.activation).slope
        return 1.0 if slope is None else math.sqrt(2 / (1 + slope**2))

    def parameters(self) -> dict[str, Any]:
        """The fields as the parameters of a table."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """The command line's name of this spec, ``mlp:depth=32,width=256,...`` (fields that differ from the
        default).
        """
        fields = [f for f in dataclasses.fields(self) if f.name != "family"]
        shown = [f for f in fields if f.name in ("depth", "width") or getattr(self, f.name) != f.default]
        return f"{self.family}:" + ",".join(f"{f.name}={getattr(self, f.name)}" for f in shown)


def activation(name: str) -> Any:
    """The record of an activation's name; ``leaky_relu(0.2)`` sets the slope."""
    base, bracket, rest = name.partition("(") if isinstance(name, str) else (name, "", "")
    found = ACTIVATIONS[base]
    if not bracket:
        return found
    if found.of_slope is None:
        takes = " and ".join(known for known, a in ACTIVATIONS.items() if a.of_slope is not None)
        raise UsageError(f"Only {takes} takes an argument; got {name!r}.")
    try:
        slope = float(rest.removesuffix(")"))
    except ValueError:
        slope = math.nan
    if not (rest.endswith(")") and math.isfinite(slope)):
        raise UsageError(f"The slope of {base} must be a number, as in '{base}(0.2)'; got {name!r}.")
    return found.of_slope(slope)


def parse(text: str) -> Spec:
    """A spec from the command line's form, ``mlp:depth=64,width=256,norm=batch``."""
    family, _, rest = text.partition(":")
    if family not in FAMILIES:
        raise unknown("built-in net", family, FAMILIES)
    fields = {f.name: f for f in dataclasses.fields(Spec) if f.name != "family"}
    given: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, eq, value = item.partition("=")
        if key not in fields:
            raise unknown("field of Spec", key, fields)
        if key in given:
            raise UsageError(f"A field is given once; {key!r} stands twice in {text!r}.")
        if not eq or not value:
            raise UsageError(f"A field is written name=value; got {item!r} in {text!r}.")
        given[key] = _value(key, value, str(fields[key].type))
    if family == "resnet":
        given.setdefault("depth", 33)  # odd: a stem and blocks of two
    return Spec(family=family, **given)


def _value(key: str, text: str, annotation: str) -> Any:
    """``text`` read as the annotated type of the field ``key``."""
    if "None" in annotation and text.lower() == "none":
        return None
    if annotation.startswith("bool"):
        if text.lower() not in ("true", "false", "1", "0"):
            raise UsageError(f"Spec.{key} must be true or false; got {text!r}.")
        return text.lower() in ("true", "1")
    for kind, read in (("int", int), ("float", float)):
        if annotation.startswith(kind):
            try:
                return read(text)
            except ValueError:
                raise UsageError(f"Spec.{key} must be a number ({annotation}); got {text!r}.") from None
    return text
