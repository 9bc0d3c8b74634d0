"""A sweep on Kubernetes: dask-kubernetes makes the cluster, normscope gets its client.

    pip install 'normscope[dask]' dask-kubernetes
    helm install --repo https://helm.dask.org --create-namespace -n dask-operator --generate-name
    dask-kubernetes-operator python examples/sweeps/kubernetes.py

The image must hold normscope. The store is written by this process, so workers need no shared disk.
"""

from typing import Any

import normscope

IMAGE = "registry.example.org/normscope:latest"  # FROM python:3.12-slim; RUN pip install 'normscope[dask]'


def resources() -> dict[str, dict[str, str]]:
    """One core a worker."""
    return {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"cpu": "1", "memory": "4Gi"}}


def cluster() -> Any:
    """Workers of one thread each."""
    from dask_kubernetes.operator import KubeCluster

    return KubeCluster(
        name="normscope",
        image=IMAGE,
        resources=resources(),
        env={"OMP_NUM_THREADS": "1"},
        worker_command=["dask", "worker", "--nthreads", "1"],
    )


def main() -> None:
    """A phase diagram on up to 50 workers."""
    from distributed import Client

    grid = normscope.Grid(depth=[1, 4, 16, 64], width=[16, 64, 256], norm=["none", "batch", "layer"], seed=range(10))
    with cluster() as pods, Client(pods) as client:
        pods.adapt(minimum=1, maximum=50)
        client.wait_for_workers(1)
        table = normscope.sweep(grid, "phase", store="phase-diagram", executor=client, in_flight=100, progress=True)
    print(table.collect())


if __name__ == "__main__":
    main()
