"""Data sets against files written here by hand; with NORMSCOPE_DATA_DIR, against the real ones too."""

import gzip
import hashlib
import io
import math
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from normscope.core.errors import UsageError
from normscope.data.datasets import CHECKSUMS, DATASETS, describe, load

REAL = os.environ.get("NORMSCOPE_DATA_DIR")
real = pytest.mark.skipif(not REAL, reason="NORMSCOPE_DATA_DIR is not set")
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


class Malice:
    """Unpickled by a plain ``pickle.load``, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


def message(*args, **kwargs) -> str:
    with pytest.raises(UsageError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def pixels(*shape) -> np.ndarray:
    return (np.arange(math.prod(shape)) * 7 % 256).astype(np.uint8).reshape(shape)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """Twelve unpacked images in the folder itself."""
    (tmp_path / IMAGES).write_bytes(idx(pixels(12, 28, 28)))
    (tmp_path / LABELS).write_bytes(idx(np.arange(12, dtype=np.uint8) % 10))
    return tmp_path


@pytest.fixture
def packed(mnist):
    """The same as .gz, which have checksums."""
    for name in (IMAGES, LABELS):
        raw = (mnist / name).read_bytes()
        (mnist / name).unlink()
        (mnist / f"{name}.gz").write_bytes(gzip.compress(raw))
    return mnist


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 and the NumPy of 2009 wrote it, opcode by opcode."""
    raw = data.tobytes()
    head = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"(K\x01M" + struct.pack("<H", len(data)) + b"M\x00\x0c\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    values = b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    return head + shape + dtype + values + b"U\x06labels](" + b"".join(b"K" + bytes([k]) for k in labels) + b"eu."


def cifar(folder: Path, kind: str, count: int = 2) -> tuple[np.ndarray, list[int]]:
    """All six batches under ``folder`` (python, python3 or binary); the images and labels of the first batch."""
    folder.mkdir(parents=True, exist_ok=True)
    data, labels = pixels(count, 3072), [9 - k for k in range(count)]
    for stem in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        if kind == "binary":
            (folder / f"{stem}.bin").write_bytes(np.column_stack([np.uint8(labels), data]).tobytes())
        elif kind == "python":
            (folder / stem).write_bytes(python2_pickle(data, labels))
        else:
            (folder / stem).write_bytes(pickle.dumps({"data": data, "labels": labels}, protocol=int(kind)))
        data, labels = data[::-1].copy(), labels[::-1]
    return pixels(count, 3072).reshape(count, 3, 32, 32), [9 - k for k in range(count)]


def archive(path: Path, folder: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)


# Names


def test_an_unknown_name_gets_the_nearest():
    assert "There is no data set 'fashon-mnist'. Did you mean 'fashion-mnist'?" in message("fashon-mnist")


@pytest.mark.parametrize("name", ["Digits", "DIGITS"])
def test_a_name_in_capitals_is_the_same(name):
    assert load(name, n=1).name == "digits"


def test_an_unknown_split_gets_the_nearest():
    assert "There is no split 'tset'. Did you mean 'test'?" in message("digits", split="tset")


def test_every_set_has_a_line_of_description():
    assert list(describe()) == list(DATASETS)
    assert all(len(line) > 40 for line in describe().values())


# Digits


def test_digits_are_scikit_learns_divided_by_16():
    from sklearn.datasets import load_digits

    both = torch.cat([load("digits", split=s).inputs.flatten(1) for s in ("train", "test")]).numpy()
    expected = load_digits().data / 16
    order = [rows[np.lexsort(rows.T)] for rows in (both, expected)]
    assert np.array_equal(*order)


def test_digits_have_the_labels_of_scikit_learn():
    from sklearn.datasets import load_digits

    expected = np.delete(load_digits().target, [i for i in range(1797) if i // 10 % 5 == 4])
    assert load("digits").targets.tolist() == expected.tolist()


@pytest.mark.parametrize(("split", "count"), [("train", 1440), ("test", 357)])
def test_digits_are_batches_of_small_images(split, count):
    batch = load("digits", split=split)
    assert (batch.shape, len(batch), batch.classes, batch.inputs.dtype) == ((count, 1, 8, 8), count, 10, torch.float32)


def test_digits_have_every_class_in_the_test_split():
    assert min(np.bincount(load("digits", split="test").targets)) == 33


# Samples


def test_a_subset_is_the_same_for_the_same_seed():
    assert torch.equal(load("digits", n=20, seed=3).inputs, load("digits", n=20, seed=3).inputs)


def test_a_subset_differs_with_the_seed():
    assert not torch.equal(load("digits", n=20, seed=3).inputs, load("digits", n=20, seed=4).inputs)


def test_a_smaller_subset_is_part_of_a_larger_one():
    assert torch.equal(load("digits", n=8).inputs, load("digits", n=20).inputs[:8])


def test_a_subset_keeps_inputs_and_targets_together(tmp_path):
    torch.save((torch.arange(50.0), torch.arange(50)), tmp_path / "x.pt")
    batch = load(tmp_path / "x.pt", n=7)
    assert batch.inputs.tolist() == batch.targets.tolist()


def test_a_subset_has_no_sample_twice(tmp_path):
    torch.save(torch.arange(50.0), tmp_path / "x.pt")
    assert len(set(load(tmp_path / "x.pt", n=50).inputs.tolist())) == 50


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    load("digits", n=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_too_large_n_is_told_how_many_there_are():
    assert "n must be at most 357, all samples of digits (test); got 358" in message("digits", split="test", n=358)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_n_must_be_a_positive_whole_number(n):
    assert f"n must be a whole number of samples >= 1, or None for all; got {n!r}" in message("digits", n=n)


def test_flat_inputs_are_rows():
    assert load("digits", n=5, flatten=True).shape == (5, 64)


# MNIST and Fashion-MNIST


def test_unpacked_idx_images_are_divided_by_255(mnist):
    assert torch.equal(load("mnist", mnist).inputs, torch.tensor(pixels(12, 1, 28, 28)) / 255)


def test_idx_labels_are_the_targets(mnist):
    assert load("mnist", mnist).targets.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_idx_files_written_with_a_dot_are_found(mnist):
    for name in (IMAGES, LABELS):
        (mnist / name).rename(mnist / name.replace("-idx", ".idx"))
    assert len(load("mnist", mnist)) == 12


@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "mnist"), ("mnist", "MNIST/raw"), ("fashion-mnist", "fashion"), ("fashion-mnist", "FashionMNIST/raw")],
)
def test_idx_files_are_found_in_the_folder_of_their_set(mnist, name, folder):
    (mnist / folder).mkdir(parents=True)
    for file in (IMAGES, LABELS):
        (mnist / file).rename(mnist / folder / file)
    assert len(load(name, mnist)) == 12


def test_the_folder_of_the_set_wins_over_files_beside_it(mnist):
    (mnist / "fashion").mkdir()
    (mnist / "fashion" / IMAGES).write_bytes(idx(pixels(3, 28, 28)))
    (mnist / "fashion" / LABELS).write_bytes(idx(np.zeros(3, np.uint8)))
    assert len(load("fashion-mnist", mnist)) == 3


def test_labels_are_not_taken_from_another_folder_than_the_images(mnist):
    (mnist / "fashion").mkdir()
    (mnist / "fashion" / IMAGES).write_bytes(idx(pixels(12, 28, 28)))
    assert f"There is none of {LABELS}.gz" in message("fashion-mnist", mnist)


def test_the_right_checksum_is_accepted(packed, monkeypatch):
    for name in (IMAGES, LABELS):
        got = hashlib.md5((packed / f"{name}.gz").read_bytes()).hexdigest()
        monkeypatch.setitem(CHECKSUMS, f"mnist/{name}.gz", got)
    assert len(load("mnist", packed)) == 12


def test_a_wrong_checksum_names_file_expected_and_got(packed):
    got = hashlib.md5((packed / f"{IMAGES}.gz").read_bytes()).hexdigest()
    expected = "f68b3c2dcbeaaa9fbdd348bbdeb94873"
    said = f"The MD5 checksum of {packed / IMAGES}.gz must be {expected}; it is {got}. Download it again"
    assert said in message("mnist", packed)


def test_the_file_of_another_set_is_recognised(packed, monkeypatch):
    got = hashlib.md5((packed / f"{IMAGES}.gz").read_bytes()).hexdigest()
    monkeypatch.setitem(CHECKSUMS, f"mnist/{IMAGES}.gz", got)
    assert f"That is mnist/{IMAGES}.gz" in message("fashion-mnist", packed)


def test_a_file_encoded_again_is_read_without_the_check(packed):
    assert len(load("mnist", packed, check=False)) == 12


@pytest.mark.parametrize("keep", [0, 3, 11, 16, 100, -1])
def test_a_truncated_idx_file_is_named(mnist, keep):
    path = mnist / IMAGES
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} must be a complete, readable file" in message("mnist", mnist)


def test_a_longer_idx_file_is_refused(mnist):
    path = mnist / LABELS
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"{path} must be a complete, readable file" in message("mnist", mnist)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-20], lambda raw: b"<html>" + raw, lambda raw: raw[:60] + b"?" * 9]
)
def test_a_damaged_gz_file_is_named(packed, damage):
    path = packed / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} must be a complete, readable file" in message("mnist", packed, check=False)


def test_labels_beyond_the_classes_are_refused(mnist):
    (mnist / LABELS).write_bytes(idx(np.full(12, 10, np.uint8)))
    assert "labels are not n >= 1 numbers from 0 to 9" in message("mnist", mnist)


def test_one_label_an_image_is_needed(mnist):
    (mnist / LABELS).write_bytes(idx(np.zeros(11, np.uint8)))
    assert (
        f"{mnist / LABELS} must be a complete, readable file; reading it gave ValueError: 11 labels for the 12"
        in message("mnist", mnist)
    )


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_without_a_folder_the_message_says_how_to_give_one(name):
    said = message(name)
    assert "pass --data-dir DIR (data_dir=)" in said
    assert ".gz" in said
    assert "https://" in said


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_an_empty_folder_is_named(tmp_path, name):
    assert f"in {tmp_path} or its sub folders" in message(name, tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    assert f"there is no folder {tmp_path / 'nix'}" in message("mnist", tmp_path / "nix")


# CIFAR-10


@pytest.mark.parametrize("kind", ["python", "2", "4", "binary"])
def test_cifar_batches_have_the_images_of_the_file(tmp_path, kind):
    images, _ = cifar(tmp_path / "cifar-10-batches", kind)
    got = load("cifar10", tmp_path / "cifar-10-batches").inputs[:2]
    assert torch.equal(got, torch.tensor(images) / 255)


@pytest.mark.parametrize("kind", ["python", "2", "4", "binary"])
def test_cifar_batches_have_the_labels_of_the_file(tmp_path, kind):
    cifar(tmp_path, kind)
    assert load("cifar10", tmp_path).targets.tolist() == [9, 8, 8, 9] * 2 + [9, 8]


def test_cifar_test_is_one_batch(tmp_path):
    cifar(tmp_path, "binary", count=3)
    assert load("cifar10", tmp_path, split="test").shape == (3, 3, 32, 32)


@pytest.mark.parametrize(("kind", "inner"), [("python", "cifar-10-batches-py"), ("binary", "cifar-10-batches-bin")])
def test_cifar_archives_are_read_as_they_are(tmp_path, kind, inner):
    images, _ = cifar(tmp_path / "work" / inner, kind)
    archive(tmp_path / f"cifar-10-{kind}.tar.gz", tmp_path / "work" / inner)
    assert torch.equal(load("cifar10", tmp_path, check=False).inputs[:2], torch.tensor(images) / 255)


@pytest.mark.parametrize("inner", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10"])
def test_cifar_batches_are_found_in_their_folders(tmp_path, inner):
    cifar(tmp_path / inner, "python")
    assert len(load("cifar10", tmp_path)) == 10


def test_cifar_archives_have_a_checksum(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"not it")
    assert "must be c58f30108f718f92721af3b95e74349a; it is" in message("cifar10", tmp_path)


@pytest.mark.parametrize("keep", [0, 200, -30])
def test_a_truncated_cifar_archive_is_named(tmp_path, keep):
    cifar(tmp_path / "work", "binary")
    path = tmp_path / "cifar-10-binary.tar.gz"
    archive(path, tmp_path / "work")
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} must be a complete, readable file" in message("cifar10", tmp_path, check=False)


@pytest.mark.parametrize(("kind", "name"), [("python", "data_batch_1"), ("binary", "data_batch_1.bin")])
def test_a_truncated_cifar_batch_is_refused(tmp_path, kind, name):
    cifar(tmp_path, kind)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    assert "must be a complete, readable file" in message("cifar10", tmp_path)


def test_a_missing_cifar_batch_is_named(tmp_path):
    cifar(tmp_path, "python")
    (tmp_path / "data_batch_4").unlink()
    assert message("cifar10", tmp_path) == f"There must be a file {tmp_path / 'data_batch_4'}; there is none."


def test_cifar_npz_images_have_their_channels_first(tmp_path):
    images = pixels(4, 32, 32, 3)
    np.savez(tmp_path / "cifar10_subset.npz", x_train=images, y_train=np.arange(4), label_names=np.array(["a"]))
    assert torch.equal(load("cifar10", tmp_path).inputs, torch.tensor(images.transpose(0, 3, 1, 2)) / 255)


def test_cifar_npz_without_the_split_says_so(tmp_path):
    np.savez(tmp_path / "cifar10_subset.npz", x_train=pixels(4, 32, 32, 3), y_train=np.arange(4))
    assert "has no test split" in message("cifar10", tmp_path, split="test")


# Pickles with code in them


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_cifar_batch_is_refused(tmp_path, protocol):
    cifar(tmp_path, "python")
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": Malice(tmp_path / "made")}, protocol=protocol))
    assert "Refused; nothing in it was executed" in message("cifar10", tmp_path)


def test_code_in_a_cifar_batch_does_not_run(tmp_path):
    cifar(tmp_path, "python")
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Malice(tmp_path / "made")))
    message("cifar10", tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("asked", ["os.system", "builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile"])
def test_the_refused_name_is_shown(tmp_path, asked):
    cifar(tmp_path, "python")
    module, _, name = asked.rpartition(".")
    (tmp_path / "data_batch_1").write_bytes(f"c{module}\n{name}\n.".encode())
    assert f"it is a pickle that asks for {asked}," in message("cifar10", tmp_path)


def test_a_cifar_batch_of_objects_is_refused(tmp_path):
    cifar(tmp_path, "python")
    data = np.array([[1, "x"]], dtype=object)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": data, "labels": [1]}, protocol=2))
    assert "the images are of type 'O8', not unsigned bytes" in message("cifar10", tmp_path)


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))], ids=["zip", "pickle"])
def test_code_in_a_torch_file_is_refused(tmp_path, write):
    write(Malice(tmp_path / "made"), tmp_path / "x.pt")
    assert "Refused; nothing in it was executed" in message(tmp_path / "x.pt")
    assert not (tmp_path / "made").exists()


def test_the_malice_of_these_tests_is_real(tmp_path):
    pickle.loads(pickle.dumps(Malice(tmp_path / "made")))
    assert (tmp_path / "made").exists()


def test_pickled_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([Malice(tmp_path / "made")], dtype=object))
    assert "allow_pickle=False" in message(tmp_path / "x.npz")
    assert not (tmp_path / "made").exists()


# Files


def tensors(path: Path, **content: torch.Tensor) -> Path:
    """The content in the format of the suffix."""
    if path.suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in content.items()})
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


SUFFIXES = pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".pth"])
X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([2, 0, 1, 2])


@SUFFIXES
@pytest.mark.parametrize(("x", "y"), [("inputs", "targets"), ("x", "y"), ("x_train", "y_train"), ("X", "labels")])
def test_a_file_gives_inputs_and_targets(tmp_path, suffix, x, y):
    batch = load(tensors(tmp_path / f"x{suffix}", **{x: X, y: Y}))
    assert torch.equal(batch.inputs, X)
    assert torch.equal(batch.targets, Y)


@SUFFIXES
def test_a_file_may_have_no_targets(tmp_path, suffix):
    assert load(tensors(tmp_path / f"x{suffix}", inputs=X)).targets is None


@SUFFIXES
def test_a_file_of_named_inputs_gives_a_dict(tmp_path, suffix):
    ids, mask = torch.arange(8).reshape(4, 2), torch.ones(4, 2, dtype=torch.uint8)
    batch = load(tensors(tmp_path / f"x{suffix}", input_ids=ids, attention_mask=mask, labels=Y), n=4, seed=1)
    assert {key: value.dtype for key, value in batch.inputs.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.uint8,
    }
    assert torch.equal(Y[batch.inputs["input_ids"][:, 0] // 2], batch.targets)


@SUFFIXES
def test_the_test_split_of_a_file_is_its_own(tmp_path, suffix):
    path = tensors(tmp_path / f"x{suffix}", x_train=X, x_test=X[:1] + 5)
    assert torch.equal(load(path, split="test").inputs, X[:1] + 5)


@SUFFIXES
def test_an_unsplit_file_has_no_test_split(tmp_path, suffix):
    assert "has no test split" in message(tensors(tmp_path / f"x{suffix}", x=X, y=Y), split="test")


@SUFFIXES
@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:-40], lambda raw: b"hello" * 9])
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    path = tensors(tmp_path / f"x{suffix}", x=torch.rand(40, 40))
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in message(path)


@SUFFIXES
def test_a_missing_file_is_named(tmp_path, suffix):
    assert f"There must be a file {tmp_path / 'nix'}{suffix}" in message(tmp_path / f"nix{suffix}")


@SUFFIXES
def test_float64_becomes_float32(tmp_path, suffix):
    assert load(tensors(tmp_path / f"x{suffix}", x=X.double())).inputs.dtype == torch.float32


@SUFFIXES
def test_bytes_are_divided_by_255(tmp_path, suffix):
    images = torch.tensor(pixels(2, 1, 3, 3))
    assert torch.equal(load(tensors(tmp_path / f"x{suffix}", x=images)).inputs, images / 255)


@SUFFIXES
def test_token_ids_stay_whole(tmp_path, suffix):
    assert torch.equal(load(tensors(tmp_path / f"x{suffix}", x=Y)).inputs, Y)


def test_a_torch_file_may_hold_a_tensor(tmp_path):
    torch.save(X, tmp_path / "x.pt")
    assert torch.equal(load(tmp_path / "x.pt").inputs, X)


def test_a_torch_file_may_hold_a_pair(tmp_path):
    torch.save((X, Y), tmp_path / "x.pt")
    assert torch.equal(load(tmp_path / "x.pt").targets, Y)


def test_a_column_of_classes_becomes_a_row(tmp_path):
    torch.save((X, Y[:, None].to(torch.uint8)), tmp_path / "x.pt")
    assert torch.equal(load(tmp_path / "x.pt").targets, Y)


def test_regression_targets_stay_floats(tmp_path):
    torch.save((X, X.double()), tmp_path / "x.pt")
    assert torch.equal(load(tmp_path / "x.pt").targets, X.double())


def test_classes_are_counted_before_the_subset(tmp_path):
    torch.save((torch.zeros(100, 1), torch.arange(100)), tmp_path / "x.pt")
    assert load(tmp_path / "x.pt", n=2).classes == 100


def test_negative_targets_are_ignored_ones_and_count_no_class(tmp_path):
    torch.save((X, torch.tensor([0, -100, 2, 1])), tmp_path / "x.pt")
    assert load(tmp_path / "x.pt").classes == 3


@pytest.mark.parametrize("targets", [X, None], ids=["floats", "none"])
def test_targets_that_are_not_classes_have_no_count(tmp_path, targets):
    torch.save((X, targets), tmp_path / "x.pt")
    assert load(tmp_path / "x.pt").classes is None


def test_big_endian_arrays_are_read(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([1.5, 2.5], dtype=">f8"))
    assert load(tmp_path / "x.npz").inputs.tolist() == [1.5, 2.5]


def test_one_target_a_sample_is_needed(tmp_path):
    torch.save((X, Y[:3]), tmp_path / "x.pt")
    assert "must have one target a sample; it has targets (3,) for inputs (4, 3)" in message(tmp_path / "x.pt")


def test_named_inputs_need_the_same_number_of_samples(tmp_path):
    assert "must have the same n >= 1 samples" in message(tensors(tmp_path / "x.pt", a=X, b=Y[:3]))


@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.tensor(1.0)])
def test_an_empty_batch_is_refused(tmp_path, x):
    torch.save(x, tmp_path / "x.pt")
    assert "must have the same n >= 1 samples" in message(tmp_path / "x.pt")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("1,2\n")
    assert "A data file must end in .npz, .safetensors, .pt, .pth; got" in message(tmp_path / "x.csv")


# Callables


def returning(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(f"import numpy as np\nimport torch\n\ndef data():\n    return {text}\n")
    return f"{folder / 'mine.py'}:data"


def test_a_callable_may_return_a_pair(tmp_path):
    batch = load(returning(tmp_path, "torch.ones(4, 3), torch.tensor([1, 0, 1, 0])"))
    assert (batch.shape, batch.targets.tolist(), batch.classes) == ((4, 3), [1, 0, 1, 0], 2)


def test_a_callable_may_return_inputs(tmp_path):
    assert load(returning(tmp_path, "torch.ones(4, 3)"), n=2).shape == (2, 3)


def test_a_callable_may_return_a_dict(tmp_path):
    batch = load(returning(tmp_path, "{'input_ids': torch.ones(4, 3).long(), 'labels': torch.zeros(4).long()}"))
    assert list(batch.inputs) == ["input_ids"]


def test_a_callable_may_return_a_batch(tmp_path):
    assert load(returning(tmp_path, "__import__('normscope.data.datasets').datasets.load('digits')"), n=3).classes == 10


def test_a_tuple_of_inputs_stays_one(tmp_path):
    batch = load(returning(tmp_path, "(torch.ones(4, 3), torch.zeros(4, 2)), None"), n=3)
    assert [x.shape[0] for x in batch.inputs] == [3, 3]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "uint8"])
def test_the_tensors_of_a_callable_are_not_touched(tmp_path, dtype):
    assert load(returning(tmp_path, f"torch.ones(4, 3, dtype=torch.{dtype})")).inputs.dtype == getattr(torch, dtype)


def test_the_arrays_of_a_callable_become_tensors(tmp_path):
    batch = load(returning(tmp_path, "np.ones((4, 3)), [1, 0, 1, 0]"))
    assert (batch.inputs.dtype, batch.targets.dtype) == (torch.float32, torch.int64)


def test_inputs_of_other_lengths_are_left_to_the_callable(tmp_path):
    assert load(returning(tmp_path, "{'nodes': torch.ones(4, 3), 'edges': torch.ones(2, 9)}")).shape == (4, 3)


def test_inputs_of_other_lengths_have_no_subset(tmp_path):
    name = returning(tmp_path, "{'nodes': torch.ones(4, 3), 'edges': torch.ones(2, 9)}")
    assert "must have the same n >= 1 samples" in message(name, n=2)


@pytest.mark.parametrize("text", ["None", "'x'", "[1.0, 2.0, 3.0]", "{}", "iter([torch.ones(2)])"])
def test_a_callable_without_tensors_is_refused(tmp_path, text):
    assert "must give a tensor, a pair (inputs, targets) or a dict of tensors" in message(returning(tmp_path, text))


def test_a_callable_that_raises_shows_the_users_line(tmp_path):
    assert f"{tmp_path / 'mine.py'}:5 with ZeroDivisionError: division by zero" in message(returning(tmp_path, "1 / 0"))


def test_named_inputs_cannot_be_flattened(tmp_path):
    name = returning(tmp_path, "{'a': torch.ones(4, 3)}")
    assert "flatten needs one tensor of inputs" in message(name, flatten=True)


# The real files


@real
@pytest.mark.parametrize(("name", "first"), [("mnist", [7, 2, 1, 0, 4]), ("fashion-mnist", [9, 2, 1, 1, 6])])
def test_real_idx_sets_begin_with_the_known_labels(name, first):
    assert load(name, REAL, split="test").targets[:5].tolist() == first


@real
@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion-mnist", 0.2860)])
def test_real_idx_sets_have_the_known_mean(name, mean):
    """The means that everybody normalizes with: torchvision's examples (MNIST), Fashion-MNIST's benchmarks."""
    assert abs(load(name, REAL).inputs.mean(dtype=torch.float64) - mean) < 5e-5


@real
def test_real_cifar_has_the_pixels_of_the_file():
    path = next(Path(REAL).rglob("cifar10_subset.npz"), None)
    if path is None:
        pytest.skip("no cifar10_subset.npz in NORMSCOPE_DATA_DIR")
    stored = np.load(path)["x_test"][17, 5, 9, 2]
    assert load("cifar10", REAL, split="test").inputs[17, 2, 5, 9] == np.float32(stored) / np.float32(255)


def test_an_archive_without_a_batch_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    assert "data_batch_1" in message("cifar10", tmp_path, check=False)
