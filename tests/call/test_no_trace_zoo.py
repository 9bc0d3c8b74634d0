"""Nothing is left behind: each model of the zoo, each verb, each circumstance, pair by pair.

One `Combination` is run once, and three facts about it are tested: the model, its batch and the surroundings are as
before; an optimizer made before still trains the model as if nothing had been measured; the answer is an allowed one.
"""

from __future__ import annotations

import _thread
import contextlib
import copy
import functools
import gc
import itertools
import random
import signal
import sys
import threading
import time
import types
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, Case, Fingerprint, bits, changes, fingerprint, kept_surroundings, objective, streams, surroundings

import normscope as ns

# The verbs


def _given(case: Case) -> tuple[Any, ...]:
    return (case.model, case.inputs, case.targets) + (() if case.loss is None else (case.loss,))


def _product(make: Callable[..., Any], case: Case, *given: Any) -> None:
    matrix = make(*given)
    matrix.matvec(torch.ones(matrix.shape[1], dtype=matrix.dtype))


def cure_for(case: Case) -> str:
    """Different models get different ones: from nothing, from the inputs, and a few from trials on copies."""
    if isinstance(case.model, nn.Sequential):
        return "auto"
    return ("orthogonal", "lsuv", "haar")[len(repr(case.model)) % 3]


def _cure(case: Case) -> None:
    ns.cure(case.model, cure_for(case), case.inputs, case.targets, loss=case.loss)


def _race(case: Case) -> None:
    samples = 8 if case.targets is None else len(case.targets)
    data = case.inputs, case.targets
    ns.race({"it": case.model}, data, epochs=1, batch=samples, seeds=1, geometry=0, loss=case.loss)


#: What is asked of the library. The tracker has its own way to be tested: beside a plain training step.
VERBS: dict[str, Callable[[Case], Any]] = {
    "probe": lambda case: ns.probe(*_given(case)),
    "diagnose": lambda case: ns.diagnose(*_given(case), trial=5),
    "sharpness": lambda case: ns.sharpness(*_given(case), tol=1e-2, probes=1, budget=1.0),
    "jacobian": lambda case: _product(ns.jacobian, case, case.model, case.inputs),
    "fisher": lambda case: _product(ns.fisher, case, *_given(case)),
    "hessian": lambda case: _product(ns.hessian, case, *_given(case)),
    "ntk": lambda case: _product(ns.ntk, case, case.model, case.inputs),
    "cure": _cure,
    "race": _race,
    "Tracker": lambda case: None,
}

# The circumstances


class Boom(Exception):
    """Raised on purpose in the middle."""


@dataclass
class Clock:
    """Counts events, and at number ``at`` does ``alarm``; without one it only counts."""

    at: int | None = None
    alarm: Callable[[], None] = lambda: None
    count: int = 0
    fired: bool = False

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.fired = True
            self.alarm()


def _boom() -> None:
    raise Boom


class Wall(torch.autograd.Function):
    """The identity; each pass backward through it is an event."""

    generate_vmap_rule = True
    clock: Clock

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Wall.clock.tick()
        return grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        Wall.clock.tick()
        return tangent.clone()


@contextmanager
def on_forward(clock: Clock) -> Iterator[None]:
    """Each call of any module is an event. The hook is on no model, and is there before anything is recorded."""
    hook = nn.modules.module.register_module_forward_hook(lambda *_: clock.tick())
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def on_backward(clock: Clock) -> Iterator[None]:
    """Each pass backward through the output of any module is an event."""

    def wall(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return Wall.apply(output) if isinstance(output, Tensor) and output.requires_grad else None

    Wall.clock = clock
    hook = nn.modules.module.register_module_forward_hook(wall)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def on_lines(clock: Clock, root: str) -> Iterator[None]:
    """Each line that runs in a file below ``root`` is an event."""

    def line(_frame: types.FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            clock.tick()
        return line

    def enter(frame: types.FrameType, _event: str, _arg: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(root) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


class OnExits(AbstractContextManager[None]):
    """Each end of a context that a generator makes is an event, before the generator goes on."""

    END = contextlib._GeneratorContextManager.__exit__.__code__

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def _enter(self, frame: types.FrameType, _event: str, _arg: Any) -> None:
        if frame.f_code is self.END:
            self.clock.tick()


@contextmanager
def in_time(clock: Clock) -> Iterator[None]:
    """Events are microseconds; the alarm comes as a real signal, wherever the program is."""

    def fire(*_: Any) -> None:
        clock.fired = True
        clock.alarm()

    before, started = signal.signal(signal.SIGALRM, fire), time.perf_counter()
    try:
        if clock.at is not None:
            signal.setitimer(signal.ITIMER_REAL, max(clock.at, 1) * 1e-6)
        yield
        clock.count = int((time.perf_counter() - started) * 7e5)  # the next run may be faster
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


#: How events are made that a clock counts.
Events = Callable[[Clock], AbstractContextManager[None]]


@dataclass(frozen=True)
class Circumstance:
    """In what state of torch, and interrupted by what, a verb is called."""

    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    events: Events | None = None
    alarm: Callable[[], None] = _boom
    thread: bool = False


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


OURS, TORCHS = (str(Path(m.__file__).parent) for m in (ns, torch))
CONTEXTS: dict[str, Circumstance] = {
    "plain": Circumstance(),
    "no_grad": Circumstance(torch.no_grad),
    "inference_mode": Circumstance(torch.inference_mode),
    "autocast": Circumstance(lambda: torch.autocast("cpu", torch.bfloat16)),
    "deterministic": Circumstance(_deterministic),
    "float64": Circumstance(_double),
    "thread": Circumstance(thread=True),
    "forward-raises": Circumstance(events=on_forward),
    "backward-raises": Circumstance(events=on_backward),
    "interrupt-line-of-ours": Circumstance(events=lambda c: on_lines(c, OURS), alarm=_interrupt),
    "interrupt-line-of-torch": Circumstance(events=lambda c: on_lines(c, TORCHS), alarm=_interrupt),
    "interrupt-in-time": Circumstance(events=in_time, alarm=_thread.interrupt_main),
}


# One combination


@dataclass(frozen=True)
class Combination:
    """A model of the zoo, a verb and a circumstance; where it interrupts, ``moment`` is the draw of when."""

    animal: str
    verb: str
    context: str
    moment: int = 0

    def __str__(self) -> str:
        return f"{self.animal}-{self.verb}-{self.context}" + (f"-{self.moment}" if self.moment else "")


@dataclass
class Outcome:
    """What one combination did."""

    answer: str = "returned"  # or the type and text of what it raised
    model: list[str] = field(default_factory=list)  # what changed of the model and the batch
    around: list[str] = field(default_factory=list)  # ... of the surroundings
    step: list[str] = field(default_factory=list)  # how a training step afterwards differs from one never measured
    fired: bool = False


def _answer(go: Callable[[], Any]) -> str:
    try:
        go()
    except BaseException as error:  # whatever it is, it is the outcome
        cause: BaseException | None = error
        while cause is not None:  # an error of the library may wrap that of the model
            if isinstance(cause, Boom):
                return f"Boom: {error}"
            cause = cause.__cause__
        kinds = (c for c in (ns.UsageError, KeyboardInterrupt) if isinstance(error, c))
        return f"{next(kinds, type(error)).__name__}: {error}"
    return "returned"


Subject = tuple[Case, torch.optim.Optimizer]


def ready(animal: str, warm: bool) -> Subject:
    """A case and its optimizer; a warm one has trained a step: it has gradients, momenta, caches, statistics."""
    case = ZOO[animal]()
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    if warm:
        train(fresh(animal, case), optimizer, 1)
    return case, optimizer


def fresh(animal: str, case: Case) -> Case:
    """The same model on a batch that no forward pass has worked on."""
    return copy.deepcopy(_pristine(animal))._replace(model=case.model, loss=case.loss)


@functools.cache
def _pristine(animal: str) -> Case:
    return ZOO[animal]()._replace(model=nn.Identity(), loss=None)


def train(case: Case, optimizer: torch.optim.Optimizer, seed: int) -> str:
    """One step of the user's loop on the batch; what came of it."""
    with streams(seed), kept_surroundings(), torch.inference_mode(False), torch.enable_grad():
        return _answer(lambda: _step(case, optimizer))


def _held(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def step_after(animal: str, case: Case, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Facts about one more training step on a fresh batch: what it raised, what moved, to which values."""
    held, model = _held(optimizer), list(case.model.parameters())
    before = [bits(p) for p in held]
    facts: dict[str, Any] = {"answer": train(fresh(animal, case), optimizer, 2)}
    facts["parameters of the model that the optimizer holds"] = [any(p is q for q in held) for p in model]
    facts["parameters that move"] = [bits(p) != b for p, b in zip(held, before, strict=True)]
    facts["values of the parameters after the step"] = [zlib.crc32(bits(p)) for p in held]
    return facts


@functools.cache
def undisturbed(animal: str, warm: bool) -> dict[str, Any]:
    """`step_after` of a model that was never measured."""
    return step_after(animal, *ready(animal, warm))


def observe(go: Callable[[], Any], case: Case, out: Outcome, *, cures: bool = False) -> None:
    """Call ``go`` and enter in ``out`` what it raised and changed; a cure that returned may have set weights."""
    before, around = fingerprint(*case[:3]), surroundings()
    out.answer = _answer(go)
    out.around += changes(around, surroundings())
    free = _values_of_weights(before) if cures and out.answer == "returned" else ()
    out.model += [c for c in changes(before, fingerprint(*case[:3])) if not c.startswith(free)]


def _values_of_weights(state: Fingerprint) -> tuple[str, ...]:
    """How changes begin that are values of parameters, or of tensors that lie in the same memory."""
    where = {state.facts.get((path, "memory")) for path, x in state.objects.items() if isinstance(x, nn.Parameter)}
    return tuple(f"{path}: values: " for path in state.objects if state.facts.get((path, "memory"), "") in where)


def observe_tracker(
    plain: Callable[[], Any], tracked: Callable[[], Any], twin: Case, case: Case, out: Outcome, *, interrupted: bool
) -> None:
    """The same training step without and with a tracker: all must be equal.

    A step that was interrupted anywhere cannot be compared, and may itself have left torch's modes unfinished: then no
    hook may be left, and no flag or type changed.
    """
    before = fingerprint(*case[:3])
    answers, around, after = [], [], []
    for go, one in ((plain, twin), (tracked, case)):
        with kept_surroundings():
            answers.append(_answer(go))
            around.append(surroundings())
            after.append(fingerprint(*one[:3]))
    if interrupted:
        out.answer = answers[1]
        kept = "hooks", ".training: ", ".weight: type: ", "requires_grad: "
        found = [c for c in changes(before, after[1]) if any(part in c for part in kept)]
        out.model += [c for c in found if not any(part in c for part in (".grad", "absent", "<"))]
    else:
        out.answer = "returned" if answers[0] == answers[1] else f"{answers[1]} instead of {answers[0]}"
        out.model += changes(after[0], after[1], identity=False)
        out.around += changes(around[0], around[1])


def _tracked(case: Case, optimizer: torch.optim.Optimizer) -> None:
    tracker = ns.Tracker(case.model, every=1)
    try:
        _step(case, optimizer)
    finally:
        tracker.close()


def _step(case: Case, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    objective(case).backward()
    optimizer.step()


@functools.cache
def outcome(combination: Combination) -> Outcome:
    """Run a combination, with the process as it was afterwards."""
    with warnings.catch_warnings(), kept_surroundings():
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        unraisable, sys.unraisablehook = sys.unraisablehook, lambda _: None  # interrupts that fell into a finalizer
        try:
            return _outcome(combination)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = unraisable


def _outcome(combination: Combination) -> Outcome:
    animal, verb = combination.animal, combination.verb
    where = CONTEXTS[combination.context]
    rng = random.Random(str(combination))
    warm = rng.random() < 0.5
    subject, out, clock = ready(animal, warm), Outcome(), Clock()
    (case, optimizer), beside = subject, verb == "Tracker"
    if where.events:
        rehearsal = Clock()
        _in_context(where, rehearsal, verb, ready(animal, warm), ready(animal, warm) if beside else None, Outcome())
        clock = Clock(rng.randint(1, max(rehearsal.count, 1)), where.alarm)
    given = where, clock, verb, subject, ready(animal, warm) if beside else None, out
    if where.thread:
        around = surroundings()
        worker = threading.Thread(target=_in_context, args=given)
        worker.start()
        worker.join()
        out.around += [f"in the main thread: {c}" for c in changes(around, surroundings())]
    else:
        _in_context(*given)
    out.fired = clock.fired
    if beside:  # it has trained a step by itself, which was compared
        return out
    expected, found = undisturbed(animal, warm), step_after(animal, case, optimizer)
    if verb == "cure" and out.answer == "returned":  # other weights were asked for
        expected, found = ({k: v for k, v in f.items() if not k.startswith("values")} for f in (expected, found))
        expected["parameters that move"], found["parameters that move"] = True, any(found["parameters that move"])
    out.step = [f"{k}: {found[k]} instead of {v}" for k, v in expected.items() if found[k] != v]
    return out


def _in_context(
    where: Circumstance, clock: Clock, verb: str, subject: Subject, twin: Subject | None, out: Outcome
) -> None:
    """Call the verb on ``subject`` in its circumstance; a tracker beside the same training step of its ``twin``."""
    late = where.alarm is not _boom  # tracing and timers belong around the call alone, not around what is recorded
    events = where.events or (lambda _: nullcontext())

    def go() -> None:
        with events(clock) if late else nullcontext():
            VERBS[verb](subject[0])

    def tracked() -> None:
        if not late:
            clock.count, clock.fired = 0, False  # it is to be stopped at the same event as the plain step
        with events(clock) if late else nullcontext():
            _tracked(*subject)

    with kept_surroundings(), where.around(), nullcontext() if late else events(clock):
        if twin:
            observe_tracker(lambda: _step(*twin), tracked, twin[0], subject[0], out, interrupted=late)
        else:
            observe(go, subject[0], out, cures=verb == "cure")


# What may be refused

GRADIENTS = ("sharpness", "jacobian", "fisher", "hessian", "ntk")
ALL = tuple(VERBS)
#: Why which verbs may raise ``UsageError`` on which models; nothing else may, and each of them leaves no trace either.
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "its parameters have no values yet": (("lazy-linear",), ALL),
    "its parameters appear while it runs": (("head-made-in-forward",), ALL),
    "torch differentiates nothing through inference tensors": (("made-in-inference-mode",), ALL),
    "it returns a number, and no outputs to differentiate": (("own-loss",), ("sharpness", "jacobian", "fisher", "ntk")),
    "a race needs targets to cut into batches": (("own-loss", "own-loss-in-a-dict", "gpt2"), ("race",)),
    "its inputs do not have a row for each sample": (
        ("embedding-bag", "graph-convolution", "lstm-time-first", "packed-sequence"), ("race",),
    ),
    "a race, and the choice of a cure, need copies, and Python or torch refuses to copy it": (
        ("cannot-be-copied", "keeps-its-activations", "logs-like-lightning", "hook-fills-a-closure",
         "old-spectral-norm", "old-weight-norm", "pruned"), ("race", "cure"),
    ),
    "torch has no second derivative, and no forward mode, of what it calls": (
        ("differentiable-once", "embedding-bag"), GRADIENTS,
    ),
    "torch keeps its gradients sparse": (("sparse-gradient",), GRADIENTS),
    "its parameters are complex": (("complex-weights",), GRADIENTS),
    "reentrant checkpointing gives no single gradients": (
        ("checkpointed-reentrant",), ("probe", "diagnose", *GRADIENTS),
    ),
    "no layer of it can be given new weights": (
        tuple(name for name, one in ZOO.items() if "cure" not in one.tags), ("cure",),
    ),
}  # fmt: skip


def why_refused(combination: Combination) -> list[str]:
    animal, verb = combination.animal, combination.verb
    return [why for why, (animals, verbs) in REFUSED.items() if animal in animals and verb in verbs]


def unexpected(combination: Combination) -> list[str]:
    """The answer, if it is none that may be given: a result, a refusal of the table, or the interruption itself."""
    answer, where = outcome(combination).answer, CONTEXTS[combination.context]
    allowed = {"returned"} | ({"UsageError"} if why_refused(combination) else set())
    if where.events:
        allowed |= {"Boom"} if where.alarm is _boom else {"KeyboardInterrupt", "Interrupted"}
    return [] if answer.partition(":")[0] in allowed else [f"answered {answer}"]


# Which combinations


def covering(seed: int = 0) -> list[Combination]:
    """Every pair of model and circumstance, of model and verb, of verb and circumstance, in one combination or more.

    A square: in row i (model) and column j (circumstance) stands verb i + j, after shuffling each of the three.
    """
    rng = random.Random(seed)
    animals, verbs, contexts = (rng.sample(list(names), len(names)) for names in (ZOO, VERBS, CONTEXTS))
    cells = itertools.product(enumerate(animals), enumerate(contexts))
    return [Combination(animal, verbs[(i + j) % len(verbs)], context) for (i, animal), (j, context) in cells]


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What is imported on first use, which may add filters of warnings, is imported, and no longer collected."""
    for verb in VERBS:
        outcome(Combination("mlp-relu", verb, "plain"))
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", params=covering(), ids=str)
def combination(request):
    return request.param


@pytest.mark.parametrize("pair", list(itertools.combinations(("animal", "verb", "context"), 2)), ids="-".join)
def test_each_pair_is_covered(pair):
    sizes = {"animal": len(ZOO), "verb": len(VERBS), "context": len(CONTEXTS)}
    met = {tuple(getattr(c, name) for name in pair) for c in covering()}
    assert len(met) == sizes[pair[0]] * sizes[pair[1]]


def test_nothing_is_left_behind(combination):
    found = outcome(combination)
    assert found.model + found.around == []


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "Tracker"])
def test_nothing_is_left_where_an_interrupt_meets_a_generator_that_was_to_put_something_back(verb):
    for every in (Clock(), Clock()):  # the first imports
        with OnExits(every):
            VERBS[verb](ZOO["checkpointed"]())
    found, fired = {}, 0
    for at in range(1, every.count + 1, max(every.count // 16, 1)):
        case, out, clock = ZOO["checkpointed"](), Outcome(), Clock(at, _interrupt)

        def go(case: Case = case, clock: Clock = clock) -> None:
            with OnExits(clock):
                VERBS[verb](case)

        with kept_surroundings():
            observe(go, case, out, cures=verb == "cure")
        assert not clock.fired or out.answer == "KeyboardInterrupt: " or verb == "race", out.answer
        found |= {at: out.model + out.around} if out.model + out.around else {}
        fired += clock.fired
    assert fired
    assert found == {}


def test_an_optimizer_made_before_trains_on_as_if_nothing_was_measured(combination):
    assert outcome(combination).step == []


def test_it_answers_or_says_why_not(combination):
    assert unexpected(combination) == []


def test_the_table_of_refusals_names_models_and_verbs_that_exist():
    assert all(set(animals) <= set(ZOO) and set(verbs) <= set(VERBS) for animals, verbs in REFUSED.values())


# The zoo


@pytest.mark.parametrize("name", ZOO)
def test_an_animal_is_small(name):
    held = ZOO[name]().model.parameters()
    assert 0 < sum(0 if nn.parameter.is_lazy(p) else p.numel() for p in held) <= 3000


@pytest.mark.parametrize("name", ZOO)
def test_an_animal_is_made_alike_each_time(name):
    first, second = (fingerprint(*ZOO[name]()[:3]) for _ in range(2))
    assert changes(first, second, identity=False) == []


@pytest.mark.parametrize("name", ZOO)
def test_making_an_animal_leaves_the_random_streams(name):
    before = surroundings()
    ZOO[name]()
    assert [c for c in changes(before, surroundings()) if c.startswith("random")] == []


def traces_of_training(name: str) -> tuple[list[str], list[str]]:
    """What a plain forward and backward pass changes, but for gradients: of the case, and around it."""
    case = ZOO[name]()
    with kept_surroundings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, around = fingerprint(*case[:3]), surroundings()
        objective(case).backward()
        found = changes(before, fingerprint(*case[:3])), changes(around, surroundings())
    return [c for c in found[0] if ".grad" not in c], found[1]


@pytest.mark.parametrize("name", [name for name, one in ZOO.items() if "stateful" in one.tags])
def test_a_stateful_animal_leaves_traces_when_nobody_clears_them(name):
    assert traces_of_training(name)[0]


@pytest.mark.parametrize("name", [name for name, one in ZOO.items() if "random" in one.tags])
def test_a_random_animal_draws(name):
    case, around = traces_of_training(name)
    assert [c for c in (*case, *around) if "random stream" in c or "state:" in c]


@pytest.mark.parametrize("name", [name for name, one in ZOO.items() if "sets_flags" in one.tags])
def test_an_animal_that_sets_flags_sets_them(name):
    with torch.no_grad() if name == "sets-gradient-mode" else nullcontext():
        assert [c for c in traces_of_training(name)[1] if not c.startswith("random")]


# That these tests can fail: a fingerprint notices each kind of change


class Plain:
    """An object with attributes; ``place`` is a slot."""

    __slots__ = ("__dict__", "place")

    def __init__(self) -> None:
        self.count, self.place = 0, 0


class Rich(nn.Module):
    """A model with state of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.register_buffer("saved", torch.zeros(2))
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)
        self.number, self.text, self.nothing, self.hole = 1.0, "text", None, float("nan")
        self.list, self.nested, self.tuple = [1, 2], {"deep": [{"x": torch.zeros(2)}]}, (torch.zeros(1), 1)
        self.set, self.deque, self.array = {1}, deque([1, 2]), np.zeros(2)
        self.plain, self.stored = Plain(), torch.zeros(2)
        self.torchs, self.numpys, self.pythons = torch.Generator(), np.random.default_rng(0), random.Random(0)
        self.weights = {"w": nn.Parameter(torch.zeros(2))}
        closed: list[int] = []
        self.closed = closed
        self.a.register_forward_hook(lambda *_: closed.append(1))
        self.partial = functools.partial(print, self.plain)
        self.a.weight.register_hook(lambda g: None)
        self.a.weight.grad = torch.ones(3, 3)


def _swap(m: nn.Module, name: str) -> None:
    setattr(m, name, copy.deepcopy(getattr(m, name)))


CHANGES: dict[str, Callable[[Any, Tensor], Any]] = {
    "a parameter's value": lambda m, _: m.a.weight.data.add_(1e-6),
    "a parameter's sign of zero": lambda m, _: m.weights["w"].data.neg_(),
    "a parameter's object": lambda m, _: _swap(m.a, "weight"),
    "a parameter's memory": lambda m, _: setattr(m.a.weight, "data", m.a.weight.data.clone()),
    "a parameter's type": lambda m, _: m.a.double(),
    "a parameter's strides": lambda m, _: setattr(m.a.weight, "data", m.a.weight.data.t().contiguous().t()),
    "a parameter's flag": lambda m, _: m.a.bias.requires_grad_(False),
    "a parameter's attribute": lambda m, _: setattr(m.a.bias, "mark", 1),
    "a parameter's hook": lambda m, _: m.a.bias.register_hook(print),
    "a parameter's hook after accumulating": lambda m, _: m.a.bias.register_post_accumulate_grad_hook(print),
    "a parameter's hook removed": lambda m, _: m.a.weight._backward_hooks.clear(),
    "a parameter that is new": lambda m, _: m.register_parameter("new", nn.Parameter(torch.zeros(1))),
    "a parameter that became a tensor": lambda m, _: m.a._parameters.update(weight=m.a.weight.detach()),
    "a parameter in a dict": lambda m, _: m.weights["w"].data.add_(1),
    "a gradient's value": lambda m, _: m.a.weight.grad.add_(1),
    "a gradient's object": lambda m, _: setattr(m.a.weight, "grad", m.a.weight.grad.clone()),
    "a gradient gone": lambda m, _: setattr(m.a.weight, "grad", None),
    "a gradient come": lambda m, _: setattr(m.a.bias, "grad", torch.zeros(3)),
    "a gradient come, outside parameters()": lambda m, _: setattr(m.weights["w"], "grad", torch.zeros(2)),
    "a buffer's value": lambda m, _: m.norm.running_mean.add_(1),
    "a buffer's object": lambda m, _: _swap(m.norm, "running_mean"),
    "a buffer's size": lambda m, _: m.saved.resize_(3),
    "a buffer that is saved now": lambda m, _: m._non_persistent_buffers_set.clear(),
    "a buffer gone": lambda m, _: delattr(m, "saved"),
    "a counter": lambda m, _: m.norm.num_batches_tracked.add_(1),
    "the order of the buffers": lambda m, _: m._buffers.update(saved=m._buffers.pop("saved")),
    "the training flag": lambda m, _: setattr(m.norm, "training", False),
    "the class": lambda m, _: setattr(m, "__class__", type("Other", (Rich,), {})),
    "the class, by one of its name": lambda m, _: setattr(m, "__class__", type("Rich", (Rich,), {})),
    "a submodule": lambda m, _: setattr(m, "a", copy.deepcopy(m.a)),
    "a submodule's option": lambda m, _: setattr(m.norm, "momentum", None),
    "a forward hook": lambda m, _: m.register_forward_hook(print),
    "a forward hook removed": lambda m, _: m.a._forward_hooks.clear(),
    "a pre-hook": lambda m, _: m.norm.register_forward_pre_hook(print),
    "a backward hook": lambda m, _: m.norm.register_full_backward_hook(print),
    "a hook on loading": lambda m, _: m.register_load_state_dict_post_hook(print),
    "a number": lambda m, _: setattr(m, "number", -1.0),
    "a number's type": lambda m, _: setattr(m, "number", 1),
    "a text": lambda m, _: setattr(m, "text", "other"),
    "None": lambda m, _: setattr(m, "nothing", 0),
    "NaN": lambda m, _: setattr(m, "hole", 0.0),
    "a new attribute": lambda m, _: setattr(m, "new", None),
    "an attribute gone": lambda m, _: delattr(m, "text"),
    "a list's item": lambda m, _: m.list.append(3),
    "a list's object": lambda m, _: _swap(m, "list"),
    "a nested tensor": lambda m, _: m.nested["deep"][0]["x"].add_(1),
    "a nested key": lambda m, _: m.nested["deep"][0].update(y=1),
    "a tuple's tensor": lambda m, _: m.tuple[0].add_(1),
    "a set's member": lambda m, _: m.set.add(2),
    "a deque": lambda m, _: m.deque.rotate(1),
    "an array's value": lambda m, _: m.array.fill(1),
    "an array's object": lambda m, _: _swap(m, "array"),
    "a plain object's attribute": lambda m, _: setattr(m.plain, "count", 1),
    "a plain object's slot": lambda m, _: setattr(m.plain, "place", 1),
    "a tensor attribute's value": lambda m, _: m.stored.add_(1),
    "a tensor attribute's graph": lambda m, _: m.stored.add_(m.a.bias.sum() * 0),
    "a generator of torch": lambda m, _: torch.rand(1, generator=m.torchs),
    "a generator of numpy": lambda m, _: m.numpys.random(),
    "a generator of Python": lambda m, _: m.pythons.random(),
    "what a hook closes over": lambda m, _: m.closed.append(1),
    "an input's value": lambda _, x: x.data.add_(1),
    "an input's flag": lambda _, x: x.requires_grad_(),
    "an input's gradient": lambda _, x: setattr(x, "grad", torch.zeros_like(x)),
    "an input's memory": lambda _, x: x.set_(x.clone()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_fingerprint_notices(change):
    model, x = Rich(), torch.zeros(4, 3)
    before = fingerprint(model, x)
    change(model, x)
    assert changes(before, fingerprint(model, x)) != []


def test_a_fingerprint_of_an_untouched_model_stays():
    model, x = Rich(), torch.zeros(4, 3)
    assert changes(fingerprint(model, x), fingerprint(model, x)) == []


def test_a_fingerprint_does_not_count_versions():
    model, x = Rich(), torch.zeros(4, 3)
    before = fingerprint(model, x)
    model.saved.add_(1).sub_(1)
    assert changes(before, fingerprint(model, x)) == []


def test_a_change_is_told_by_the_name_of_what_changed():
    model = Rich()
    before = fingerprint(model)
    model.norm.running_mean.add_(1)
    assert [c.split(": ")[:2] for c in changes(before, fingerprint(model))] == [["model.norm.running_mean", "values"]]


def test_a_dead_object_and_a_new_one_in_its_place_are_two():
    model = Rich()
    before = fingerprint(model)
    address = id(model.nested)
    model.nested = None
    model.nested = {"deep": [{"x": torch.zeros(2)}]}
    assert (id(model.nested) == address, changes(before, fingerprint(model)) == []) == (False, False)


SETTINGS: dict[str, Callable[[], Any]] = {
    "random stream of torch": lambda: torch.rand(1),
    "random stream of numpy": lambda: np.random.rand(),  # noqa: NPY002
    "random stream of python": random.random,
    "gradient mode": lambda: torch.set_grad_enabled(False),
    "default type": lambda: torch.set_default_dtype(torch.float64),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "flash attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "memory-efficient attention": lambda: torch.backends.cuda.enable_mem_efficient_sdp(False),
    "attention by plain products": lambda: torch.backends.cuda.enable_math_sdp(False),
    "attention of cudnn": lambda: torch.backends.cuda.enable_cudnn_sdp(False),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast on cpu": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast type on cpu": lambda: torch.set_autocast_dtype("cpu", torch.float16),
    "autocast on cuda": lambda: torch.set_autocast_enabled("cuda", True),
    "autocast type on cuda": lambda: torch.set_autocast_dtype("cuda", torch.bfloat16),
    "autocast's cache": lambda: torch.set_autocast_cache_enabled(False),
    "cudnn": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "cudnn, benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "cudnn, deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "cudnn, tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "matmul precision": lambda: torch.set_float32_matmul_precision("high"),
    "attention's fast path": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "warnings always": lambda: torch.set_warn_always(True),
    "warning filters": lambda: warnings.simplefilter("ignore", ResourceWarning),
    "how warnings are shown": lambda: setattr(warnings, "showwarning", print),
    "handler of SIGINT": lambda: signal.signal(signal.SIGINT, lambda *_: None),
    "function modes": lambda: torch.overrides.BaseTorchFunctionMode().__enter__(),
    "transforms of torch.func": lambda: torch._C._functorch._grad_increment_nesting(),
    "level of forward mode": torch.autograd.forward_ad.enter_dual_level,
    "hooks on saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(abs, abs).__enter__(),
    "cache of parametrizations": lambda: setattr(torch.nn.utils.parametrize, "_cache_enabled", 1),
    "profile function": lambda: sys.setprofile(lambda *_: None),
    "numpy's error state": lambda: np.seterr(all="ignore"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_surroundings_notice(name):
    with warnings.catch_warnings(), kept_surroundings():
        before = surroundings()
        SETTINGS[name]()
        assert [c.partition(": ")[0] for c in changes(before, surroundings())] == [name]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_surroundings_are_put_back(name):
    with warnings.catch_warnings():
        before = surroundings()
        with kept_surroundings():
            SETTINGS[name]()
        assert changes(before, surroundings()) == []


# That these tests can fail: a verb that leaves something is found out, in each circumstance


def _leave(what: str) -> Callable[[Case], None]:
    return lambda case: {
        "a count": lambda: setattr(case.model, "seen", 1),
        "a buffer": lambda: case.model.norm.running_mean.add_(1),
        "a parameter of equal value": lambda: setattr(
            case.model.m, "weight", nn.Parameter(case.model.m.weight.clone())
        ),
        "a gradient": lambda: setattr(case.model.m.weight, "grad", case.model.m.weight.data.clone()),
        "a hook": lambda: case.model.register_forward_hook(lambda *_: None),
        "eval mode": case.model.eval,
        "an input": lambda: case.inputs.data.mul_(2),
        "a target": lambda: case.targets.data.zero_(),
        "a draw": lambda: torch.rand(1),
        "a type": lambda: torch.set_default_dtype(torch.float16),
    }[what]()


LEFT = ("a count", "a buffer", "a parameter of equal value", "a gradient", "a hook", "eval mode", "an input",
        "a target", "a draw", "a type")  # fmt: skip


def outcome_of(monkeypatch: Any, verb: Callable[[Case], Any], context: str) -> Outcome:
    monkeypatch.setitem(VERBS, "leaky", verb)
    return outcome.__wrapped__(Combination("batch-norm-rows", "leaky", context))


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("context", [name for name, where in CONTEXTS.items() if not where.events])
def test_what_a_verb_leaves_is_found(monkeypatch, what, context):
    found = outcome_of(monkeypatch, _leave(what), context)
    assert found.around if what in ("a draw", "a type") else found.model


def test_a_verb_that_leaves_nothing_is_not_blamed(monkeypatch):
    assert outcome_of(monkeypatch, lambda case: None, "plain") == Outcome()


def test_a_parameter_that_the_optimizer_does_not_hold_shows_in_the_step(monkeypatch):
    assert outcome_of(monkeypatch, _leave("a parameter of equal value"), "plain").step


def careless(case: Case) -> None:
    """Puts back what it changed, unless it is stopped."""
    case.model.norm.momentum = 0.5
    objective(case._replace(model=copy.deepcopy(case.model))).backward()
    ns.measure(torch.ones(4, 3) + torch.eye(4, 3))
    case.model.norm.momentum = 0.1


COUNTED = [name for name, where in CONTEXTS.items() if where.events and where.events is not in_time]


@pytest.mark.parametrize("context", COUNTED)
def test_what_an_interrupted_verb_leaves_is_found(monkeypatch, context):
    found = outcome_of(monkeypatch, careless, context)
    assert (found.fired, [c for c in found.model if "momentum" in c] != []) == (True, True)


def test_what_a_verb_interrupted_by_the_clock_leaves_is_found(monkeypatch):
    tries = (outcome_of(monkeypatch, careless, "interrupt-in-time") for _ in range(10))  # the clock may come late
    assert any("momentum" in change for found in tries for change in found.model)


@pytest.mark.parametrize("context", COUNTED)
@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_is_interrupted(verb, context):
    curable = next(name for name, one in ZOO.items() if "cure" in one.tags and cure_for(one()) == "auto")
    assert outcome(Combination(curable if verb == "cure" else "mlp-relu", verb, context)).fired


@pytest.mark.parametrize("hook", [True, False], ids=["left", "taken off"])
def test_a_tracker_that_leaves_a_hook_is_found(monkeypatch, hook):
    class Leaky:
        def __init__(self, model: nn.Module, every: int) -> None:
            self.handle = model.register_forward_hook(lambda *_: None)

        def close(self) -> None:
            if not hook:
                self.handle.remove()

    monkeypatch.setattr(ns, "Tracker", Leaky)
    assert bool(outcome.__wrapped__(Combination("mlp-relu", "Tracker", "plain")).model) == hook
