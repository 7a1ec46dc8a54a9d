"""Shared fixtures; in CI a skipped test is a failure."""

import os
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from registered import KNOWN

import guides
import zoo
from zoo.data import files

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

if "ZOO_DATA" not in os.environ and SHARED_DATA.is_dir():
    os.environ["ZOO_DATA"] = str(SHARED_DATA)
torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    """Leave out what this machine cannot run: GPU tests without a GPU."""
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("gpu")])
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_runtest_setup(item):
    missing = [name for name in files.registry() if not (files.folder() / name).exists()]
    if item.get_closest_marker("data") and missing:
        pytest.skip(f"needs the public data files; set ZOO_DATA ({missing[0]} is missing)")


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = 1


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Compiled code goes to a folder of this session, and none is taken from elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def clean_pyro():
    """Every test starts from the same seed and an empty parameter store."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


@pytest.fixture(params=zoo.names())
def problem(request):
    """Every registered problem, as built."""
    return zoo.load(request.param)


@pytest.fixture(params=KNOWN)
def independent_problem(request):
    """Every registered problem of independent rows whose posterior is known, as built."""
    return zoo.load(request.param)


@pytest.fixture(params=guides.names())
def guide_name(request):
    """Name of every registered guide."""
    return request.param


@pytest.fixture
def clock(monkeypatch):
    """Time passes by time.sleep, and by a tick a look: no other program lengthens what is timed.

    Returns the tick, in seconds.
    """
    now, tick = [0.0], 1e-4

    def look():
        now[0] += tick
        return now[0]

    monkeypatch.setattr("time.perf_counter", look)
    monkeypatch.setattr("time.process_time", lambda: 0.0)  # it sleeps
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return tick


@pytest.fixture
def diverging_problem():
    """A problem whose loss is finite at first, until steps of 0.1 make its variance negative."""

    def model(x=None, index=None):
        variance = pyro.param("variance", torch.full((), 0.15))
        with zoo.datum(x, index) as rows:
            pyro.sample("z", dist.Normal(0.0, 1.0))
            observed = dist.Normal(0.0, variance.sqrt(), validate_args=False)
            pyro.sample("x", observed, obs=None if rows is None else rows[:, 0])

    return zoo.Problem(model, zoo.data.as_dataset(torch.zeros(9, 1)), name="diverging")


@pytest.fixture
def double():
    """float64 everywhere."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def uncompiled(monkeypatch):
    """The fused step runs as it was recorded, without the minute that a compiler takes."""
    take_as_it_is = lambda graph, inputs: lambda given: list(graph(*given))  # noqa: E731
    monkeypatch.setattr("experiments.svi.fused.compile_graph", take_as_it_is)
