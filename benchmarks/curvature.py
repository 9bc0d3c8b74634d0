"""lambda_max of the Fisher / GGN to 1e-3, side by side with peers, each in a process of its own.

    python benchmarks/curvature.py                       # every net, every method that is installed
    python benchmarks/curvature.py --nets a,b --methods normscope,curvlinops --repeats 3

Peers (all optional; a missing one is shown as missing): curvlinops-for-pytorch, backpack-for-pytorch, nngeometry,
pyhessian, asdfghjkl (ASDL; the package called asdl on PyPI is a parser of another ASDL). Put them on PYTHONPATH; none
of them needs torchvision to run, so that it is stubbed where it is absent.

Nets: a) MLP 784-1000-1000-1000-10, n = 256; b) the same with BatchNorm1d; c) a VGG and d) a ResNet of about 0.3 M
parameters with BatchNorm2d, 3x32x32, n = 128. Loss: mean squared error; all but a in training mode. Batch norms keep no
running statistics, without which curvlinops refuses. Columns: CPU seconds of the whole answer (median), the same in
units of one forward and backward pass ("fb", parameters' gradients only) measured in between, the relative error
against a float64 (a, b) or tol 1e-6 (c, d) answer in one process, peak memory above the model's own forward and
backward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

TOL = 1e-3


def mlp(norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in ((784, 1000), (1000, 1000), (1000, 1000)):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b, track_running_stats=False)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1000, 10))


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    a = 3
    for b in (32, 32, 0, 64, 64, 0, 128, 128, 0):
        if not b:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b, track_running_stats=False), nn.ReLU()]
        a = b
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(a, 10))


class Block(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        norm = lambda: nn.BatchNorm2d(b, track_running_stats=False)  # noqa: E731
        self.c1, self.n1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), norm()
        self.c2, self.n2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), norm()
        self.short = nn.Conv2d(a, b, 1, stride, bias=False) if a != b or stride > 1 else nn.Identity()
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.short(x) + self.n2(self.c2(self.act1(self.n1(self.c1(x))))))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(), Block(16, 16, 1),
        Block(16, 32, 2), Block(32, 64, 2), Block(64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a": (lambda: mlp(False), (256, 784)),
    "b": (lambda: mlp(True), (256, 784)),
    "c": (vgg, (128, 3, 32, 32)),
    "d": (resnet, (128, 3, 32, 32)),
}
Answer = tuple[float, str]


def stub_torchvision() -> None:
    """An empty torchvision: peers import it for examples and data sets only."""
    try:
        import torchvision  # noqa: F401
    except Exception:
        for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models"):
            module = types.ModuleType(name)
            module.__getattr__ = _anything  # type: ignore[method-assign]
            sys.modules[name] = module


def _anything(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return object


def normscope(model: nn.Module, x: Tensor) -> Answer:
    from normscope.curvature import fisher
    from normscope.linalg import spectrum

    s = spectrum(fisher(model, x), tol=TOL)
    return s.largest, f"{s.method}, {s.products:.3g} products"


def normscope_lean(model: nn.Module, x: Tensor) -> Answer:
    from normscope.curvature import fisher
    from normscope.linalg import spectrum

    s = spectrum(fisher(model, x, memory=0), tol=TOL)
    return s.largest, f"{s.method}, {s.products:.3g} products, graphs rebuilt"


def curvlinops_map(model: nn.Module, x: Tensor) -> tuple[Any, list[int]]:
    from curvlinops import GGNLinearOperator

    params = [p for p in model.parameters() if p.requires_grad]
    y = torch.zeros(len(x), 10)
    count = [0]
    op = GGNLinearOperator(model, nn.MSELoss(reduction="sum"), params, [(x, y)], check_deterministic=False)
    return op, count


def curvlinops(model: nn.Module, x: Tensor) -> Answer:
    from scipy.sparse.linalg import LinearOperator, eigsh

    op, _ = curvlinops_map(model, x)
    inner, count = op.to_scipy(), [0]

    def product(v: Any) -> Any:
        count[0] += 1
        return inner @ v

    wrapped = LinearOperator(inner.shape, matvec=product, dtype=inner.dtype)
    value = eigsh(wrapped, k=1, tol=TOL, which="LA", return_eigenvectors=False)[0]
    return float(value) / 2 / len(x), f"eigsh, {count[0]} products"


def ours_on(product: Callable[[Tensor], Tensor], size: int) -> tuple[float, float]:
    """normscope's Lanczos on a peer's product, from a random start."""
    from normscope.linalg import LinearMap, lanczos

    def matmat(v: Tensor) -> Tensor:
        return torch.stack([product(c) for c in v.T], 1)

    r = lanczos(LinearMap((size, size), matmat, matmat, torch.float32), tol=3 * TOL, max_products=40)
    return float(r.values[0]), r.products


def curvlinops_lanczos(model: nn.Module, x: Tensor) -> Answer:
    op, _ = curvlinops_map(model, x)
    inner = op.to_scipy()
    value, products = ours_on(lambda v: torch.as_tensor(inner @ v.numpy()), inner.shape[0])
    return value / 2 / len(x), f"our Lanczos, {products:g} products"


def backpack(model: nn.Module, x: Tensor) -> Answer:
    from backpack.hessianfree.ggnvp import ggn_vector_product

    params = list(model.parameters())
    out = model(x)
    loss = out.square().sum() / (2 * len(x))

    def product(v: Tensor) -> Tensor:
        parts = [c.reshape(p.shape) for c, p in zip(v.split([p.numel() for p in params]), params, strict=True)]
        return torch.cat([g.reshape(-1) for g in ggn_vector_product(loss, out, model, parts)]).detach()

    value, products = ours_on(product, sum(p.numel() for p in params))
    return value, f"our Lanczos, {products:g} products"


def nngeometry(model: nn.Module, x: Tensor) -> Answer:
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatImplicit
    from nngeometry.object.vector import PVector

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))
    matrix = FIM(model, loader, PMatImplicit, "regression")
    layout = matrix.generator.layer_collection

    def product(v: Tensor) -> Tensor:
        return matrix.mv(PVector(layout, vector_repr=v)).to_torch().detach()

    value, products = ours_on(product, sum(p.numel() for p in model.parameters()))
    return value, f"our Lanczos, {products:g} products"


def pyhessian(model: nn.Module, x: Tensor) -> Answer:
    from pyhessian import hessian

    y = model(x).detach()  # zero residual: its Hessian is the GGN, if it were in training mode
    loss = lambda out, target: (out - target).square().sum() / (2 * len(out))  # noqa: E731
    values, _ = hessian(model, loss, data=(x, y), cuda=False).eigenvalues(maxIter=100, tol=TOL, top_n=1)
    return float(values[0]), "power iteration; calls eval(): harmless here only because no running statistics are kept"


def asdl(model: nn.Module, x: Tensor) -> Answer:
    from asdl.fisher import FisherConfig, get_fisher_maker
    from asdl.matrices import FISHER_EXACT, SHAPE_FULL

    maker = get_fisher_maker(model, FisherConfig(FISHER_EXACT, [SHAPE_FULL], loss_type="mse", data_size=len(x)))
    dummy = maker.setup_model_call(model, x)
    maker.setup_loss_call(nn.functional.mse_loss, dummy, torch.zeros(len(x), 10))
    values, _ = maker.fisher_eig(top_n=1, max_iters=100, tol=TOL)
    return float(values[0]), "power iteration on sums of per-sample gradients"


METHODS = {
    "normscope": normscope, "normscope lean": normscope_lean, "curvlinops": curvlinops,
    "curvlinops lanczos": curvlinops_lanczos, "backpack": backpack, "nngeometry": nngeometry, "pyhessian": pyhessian,
    "asdl": asdl,
}  # fmt: skip


def forward_backward(model: nn.Module, x: Tensor) -> float:
    """CPU seconds of one forward and backward pass."""
    times = []
    for _ in range(3):
        start = time.thread_time()
        out = model(x).square().sum()
        torch.autograd.grad(out, list(model.parameters()))
        times.append(time.thread_time() - start)
    return sorted(times)[1]


def worker(net: str, method: str, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    make, shape = NETS[net]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    if method == "reference":
        from normscope.curvature import fisher
        from normscope.linalg import spectrum

        dtype = torch.float64 if net in "ab" else None
        s = spectrum(fisher(model, x, dtype=dtype), tol=1e-6, method="directions")
        products = product_cost(model, x)
        return {"value": s.largest, "note": f"{s.products:g} products", **products}
    stub_torchvision()
    forward_backward(model, x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, units, value, note, peak = [], [], 0.0, "", 0.0
    for i in range(repeats + 1):  # the first run warms up and shows the peak memory
        unit = forward_backward(model, x)
        start = time.thread_time()
        value, note = METHODS[method](model, x)
        spent = time.thread_time() - start
        model.train()
        if i == 0:
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if i or not repeats:
            unit = (unit + forward_backward(model, x)) / 2
            seconds.append(spent)
            units.append(spent / unit)
    middle = sorted(range(len(units)), key=units.__getitem__)[len(units) // 2]
    return {"value": value, "note": note, "seconds": seconds[middle], "fb": units[middle], "peak": peak}


def product_cost(model: nn.Module, x: Tensor) -> dict[str, float]:
    """One product J (J^T v) in units of forward + backward, by the route that is taken and by linearize."""
    from normscope.curvature import jacobian

    costs = {}
    for route in ("auto", "linearize"):
        j = jacobian(model, x, route=route)
        v = torch.randn(j.shape[0], 1)
        j.matmat(j.rmatmat(v))
        times = []
        for _ in range(5):
            unit = forward_backward(model, x)
            start = time.thread_time()
            j.matmat(j.rmatmat(v))
            times.append((time.thread_time() - start) / unit)
        costs[route] = sorted(times)[2]
    return costs


def run(net: str, method: str, repeats: int, timeout: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", net, method, str(repeats)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**os.environ}, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {timeout:g} s", "stopped": True}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"failed": lines[-1][:110] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.worker[0], args.worker[1], int(args.worker[2]))))
        return
    print(f"torch {torch.__version__}, one thread; lambda_max of the GGN (mean squared error, 1/2n) to {TOL:g}")
    for net in args.nets.split(","):
        reference = run(net, "reference", 0, args.timeout)
        if "failed" in reference:
            print(f"\nnet {net}: {reference['failed']}")
            continue
        print(
            f"\nnet {net}: lambda_max {reference['value']:.6g}; one product {reference['auto']:.2f} fb "
            f"({reference['linearize']:.2f} linearized)"
        )
        print(f"  {'method':<20}{'CPU s':>8}{'fb':>8}{'error':>10}{'peak MB':>9}  note")
        for method in args.methods.split(","):
            got = run(net, method, args.repeats, args.timeout)
            if "failed" in got:
                word = "stopped" if "stopped" in got else "missing" if "No module" in got["failed"] else "refuses"
                print(f"  {method:<20}{word:>8}  {got['failed']}", flush=True)
                continue
            error = got["value"] / reference["value"] - 1
            said = f"{error:.0e}" if abs(error) < 0.05 else f"x{1 + error:.3g}"
            print(
                f"  {method:<20}{got['seconds']:>8.2f}{got['fb']:>8.1f}{said:>10}{got['peak']:>9.0f}  {got['note']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
