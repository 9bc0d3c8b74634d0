"""Memory stays flat over many calls, and calls from several threads give what calls one after another give."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, Case, call, changes, fingerprint, kept_surroundings, objective, surroundings

import normscope as ns

# Memory

SETTLED, HALF, CALLS = 3, 11, 20  # what is made once (imports, caches) is there after the third call
PASS = 0.6e6  # bytes that one forward pass of `wide` keeps for the backward pass
SLACK = 5 * PASS  # of the resident memory, for the allocator; a leak of one pass a call is 17 of them


def wide() -> Case:
    """Large enough that the activations of a pass show in the resident memory."""
    layers = [m for _ in range(4) for m in (nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.1))]
    return Case(nn.Sequential(*layers, nn.Linear(256, 1)), torch.randn(32, 256), torch.randn(32, 1), "mse")


def ones(matrix: ns.LinearMap) -> Tensor:
    return torch.ones(matrix.shape[1], dtype=matrix.dtype)


def product(make: Callable[..., ns.LinearMap], *given: Any) -> Callable[[], Any]:
    """A map is made anew for each product."""

    def once() -> Tensor:
        matrix = make(*given)
        return matrix.matvec(ones(matrix))

    return once


def products(make: Callable[..., ns.LinearMap], *given: Any) -> Callable[[], Any]:
    """One map, asked for many products."""
    matrix = make(*given)
    return lambda: matrix.matvec(ones(matrix))


def given(case: Case) -> tuple[Any, ...]:
    return (case.model, case.inputs, case.targets) + (() if case.loss is None else (case.loss,))


#: How a verb is made ready on a case; what comes back is called again and again.
VERBS: dict[str, Callable[[Case], Callable[[], Any]]] = {
    "probe": lambda case: lambda: ns.probe(*given(case)),
    "diagnose": lambda case: lambda: ns.diagnose(*given(case), trial=5),
    "sharpness": lambda case: lambda: ns.sharpness(*given(case), tol=0.1, probes=1, budget=0.1),
    "jacobian": lambda case: product(ns.jacobian, case.model, case.inputs),
    "jacobian.matvec": lambda case: products(ns.jacobian, case.model, case.inputs),
    "fisher": lambda case: product(ns.fisher, *given(case)),
    "fisher.matvec": lambda case: products(ns.fisher, *given(case)),
    "hessian": lambda case: product(ns.hessian, *given(case)),
    "hessian.matvec": lambda case: products(ns.hessian, *given(case)),
}


@contextmanager
def only_what_comes() -> Iterator[None]:
    """The collector looks at new objects alone: walking over all imported ones is most of a test's time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def tensors() -> list[Tensor]:
    """The new tensors that Python can reach."""
    gc.collect()
    return [x for x in gc.get_objects() if issubclass(type(x), Tensor)]


_give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # what is free goes back to the system: else noise


def resident() -> int:
    """Bytes of this process in memory, what C++ alone holds included; 0 where the system does not tell."""
    gc.collect()
    _give_back(0)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


class Growth(NamedTuple):
    """What has come since the calls that settle: after half of the calls, and after all of them."""

    tensors: tuple[int, int]
    memory: tuple[int, int]  # of those tensors, in bytes
    resident: int  # in bytes, after all calls


def growth(go: Callable[[], Any]) -> Growth:
    """Call again and again, and see what stays."""
    with kept_surroundings():
        for _ in range(SETTLED):
            go()
        with only_what_comes():
            at_first = resident()
            found = []
            for stop, start in ((HALF, SETTLED), (CALLS, HALF)):
                for _ in range(stop - start):
                    go()
                new = tensors()
                memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in new if not t.is_sparse}
                found.append((len(new), sum(memory.values())))
                del new
            return Growth(*zip(*found, strict=True), resident() - at_first)


@pytest.mark.parametrize("verb", VERBS)
def test_memory_stays(verb):
    """Tensors alive, their bytes, and the process's own memory, whose allocator may take some once: a second round."""
    once, again = growth(VERBS[verb](wide())), growth(VERBS[verb](wide()))
    for first, last in (once.tensors, once.memory, again.tensors, again.memory):
        assert last <= first
    assert again.resident < SLACK


#: Models that by themselves hold on to what a pass makes.
KEEPERS = ("keeps-its-activations", "cache-that-grows", "logs-like-lightning", "hook-fills-a-closure",
           "dict-deque-array", "old-weight-norm", "compiled-eager", "checkpointed")  # fmt: skip


@pytest.mark.parametrize("animal", KEEPERS)
@pytest.mark.parametrize("verb", ["diagnose", "sharpness"])
def test_a_model_that_keeps_what_it_makes_keeps_nothing_of_ours(animal, verb):
    first, last = growth(VERBS[verb](ZOO[animal]())).tensors
    assert last <= first


def test_tensors_that_stay_are_counted():
    kept: list[Tensor] = []
    found = growth(lambda: kept.append(torch.ones(10)))
    assert (found.tensors, found.memory) == ((8, 17), (320, 680))


def test_tensors_that_take_turns_are_no_growth():
    kept: dict[int, Tensor] = {}
    first, last = growth(lambda: kept.update({0: torch.ones(10)})).tensors
    assert (first, last) == (1, 1)


def test_a_graph_that_stays_shows_in_the_resident_memory():
    case, kept = wide(), []
    assert growth(lambda: kept.append(objective(case).grad_fn)).resident > SLACK


def test_a_graph_that_goes_does_not_show_in_the_resident_memory():
    case = wide()
    assert growth(lambda: objective(case)).resident < SLACK


# Threads

DROPOUT = ("dropout", "checkpointed", "transformer-encoder", "random-of-torch")


def numbers(case: Case, verb: str) -> list[Any]:
    """What a verb says, to the last bit."""
    if verb == "sharpness":
        found = ns.sharpness(*given(case), probes=2)
        return [found.lambda_max.hex(), found.mean.hex(), sorted(found.layers.items())]
    records = (ns.diagnose(*given(case), trial=False).profile if verb == "diagnose" else ns.probe(*given(case))).records
    return sorted((r.layer, r.name, r.call, r.signal, r.metric, repr(r.value)) for r in records)


@contextmanager
def often() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1000)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What each job returns or raises, all started together in threads of their own."""
    start, results = threading.Barrier(len(jobs)), [None] * len(jobs)

    def work(i: int) -> None:
        start.wait()
        try:
            results[i] = jobs[i]()
        except Exception as error:  # it is the result
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    with often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results


@pytest.fixture(autouse=True)
def _flags_stay():
    with kept_surroundings():
        yield


@pytest.mark.parametrize("verb", ["probe", "diagnose", "sharpness"])
def test_four_models_in_four_threads_give_what_they_give_in_turn(verb):
    serial = [numbers(ZOO[name](), verb) for name in DROPOUT]
    cases = [ZOO[name]() for name in DROPOUT]
    for _ in range(3):
        assert at_once([lambda case=case: numbers(case, verb) for case in cases]) == serial


@pytest.mark.parametrize("verb", ["probe", "diagnose", "sharpness"])
def test_four_models_in_four_threads_are_as_before(verb):
    cases = [ZOO[name]() for name in DROPOUT]
    before = [fingerprint(*case[:3]) for case in cases]
    at_once([lambda case=case: numbers(case, verb) for case in cases])
    assert [changes(old, fingerprint(*case[:3])) for old, case in zip(before, cases, strict=True)] == [[]] * 4


@pytest.mark.parametrize("verb", ["probe", "diagnose", "sharpness"])
def test_the_callers_surroundings_are_as_before_when_four_threads_measure(verb):
    cases = [ZOO[name]() for name in DROPOUT]
    numbers(ZOO["dropout"](), verb)  # what is imported on first use is imported
    before = surroundings()
    at_once([lambda case=case: numbers(case, verb) for case in cases])
    assert changes(before, surroundings()) == []


def test_each_of_four_threads_may_ask_for_something_else():
    verbs = ("probe", "diagnose", "sharpness", "probe")
    serial = [numbers(ZOO[name](), verb) for name, verb in zip(DROPOUT, verbs, strict=True)]
    cases = [ZOO[name]() for name in DROPOUT]  # made here: making one draws from the global streams
    jobs = [lambda case=case, verb=verb: numbers(case, verb) for case, verb in zip(cases, verbs, strict=True)]
    assert at_once(jobs) == serial


@pytest.mark.parametrize("verb", ["probe", "diagnose", "sharpness"])
@pytest.mark.parametrize("animal", ["dropout", "batch-norm-rows", "counters"])
def test_one_model_in_two_threads_is_refused_or_right(verb, animal):
    expected, case = numbers(ZOO[animal](), verb), ZOO[animal]()
    found = [result for _ in range(4) for result in at_once([lambda: numbers(case, verb)] * 2)]
    assert [r for r in found if r != expected and not isinstance(r, ns.UsageError)] == []


@pytest.mark.parametrize("verb", ["probe", "diagnose", "sharpness"])
@pytest.mark.parametrize("animal", ["dropout", "batch-norm-rows", "counters"])
def test_one_model_in_two_threads_is_as_before(verb, animal):
    case = ZOO[animal]()
    before = fingerprint(*case[:3])
    for _ in range(4):
        at_once([lambda: numbers(case, verb)] * 2)
    assert changes(before, fingerprint(*case[:3])) == []


def test_a_refusal_in_one_thread_does_not_stay():
    case = ZOO["dropout"]()
    at_once([lambda: numbers(case, "probe")] * 2)
    assert numbers(case, "probe") == numbers(ZOO["dropout"](), "probe")


def test_threads_that_share_a_stream_are_noticed():
    """Without the library: dropout in four threads draws from one stream, so these tests can fail."""

    def draw(case: Case, seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [float(call(case).detach().sum()) for _ in range(50)]

    cases = [ZOO["dropout"]() for _ in range(4)]
    serial = [draw(case, i) for i, case in enumerate(cases)]
    tries = (at_once([lambda i=i, case=case: draw(case, i) for i, case in enumerate(cases)]) for _ in range(10))
    assert any(found != serial for found in tries)
