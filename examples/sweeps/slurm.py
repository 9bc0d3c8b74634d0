"""A sweep on SLURM: dask-jobqueue starts the workers as jobs, normscope gets its client.

    pip install 'normscope[dask]' dask-jobqueue
    python examples/sweeps/slurm.py

Stop it whenever you like; the same command goes on from the store.
"""

from dask_jobqueue import SLURMCluster
from distributed import Client

import normscope


def cluster() -> SLURMCluster:
    """Workers of one core and one thread each; eight of them a job."""
    return SLURMCluster(
        queue="normal",  # your partition
        cores=8,
        processes=8,
        memory="32GB",
        walltime="02:00:00",
        job_script_prologue=["export OMP_NUM_THREADS=1", "source ~/venv/bin/activate"],
    )


def main() -> None:
    """A phase diagram on up to 40 jobs."""
    grid = normscope.Grid(
        depth=[1, 2, 4, 8, 16, 32, 64], width=[16, 64, 256, 1024], norm=["none", "batch", "layer"], seed=range(10)
    )
    with cluster() as jobs, Client(jobs) as client:
        jobs.adapt(minimum_jobs=1, maximum_jobs=40)
        client.wait_for_workers(1)
        table = normscope.sweep(
            grid, "phase", store="phase-diagram", executor=client, in_flight=2 * 8 * 40, progress=True
        )
    print(table.collect())


if __name__ == "__main__":
    main()
