"""The engine: many seeds in one step, those that stop or fail, resumption, and its choice."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from steps import CPU, assert_close, assert_equal, parameters, started, train, train_eagerly

import experiments
import guides
import zoo
from experiments.svi import checkpoint, compiler, engine, fit
from experiments.svi.config import FitConfig
from experiments.svi.estimators import FitError, resolve
from experiments.svi.fit import fit_seeds
from experiments.svi.fused import Fused

FEW = {"num_draws": 4, "restarts": 0, "simulations": 20, "pareto_draws": 100}
SEEDS = (3, 4, 5)


def small(name="gaussian_lvm", guide_name="mean_field", num_data=15):
    data = zoo.load(name).data
    problem = zoo.load(name, data=(data.train[:num_data], data.test[:num_data]))
    return problem, guides.build(guide_name, problem)


def with_settings(run, **settings):
    """The run with another config, of which only the rate and the stopping rule may differ."""
    run.config = run.config.model_copy(update=settings)
    return run


@pytest.mark.usefixtures("uncompiled")
class TestManySeeds:
    @pytest.mark.parametrize("guide_name", ["mean_field", "amortized"])
    @pytest.mark.parametrize("batch_size", [4, None])
    def test_together_as_alone(self, guide_name, batch_size):
        problem, guide = small(guide_name=guide_name)
        settings = {"steps": 12, "batch_size": batch_size}
        together = train(started(problem, guide, SEEDS, **settings), problem)
        assert len({tuple(run.losses) for run in together}) == 3
        for run in together:
            assert run.engine["seeds_together"] == 3
            [alone] = train(started(problem, guide, [run.seed], **settings), problem)
            assert_close(run, alone, 1e-4, 1e-5)

    def test_several_rates_in_one_program(self):
        problem, guide = small()
        settings = {"steps": 8, "batch_size": 4}
        rates = [{}, {"learning_rate": 0.1}, {"row_learning_rate": 0.5}]
        runs = [
            with_settings(run, **rate)
            for run, rate in zip(started(problem, guide, SEEDS, **settings), rates, strict=True)
        ]
        train(runs, problem)
        for run, rate in zip(runs, rates, strict=True):
            [alone] = train(started(problem, guide, [run.seed], **settings, **rate), problem)
            assert_close(run, alone, 1e-4, 1e-5)

    def test_a_seed_that_is_done_is_frozen(self):
        """One is flat after its first window; it stays bit for bit as it was while others run."""
        problem, guide = small()
        settings = {"steps": 40, "batch_size": 4}
        flat = {"flat_window": 10, "flat_tolerance": 1e9}
        runs, kept = started(problem, guide, SEEDS, **settings), []
        with_settings(runs[1], **flat)

        def watch(runs):
            if runs[1].finished and not kept:
                kept.append(parameters(runs[1]))

        engine.train(runs, problem, watch)
        assert [run.step for run in runs] == [40, 30, 40]
        for name, value in parameters(runs[1]).items():
            assert torch.equal(value, kept[0][name]), name
        [alone] = train(started(problem, guide, [4], **settings, **flat), problem)
        assert alone.step == 30
        assert_close(runs[1], alone, 1e-4, 1e-5)
        [whole] = train(started(problem, guide, [5], **settings), problem)
        assert_close(runs[2], whole, 1e-4, 1e-5)

    def test_a_flat_window_divides_the_rate_of_its_seed_alone(self):
        problem, guide = small()
        settings = {"steps": 45, "batch_size": 4}
        flat = {"flat_window": 10, "flat_tolerance": 1e9, "flat_drops": 3}
        runs = started(problem, guide, SEEDS[:2], **settings)
        with_settings(runs[1], **flat)
        train(runs, problem)
        assert [run.flats for run in runs] == [0, 1]
        for run, own in zip(runs, ({}, flat), strict=True):
            [alone] = train(started(problem, guide, [run.seed], **settings, **own), problem)
            assert_close(run, alone, 1e-4, 1e-5)
        [steady] = train(started(problem, guide, [4], **settings), problem)
        assert steady.losses[30] == pytest.approx(runs[1].losses[30], rel=1e-4)
        assert steady.losses[-1] != pytest.approx(runs[1].losses[-1], rel=1e-4)

    def test_more_steps_than_losses_are_kept(self):
        problem, guide = small("gaussian_lvm", "constant")
        settings = {"steps": 600, "batch_size": None, "learning_rate": 1e-3}
        [run] = train(started(problem, guide, [0], **settings), problem)
        [other] = started(problem, guide, [0], **settings)
        train_eagerly(other, problem)
        assert len(run.seconds) == len(run.losses) == 600
        assert run.seconds == sorted(run.seconds)
        torch.testing.assert_close(
            torch.tensor(run.losses), torch.tensor(other.losses), rtol=1e-3, atol=1e-3
        )

    def test_a_seed_whose_loss_is_not_finite_ends_alone(self, diverging_problem):
        """It keeps the parameters that it had before that step; the others end as without it."""
        problem = diverging_problem
        guide = guides.build("mean_field", problem)
        settings = {"steps": 9, "batch_size": 4}
        runs = started(problem, guide, SEEDS, **settings, learning_rate=1e-3)
        with_settings(runs[1], learning_rate=0.1)
        train(runs, problem)
        assert [run.error is None for run in runs] == [True, False, True]
        step = runs[1].step
        assert 0 < step < 9
        assert isinstance(runs[1].error, FitError)
        assert f"step {step}: the loss is nan at site 'x' of the model" in str(runs[1].error)
        [before] = started(problem, guide, [4], **settings, learning_rate=0.1)
        assert_close(runs[1], train_eagerly(before, problem, step), 1e-4, 1e-5)
        for run in (runs[0], runs[2]):
            [alone] = train(
                started(problem, guide, [run.seed], **settings, learning_rate=1e-3), problem
            )
            assert run.step == 9
            assert_close(run, alone, 1e-4, 1e-5)

    def test_fit_raises_the_error_of_a_seed(self, diverging_problem):
        guide = guides.build("mean_field", diverging_problem)
        options = {"steps": 500, "learning_rate": 0.1, "engine": "compiled"}
        with pytest.raises(FitError, match=r"step [1-9]\d*: the loss is nan at site 'x'"):
            experiments.fit(diverging_problem, guide, seeds=2, **options)


class Stop(Exception):
    """What the tests interrupt a fit with."""


def config_of(problem, **settings):
    settings = {"steps": 23, "batch_size": 4, "checkpoint_seconds": 1e-9} | settings
    return resolve(FitConfig(**({"engine": "compiled"} | settings)), problem)


def interrupted(problem, guide, config, folder, seeds=SEEDS, after=10):
    """Fit until all seeds together have taken so many steps, with a checkpoint of each."""

    def report(steps):
        if steps >= after:
            raise Stop

    with pytest.raises(Stop):
        fit_seeds(problem, guide, config, seeds, CPU, folder, report=report)


@pytest.mark.usefixtures("uncompiled")
class TestResumption:
    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    @pytest.mark.parametrize("guide_name", ["mean_field", "amortized"])
    def test_resumed_seeds_end_with_identical_bits(self, guide_name, optimizer, tmp_path):
        problem, guide = small(guide_name=guide_name, num_data=35)
        config = config_of(problem, optimizer=optimizer, learning_rate=1e-3)
        whole = fit_seeds(problem, guide, config, SEEDS, CPU)
        interrupted(problem, guide, config, tmp_path)
        paths = [tmp_path / f"seed-{seed}.safetensors" for seed in SEEDS]
        steps = {checkpoint.read(path)[1]["step"] for path in paths}
        assert 0 < min(steps) == max(steps) < 8  # in the middle of an epoch
        resumed = fit_seeds(problem, guide, config, SEEDS, CPU, tmp_path, resume=True)
        for run, other in zip(whole, resumed, strict=True):
            assert_equal(run, other)
        loaded = fit.load(problem, guide, tmp_path, SEEDS)
        for run, model, q in zip(whole, loaded.models, loaded.guides, strict=True):
            own = torch.nn.ModuleDict({"model": model, "guide": q}).state_dict()
            assert all(torch.equal(v, own[n]) for n, v in run.modules.state_dict().items())

    @pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
    @pytest.mark.parametrize("batch_size", [4, None])
    def test_checkpoints_have_the_tensors_of_the_eager_engine(
        self, optimizer, batch_size, tmp_path
    ):
        problem, guide = small()
        found = {}
        for kind in ("compiled", "recorded", "eager"):
            settings = {"optimizer": optimizer, "batch_size": batch_size, "engine": kind}
            if optimizer == "sgd":  # its steps are as long as the gradient
                settings |= {"learning_rate": 1e-6, "row_learning_rate": 1e-6}
            fit_seeds(problem, guide, config_of(problem, **settings), [0], CPU, tmp_path / kind)
            tensors, _ = checkpoint.read(tmp_path / kind / "seed-0.safetensors")
            found[kind] = {name: t.shape for name, t in tensors.items() if name != "order"}
        assert found["compiled"] == found["recorded"] == found["eager"]

    def test_a_finished_seed_and_one_half_way_go_on_with_others(self, tmp_path):
        problem, guide = small()
        config = config_of(problem)
        whole = fit_seeds(problem, guide, config, SEEDS, CPU)
        fit_seeds(problem, guide, config, [3], CPU, tmp_path)
        interrupted(problem, guide, config, tmp_path, seeds=[4], after=7)
        first = checkpoint.read(tmp_path / "seed-3.safetensors")[0]
        runs = fit_seeds(problem, guide, config, SEEDS, CPU, tmp_path, resume=True)
        for name, value in runs[0].modules.state_dict().items():
            assert torch.equal(value, first[f"module.{name}"])
        for run, other in zip(whole, runs, strict=True):
            assert_close(run, other, 1e-4, 1e-5)

    def test_what_a_compiled_run_left_goes_on_where_there_is_no_compiler(
        self, tmp_path, monkeypatch
    ):
        """Its moments and order are taken over, and are in the next checkpoint."""
        problem, guide = small(num_data=35)
        config = config_of(problem, steps=6)
        interrupted(problem, guide, config, tmp_path, seeds=[3], after=3)
        path = tmp_path / "seed-3.safetensors"
        before = checkpoint.read(path)[0]
        without_compiler(monkeypatch)
        with pytest.warns(UserWarning, match="run as recorded"):
            [run] = fit_seeds(problem, guide, config, [3], CPU, tmp_path, resume=True)
        after = checkpoint.read(path)[0]
        count = len(before["order"])
        assert torch.equal(after["order"][:count], before["order"])
        for name, value in after.items():
            if name.endswith("|step"):
                assert value == 6
            elif "|" in name:
                assert not torch.equal(value, torch.zeros_like(value))
        assert_moments_go_on(before, after, run)


def assert_moments_go_on(before, after, run):
    """Squares forget slowly: after three more steps they are at least what is left of them."""
    for name, value in after.items():
        if name.endswith("exp_avg_sq"):
            assert (value >= 0.99 * 0.999**3 * before[name]).all(), name
    assert run.step == 6


def without_compiler(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(compiler, "missing_compiler", lambda kind: "there is no C++ compiler")


def only_warning(caught):
    [warning] = [w for w in caught if issubclass(w.category, UserWarning)]
    return str(warning.message)


def fitted(problem, guide, kind, seeds=SEEDS, **settings):
    """(runs, warnings) of a fit by that engine."""
    config = config_of(problem, engine=kind, **({"steps": 6} | settings))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return fit_seeds(problem, guide, config, seeds, CPU), caught


def own_problem():
    """A problem of a plain function: z normal, x normal around it."""

    def model(x=None, index=None):
        loc = pyro.param("loc", lambda: torch.randn(2))
        with zoo.datum(x, index) as rows:
            z = pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=rows)

    return zoo.Problem(model, zoo.data.as_dataset(torch.randn(15, 2)))


def branching(x=None, index=None):
    """A guide that looks at a value."""
    loc = pyro.param("q_loc", lambda: torch.zeros(2))
    scale = 1.0 if loc.sum() >= 0 else 2.0
    with zoo.datum(x, index):
        pyro.sample("z", dist.LogNormal(loc, scale).to_event(1))


def gamma(x=None, index=None):
    """A guide whose draws have no noise by counter."""
    rate = pyro.param("q_rate", lambda: torch.ones(2), dist.constraints.positive)
    with zoo.datum(x, index):
        pyro.sample("z", dist.Gamma(torch.full((2,), 2.0), rate).to_event(1))


def writing(x=None, index=None):
    """A guide that writes into memory of its own: one seed can, a batch of them cannot."""
    loc = pyro.param("q_loc", lambda: torch.randn(2))
    place = torch.zeros(2)
    place[0] = loc[1]
    with zoo.datum(x, index):
        pyro.sample("z", dist.LogNormal(place + loc, 1.0).to_event(1))


class Counting(torch.nn.Module):
    """A guide with a buffer that it changes."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x=None, index=None):
        self.calls.add_(1)
        loc = self.loc.float() / (1 + self.calls)
        with zoo.datum(x, index):
            pyro.sample("z", dist.LogNormal(loc, 1.0).to_event(1))


class TestChoice:
    @pytest.mark.parametrize("seeds", [1, 3])
    def test_auto_records_and_compiles_where_it_pays(self, seeds):
        least = math.ceil(engine.RECORDED / seeds)
        runs = [None] * seeds
        assert engine.choose(FitConfig(steps=engine.COMPILED), runs) == "compiled"
        assert engine.choose(FitConfig(steps=engine.COMPILED - 1), runs) == "recorded"
        assert engine.choose(FitConfig(steps=least), runs) == "recorded"
        assert engine.choose(FitConfig(steps=least - 1), runs) == "eager"
        assert engine.choose(FitConfig(steps=1, engine="compiled"), runs) == "compiled"
        assert engine.choose(FitConfig(steps=1, engine="recorded"), runs) == "recorded"
        assert engine.choose(FitConfig(steps=10**6, engine="eager"), runs) == "eager"

    def test_auto_runs_the_engine_that_it_chose(self, uncompiled, monkeypatch):
        problem, guide = small()
        for recorded, compiled, expected in (
            (18, 7, "recorded"),
            (19, 7, "eager"),
            (18, 6, "compiled"),
        ):
            monkeypatch.setattr(engine, "RECORDED", recorded)
            monkeypatch.setattr(engine, "COMPILED", compiled)
            runs, caught = fitted(problem, guide, "auto")
            assert {run.engine["engine"] for run in runs} == {expected}
            assert not caught

    def test_seeds_that_cannot_run_together_run_one_by_one(self, uncompiled):
        problem = own_problem()
        runs, caught = fitted(problem, writing, "compiled")
        assert "trained one by one, not together: " in only_warning(caught)
        for run in runs:
            assert (run.engine["engine"], run.engine["seeds_together"]) == ("compiled", 1)
            [alone], caught = fitted(problem, writing, "compiled", [run.seed])
            assert not caught
            assert_equal(run, alone)
            [other] = started(problem, writing, [run.seed], steps=6, batch_size=4)
            assert_close(run, train_eagerly(other, problem), 1e-4, 1e-5)

    def test_a_buffer_that_is_written_belongs_to_its_seed(self, uncompiled):
        """Seeds are trained one by one, since each counts its own steps."""
        problem = own_problem()
        runs, caught = fitted(problem, Counting(), "compiled")
        assert "not together: they write to a tensor" in only_warning(caught)
        for run in runs:
            assert run.engine["engine"] == "compiled"
            assert run.modules["guide"].calls == 6

    def test_parameters_of_two_types_run_eagerly(self, uncompiled):
        guide = Counting()
        guide.loc.data = guide.loc.data.double()
        runs, caught = fitted(own_problem(), guide, "compiled")
        assert "its parameters are of different types" in only_warning(caught)
        assert {run.engine["engine"] for run in runs} == {"eager"}
        assert runs[0].modules["guide"].loc.dtype == torch.float64

    @pytest.mark.parametrize(
        ("guide", "reason"),
        [(branching, "depends on the value of a tensor"), (gamma, "_?standard_gamma")],
    )
    def test_what_cannot_be_recorded_runs_eagerly(self, uncompiled, guide, reason):
        problem = own_problem()
        runs, caught = fitted(problem, guide, "compiled")
        with pytest.warns(UserWarning, match=f"eagerly, not compiled: .*{reason}"):
            warnings.warn(only_warning(caught), stacklevel=1)
        for run in runs:
            [other], _ = fitted(problem, guide, "eager", [run.seed])
            assert run.engine == other.engine
            assert run.engine["engine"] == "eager"
            assert_equal(run, other)

    def test_without_a_compiler_the_steps_run_as_recorded(self, monkeypatch):
        without_compiler(monkeypatch)
        problem, guide = small()
        runs, caught = fitted(problem, guide, "compiled")
        sentence = "run as recorded, not compiled: there is no C++ compiler"
        assert only_warning(caught).endswith(sentence)
        expected, _ = fitted(problem, guide, "recorded")
        for run, other in zip(runs, expected, strict=True):
            assert run.engine["engine"] == "recorded"
            assert_equal(run, other)

    def test_torch_and_pyro_are_left_as_they_were(self, uncompiled):
        problem, guide = small()
        state = torch.get_rng_state()
        fitted(problem, guide, "compiled")
        assert torch.equal(torch.get_rng_state(), state)
        assert not list(pyro.get_param_store().keys())

    @pytest.mark.parametrize("kind", ["compiled", "recorded", "eager"])
    def test_records_say_which_engine_ran(self, uncompiled, kind, tmp_path):
        options = {"steps": 5, "batch_size": 700, "engine": kind}
        found = experiments.compare(
            ["gaussian_lvm"], ["constant"], 2, tmp_path, fit=options, measure=FEW
        )
        assert not found.failed
        for record in found.records:
            cost = record["cost"]
            assert cost["engine"] == kind
            assert cost["seeds_together"] == (1 if kind == "eager" else 2)
            assert (cost["compile_seconds"] > 0) == (kind != "eager")


@pytest.mark.usefixtures("uncompiled")
class TestTables:
    NUM_DATA = 997

    def recorded(self, monkeypatch, **settings):
        graphs = []

        def keep(graph, inputs):
            graphs.append((graph, inputs))
            return lambda given: list(graph(*given))

        monkeypatch.setattr("experiments.svi.fused.compile_graph", keep)
        problem, guide = small(num_data=self.NUM_DATA)
        runs = started(problem, guide, SEEDS[:2], batch_size=4, **settings)
        fused = Fused(runs, problem)
        fused.prepare()
        fused.shuffle()
        return fused, *graphs[0]

    def test_a_step_touches_the_rows_of_its_batch_alone(self, monkeypatch):
        fused, _, _ = self.recorded(monkeypatch, steps=9)
        [name] = fused.tables
        for run in fused.runs:  # moments that would decay if they were touched
            assert parameters(run)[name].shape == (self.NUM_DATA, 4)
        table = fused.tensors[name]
        assert table.shape == (2, self.NUM_DATA, 12)  # 4 parameters and 2 moments of each
        table[..., 4:] = 0.5
        before = table.clone()
        batches = [fused.tensors["orders"][seed, 0, :4] for seed in range(2)]
        assert set(batches[0].tolist()) != set(batches[1].tolist())
        fused.run(1)
        for columns in (slice(0, 4), slice(4, 8), slice(8, 12)):
            for seed in range(2):
                moved = (before != table)[seed, :, columns].any(-1)
                assert set(moved.nonzero()[:, 0].tolist()) == set(batches[seed].tolist())

    def test_no_tensor_as_long_as_the_table_is_made(self, monkeypatch):
        """But for the writes into the table, which the compiler does in place."""
        _, graph, inputs = self.recorded(monkeypatch, steps=9)
        given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        long, threshold = [], self.NUM_DATA - 4

        class Watch(torch.fx.Interpreter):
            def run_node(self, node):
                made = super().run_node(node)
                if isinstance(made, torch.Tensor) and made.numel() >= threshold:
                    storage = made.untyped_storage().data_ptr()
                    if storage not in given:
                        long.append(node)
                return made

        Watch(graph).run(*inputs)
        written = [n for n in long if n.target == torch.ops.aten.index_put.default]
        assert len(written) == 1
        views = {torch.ops.aten.reshape.default, torch.ops.aten.unflatten.int}
        others = [n for n in long if n not in written]
        assert all(n.target in views and n.args[0] in written for n in others), others

    def test_every_row_of_an_epoch_is_taken_once(self, monkeypatch):
        fused, _, _ = self.recorded(monkeypatch, steps=9)
        orders = fused.tensors["orders"]
        assert orders.shape == (2, 1, 996)
        for order in orders:
            assert len(order.unique()) == 996
        assert not torch.equal(*orders)
        run = fused.runs[0]
        first = orders[0].clone()
        run.losses = [0.0] * 249
        fused.shuffle()
        assert not torch.equal(orders[0], first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "guide_name"), [("gaussian_lvm", "mean_field"), ("bernoulli_mixture", "amortized")]
)
def test_both_engines_end_at_the_same_bound(name, guide_name):
    """Welch's test at 0.1 % on the final bounds of 12 seeds each; it would see 2 sd."""
    problem, guide = small(name, guide_name, 40)
    options = {"steps": 200, "batch_size": 10, "learning_rate": 0.05}
    ours = experiments.fit(problem, guide, seeds=range(12), engine="recorded", **options)
    theirs = experiments.fit(problem, guide, seeds=range(100, 112), engine="eager", **options)
    bounds = [each.elbo_per_datum.double().numpy() for each in (ours, theirs)]
    assert stats.ttest_ind(*bounds, equal_var=False).pvalue > 1e-3
    gained = [each.history[:, -20:].mean(1) - each.history[:, 0] for each in (ours, theirs)]
    assert min(g.min() for g in gained) > 0
    spread = [bound.std() for bound in bounds]
    assert abs(bounds[0].mean() - bounds[1].mean()) < 2 * max(spread)


@pytest.mark.slow
def test_compiled_for_real(tmp_path, monkeypatch):
    """One compilation: the steps are those of SVI, it is kept on disk, and goes on from there."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    problem, guide = small(num_data=40)
    config = config_of(problem, steps=14, batch_size=16)
    whole = fit_seeds(problem, guide, config, [3, 4], CPU)
    [library] = (tmp_path / "cache" / "compiled").glob("*/step.so")
    for run in whole:
        assert run.engine["engine"] == "compiled"
        assert run.engine["seeds_together"] == 2
        [other] = started(problem, guide, [run.seed], steps=14, batch_size=16)
        assert_close(run, train_eagerly(other, problem), 1e-3, 1e-4)
    recorded = config.model_copy(update={"engine": "recorded"})
    for run, other in zip(whole, fit_seeds(problem, guide, recorded, [3, 4], CPU), strict=True):
        assert other.engine["engine"] == "recorded"
        assert_close(run, other, 1e-4, 1e-5)
    interrupted(problem, guide, config, tmp_path / "out", seeds=[3, 4], after=10)
    resumed = fit_seeds(problem, guide, config, [3, 4], CPU, tmp_path / "out", resume=True)
    for run, other in zip(whole, resumed, strict=True):
        assert_equal(run, other)
        assert other.engine["compile_seconds"] < 0.5 * run.engine["compile_seconds"]
    assert list((tmp_path / "cache" / "compiled").glob("*/step.so")) == [library]
