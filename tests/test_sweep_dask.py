"""The same sweep on a Dask cluster, and the examples for SLURM and Kubernetes as far as they go without one."""

import runpy
import threading
import time
from pathlib import Path

import pytest
import sweep_tasks

from normscope import Grid, UsageError, sweep
from normscope.sweep import Store, SweepStopped, executors

FILE = f"{Path(sweep_tasks.__file__)}:"
EXAMPLES = Path(__file__).parent.parent / "examples" / "sweeps"


@pytest.fixture(scope="module")
def client():
    pytest.importorskip("distributed")
    with executors.dask(workers=1) as client:
        yield client


def test_dask_and_local_processes_give_the_same_table_bit_for_bit(client):
    grid = Grid(x=range(12), y=[0.5, 1])
    assert sweep(grid, FILE + "draw", executor=client).equals(sweep(grid, FILE + "draw", workers=1))


def test_dask_workers_compute_on_one_thread(client):
    assert sweep(Grid([{}]), FILE + "threads", executor=client)["value"].to_list() == [1, 1]


def test_failures_and_timeouts_are_stored_on_dask_too(client, tmp_path):
    grid = Grid(x=["fine", "nan", "raises", "spins"])
    table = sweep(grid, FILE + "strange", tmp_path / "s", client, timeout=0.5).collect()
    errors = dict(zip(table["x"], table["error"], strict=True))
    assert errors["fine"] is errors["nan"] is None
    assert "no weights today" in errors["raises"]
    assert "CellTimeout" in errors["spins"]


def test_a_lost_scheduler_stops_the_sweep_and_the_next_one_goes_on(tmp_path):
    distributed = pytest.importorskip("distributed")
    grid = Grid(x=range(40))
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        client = distributed.Client(cluster, set_as_default=False)
        threading.Timer(0.5, client.close).start()
        with pytest.raises(SweepStopped, match="of 40 cells are finished and kept"):
            sweep(grid, sweep_tasks.slow, tmp_path / "s", client)
    kept = len(Store(tmp_path / "s").listing().done)
    assert 0 < kept < 40
    assert sweep(grid, sweep_tasks.slow, tmp_path / "s", workers=1).collect()["value"].to_list() == [
        x * 0.1 for x in range(40)
    ]


def test_no_scheduler_at_the_address_is_told():
    pytest.importorskip("distributed")
    start = time.process_time()
    with pytest.raises(UsageError, match="must be a Dask scheduler at nonsense"), executors.dask("nonsense"):
        pass
    assert time.process_time() - start < 30


def test_the_slurm_example_asks_for_workers_of_one_thread():
    pytest.importorskip("dask_jobqueue")
    script = runpy.run_path(str(EXAMPLES / "slurm.py"))
    with script["cluster"]() as cluster:
        said = cluster.job_script()
    assert "--nthreads 1" in said
    assert "--nworkers 8" in said
    assert "OMP_NUM_THREADS=1" in said


def test_the_kubernetes_example_is_python_and_asks_for_one_core():
    script = runpy.run_path(str(EXAMPLES / "kubernetes.py"))
    assert script["resources"]()["limits"]["cpu"] == "1"
