"""Bytes of data files, none of them trusted, as tensors: idx, the CIFAR batches, npz, safetensors, pt."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.core.errors import MANY, UsageError, brief
from normscope.core.files import check_bytes, check_readable
from normscope.core.tensors import check_plain


def read_idx(path: Path, axes: int) -> Tensor:
    """The uint8 array of an idx file: bytes 0, 0, 8, axes; the big-endian uint32 sizes; the values, row-major."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        head = file.read(4 + 4 * axes)
        if head[:4] != bytes((0, 0, 8, axes)) or len(head) < 4 + 4 * axes:
            raise ValueError(f"it does not start as an idx file of unsigned bytes with {axes} axes")
        sizes = np.frombuffer(head, ">u4", axes, 4).tolist()
        check_bytes(math.prod(sizes), path)
        raw = file.read(math.prod(sizes) + 1)
    if len(raw) != math.prod(sizes):
        there = "more" if len(raw) > math.prod(sizes) else len(raw)
        raise ValueError(f"the header promises {math.prod(sizes)} values of shape {sizes}, there are {there}")
    return as_tensor(np.frombuffer(raw, np.uint8).reshape(sizes))


def members(archive: Path, wanted: list[str]) -> list[bytes]:
    """These files of a tar, by base name, in memory: nothing is written to disk."""
    found = {}
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            check_bytes(stream.tell() + member.size, archive)
            if member.isfile() and (name := PurePosixPath(member.name).name) in wanted:
                found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
        while stream.read(1 << 20):  # to the end: gzip's own checksum stands there
            check_bytes(stream.tell(), archive)
    return [found[name] for name in wanted]


def cifar_binary(raw: bytes) -> tuple[Tensor, Tensor]:
    """Records of 3073 bytes: the label, then red, green and blue planes, row-major."""
    if not raw or len(raw) % 3073:
        raise ValueError(f"{len(raw)} bytes are not whole records of 3073")
    records = as_tensor(np.frombuffer(raw, np.uint8).reshape(-1, 3073))
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def cifar_pickle(raw: bytes) -> tuple[Tensor, Tensor]:
    """The python version: a pickled dict of ``data``, uint8 (n, 3072), and ``labels``, a list."""
    content = _CifarUnpickler(io.BytesIO(raw), encoding="latin1").load()  # Python 2 strings are bytes
    _, shape, dtype, fortran, data = content["data"].state  # what numpy.ndarray.__setstate__ is given
    if dtype.args[0] not in ("u1", "|u1", "uint8"):
        raise ValueError(f"the images are of type {dtype.args[0]!r}, not unsigned bytes")
    data = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, np.uint8)
    images = as_tensor(data.reshape(shape, order="F" if fortran else "C"))
    return images.reshape(-1, 3, 32, 32), torch.tensor(content["labels"], dtype=torch.int64)


class _Inert:
    """Stands for a NumPy global in a pickle: records what it is called with and what its state is, runs nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _CifarUnpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, strings and NumPy arrays; any other global is refused."""

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        if re.fullmatch(r"numpy\.(ndarray|dtype|_?core\.multiarray\._reconstruct)", asked):
            return _Inert
        if asked == "_codecs.encode":  # how Python 3 writes bytes in protocol 2
            return str.encode
        raise _Refused(asked)


class _Refused(Exception):
    """A pickle asks for something that could run code; the argument says for what."""


def read_npz(path: Path) -> Mapping[str, Any]:
    """The arrays of an npz archive, read as they are asked for; no pickles."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no npz archive")
    _check_unpacked(path)
    content: Mapping[str, Any] = np.load(path, allow_pickle=False)
    return content


def _check_unpacked(path: Path) -> None:
    """A zip may promise a thousand times its own size; what it promises is what is read of it at most."""
    with zipfile.ZipFile(path) as archive:
        check_bytes(sum(member.file_size for member in archive.infolist()), path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, if it is nothing but tensors and containers."""
    if zipfile.is_zipfile(path):
        _check_unpacked(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of a pickle that is then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _Refused(asked[1] if asked else "something other than tensors") from None


def check_tree(content: Any, path: Path) -> None:
    """What a file of tensors holds: dense ones, no larger than a file may be, in containers of a usual size.

    One number can stand for many (``expand``), and a container in itself: neither shows in the size of the file.
    """
    if isinstance(content, np.lib.npyio.NpzFile):
        return
    stack, nodes = [content], 0
    while stack:
        x, nodes = stack.pop(), nodes + 1
        if nodes > MANY:
            raise UsageError(f"{path} must hold at most {MANY} things; there are more. Save plain tensors.")
        if isinstance(x, Tensor):
            check_plain(f"What {path} holds", x)
            check_bytes(x.numel() * x.element_size(), path)
        elif isinstance(x, Mapping):
            stack.extend(x.values())
        elif isinstance(x, list | tuple):
            stack.extend(x)


#: suffix -> reader of a file of tensors.
FILES: dict[str, Callable[[Path], Any]] = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".pt": read_torch,
    ".pth": read_torch,
}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong with bytes from outside is one error that names the file, which is looked at first."""
    try:
        check_readable(path)
        yield
    except UsageError:
        raise
    except _Refused as error:
        raise UsageError(
            f"{path} must hold nothing but arrays; it is a pickle that asks for {error}, which could run code. "
            "Refused; nothing in it was executed. Save plain tensors: .safetensors, .npz, or torch.save of a dict."
        ) from None
    except FileNotFoundError as error:
        raise UsageError(f"There must be a file {error.filename or path}; there is none.") from None
    except Exception as error:  # readers of damaged files raise anything
        said = f"{type(error).__name__}: {brief(error)}".strip(": .")
        what = f"{path} must be a complete, readable file; reading it gave {said}."
        raise UsageError(f"{what} Copy or download it again.") from error


def as_tensor(value: Any) -> Any:
    """An array as a tensor (a copy, float64 as float32, long unsigned integers as int64); anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    kinds = {"f8": np.float32, "u2": np.int64, "u4": np.int64, "u8": np.int64}
    wanted = kinds.get(value.dtype.str[1:], value.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(np.array(value, dtype=wanted, order="C"))
    except TypeError:
        raise UsageError(f"Arrays of data must be numbers; got one of {value.dtype}. Leave it out.") from None
