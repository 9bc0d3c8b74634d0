"""Data by name: four image sets, files of tensors, and callables of the user's. One `Batch` comes out."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.core.errors import UsageError, flag, seed_of, unknown, whole_number
from normscope.core.files import expanded, path_text, whole
from normscope.core.load import call_object
from normscope.core.registry import Registry
from normscope.data.formats import (
    FILES,
    as_tensor,
    check_tree,
    cifar_binary,
    cifar_pickle,
    members,
    read_idx,
    read_npz,
    reading,
)

SPLITS = ("train", "test")
#: Published MD5 of the distributed files. MNIST and Fashion-MNIST: their authors' pages; CIFAR: cs.toronto.edu/~kriz.
CHECKSUMS = {
    "mnist/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "mnist/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "mnist/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "mnist/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "fashion-mnist/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "fashion-mnist/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "fashion-mnist/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "fashion-mnist/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "cifar10/cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar10/cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}
_INPUTS, _TARGETS = ("inputs", "x", "X"), ("targets", "labels", "label", "y", "Y")


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as rows. ``len(batch)`` is n.

    inputs: a float32 tensor (n, ...); or the dict or tuple of tensors that the file or the callable holds.
    targets: int64 classes (n,); regression targets are float (n, ...); ``None`` where there are none.
    name: what `load` was asked for.
    classes: number of classes, ``None`` where the targets are not classes; negative targets (ignored ones) count none.
    """

    inputs: Any
    targets: Tensor | None
    name: str
    classes: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the inputs (n, ...); of their first tensor when they are a dict or a tuple."""
        return tuple(_leaves(self.inputs)[0].shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        classes = f", {self.classes} classes" if self.classes else ""
        return f"Batch({self.name!r}: inputs {self.shape}{classes})"


def load(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    n: int | None = None,
    seed: int = 0,
    flatten: bool = False,
    check: bool = True,
    samples: int = 0,
) -> Batch:
    """A batch of the data set, the file or the callable that ``name`` names.

    Scaling, and nothing beyond it (no centring, no whitening): pixels are divided by the largest value they can have,
    16 for ``digits`` and 255 for uint8, so they lie in [0, 1]. Of a file, floats become float32, a uint8 tensor that is
    the whole input is divided by 255, other integers (token ids) stay; axes keep their order. Tensors that a
    callable returns are not touched; its NumPy arrays become tensors of the same numbers (float64 as float32).

    name: one of ``DATASETS``; a ``.npz``, ``.safetensors``, ``.pt`` or ``.pth`` file; or ``package.module:callable``,
        ``path/to/file.py:callable``, called with no arguments. Files and callables give a tensor (inputs only), a pair
        (inputs, targets), or a dict: inputs under ``inputs`` or ``x``, targets under ``targets``, ``labels`` or ``y``
        (or ``x_train``, ``y_test`` ..., by split), other keys ignored; a dict without ``inputs`` or ``x`` is itself the
        inputs, less its targets (``input_ids``, ``attention_mask``, ``labels``).
    data_dir: folder with the files of the set, there or in a sub folder named as the set.
    split: ``train`` or ``test``. Unsplit files and callables have only ``train``.
    n: keep n samples, the first n of a random permutation drawn from ``seed`` (so smaller n are subsets of larger
        ones; the global generator is not used). ``None`` keeps all, in stored order.
    flatten: inputs as rows, (n, d).
    check: compare MD5 checksums where they are published; turn off for files that you re-encoded.
    samples: the axis of the inputs that runs over samples, 1 for (time, samples, features). Without ``n`` what a
        callable returns is not counted: which of its axes has the samples may be for the model to say (a graph, pooled
        rows).

    Raises ``UsageError``: unknown name (nearest offered); no ``data_dir``; missing, truncated or corrupt file; wrong
    checksum; a pickle with more than arrays in it (refused, nothing executed); n < 1 or more than there are; no
    samples, or not one target a sample; an exception in the user's callable. NaNs in the data are not looked for.
    """
    name = path_text(name, "name")
    whole_number("samples, the axis of the inputs that runs over samples,", samples)
    flatten = flag("flatten", flatten)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
        raise UsageError(f"n must be a whole number of samples >= 1, or None for all; got {n!r}.")
    seed_of(seed)
    flatten = flag("flatten", flatten)
    batch, called = _found(name, data_dir, split, check)
    total = _count(batch, samples, ragged=called and n is None)
    inputs, targets = batch.inputs, batch.targets
    if n is not None:
        if n > total:
            raise UsageError(f"n must be at most {total}, all samples of {name} ({split}); got {n}. Ask for fewer.")
        chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n]
        inputs = _map(lambda leaf: leaf.index_select(samples, chosen) if isinstance(leaf, Tensor) else leaf, inputs)
        targets = None if targets is None else targets[chosen]
    if not called:
        inputs = _scaled(inputs)
    if flatten:
        if not isinstance(inputs, Tensor):
            raise UsageError(f"flatten needs one tensor of inputs; {name} gives a {type(inputs).__name__}.")
        inputs = inputs.reshape(len(inputs), -1)
    return dataclasses.replace(batch, inputs=inputs, targets=targets)


def describe() -> dict[str, str]:
    """Name -> one line, for every data set."""
    return {name: (reader.__doc__ or "").partition("\n")[0] for name, reader in DATASETS.items()}


@dataclass(frozen=True)
class Source:
    """Where the files of the set ``name`` are looked for: what `load` hands to the reader of a registered set."""

    name: str
    data_dir: Path | None
    check: bool = True

    def find(self, names: Iterable[str], folders: Iterable[str], needs: str) -> Path:
        """The first of ``names`` in the first of the sub ``folders`` (then ``data_dir`` itself) that has one.

        Raises ``UsageError``: no folder given, no such file (``needs`` says which to get, and where), wrong checksum.
        """
        names, folders = list(names), [*folders, "."]
        if self.data_dir is None:
            raise UsageError(f"{self.name} is not bundled: pass --data-dir DIR (data_dir=), a folder with {needs}.")
        if not self.data_dir.is_dir():
            raise UsageError(f"--data-dir (data_dir=) must be a folder; there is no folder {self.data_dir}.")
        for path in (self.data_dir / folder / name for folder in folders for name in names):
            if path.is_file():
                self._verify(path)
                return path
        looked = f" or its sub folders {', '.join(folders[:-1])}" if folders[:-1] else ""
        raise UsageError(
            f"{self.name} needs {needs}. There is none of {', '.join(names)} in {self.data_dir}{looked}. "
            "Pass the --data-dir DIR (data_dir=) that has them."
        )

    def _verify(self, path: Path) -> None:
        expected = CHECKSUMS.get(f"{self.name}/{path.name}")
        if not self.check or expected is None:
            return
        with reading(path), open(path, "rb") as file:
            got = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if got != expected:
            other = [key for key, value in CHECKSUMS.items() if value == got]
            cure = "Download it again, or pass check=False if you re-encoded it yourself."
            cure = f"That is {other[0]}: pass another --data-dir DIR (data_dir=)." if other else cure
            raise UsageError(f"The MD5 checksum of {path} must be {expected}; it is {got}. {cure}")


#: name -> reader: (Source, split) -> the whole split, pixels as stored. The first line of its docstring is its listing.
DATASETS: Registry[Callable[[Source, str], Batch]] = Registry("data set")


@DATASETS.register()
def digits(source: Source, split: str) -> Batch:
    """Handwritten digits, bundled, (n, 1, 8, 8), 16 grey levels: 1440 train, 357 test, 10 classes.

    Every fifth block of ten samples is the test split: chosen by us, because the stored order repeats the classes in
    blocks of about ten (33 to 39 test samples a class). UCI repository, Alpaydin & Kaynak 1998, CC BY 4.0; the
    1797 rows are those of scikit-learn, 64 pixels and the label, as bytes.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as table:
        data = table["rows"].astype(np.float32)
    test = np.arange(len(data)) // 10 % 5 == 4
    data = data[test if split == "test" else ~test]
    inputs = torch.from_numpy(data[:, :-1].reshape(-1, 1, 8, 8)) / 16
    return Batch(inputs, torch.from_numpy(data[:, -1]).long(), source.name, 10)


@DATASETS.register()
def mnist(source: Source, split: str) -> Batch:
    """MNIST handwritten digits, (n, 1, 28, 28): 60000 train, 10000 test, 10 classes; idx files (LeCun et al. 1998)."""
    return _idx_set(source, split, ("mnist", "MNIST/raw", "MNIST"), "https://ossci-datasets.s3.amazonaws.com/mnist/")


@DATASETS.register("fashion-mnist")
def fashion_mnist(source: Source, split: str) -> Batch:
    """Fashion-MNIST clothes, (n, 1, 28, 28): 60000 train, 10000 test, 10 classes; idx files (Xiao et al. 2017)."""
    folders = ("fashion-mnist", "fashion", "fashion_mnist", "FashionMNIST/raw", "FashionMNIST")
    return _idx_set(source, split, folders, "https://github.com/zalandoresearch/fashion-mnist (arXiv:1708.07747)")


@DATASETS.register()
def cifar10(source: Source, split: str) -> Batch:
    """CIFAR-10 photographs, (n, 3, 32, 32): 50000 train, 10000 test, 10 classes; python, binary, npz (Krizhevsky 2009).

    Read from the unpacked batches of the python or binary version, from their archives, or from an npz file with uint8
    ``x_train``, ``x_test`` of shape (n, 32, 32, 3) and ``y_train``, ``y_test``, which may be a subset of the images.
    """
    stems = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    names = (stems[0], f"{stems[0]}.bin", "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz", "cifar10_subset.npz")
    inner = ("cifar-10-batches-py", "cifar-10-batches-bin", ".")
    folders = [str(Path(own, i)) for own in ("cifar10", "cifar-10", "CIFAR10", ".") for i in inner][:-1]
    archives = "cifar-10-python.tar.gz or cifar-10-binary.tar.gz, packed or not,"
    path = source.find(names, folders, f"{archives} from https://www.cs.toronto.edu/~kriz/cifar.html")
    with reading(path):
        if path.suffix == ".npz":
            inputs, targets = _pick(read_npz(path), split, path.name)
            images, labels = as_tensor(inputs), _targets(targets, path.name)
            images = images.permute(0, 3, 1, 2) if images.shape[-1] == 3 else images
            if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32):
                raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, not uint8 (n, 32, 32, 3)")
        else:
            binary = path.suffix == ".bin" or "binary" in path.name
            wanted = [f"{stem}.bin" if binary else stem for stem in stems]
            raw = members(path, wanted) if path.suffix == ".gz" else [whole(path.with_name(w), 1 << 28) for w in wanted]
            pairs = [cifar_binary(r) if binary else cifar_pickle(r) for r in raw]
            images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return Batch(images, _labels(labels), source.name, 10)


def _idx_set(source: Source, split: str, folders: Iterable[str], origin: str) -> Batch:
    start = "t10k" if split == "test" else "train"
    stems = (f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte")
    names = [(f"{stem}.gz", stem, stem.replace("-idx", ".idx")) for stem in stems]
    needs = f"{names[0][0]} and {names[1][0]} from {origin}"
    images = source.find(names[0], folders, needs)
    labels = dataclasses.replace(source, data_dir=images.parent).find(names[1], (), needs)
    with reading(images):
        inputs = read_idx(images, 3).unsqueeze(1)
    with reading(labels):
        targets = _labels(read_idx(labels, 1).long())
        if len(targets) != len(inputs):
            raise ValueError(f"{len(targets)} labels for the {len(inputs)} images of {images.name}")
    return Batch(inputs, targets, source.name, 10)


def _found(name: str, data_dir: str | os.PathLike[str] | None, split: str, check: bool) -> tuple[Batch, bool]:
    """The whole split as stored, and whether a callable of the user's gave it."""
    path = expanded(name)
    if (known := name.lower().replace("_", "-")) in DATASETS:
        folder = None if data_dir is None else expanded(data_dir)
        return DATASETS[known](Source(known, folder, check), split), False
    if (read := FILES.get(path.suffix.lower())) is not None:
        with reading(path):
            content = read(path)
            check_tree(content, path)
            return _batch(content, split, name), False
    if ":" in name:
        result = call_object(name)
        return result if isinstance(result, Batch) else _batch(result, split, name), True
    if path.exists() or path.suffix:
        raise UsageError(f"A data file must end in {', '.join(FILES)}; got {name!r}. Convert it, or write a callable.")
    raise unknown("data set", name, DATASETS)


def _batch(content: Any, split: str, name: str) -> Batch:
    """What a file holds or a callable returns, as inputs and targets."""
    targets = None
    if isinstance(content, Mapping):
        content, targets = _pick(content, split, name)
    elif split != "train":
        raise UsageError(f"{name} has no {split} split: it gives one unsplit batch. Give a dict with x_{split}.")
    elif isinstance(content, tuple | list) and len(content) == 2:
        content, targets = content
    inputs, targets = _map(as_tensor, content), _targets(targets, name)
    if not _leaves(inputs):
        raise UsageError(
            f"{name} must give a tensor, a pair (inputs, targets) or a dict of tensors; it gives a "
            f"{type(content).__name__}. Return one batch, as in next(iter(loader))."
        )
    countable = targets is not None and not targets.is_floating_point() and targets.ndim == 1 and targets.numel() > 0
    classes = int(targets.max()) + 1 if targets is not None and countable and targets.max() >= 0 else None
    return Batch(inputs, targets, name, classes)


def _pick(content: Mapping[str, Any], split: str, name: str) -> tuple[Any, Any]:
    """Inputs and targets of a dict, under their names with or without the split; else all but the targets is inputs."""

    def first(keys: Iterable[str]) -> str | None:
        named = [f"{key}_{split}" for key in keys] + ([*keys] if split == "train" else [])
        return next((key for key in named if key in content), None)

    inputs, targets = first(_INPUTS), first(_TARGETS)
    if inputs is not None:
        return content[inputs], None if targets is None else content[targets]
    if split != "train" or any(f"{key}_test" in content for key in _INPUTS):
        raise UsageError(f"{name} has no {split} split: there is no x_{split} among {', '.join(map(str, content))}.")
    rest = {key: value for key, value in content.items() if key not in _TARGETS}
    return rest, None if targets is None else content[targets]


def _count(batch: Batch, axis: int, ragged: bool) -> int:
    """n, the same for all inputs and the targets; ``ragged``: whichever axes have it is not looked at."""
    shapes = [tuple(leaf.shape) for leaf in _leaves(batch.inputs)]
    counts = {shape[axis : axis + 1] for shape in (shapes[:1] if ragged else shapes)}
    if () in counts or (0,) in counts or len(counts) > 1:
        raise UsageError(
            f"The inputs of {batch.name} must have the same n >= 1 samples on axis {axis}; their shapes are {shapes}."
        )
    n = shapes[0][axis]
    if not ragged and batch.targets is not None and tuple(batch.targets.shape[:1]) != (n,):
        got = f"targets {tuple(batch.targets.shape)} for inputs {shapes[0]}"
        raise UsageError(f"{batch.name} must have one target a sample; it has {got}.")
    return n


def _targets(values: Any, name: str) -> Tensor | None:
    """Classes as int64 (n,), also from (n, 1); floats stay floats."""
    if values is None:
        return None
    try:
        targets = torch.as_tensor(as_tensor(values))
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"The targets of {name} must be a tensor or numbers; got a {type(values).__name__}.") from None
    if targets.is_floating_point():
        return targets
    return targets.long().squeeze(1) if targets.ndim == 2 and targets.shape[1] == 1 else targets.long()


def _labels(labels: Tensor | None) -> Tensor:
    if labels is None or labels.ndim != 1 or not labels.numel() or labels.min() < 0 or labels.max() > 9:
        raise ValueError("the labels are not n >= 1 numbers from 0 to 9")
    return labels


def _scaled(inputs: Any) -> Any:
    """Floats as float32; a uint8 tensor that is the whole input divided by 255."""
    if isinstance(inputs, Tensor) and inputs.dtype == torch.uint8:
        return inputs.float() / 255
    return _map(lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, inputs)


def _map(change: Callable[[Any], Any], tree: Any) -> Any:
    """``tree`` with every leaf of its dicts, lists and tuples changed."""
    if isinstance(tree, Mapping):
        return {key: _map(change, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [_map(change, value) for value in tree]
        return tree._make(values) if hasattr(tree, "_make") else type(tree)(values)
    return change(tree)


def _leaves(tree: Any) -> list[Tensor]:
    """The tensors of a structure, in order."""
    found: list[Tensor] = []
    _map(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, tree)
    return found
