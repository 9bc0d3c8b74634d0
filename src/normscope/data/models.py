"""Models by name, as the command line takes them, and a batch that fits when no data was named."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from normscope.call.step import Step
from normscope.core import spec as _spec
from normscope.core.errors import UsageError, brief, seed_of, unknown
from normscope.core.extra import needs_extra
from normscope.core.load import arguments_of, call_object, callable_object, load_object, split_arguments
from normscope.core.memory import check_room
from normscope.core.registry import Registry
from normscope.data.datasets import Batch
from normscope.nn import build

#: Prefix of a model's name -> function of (rest of the name, batch, seed). ``normscope list models`` shows them.
SOURCES: Registry[Callable[[str, Batch | None, int], nn.Module]] = Registry("kind of model")


def load_model(name: str, batch: Batch | None = None, *, seed: int = 0) -> nn.Module:
    """The model of a name, with random weights drawn from ``seed``; torch's global stream is left alone.

    As `load_step`; refuses a ``Step``, or a dictionary of its fields, for what trains or measures models alone.
    """
    parts = load_step(name, batch, seed=seed)
    model: nn.Module = parts.pop("model")
    if parts:
        raise UsageError(
            f"{name} must return an nn.Module here, where models share data and loss; it returns a Step or a dict of "
            f"its fields ({', '.join(parts)}). Return its model, and name data and loss by options."
        )
    return model


def load_step(name: str, batch: Batch | None = None, *, seed: int = 0) -> dict[str, Any]:
    """The fields of the ``Step`` that a name stands for, ``model`` among them, its random weights drawn from ``seed``.

    ``mlp:...``, ``vgg:...``, ``resnet:...``: built-in nets; the sample's shape and the number of classes come from
    ``batch``. ``transformers:CONFIG-OR-DIR[,key=value...]``, ``timm:NAME``, ``torchvision:NAME``: built from their
    configuration, nothing is downloaded. ``package.module:callable[,key=value...]`` or
    ``path/file.py:callable[,key=value...]``: what the callable returns, an ``nn.Module``, a ``Step`` or a dictionary of
    its fields (an instance of these serves too).
    Raises ``UsageError`` naming what is missing.
    """
    source, rest = _source(name)
    if source:
        with _seeded(seed):
            return {"model": SOURCES[source](rest, batch, seed)}
    with _seeded(seed):
        found = _instance(name)
    if found is None:
        with _seeded(seed):  # anew: a file that draws numbers is imported once, its callable called often
            found = call_object(name)
    return _parts(name, found)


def check_model(name: str, *, seed: int = 0) -> None:
    """Raise the ``UsageError`` of `load_step` for a wrong name, field or argument; nothing is built.

    A user's file or module is imported, as `load_step` would, once.
    """
    source, rest = _source(name)
    with _seeded(seed):
        if not source:
            _ = callable_object(name) if _instance(name) is None else None
        elif source in CHECKS:
            CHECKS[source](rest)


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the model's ``forward`` has an argument of this name."""
    return argument in _arguments(model)


def required(model: nn.Module) -> int:
    """How many arguments the model's ``forward`` cannot do without."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(p.default is p.empty and p.kind not in kinds for p in _arguments(model).values())


def _arguments(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # built in, without a signature
        return {}


def _source(name: str) -> tuple[str, str]:
    """``mlp:depth=3`` -> (``mlp``, ``depth=3``); an empty kind for a user's own model."""
    prefix, colon, rest = name.partition(":")
    if prefix in SOURCES and (colon or prefix in _spec.FAMILIES):
        return prefix, rest
    if not colon:
        raise unknown(
            "model", name, [f"{s}:..." for s in SOURCES] + ["package.module:callable", "path/file.py:callable"]
        )
    if "=" in rest.partition(",")[0] and "." not in prefix:  # fields of a built-in net, its family misspelt
        raise unknown("built-in net", prefix, SOURCES)
    return "", name


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's global stream starts from ``seed``, and is put back."""
    seed = seed_of(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every CUDA device too
        yield


def _instance(name: str) -> Any:
    """The module, ``Step`` or dictionary that the user's file holds under this name; ``None`` for what is to be
    called.
    """
    plain, given = split_arguments(name)
    found = load_object(plain)
    made = isinstance(found, nn.Module | Step | Mapping)
    if made and given:
        raise UsageError(f"Arguments go to a callable; {plain} is a {type(found).__name__}. Write {plain}.")
    return found if made else None


def _parts(name: str, found: Any) -> dict[str, Any]:
    """What the user's callable returned, as fields of a ``Step``; those that say nothing are left out."""
    known = [f.name for f in fields(Step) if f.init]
    if isinstance(found, Step):
        batch = () if found.alone else ("inputs", "targets")  # the first of its data
        found = {key: getattr(found, key) for key in known if key not in batch}
    if isinstance(found, nn.Module):
        return {"model": found}
    if not isinstance(found, Mapping):
        raise UsageError(
            f"{name} must return an nn.Module, a normscope.Step or a dict of its fields; it returned a "
            f"{type(found).__name__}. Return {{'model': model, 'inputs': x, 'targets': y, 'loss': loss}}."
        )
    for key in found:
        if key not in known:
            raise unknown("field of Step", key, known)
    if not isinstance(found.get("model"), nn.Module):
        got = type(found["model"]).__name__ if "model" in found else "none"
        raise UsageError(f"The dict that {name} returns must have an nn.Module under 'model'; it has {got}. Add it.")
    return {key: value for key, value in found.items() if value is not None or key == "mode"}


def _built_in(family: str) -> Callable[[str, Batch | None, int], nn.Module]:
    def make(rest: str, batch: Batch | None, seed: int) -> nn.Module:
        spec = _spec.parse(f"{family}:{rest}")
        if batch is not None and spec.outputs is None and batch.classes:
            spec = replace(spec, outputs=batch.classes)
        shape = None
        if batch is not None and isinstance(batch.inputs, torch.Tensor):
            shape = tuple(batch.inputs.shape[1:])
        return build(spec, shape, seed=seed)

    depth, more = (33, ", an odd depth") if family == "resnet" else (32, "")
    make.__doc__ = f"Built-in {family}: {family}:depth={depth},width=64,norm=batch,... (the fields of Spec{more})."
    return make


for _family in _spec.FAMILIES:
    SOURCES.add(_family, _built_in(_family))


def _imported(package: str) -> Any:
    try:
        with needs_extra(f"{package}:... needs", "transformers", "" if package == "transformers" else package):
            return importlib.import_module(package)
    except UsageError:
        raise
    except Exception as error:  # a torchvision built for another torch raises RuntimeError, for one
        raise UsageError(
            f"{package!r} is installed but does not import here: {type(error).__name__}: {error}. "
            "It and torch must be builds that fit each other."
        ) from error


def _timm_named(rest: str) -> Any:
    timm = _imported("timm")
    if rest not in timm.list_models():
        raise unknown("timm model", rest, timm.list_models(f"*{rest[:4]}*")[:12] or timm.list_models()[:12])
    return timm


@SOURCES.register("timm")
def _timm(rest: str, _batch: Batch | None, _seed: int) -> nn.Module:
    """timm:NAME, without pretrained weights (pip install timm)."""
    return _timm_named(rest).create_model(rest, pretrained=False)


def _torchvision_named(rest: str) -> Any:
    models = _imported("torchvision").models
    if rest not in models.list_models():
        raise unknown("torchvision model", rest, models.list_models())
    return models


@SOURCES.register("torchvision")
def _torchvision(rest: str, _batch: Batch | None, _seed: int) -> nn.Module:
    """torchvision:NAME, without weights (pip install torchvision)."""
    return _torchvision_named(rest).get_model(rest, weights=None)


def _transformers_config(rest: str) -> tuple[Any, Any]:
    """The library and the config of ``gpt2,n_layer=2``."""
    hub = _imported("transformers")
    name, *changes = rest.split(",")
    options = arguments_of(changes, f"transformers:{rest}")
    try:
        if "/" in name or name.startswith("."):
            config = hub.AutoConfig.from_pretrained(name, local_files_only=True, **options)
        else:
            if name not in hub.CONFIG_MAPPING:
                raise unknown("transformers model type", name, hub.CONFIG_MAPPING)
            defaults = hub.CONFIG_MAPPING[name]()
            for key in options:
                if not hasattr(defaults, key):
                    raise unknown(f"field of the {name} config", key, defaults.to_dict())
            config = hub.AutoConfig.for_model(name, **options)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"There is no transformers config at {name!r}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # values that the config refuses
        raise UsageError(f"transformers:{rest} is no config: {type(error).__name__}: {brief(error)}") from error
    return hub, config


@SOURCES.register("transformers")
def _transformers(rest: str, _batch: Batch | None, _seed: int) -> nn.Module:
    """transformers:gpt2,n_layer=2,...: a model type (bert, vit, resnet ...) or a folder with config.json."""
    hub, config = _transformers_config(rest)
    for auto in ("AutoModelForImageClassification", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModel"):
        kind = getattr(hub, auto)
        # BERT-like models also have a causal head; a config that is no decoder means the masked one.
        if auto == "AutoModelForCausalLM" and type(config) in hub.AutoModelForMaskedLM._model_mapping:
            continue
        if type(config) in kind._model_mapping:
            try:
                return kind.from_config(config).train()
            except Exception as error:
                raise UsageError(
                    f"transformers:{rest} cannot be built: {type(error).__name__}: {brief(error)}"
                ) from error
    raise UsageError(f"transformers has no model class for the config {type(config).__name__}.")


def speaks(model: nn.Module) -> bool:
    """Whether a model is a causal language model of ``transformers``: of its ``labels`` it makes the next token's
    loss, shifted by itself.
    """
    config, hub = getattr(model, "config", None), sys.modules.get("transformers")
    if config is None or hub is None or not takes(model, "labels"):
        return False
    if type(config) in hub.AutoModelForMaskedLM._model_mapping:  # it sees ahead
        return False
    kinds = hub.AutoModelForCausalLM._model_mapping
    return type(config) in kinds and type(model) is kinds[type(config)]


def _fields_of(family: str) -> Callable[[str], object]:
    return lambda rest: _spec.parse(f"{family}:{rest}")


#: Kind of a model -> what refuses a wrong name before anything is built.
CHECKS: dict[str, Callable[[str], object]] = {
    **{family: _fields_of(family) for family in _spec.FAMILIES},
    "timm": _timm_named,
    "torchvision": _torchvision_named,
    "transformers": _transformers_config,
}


def synthetic(name: str, *, n: int, seed: int = 0) -> Batch:
    """A made-up batch without targets: ``random:3x32x32`` (standard normal samples of that shape), or
    ``tokens:32x50257`` (length x vocabulary: uniform token ids, a tensor (n, length)).
    """
    kind, _, rest = name.partition(":")
    generator = torch.Generator().manual_seed(seed_of(seed))
    try:
        sizes = [int(s) for s in rest.lower().split("x")]
        if not all(s > 0 for s in sizes) or (kind == "tokens" and len(sizes) != 2):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"Made-up data is written random:3x32x32 (shape of a sample) or tokens:32x50257 (length x vocabulary); "
            f"got {name!r}."
        ) from None
    if n < 1:
        raise UsageError(f"A batch needs at least one sample; got n = {n}.")
    count = n * (sizes[0] if kind == "tokens" else math.prod(sizes))
    check_room(8 * count, f"{n} samples of {name}", "Take fewer: -n.")
    if kind == "tokens":
        if sizes[1] >= 2**63:
            raise UsageError(f"A vocabulary has fewer than 2**63 tokens; got {name!r}. Take a smaller one.")
        ids = torch.randint(sizes[1], (n, sizes[0]), generator=generator)
        return Batch(ids, None, name, None)
    try:
        return Batch(torch.randn(n, *sizes, generator=generator), None, name, None)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise UsageError(f"{n} samples of {name} do not fit in memory: {str(error).splitlines()[0]}") from None


def fitting_data(model: nn.Module) -> str | None:
    """The name of made-up data that a library's model takes, read off its config; ``None`` if it has none."""
    config = getattr(model, "config", None)
    vocabulary, size = getattr(config, "vocab_size", None), getattr(config, "image_size", None)
    if vocabulary and not size:
        return f"tokens:32x{vocabulary}"
    if config is not None and (size or hasattr(config, "num_channels")):
        sizes = size if isinstance(size, list | tuple) else (size or 224, size or 224)
        return f"random:{getattr(config, 'num_channels', 3)}x{sizes[0]}x{sizes[1]}"
    shape = (getattr(model, "default_cfg", None) or {}).get("input_size")  # timm
    if shape:
        return "random:" + "x".join(str(s) for s in shape)
    return None
