"""The race itself: prepare every variant, choose the rates, train variant by variant and seed by seed."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from normscope.call.losses import OWN, Loss, LossLike
from normscope.call.step import check_model, copied
from normscope.call.traceless import Kept
from normscope.core.errors import UsageError, finite_number, flag, seeds_of, unknown, whole_number
from normscope.core.load import user_error
from normscope.core.tensors import device_of, floating_dtype
from normscope.data.datasets import Batch
from normscope.racing._folder import Folder, run_of
from normscope.racing._inputs import Plan, Variant, names_of, samples_of
from normscope.racing._progress import Bar, Interrupted, Watcher, interruptible
from normscope.racing._rates import Rate, Rule, choose, rules
from normscope.racing._result import Race
from normscope.racing._run import Run, Tests, geometry_steps, on, table
from normscope.training import Recipe, Samples, Training, try_out

if TYPE_CHECKING:
    import os

    import polars

#: Training samples whose loss and accuracy are evaluated, at most.
EVALUATED = 2048
#: Steps that are timed before the race, after one that is not.
_TIMED = 2


def race(
    variants: Mapping[str, Variant],
    data: Batch | Samples | tuple[Any, Any],
    test: Batch | Samples | tuple[Any, Any] | None = None,
    *,
    epochs: int = 3,
    batch: int = 128,
    lr: Rule | Mapping[str, Rule] = 0.01,
    optimiser: str = "sgd",
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    warmup: int = 0,
    loss: LossLike = None,
    seeds: int | Sequence[int] = 3,
    baseline: str | None = None,
    target_loss: float | None = None,
    geometry: int | None = None,
    probe_samples: int = 64,
    out: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 30.0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: bool | Watcher = False,
) -> Race:
    """Train variants of a network on the same batches in the same order, seed by seed, and compare them.

    variants: name -> function of the seed that returns a fresh module (it may draw from torch's global stream, which
        then starts from the seed), or a module, of which each seed trains a copy.
    data, test: a `Batch`, or a pair (inputs, targets): tensors with a row a sample, or dicts or tuples of these.
        Without ``test`` there is no test accuracy.
    lr: a number; ``"search"`` or ``"search:0.01,0.1"``: pilot runs of at most 100 steps with the first seed, and the
        rate with the lowest loss at their end (mean over the last fifth) wins; ``"auto"`` or ``"auto:0.5"``: the best
        rate of `normscope.rates` on the first 21 batches, or that share; ``"sharpness"`` or ``"sharpness:0.5"``: that
        share of the stability threshold 2 / lambda_max, with the optimiser's momentum, on the first batch in training
        mode; or one of these a variant.
    epochs, batch, optimiser, momentum, nesterov, weight_decay, warmup, loss: see `normscope.training.Recipe`.
    seeds: how many, from 0, or which ones. A seed sets the weights, the order of the samples and dropout.
    baseline: the variant that the others are compared with; default the first.
    target_loss: the loss that steps are counted to; default half way down, see `Race.target`.
    geometry: at how many steps, evenly on a log axis, ``probe_samples`` samples go through `probe`; 0 for none;
        default 12, fewer in a short race (4 and one more for every 50 steps), because a look costs as much as a few
        steps.
    out: folder (or ``s3://...``) that keeps everything, a `normscope.sweeping.Store` with a cell a run: a race that was
        stopped or killed goes on from there, to the same numbers. Every ``checkpoint_every`` seconds the state of the
        current run is written; finished runs are not run again.
    device, dtype: where and in what the models train. progress: ``True`` for a bar on standard error.

    A run that diverges stops and is counted as diverged. Training is in training mode; accuracy is measured in eval
    mode with running statistics. Exactly resumed runs are bit-equal on a CPU with the same number of threads.
    ``facts["notes"]`` say how the first batch was read, where that is not torch's way.
    Raises ``UsageError`` (nothing of the race has run yet), ``Interrupted`` on Ctrl-C.
    """
    names = names_of(variants)
    numbers = seeds_of(seeds)
    if target_loss is not None:
        target_loss = finite_number("target_loss", target_loss, do="Leave it out for half way down.")
    checkpoint_every = finite_number(
        "checkpoint_every", checkpoint_every, least=0, do="It is in seconds; the default is 30."
    )
    if baseline is not None and baseline not in names:
        raise unknown("variant", baseline, names)
    train, tested = samples_of(data), None if test is None else samples_of(test)
    recipe = Recipe(
        epochs=epochs, batch=batch, optimiser=optimiser, momentum=momentum, nesterov=nesterov,
        weight_decay=weight_decay, warmup=warmup, loss=loss, seed=numbers[0],
    )  # fmt: skip
    if geometry is None:
        geometry = min(12, 4 + len(train) // recipe.batch * recipe.epochs // 50)
    geometry = whole_number("geometry", geometry, 0)
    probe_samples = whole_number(
        "probe_samples", probe_samples, 2, "A Gram matrix compares samples; the default is 64."
    )
    where = device_of(device)
    dtype = None if dtype is None else floating_dtype(dtype)
    about = {
        "epochs": recipe.epochs, "batch": recipe.batch, "optimiser": optimiser, "momentum": float(recipe.momentum),
        "nesterov": nesterov, "weight_decay": float(recipe.weight_decay), "warmup": recipe.warmup,
        "loss": Loss.of(loss).settled(None, train.targets, OWN).name, "geometry": geometry,
        "probe_samples": probe_samples, "device": where.type,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."), "data": train.fingerprint(),
        "test": None if tested is None else tested.fingerprint(),
    }  # fmt: skip
    watcher = progress if isinstance(progress, Watcher) else Bar() if flag("progress", progress) else Watcher()
    rates, folder = rules(lr, names), None if out is None else Folder(out)
    facts = {"baseline": baseline or names[0], "target_loss": target_loss}
    kept = Kept(*(v for v in variants.values() if isinstance(v, nn.Module)))
    with kept, kept, torch.inference_mode(False), torch.enable_grad(), closing(watcher):
        contest = _Contest(
            dict(variants), numbers, recipe, rates, train.to(where, dtype),
            None if tested is None else tested.to(where, dtype), about, where, dtype, watcher, folder, geometry,
            probe_samples, checkpoint_every,
        )  # fmt: skip
        return contest.run(facts)


@dataclass
class _Contest:
    variants: dict[str, Variant]
    seeds: tuple[int, ...]
    recipe: Recipe
    rules: dict[str, Rule]
    train: Samples
    test: Samples | None
    settings: dict[str, Any]
    device: torch.device
    dtype: torch.dtype | None
    watcher: Watcher
    folder: Folder | None
    geometry: int
    probe_samples: int
    checkpoint_every: float
    rates: dict[str, Rate] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _first: dict[str, nn.Module] = field(default_factory=dict)
    _look_seconds: dict[str, float] = field(default_factory=dict)
    _done: int = 0

    def run(self, facts: dict[str, Any]) -> Race:
        """Everything, in order; the folder stays locked meanwhile."""
        import polars as pl

        steps, every = self._length()
        tests = Tests(
            on(self.train, EVALUATED), self.test, on(self.train, self.probe_samples),
            geometry_steps(steps, self.geometry), every,
        )  # fmt: skip
        with ExitStack() as stack, interruptible() as stop:
            if self.folder is not None:
                stack.enter_context(self.folder.locked())
                self.folder.check(self.settings)
            described = {name: self._describe(name, tests) for name in self.variants}
            if self.folder is not None:
                self.folder.join(described)
            for name in self.variants:
                self._choose(name, stop.is_set)
            frames = self._finished(every)
            pending = [(s, v) for s in self.seeds for v in self.variants if (v, s) not in frames]
            seconds = self._time(tests, pending, steps)
            self._done = steps * len(frames)
            total = steps * len(self.seeds) * len(self.variants)
            self.watcher.plan(
                Plan(tuple(self.variants), self.seeds, steps, total, self._done, seconds, dict(self.rates))
            )
            for seed, name in pending:
                frames[name, seed] = self._train(name, seed, tests, steps, stop.is_set)
        for torn in self.folder.set_aside if self.folder else ():
            self._note(f"{torn}; what it held was computed again")
        whole = pl.concat([frames[v, s] for v in self.variants for s in self.seeds])
        return Race(whole, facts | self._facts(steps, every))

    def _length(self) -> tuple[int, int]:
        every = len(self.train) // self.recipe.batch
        if not every:
            raise UsageError(
                f"A step needs {self.recipe.batch} samples, the batch; there are {len(self.train)}. "
                f"Take a batch of at most {len(self.train)}, or more samples."
            )
        return every * self.recipe.epochs, every

    def _facts(self, steps: int, every: int) -> dict[str, Any]:
        return {
            "variants": list(self.variants),
            "seeds": list(self.seeds),
            "steps": steps,
            "steps_per_epoch": every,
            **self.settings,
            "rates": {name: rate.to_dict() for name, rate in self.rates.items()},
            "modes": "trained in training mode (batch statistics); evaluated in eval mode (running statistics)",
            "torch": torch.__version__,
            "notes": self.notes,
        }

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.watcher.note(text)

    def _build(self, name: str, seed: int) -> nn.Module:
        """The variant's module on its device; torch's global stream is put back."""
        make = self.variants[name]
        self.watcher.stage(f"building {name}, seed {seed}")
        if isinstance(make, nn.Module):
            model: object = copied(make)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                try:
                    model = make(seed)
                except UsageError:
                    raise
                except Exception as error:
                    raise user_error(f"Building variant {name!r} with seed {seed}", error) from error
        if not isinstance(model, nn.Module):
            raise UsageError(f"Variant {name!r} must return an nn.Module; it returned a {type(model).__name__}.")
        with _told(f"Variant {name!r}"):
            check_model(model)
        return model.to(device=self.device, dtype=self.dtype)

    def _describe(self, name: str, tests: Tests) -> dict[str, Any]:
        """Build the first seed's model, try all that will be done with it, and say what tells it from another."""
        model = self._first[name] = self._build(name, self.seeds[0])
        try:
            with _told(f"Variant {name!r}"):
                one = Training(copied(model), self.train, self.recipe)
                notes = try_out(model, self.train.take(one.batch(0)), self.recipe, mode="train")
            if self.test is not None:
                with _told(f"Variant {name!r} on the test samples"):
                    try_out(model, self.test.take(slice(0, 2)), self.recipe, mode="eval")
            with _told(f"Variant {name!r}"):
                one.advance(1)
                if tests.geometry and math.isfinite(one.losses[0]):
                    start = time.perf_counter()
                    tests.look(one.model, self.recipe)
                    self._look_seconds[name] = time.perf_counter() - start
        except UsageError:
            raise
        except Exception as error:
            raise user_error(f"The first step of variant {name!r}", error) from error
        for note in notes:
            self._note(f"{name}, first batch: {note}")
        if not math.isfinite(one.losses[0]):
            raise UsageError(
                f"The first loss of variant {name!r} (seed {self.seeds[0]}) must be finite; it is {one.losses[0]}. "
                "Its forward pass overflows before any training: look at it with `normscope diagnose`."
            )
        parameters = [p.detach().double() for p in model.parameters()]
        shapes = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
        structure = hashlib.sha256(f"{model}{shapes}".encode()).hexdigest()[:12]
        norm = math.sqrt(sum(float(p.square().sum()) for p in parameters))
        # The weights of the first seed alone: a race may be joined by more seeds.
        return {"structure": structure, "lr": self.rules[name], f"norm, seed {self.seeds[0]}": norm}

    def _finished(self, every: int) -> dict[tuple[str, int], polars.DataFrame]:
        if self.folder is None:
            return {}
        runs = {run_of(v, s, self.rates[v].lr): (v, s) for v in self.variants for s in self.seeds}
        return {runs[run]: table(*runs[run], frame, every) for run, frame in self.folder.finished(runs).items()}

    def _choose(self, name: str, stop: Callable[[], bool]) -> None:
        rate = self.folder.rate(name) if self.folder else None
        if rate is None:
            rate = choose(
                self.rules[name], self._first[name], self.train, self.recipe,
                lambda text: self._between(stop, f"{name}: {text}"),
            )  # fmt: skip
            if self.folder is not None:
                self.folder.write_rate(name, rate)
        self.rates[name] = rate
        if rate.how != "given":
            self.watcher.note(f"{name}: lr {rate.lr:.4g} ({rate.how}, {rate.seconds:.1f} s)")
        if rate.note:
            self._note(f"{name}: {rate.note}")

    def _between(self, stop: Callable[[], bool], text: str) -> None:
        """A place in the preparations where Ctrl-C is heard."""
        if stop():
            raise self._interrupted()
        self.watcher.stage(text)

    def _time(self, tests: Tests, pending: Sequence[tuple[int, str]], steps: int) -> float:
        """Seconds that the pending runs will take, from a few steps and one probe of each variant."""
        seconds = {}
        for name in {name for _, name in pending}:
            self.watcher.stage(f"timing {name}")
            trial = Training(copied(self._first[name]), self.train, replace(self.recipe, lr=1e-30))
            trial.advance(min(1, trial.steps))
            start = time.perf_counter()
            trial.advance(min(1 + _TIMED, trial.steps))
            seconds[name] = (time.perf_counter() - start) / _TIMED * steps
            seconds[name] += self._look_seconds.get(name, 0.0) * len(tests.geometry)
        return sum(seconds[name] for _, name in pending)

    def _train(self, name: str, seed: int, tests: Tests, steps: int, stop: Callable[[], bool]) -> polars.DataFrame:
        if stop():
            raise self._interrupted()
        model = self._first.pop(name) if seed == self.seeds[0] else self._build(name, seed)
        recipe = replace(self.recipe, seed=seed, lr=self.rates[name].lr)
        run, cell = Run(Training(model, self.train, recipe), tests), run_of(name, seed, recipe.lr)
        if self.folder is not None and (state := self.folder.state(cell)) is not None:
            run.restore(state)
        behind, saved = self._done, [time.monotonic()]

        def pause() -> bool:
            training = run.training
            self.watcher.step(name, seed, training.losses[-1] if training.losses else math.nan, behind + training.step)
            return stop() or time.monotonic() - saved[0] >= self.checkpoint_every

        def save() -> bool:
            if self.folder is not None:
                self.folder.write_state(cell, run.state())
            saved[0] = time.monotonic()
            return stop()

        if not run.go(pause, save):
            raise self._interrupted()
        rows = run.numbers()
        if run.training.diverged is not None:
            self.watcher.note(f"{name}, seed {seed}: diverged at step {run.training.diverged}")
        if self.folder is not None:
            self.folder.finish(cell, rows)
        self._done = behind + steps
        return table(name, seed, rows, run.training.steps_per_epoch)

    def _interrupted(self) -> Interrupted:
        if self.folder is None:
            return Interrupted("Stopped. Nothing was kept: pass out= (--out DIR) to be able to go on.")
        return Interrupted(
            f"Stopped; everything so far is in {self.folder.where}. The same call with it goes on from here."
        )


@contextmanager
def _told(where: str) -> Iterator[None]:
    """A ``UsageError`` inside says where it was."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
