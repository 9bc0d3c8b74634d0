"""The same sweep on a Dask cluster, and the examples for SLURM and Kubernetes as far as they go without one."""

import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import sweep_tasks

from normscope import Grid, UsageError, sweep
from normscope.sweeping import Store, SweepStopped, executors

FILE = f"{Path(sweep_tasks.__file__)}:"
EXAMPLES = Path(__file__).parents[2] / "examples" / "sweeps"


@pytest.fixture(scope="module")
def client():
    pytest.importorskip("distributed")
    with executors.dask(workers=1) as client:
        yield client


def test_dask_and_threads_give_the_same_table_bit_for_bit(client):
    grid = Grid(x=range(12), y=[0.5, 1])
    with ThreadPoolExecutor(1) as threads:
        assert sweep(grid, FILE + "draw", executor=client).equals(sweep(grid, FILE + "draw", executor=threads))


def test_dask_workers_compute_on_one_thread(client):
    assert sweep(Grid([{}]), FILE + "threads", executor=client)["value"].to_list() == [1, 1]


def test_the_dashboard_is_named_where_it_serves(client):
    pytest.importorskip("bokeh")
    assert executors.dashboard(client) == client.dashboard_link


@pytest.mark.parametrize(
    ("status", "page"),
    [(200, b"<p>Dask needs bokeh >= 3.1 for the dashboard.</p>"), (404, b"<script bokeh>"), (None, b"")],
)
def test_a_dashboard_that_does_not_serve_is_not_named(status, page):
    """As Dask answers without bokeh, with --no-dashboard, and not at all."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            if status is not None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        link = f"http://127.0.0.1:{server.server_port}/status"
        assert executors.dashboard(SimpleNamespace(dashboard_link=link)) is None
        server.shutdown()
    assert executors.dashboard(SimpleNamespace(dashboard_link=link)) is None, "nobody there any more"
    assert executors.dashboard(SimpleNamespace(dashboard_link=None)) is None


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

        def lose(progress):
            if progress.finished == 5:
                client.close()

        with pytest.raises(SweepStopped, match="of 40 cells are finished and kept"):
            sweep(grid, sweep_tasks.draw, tmp_path / "s", client, progress=lose)
    kept = len(Store(tmp_path / "s").listing().done)
    assert 5 <= kept < 40
    with ThreadPoolExecutor(1) as threads:
        table = sweep(grid, sweep_tasks.draw, tmp_path / "s", threads).collect()
        assert table.equals(sweep(grid, sweep_tasks.draw, executor=threads))


def test_no_scheduler_at_the_address_is_told():
    pytest.importorskip("distributed")
    with pytest.raises(UsageError, match="must be a Dask scheduler at nonsense"), executors.dask("nonsense"):
        pass


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
