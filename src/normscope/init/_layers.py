"""Which layers of a model can be given new weights, in which order they run, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor
from normscope.call.reach import Reach
from normscope.call.step import Step, check_model, unwrap
from normscope.core.errors import UsageError
from normscope.core.memory import check_copies
from normscope.core.tensors import checked_generator

Treatable = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
TREATABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Treatment:
    """What a cure did: the ``model``, the paths of the layers ``treated``, in the order in which they were, and the
    layers ``left_alone`` with the reason of each; ``notes`` say what a reader must know about this very batch.
    """

    model: nn.Module
    treated: tuple[str, ...] = ()
    left_alone: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Treatment({len(self.treated)} layers treated, {len(self.left_alone)} left alone)"


@dataclass
class Layer:
    """A layer whose weights can be set: its path and its module."""

    name: str
    module: Treatable

    @property
    def weight(self) -> Tensor:
        """The weight, (out, in) or (out, in / groups, *kernel)."""
        return self.module.weight

    @property
    def groups(self) -> int:
        """Independent parts of a convolution; 1 for a linear layer."""
        return getattr(self.module, "groups", 1)

    def set(self, weight: Tensor, *, bias: bool = True) -> None:
        """Write the weight, in its own dtype, and zeros into the bias unless it is to stay."""
        with torch.no_grad():
            self.module.weight.copy_(weight.reshape(self.module.weight.shape))
            if bias and self.module.bias is not None and self.module.bias.requires_grad:
                self.module.bias.zero_()

    def linear(self, x: Tensor) -> Tensor:
        """The layer's output without its bias, at least in float32."""
        wide = torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32)
        x, weight = x.to(wide), self.weight.to(wide)
        if isinstance(self.module, nn.Linear):
            return nn.functional.linear(x, weight)
        return self.module._conv_forward(x, weight, None)


def survey(model: nn.Module) -> tuple[list[Layer], dict[str, str]]:
    """The treatable layers in the order of ``named_modules``, and why each other module with weights is left alone."""
    layers: list[Layer] = []
    left: dict[str, str] = {}
    owners: dict[Tensor, list[str]] = {}
    kinds: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if nn.utils.parametrize.is_parametrized(module):
            left[name] = "its weight is computed from other parameters (a parametrization)"
        if "parametrizations." in f"{name}." or name in left:
            continue
        own = [p for p in module._parameters.values() if p is not None]
        for p in own:
            if nn.parameter.is_lazy(p):
                raise UsageError(f"{name!r} has no shape yet (a lazy module): run one forward pass first.")
            owners.setdefault(p, []).append(name)
        kinds[name] = module
        weight = module._parameters.get("weight")
        if not isinstance(module, TREATABLE):
            if any(p.dim() > 1 for p in own):
                left[name] = f"a {type(module).__name__} is not treated"
        elif weight is None:
            left[name] = "its weight is computed from other parameters"
        elif weight.is_inference():
            raise UsageError(
                f"{name!r} was made in inference mode and cannot be changed; make the model outside of it, or copy it."
            )
        elif not weight.requires_grad:
            left[name] = "its weight is frozen (requires_grad is off)"
        elif weight.is_meta or not weight.is_floating_point():
            left[name] = f"its weight is {'on the meta device' if weight.is_meta else weight.dtype}"
        else:
            layers.append(Layer(name, module))
    for layer in list(layers):
        others = [o for o in owners[layer.module.weight] if o != layer.name and not isinstance(kinds[o], TREATABLE)]
        if others:
            layers.remove(layer)
            left[layer.name] = f"its weight is also that of {others[0]!r}, a {type(kinds[others[0]]).__name__}"
    return layers, left


def windows(layer: Layer, x: Tensor) -> Tensor:
    """Views (n, *positions, c_in, *kernel) of what each output position of a convolution sees; no copy but the padding.

    For a linear layer (n, *positions, d). Padding (and its mode), stride and dilation are the layer's.
    """
    module = layer.module
    if isinstance(module, nn.Linear):
        return x
    dims = len(module.kernel_size)
    x = x if x.dim() == dims + 2 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = nn.functional.pad(x, list(module._reversed_padding_repeated_twice), mode=mode)
    for axis in range(dims):
        size, step, gap = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
        x = x.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
    return x.movedim(1, 1 + dims)


def input_rows(layer: Layer, x: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, bool]:
    """Rows (groups, N, fan_in) that the layer's weight meets, and whether they are a part of all rows.

    At most ``most`` rows, drawn without replacement. Patches are shuffled in any case: neighbours look alike, and the
    first rows of one image are its border. Memory: only the chosen rows are copied.
    """
    seen = windows(layer, x)
    groups, fan_in = layer.groups, layer.weight[0].numel()
    positions = seen.shape[: seen.dim() - layer.weight.dim() + 1]
    total = int(torch.tensor(positions).prod())
    if total > most or isinstance(layer.module, nn.modules.conv._ConvNd):
        chosen = torch.randperm(total, generator=generator, device=generator.device)[:most].to(x.device)
        rows = seen[torch.unravel_index(chosen, positions)]
    else:
        rows = seen.reshape(total, -1)
    return rows.reshape(len(rows), groups, fan_in).transpose(0, 1), total > most


def untied(layers: list[Layer], left: dict[str, str]) -> list[Layer]:
    """The layers, each weight once: a later layer with an earlier one's weight is left alone."""
    first: dict[Tensor, str] = {}
    out = []
    for layer in layers:
        owner = first.setdefault(layer.module.weight, layer.name)
        if owner == layer.name:
            out.append(layer)
        else:
            left[layer.name] = f"its weight is that of {owner!r}: treated once"
    return out


def require(treated: list[str] | list[Layer], left: Mapping[str, str]) -> None:
    """``UsageError`` when there is nothing to treat, with the reasons."""
    if not treated:
        why = "; ".join(f"{name or 'the model itself'}: {reason}" for name, reason in list(left.items())[:5])
        raise UsageError(
            "There must be a Linear or Conv layer that can be given new weights; this model has none"
            f"{f' ({why})' if why else ''}. Choose another cure or model."
        )


#: Called with a layer and its input at its first call; may return a reason to leave the layer alone.
Visit = Callable[[Layer, Tensor], str | None]


def step_of(model: nn.Module, inputs: Any, seed: int = 0) -> Step:
    """One forward pass of the model on this batch (or that of a ``Step``), in training mode."""
    if isinstance(inputs, Step):
        return replace(inputs, model=model, mode="train", seed=seed)
    return Step(model, inputs, seed=seed)


def kept(layers: Sequence[Layer]) -> dict[int, Tensor]:
    """The layers' own weights, to stand for themselves in a run: what is written there stays."""
    return {id(p): p for layer in layers for p in layer.module._parameters.values() if p is not None}


def _check_samples(step: Step) -> None:
    if step.rows.n < 2:
        raise UsageError(f"A cure looks at a batch, so it needs at least 2 samples; got {step.rows.n}.")


def walk(model: nn.Module, inputs: Any, layers: list[Layer], visit: Visit | None = None, *, seed: int) -> list[Layer]:
    """One forward pass in training mode; each layer is shown with its input just before it first runs.

    ``visit`` may change the layer's weight: the layer then runs with the new one, so every later layer sees the
    representation of the layers treated before it. Everything but the weights is put back (`Step.run`), and they too
    without a ``visit``.
    Returns the layers that ran, in the order of first execution.
    Raises ``UsageError`` for fewer than two samples and for values that are not finite, naming the layer.
    """
    step = step_of(model, inputs, seed)
    _check_samples(step)
    ran: list[Layer] = []
    by_module: dict[nn.Module, Layer] = {layer.module: layer for layer in layers}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = by_module[module]
        x = first_tensor([*args, *kwargs.values()])
        if layer in ran or x is None:
            return
        if not torch.isfinite(x).all():
            where = "the batch itself" if not ran else "an earlier layer's output"
            raise UsageError(
                f"Activations must be finite; the input of {layer.name!r} ({where}) holds NaN or infinity. "
                "Clean the data, or lower the gain of the layers before it."
            )
        ran.append(layer)
        if visit is not None:
            with torch.no_grad():
                visit(layer, x.detach())

    given = {} if visit is None else kept(layers)
    step.watched(lambda: [m.register_forward_pre_hook(hook, with_kwargs=True) for m in by_module], given)
    return ran


def takers(
    step: Step,
    makers: Iterable[nn.Module],
    candidates: Iterable[nn.Module],
    see: Callable[[nn.Module, Tensor], None] | None = None,
) -> list[tuple[nn.Module, nn.Module]]:
    """(maker, taker) in the order of one forward pass in training mode: modules whose very output another one takes.

    A container passes on to what it holds: of several that take an output the last one to be entered counts.
    ``see(taker, output)`` is called at each.
    """
    _check_samples(step)
    made: dict[int, nn.Module] = {}
    keep: list[Any] = []  # alive, so that no other tensor gets the same identity
    found: dict[int, tuple[nn.Module, nn.Module]] = {}

    def after(module: nn.Module, _: Any, output: Any) -> None:
        keep.append(output)
        made[id(output)] = module

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and id(args[0]) in made:
            found[id(args[0])] = made[id(args[0])], module
            if see is not None:
                see(module, args[0])

    step.watched(lambda: [
        *(m.register_forward_hook(after) for m in makers),
        *(m.register_forward_pre_hook(before) for m in candidates),
    ])  # fmt: skip
    return list(found.values())


def in_order(
    model: nn.Module, inputs: Any, generator: torch.Generator
) -> tuple[nn.Module, list[Layer], dict[str, str], int]:
    """The model under its wrappers, its layers in the order of first execution, each weight once; why the others are
    left alone; and the seed of the passes, drawn from the generator.
    """
    model = model_of(model)
    layers, left = survey(model)
    require(layers, left)
    seed = int(torch.randint(2**31, (), generator=generator))
    ran = walk(model, inputs, layers, seed=seed)
    for layer in layers:
        if layer not in ran:
            left[layer.name] = "never called in the forward pass (its parent may compute with its weight itself)"
    return model, untied(ran, left), left, seed


@contextmanager
def all_or_nothing(layers: list[Layer]) -> Iterator[None]:
    """Weights and biases of the layers as they were, if the block raises."""
    check_copies((p for layer in layers for p in layer.module.parameters(recurse=False)), 1, "a copy")
    before = [(p, p.detach().clone()) for layer in layers for p in layer.module._parameters.values() if p is not None]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
        raise


def unchanged_on_error(cure: Callable[..., Treatment]) -> Callable[..., Treatment]:
    """Decorator: the model, its modules and numbers, is as it was if the call raises: when an interrupt comes a cure
    may be done, or one of several.
    """

    @wraps(cure)
    def call(model: nn.Module | Step, *args: Any, **kwargs: Any) -> Treatment:
        root = model.root if isinstance(model, Step) else model
        if not isinstance(root, nn.Module):
            return cure(model, *args, **kwargs)  # which says so
        held = Reach.of([root])
        tensors = [t for t in (*root.parameters(), *root.buffers()) if not (nn.parameter.is_lazy(t) or t.is_meta)]
        check_copies(tensors, 1, "a copy")
        numbers = [(t, t.detach().clone()) for t in tensors]
        try:
            return cure(model, *args, **kwargs)
        except BaseException:
            for place in held.places:
                place.write(place.items)
            for tensor, value in numbers:
                if not torch.equal(tensor, value):  # a write ends graphs that the user may still need
                    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                        tensor.copy_(value)
            raise

    return call


def generator_of(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or a new one of seed 0."""
    return torch.Generator().manual_seed(0) if generator is None else checked_generator(generator)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal float64 numbers, drawn on the generator's own device: the same for a model on any device."""
    return torch.randn(*shape, generator=generator, device=generator.device, dtype=torch.float64)


def haar(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A Haar-distributed matrix (rows, columns) with orthonormal rows or columns, whichever are fewer; float64."""
    tall = normal(max(rows, columns), min(rows, columns), generator=generator)
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sgn()  # the signs make it Haar (Mezzadri 2007)
    return q if rows >= columns else q.T


def model_of(model: nn.Module) -> nn.Module:
    """The model under wrappers of torch's (compile, DataParallel)."""
    check_model(model)
    return unwrap(model)[0]
