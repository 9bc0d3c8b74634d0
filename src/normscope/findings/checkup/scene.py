"""One forward and one backward pass of a step, kept for the check-up: outputs, gradients, leaves of the graph, modules
that ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from normscope.call.arguments import first_tensor, mapped, tensors
from normscope.call.graph import handwritten, nodes
from normscope.call.losses import COTANGENT, OWN, Loss
from normscope.call.reach import Reach
from normscope.call.samples import Samples
from normscope.call.step import Step
from normscope.findings.checkup.functions import Functions
from normscope.training.short import leaf

#: Samples of which statistics are looked at (chosen by us: a norm has as many numbers a sample as it has positions).
FEW = 16
#: Entries of the outputs up to which the loss is evaluated again and again (chosen by us: 25 evaluations stay below .2
#: s).
MOST = 1_000_000


#: Where functions end that bound what they give.
ENDS = {
    "SigmoidBackward0": (0.0, 1.0), "SoftmaxBackward0": (0.0, 1.0), "TanhBackward0": (-1.0, 1.0),
    "ReluBackward0": (0.0, float("inf")), "SoftplusBackward0": (0.0, float("inf")),
    "ExpBackward0": (0.0, float("inf")),
}  # fmt: skip
#: Functions that only give a tensor another shape.
SHAPES = {
    "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "SqueezeBackward0", "SqueezeBackward1",
    "SqueezeBackward2", "UnsqueezeBackward0", "TransposeBackward0", "PermuteBackward0", "CloneBackward0",
    "SelectBackward0",
    "SliceBackward0", "ExpandBackward0",
}  # fmt: skip


@dataclass
class Call:
    """One call of a module without children: what came in and went out, in numbers."""

    name: str
    module: nn.Module
    weighted: bool
    #: Entries a sample of the input and of the output; whether the input depends on a parameter that trains.
    size_in: float
    size_out: float
    trained_in: bool
    #: Standard deviation over samples relative to the rms; NaN where there is no sample axis.
    varies_in: float
    varies_out: float
    shape: tuple[int, ...] = ()
    #: The input, where it is data: no layer with weights ran before.
    data: Tensor | None = None


@dataclass
class Scene:
    """What one step was, on copies. ``names``: of the user's tensors, by ``id``; ``copies``: what stood for them."""

    at: Step
    names: dict[int, str]
    copies: dict[int, Tensor]
    calls: list[Call] = field(default_factory=list)
    whole: Any = None
    output: Tensor | None = None
    targets: Any = None
    loss: Loss | None = None
    value: float = float("nan")
    #: What was heard of the functions that model and loss call.
    functions: Functions = field(default_factory=Functions)
    #: Of each floating output the ends of the function that it comes from, if it has any.
    bounds: list[tuple[float, float] | None] = field(default_factory=list)
    #: And whether it depends on anything that can learn.
    live: list[bool] = field(default_factory=list)
    #: Layers whose input channels are the same twice.
    twice: list[dict[str, Any]] = field(default_factory=list)
    #: Layers that stand several times in one container, name -> how often they got one input, at least once a place.
    again: dict[str, int] = field(default_factory=dict)
    #: Modules (name, itself, input) with an ``autograd.Function`` of the user's.
    custom: list[tuple[str, nn.Module, Tensor]] = field(default_factory=list)
    #: The first layer behind a recurrent one on packed sequences to which some samples come as zeros alone.
    zero_rows: dict[str, Any] = field(default_factory=dict)
    #: Linear layers of which the second gets what the first gave.
    in_a_row: list[tuple[str, str]] = field(default_factory=list)
    grads: dict[str, Tensor | None] = field(default_factory=dict)
    #: Names of leaves behind the outputs that are no registered parameters; "" where no module holds it.
    unregistered: list[tuple[str, int]] = field(default_factory=list)
    #: Names of parameters that the forward pass made anew.
    remade: list[str] = field(default_factory=list)
    #: Mean and variance, a channel, of what each batch norm got, call by call, from `FEW` samples.
    normed: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    #: Modules with a single number among their parameters, and the rms of what the first call got.
    scales: dict[str, tuple[nn.Module, float]] = field(default_factory=dict)
    #: Names of parameters that outputs depend on, whatever the loss reads.
    reached: set[str] = field(default_factory=set)

    @property
    def weighted(self) -> list[Call]:
        """Calls of modules that hold parameters, in the order in which they ended."""
        return [c for c in self.calls if c.weighted]

    def layer_of(self, parameter: str) -> str:
        """The module that holds a parameter."""
        return parameter.rpartition(".")[0]


def watch(at: Step) -> Scene:
    """Run the step once and write down what the check-up needs."""
    reach = Reach.of([at.root])
    names = {id(p): n for n, p in at.root.named_parameters()}
    leaves = {k: t for k, t in reach.tensors.items() if t.is_leaf and t.requires_grad}
    copies = {id(p): leaf(p) for p in (*leaves.values(), *at.root.parameters())}
    scene = Scene(at, names, copies)
    others = {id(copies[k]): k for k in leaves if k not in names}
    held = held_names(at.root)
    at.run(lambda: _pass(scene, others, held, reach.modules), copies)
    return scene


def _main(whole: Any) -> Tensor | None:
    """The output that a loss is about: the first that is no single number, where there is one."""
    first = first_tensor(whole)
    if first is None or first.dim():
        return first
    return next((t for t in tensors(whole) if t.is_floating_point() and t.dim()), first)


def _ends(t: Tensor) -> tuple[float, float] | None:
    """Between which numbers the last function of a tensor lies, shapes apart."""
    node = t.grad_fn
    while node is not None and node.name() in SHAPES:
        node = node.next_functions[0][0]
    return None if node is None else ENDS.get(node.name())


def _pass(scene: Scene, others: Mapping[int, int], held: Mapping[int, str], modules: list[nn.Module]) -> None:
    at = scene.at
    args, kwargs, _ = at.arguments()
    functions = scene.functions
    functions.n, functions.batch = at.rows.n, [(t, t._version) for t in tensors((args, kwargs))]
    with functions.inside(at.root), _observed(scene, at.root, at.rows), functions:
        scene.whole = whole = at.whole(args, kwargs)
    functions.batch = []
    own = {id(p) for p in scene.copies.values()}
    scene.remade = [n for n, p in at.root.named_parameters() if id(p) not in own]
    scene.targets = at.own_targets()
    scene.loss = at.settled(whole)
    scene.output = None if at.step is not None else _main(whole)
    if scene.output is not None and not scene.output.is_floating_point():
        scene.output = None
    if scene.loss.kind == COTANGENT:
        value = None
    else:
        with functions:
            value = scene.loss.value(whole, scene.targets, at.seed)
        scene.value = float(value.detach())
    outputs = [t for t in tensors(whole) if t.grad_fn is not None]
    floats = [t for t in tensors(whole) if t.is_floating_point()]
    scene.bounds, scene.live = [_ends(t) for t in floats], [t.grad_fn is not None for t in floats]
    mine = {id(scene.copies[k]): name for k, name in scene.names.items()}
    given = {id(t) for t in tensors((args, kwargs))}
    for node in nodes(*outputs):
        leaf = getattr(node, "variable", None)
        if leaf is None or id(leaf) in given:
            continue
        if id(leaf) in mine:
            scene.reached.add(mine[id(leaf)])
        elif isinstance(leaf, nn.Parameter) or id(leaf) in others:
            original = others.get(id(leaf), id(leaf))  # other leaves are made on the way, to differentiate by them
            scene.unregistered.append((held.get(original, ""), original))
    wanted = [(n, scene.copies[k]) for k, n in scene.names.items() if scene.copies[k].requires_grad]
    if value is not None and not value.requires_grad:
        scene.grads = {n: None for n, _ in wanted}
    elif value is not None and wanted:
        found = torch.autograd.grad(value, [p for _, p in wanted], allow_unused=True)
        scene.grads = {n: None if g is None else g.detach().to_dense() for (n, _), g in zip(wanted, found, strict=True)}
    scene.whole = mapped(whole, lambda t: t.detach())
    if scene.output is not None:
        scene.output = _main(scene.whole)


@contextmanager
def _observed(scene: Scene, root: nn.Module, samples: Samples):  # type: ignore[no-untyped-def]
    handles, weights_ran = [], [False]
    linear: dict[int, tuple[nn.Linear, str, Tensor, int]] = {}
    packed: list[str] = []
    frozen_names = {m: n for n, m in root.named_modules()}
    repeated, fed = _repeated(root), dict[tuple[nn.Module, int, int], list[Tensor]]()

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = [*args, *kwargs.values()]
        x, y = first_tensor(given), first_tensor(output)
        x = next(tensors(given), None) if x is None else x
        if x is None or y is None:
            return
        weighted = any(True for _ in module.parameters(recurse=False))
        call = Call(
            frozen_names[module], module, weighted, x.numel() / samples.n, y.numel() / samples.n, x.requires_grad,
            _varies(x, samples, module), _varies(y, samples, module),
            tuple(x.shape),
        )  # fmt: skip
        if not type(module).__module__.startswith("torch.nn") and handwritten(y, x):
            scene.custom.append((call.name, module, x.detach()))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and x.numel() > x.shape[1]:
            few = x.detach()[:FEW]
            axes = [d for d in range(x.dim()) if d != 1]
            scene.normed.setdefault(call.name, []).append((few.mean(axes), few.var(axes, unbiased=False)))
        single = any(p.numel() == 1 for p in module.parameters(recurse=False))
        if single and x.is_floating_point() and call.name not in scene.scales:
            scene.scales[call.name] = module, float(x.detach().float().square().mean().sqrt())
        if isinstance(module, nn.RNNBase) and args and isinstance(args[0], PackedSequence):
            packed[:] = [call.name]
        elif packed and weighted and not scene.zero_rows and x.dim() == 2 and len(x) == samples.n:
            share = float((x == 0).all(1).float().mean())
            scene.zero_rows = {"module": call.name, "behind": packed[0], "share": share}
        if isinstance(module, nn.Linear):
            before = linear.get(id(x))
            same = before is not None and before[3] == x._version  # no activation in place between them
            if (
                before is not None
                and same
                and before[0].out_features >= min(before[0].in_features, module.out_features)
            ):
                scene.in_a_row.append((before[1], call.name))
            linear[id(y)] = (module, call.name, y, y._version)
        if module in repeated:
            alike = fed.setdefault((module, id(x), x._version), [])
            alike.append(x)
            if len(alike) >= repeated[module]:
                scene.again[call.name] = len(alike)
        if weighted and (channels := _same_twice(x, module)):
            scene.twice.append({"module": call.name, "channels": channels})
        if weighted and not x.requires_grad and (not weights_ran[0] or isinstance(module, nn.Embedding)):
            call.data = x.detach()
        weights_ran[0] |= weighted
        scene.calls.append(call)

    for module in frozen_names:
        if not any(True for _ in module.children()) or isinstance(module, nn.MultiheadAttention):
            handles.append(module.register_forward_hook(look, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _repeated(root: nn.Module) -> dict[nn.Module, int]:
    """Modules with parameters that stand more than once in a list, a dictionary or a sequence of modules, and all that
    is in them: how often.
    """
    found: dict[nn.Module, int] = {}
    for m in root.modules():
        if isinstance(m, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            for child, places in Counter(m._modules.values()).items():
                if places > 1 and child is not None and any(True for _ in child.parameters()):
                    found |= dict.fromkeys(child.modules(), places)
    return found


def _varies(x: Tensor, samples: Samples, module: nn.Module) -> float:
    rows = samples.of(x.detach(), module) if x.is_floating_point() else None
    if rows is None or len(rows) < 2:
        return float("nan")
    rows = rows[:32].reshape(min(len(rows), 32), -1)[:, :4096].float()
    size = rows.square().mean().sqrt()
    return float(rows.std(0).square().mean().sqrt() / size) if size > 0 else 0.0


def _same_twice(x: Tensor, module: nn.Module) -> int:
    """How many channels a layer gets, where the second half of them equals the first; 0 elsewhere."""
    axis = 1 if isinstance(module, nn.modules.conv._ConvNd) else -1
    if not x.is_floating_point() or x.dim() < 2 or x.shape[axis] < 4 or x.shape[axis] % 2:
        return 0
    one, other = x.detach()[:16].chunk(2, axis)
    apart = bool((one.movedim(axis, 0)[0] != one.movedim(axis, 0)[1]).any())  # else all channels are one
    return x.shape[axis] if apart and bool(one.std() > 0) and torch.equal(one, other) else 0


def held_names(root: nn.Module) -> dict[int, str]:
    """Paths of tensors and modules that modules hold in plain containers and attributes, by ``id`` of the tensor."""
    found: dict[int, str] = {}

    def enter(value: Any, path: str, depth: int) -> None:
        if depth > 4:
            return
        if isinstance(value, Tensor):
            found.setdefault(id(value), path)
        elif isinstance(value, nn.Module):
            for name, p in [*value.named_parameters(), *value.named_buffers()]:
                found.setdefault(id(p), f"{path}.{name}")
        elif isinstance(value, dict):
            for k, v in value.items():
                enter(v, f"{path}[{k!r}]", depth + 1)
        elif isinstance(value, list | tuple | set):
            for i, v in enumerate(value):
                enter(v, f"{path}[{i}]", depth + 1)

    for name, module in root.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_") and not isinstance(value, nn.Module):
                enter(value, f"{name}.{key}" if name else key, 0)
    return found


@dataclass
class Rerun:
    """More forward passes of a few samples of the batch, without gradients, all random streams started anew each
    time.
    """

    at: Step
    samples: Samples
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, at: Step, most: int = 16) -> Rerun | None:
        """With at most ``most`` samples, where every tensor of the batch has the sample axis; ``None`` elsewhere."""
        rows = at.rows
        found = list(tensors((at.args, at.kwargs)))
        if at.step is not None or rows.rows is not None or not found:
            return None
        if any(t.dim() <= rows.axis or t.shape[rows.axis] != rows.n for t in found):
            return None
        lengths = {s for t in found for i, s in enumerate(t.shape) if i != rows.axis}
        k = next((k for k in range(min(most, rows.n), 3, -1) if k not in lengths), min(most, rows.n))
        args, kwargs, _ = at.arguments()
        args, kwargs = mapped((args, kwargs), lambda t: t.narrow(rows.axis, 0, k))
        return cls(at, changed(rows, n=k), args, kwargs)

    def alter(self, change: Callable[[Tensor], Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with every tensor changed, the sample axis first."""
        axis = self.samples.axis
        found: tuple[tuple[Any, ...], dict[str, Any]] = mapped(
            (self.args, self.kwargs), lambda t: change(t.transpose(0, axis).clone()).transpose(0, axis).contiguous()
        )
        return found

    def output(self, args: Any = None, kwargs: Any = None, seed: int | None = None) -> Tensor:
        """The first output tensor of these arguments, random numbers drawn from ``seed``; inside a run."""
        y = first_tensor(self.whole(args, kwargs, seed))
        assert y is not None
        return y.detach().float()

    def whole(self, args: Any = None, kwargs: Any = None, seed: int | None = None) -> Any:
        """All that the model returns, as `output`."""
        torch.default_generator.manual_seed(self.at.seed if seed is None else seed)
        with torch.no_grad():
            own = mapped((self.args, self.kwargs) if args is None else (args, kwargs), lambda t: t.clone())
            return self.at.whole(*own)

    def run(self, work: Callable[[], Any], mode: str | None) -> Any:
        """``work()`` with the model on copies, in a mode; ``None`` where it does not run on some of the samples
        alone.
        """
        try:
            return changed(self.at, mode=mode).traceless().run(work)
        except Exception:
            return None


def replaced(whole: Any, old: Tensor, new: Tensor) -> Any:
    """What the model returned, with another tensor in the place of its output."""
    return mapped(whole, lambda t: new if t is old else t)


def as_function(scene: Scene) -> Callable[[Tensor, Tensor], float] | None:
    """The loss as a function of (outputs, targets); ``None`` where it is not one."""
    loss, output = scene.loss, scene.output
    if loss is None or output is None or loss.kind in (COTANGENT, OWN) or scene.at.step is not None:
        return None
    if not isinstance(scene.targets, Tensor) or output.numel() > 20 * MOST:
        return None

    def value(o: Tensor, t: Tensor) -> float:
        try:
            with torch.no_grad():
                return float(loss.value(replaced(scene.whole, output, o), t, scene.at.seed))
        except Exception:
            return float("nan")

    return value
