"""Pyro's traps: for each a clear error or the right number, where a user of this project meets it.

Four of Pyro's functions are traps that this project does not step into, because it calls none of
them, which a test here holds it to: RenyiELBO and ReweightedWakeSleep, whose several draws under a
subsampled plate are weighted over all data at once, `vectorized_importance_weights`, which does the
same, and `psis_diagnostic`, one Pareto k over all data.  Its own bounds of many draws are tested in
tests/test_evidence.py, its k of each datum in tests/test_pareto.py.  The param store's pickle is
never written or read: checkpoints are safetensors, see tests/test_svi.py.
"""

import subprocess
from pathlib import Path

import broken
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from registered import CONTINUOUS

import experiments
import guides
import zoo
from experiments.svi.fit import load

ROOT = Path(__file__).resolve().parents[1]


def scalar_problem(num_data=50):
    """PPCA with one latent, whose posterior an AutoNormal represents."""
    rows = torch.randn(num_data, 3, generator=torch.Generator().manual_seed(1))
    return zoo.load("gaussian_lvm", data=rows, latent_dim=1)


def test_autoguide_that_overrides_the_index_is_refused_on_minibatches():
    """Pyro issue 3468: its plate ignores the model's, and latents and data decouple."""
    problem = scalar_problem()
    with pytest.raises(zoo.ZooError, match=r"ignores index: .* issue 3468.* batch_size=None"):
        experiments.fit(problem, AutoNormal(problem.model), steps=2, batch_size=20)


def test_autoguide_on_all_rows_gives_the_right_number():
    problem = scalar_problem()
    fit = experiments.fit(
        problem, AutoNormal(problem.model), steps=800, batch_size=None, learning_rate=0.05
    )
    gap = fit.log_evidence(problem.data.train).mean() - fit.elbo_per_datum
    assert 0 < gap < 0.05


def test_two_autoguides_share_nothing():
    """Raw Pyro keeps both under the same names; a fit equals the one that never saw the other."""
    problem = scalar_problem()

    def fit(scale):
        guide = AutoNormal(problem.model, init_scale=scale)
        return experiments.fit(problem, guide, steps=20, batch_size=None)

    alone = fit(0.1).history
    other = fit(0.5).history
    again = fit(0.1).history
    assert torch.equal(alone, again)
    assert not torch.equal(alone, other)
    assert not list(pyro.get_param_store().keys())


def test_a_second_run_starts_afresh():
    """Pyro's store would hand the first run's parameters to the second, by their names."""

    def model(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.zeros(3))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=rows)

    def guide(x=None, index=None):
        loc = pyro.param("q_loc", lambda: torch.zeros(3))
        with zoo.datum(x, index):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    problem = broken.program(model, broken.ROWS + 5)
    histories = [experiments.fit(problem, guide, steps=30).history for _ in range(2)]
    assert torch.equal(*histories)
    assert histories[0][0, -1] > histories[0][0, 0]


@pytest.mark.parametrize("guide_name", CONTINUOUS)
def test_the_last_shorter_minibatch(guide_name):
    problem = scalar_problem(50)
    fit = experiments.fit(problem, guides.build(guide_name, problem), steps=9, batch_size=20)
    assert torch.isfinite(fit.history).all()


def test_a_function_guide_with_the_models_plate_serves_every_batch_size():
    """In an AutoGuideList the same plate would be opened twice."""

    def guide(x=None, index=None):
        slope = pyro.param("slope", lambda: torch.zeros(3))
        with zoo.datum(x, index) as rows:
            pyro.sample("z", dist.Normal((rows @ slope)[..., None], 0.5).to_event(1))

    problem = scalar_problem()
    for batch_size in (None, 1, 20, 50):
        fit = experiments.fit(problem, guide, steps=6, batch_size=batch_size)
        assert torch.isfinite(fit.history).all()


def test_an_autoguide_list_with_a_hand_written_guide_of_the_same_plate():
    """The list opens the plate, and the guide in it a second time: one sentence, before a step."""
    problem = scalar_problem()

    def local(x=None, index=None):
        slope = pyro.param("slope", lambda: torch.zeros(3))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.Normal((rows @ slope)[..., None], 0.5).to_event(1))
        return {"z": z}

    guide = AutoGuideList(problem.model)
    guide.append(local)
    with pytest.raises(
        zoo.ZooError, match=r"guide does not run on .*Multiple sample sites named 'datum'"
    ) as caught:
        experiments.fit(problem, guide, steps=2, batch_size=20)
    assert "\n" not in str(caught.value)


def test_forgetting_to_enumerate():
    """Trace_ELBO in Pyro runs and means nothing; a fit enumerates by itself, or refuses."""
    problem = zoo.load("bernoulli_mixture", num_components=3)
    guide = guides.build("mean_field", problem)
    still = {"batch_size": None, "row_learning_rate": 1e-9}
    fit = experiments.fit(problem, guide, steps=1, learning_rate=1e-9, **still)
    assert fit.config.estimator == "enumeration"
    exact = TraceEnum_ELBO(max_plate_nesting=1).loss(
        fit.models[0], config_enumerate(fit.guides[0]), problem.data.train
    )
    assert fit.history[0, 0].item() == pytest.approx(-exact / 1347, rel=1e-5)
    with pytest.raises(zoo.ZooError, match="no path through discrete z"):
        experiments.fit(problem, guide, estimator="pathwise", steps=1)
    with pytest.raises(zoo.ZooError, match="the guide misses latent 'z'"):
        experiments.fit(problem, lambda x=None, index=None: None, steps=1)


SILENT_GUIDES = [
    "misspelt_site",
    "missing_latent",
    "latent_too_many",
    "no_plate",
    "plate_of_another_name",
    "another_event_shape",
    "normal_for_a_positive_latent",
    "autoguide",
    "table_of_all_rows",
    "unscaled_guide",
    "guide_scaled_twice",
    "detached_encoder",
    "guide_parameter_outside_the_module",
]
SILENT_MODELS = [
    "detached_mean",
    "unused_parameter",
    "parameter_outside_the_module",
    "unscaled_minibatch",
    "minibatch_scaled_twice",
]


@pytest.mark.parametrize("name", SILENT_GUIDES)
def test_a_fit_refuses_a_guide_that_pyro_would_fit(name):
    fault = broken.PAIRS[name]
    problem, guide = fault.build()
    with pytest.raises(zoo.ZooError, match=fault.words) as caught:
        experiments.fit(problem, guide, steps=2, batch_size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SILENT_MODELS)
def test_a_fit_refuses_a_model_that_pyro_would_fit(name):
    fault = broken.MODELS[name]
    problem = fault.build()
    with pytest.raises(zoo.ZooError, match=fault.words):
        experiments.fit(problem, guides.build("mean_field", problem), steps=2, batch_size=8)


@pytest.mark.parametrize("name", SILENT_GUIDES)
def test_a_comparison_refuses_them_before_anything_is_written(name, tmp_path, monkeypatch):
    fault = broken.PAIRS[name]
    problem, guide = fault.build()
    monkeypatch.setitem(guides._registry._builds, "faulty", lambda problem: guide)
    with pytest.raises(zoo.ZooError):
        experiments.compare(
            [problem], ["faulty"], out=tmp_path / "out", fit={"steps": 2, "batch_size": 8}
        )
    assert not (tmp_path / "out").exists()


def test_data_that_no_site_observes():
    def model(x=None, index=None):
        with zoo.datum(x, index):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1))

    with pytest.raises(zoo.ZooError, match="the model observes no data"):
        broken.program(model)


def test_a_checkpoint_is_loaded_into_a_fresh_autoguide(tmp_path):
    """Pyro's AutoGuide has no parameters until it has run once, and then takes no state_dict."""
    problem = scalar_problem()
    fit = experiments.fit(
        problem, AutoNormal(problem.model), steps=5, batch_size=None, out=tmp_path
    )
    found = load(problem, AutoNormal(problem.model), tmp_path, 1)
    assert torch.equal(found.elbo, fit.elbo)


def lines_with(words):
    """Lines of the packages' source that match the expression."""
    return subprocess.run(
        ["grep", "-rnE", words, "--include=*.py", "zoo", "guides", "experiments"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def test_no_pickle_is_read_or_written():
    """`param_store.save` and `torch.load` of a stranger's file run what is in it."""
    words = "param_store().save|param_store().load|torch.load|torch.save|import pickle"
    assert lines_with(words.replace("()", r"\(\)")) == ""
    assert "safetensors" in lines_with("safetensors")  # it does find what is there


def test_functions_of_pyro_that_are_traps_are_not_called():
    words = "RenyiELBO|ReweightedWakeSleep|vectorized_importance_weights|psis_diagnostic"
    found = lines_with(rf"({words})\(").splitlines()
    # Which shows beside our own bound what the trap does.
    assert {line.partition(":")[0] for line in found} == {"experiments/benchmarks/objectives.py"}


def test_detaching_is_silent_in_pyro():
    """What the guard is for: Pyro fits a model with a detached mean, and says nothing."""
    problem = broken.MODELS["detached_mean"].build()
    guide = guides.build("mean_field", problem)
    svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = problem.model.loc.detach().clone()
    for _ in range(3):
        svi.step(problem.data.train)
    assert torch.equal(problem.model.loc, before)
