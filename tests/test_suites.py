"""Suites that name a model's variants and take every suitable guide, and what they refuse."""

import json
import pickle

import pytest

import experiments
import guides
import zoo
from experiments import records
from experiments.cli import main
from experiments.compare import _changed
from experiments.report import readme
from experiments.saved import saved_fits
from experiments.settings import MeasureConfig, RunConfig, Suite, load_suite, plan, suite_names
from experiments.svi.config import validated

FEW = {"num_draws": 4, "restarts": 0, "simulations": 20, "rank_draws": 19, "pareto_draws": 100}
TINY = {"fit": {"steps": 8, "batch_size": 700}, "measure": FEW, "seeds": 2}
LVM = {"model": "gaussian_lvm", "options": {"latent_dim": 3}}
PAIR = {"models": ["gaussian_lvm", "lvm_3"], "guides": ["amortized"], "variants": {"lvm_3": LVM}}


def suite(**values):
    return validated(Suite, **(PAIR | values))


def test_a_variant_is_a_model_of_its_own_by_name():
    made = suite(
        fit_for={"lvm_3": {"steps": 7}},
        model_options={"lvm_3": {"noise": "isotropic"}, "gaussian_lvm": {"latent_dim": 5}},
        guides_for={"lvm_3": ["mean_field"]},
        seeds=1,
    )
    (own, variant), problems = plan(made)
    assert (own.label, variant.label) == ("gaussian_lvm-amortized", "lvm_3-mean_field")
    assert (own.model, own.variant) == ("gaussian_lvm", None)
    assert (variant.model, variant.variant, variant.name) == ("gaussian_lvm", "lvm_3", "lvm_3")
    assert own.model_options["latent_dim"] == 5
    assert variant.model_options["latent_dim"] == 3
    assert variant.model_options["noise"] == "isotropic"
    assert (own.fit.steps, variant.fit.steps) == (2000, 7)
    assert [problems[name].name for name in ("gaussian_lvm", "lvm_3")] == list(problems)
    assert problems["lvm_3"].latents[0].event_shape == (3,)


@pytest.mark.parametrize("name", ["card", "densities", "densities_14", "ladder"])
def test_committed_records_are_still_those_of_their_runs(name):
    """What came later is left out of a config that does not use it, so that keys stay."""
    for record in records.read(readme.RESULTS / f"{name}-cpu" / "records.jsonl"):
        run = RunConfig(**record["config"])
        assert records.key({"config": run.model_dump(mode="json")}) == records.key(record)


def test_what_came_later_is_written_where_it_is_used():
    assert "costs" not in MeasureConfig().model_dump()
    assert MeasureConfig(costs=True).model_dump()["costs"] is True
    own, variant = (run.model_dump(mode="json") for run in plan(suite(seeds=1))[0])
    assert "variant" not in own
    assert variant["variant"] == "lvm_3"
    assert RunConfig(**variant).label == "lvm_3-amortized"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small comparison of a model and its variant."""
    return experiments.compare(out=tmp_path_factory.mktemp("variants") / "out", **PAIR, **TINY)


def measured(found):
    return [(r["label"], r["seed"], r["measures"]) for r in found.records]


def test_records_and_figures_go_by_the_variants_name(finished):
    assert not finished.failed
    labels = ["gaussian_lvm-amortized", "lvm_3-amortized"]
    assert list(dict.fromkeys(r["label"] for r in finished.records)) == labels
    for label in labels:
        assert (finished.folder / label / "posterior.nc").exists()
    assert "| lvm_3 | amortized |" in finished.table
    figures = {path.name for path in (finished.folder / "figures").iterdir()}
    assert {"gaussian_lvm-latent-plane.png", "lvm_3-pictures.png"} <= figures
    assert "lvm_3-latent-plane.png" not in figures  # three latents are no plane


def test_a_comparison_with_variants_is_resumed(finished, tmp_path):
    again = experiments.compare(out=finished.folder, resume=True, **PAIR, **TINY)
    assert again.records == finished.records
    other = PAIR | {"variants": {"lvm_3": LVM | {"options": {"latent_dim": 4}}}}
    with pytest.raises(zoo.ZooError, match="holds another comparison"):
        experiments.compare(out=finished.folder, resume=True, **other, **TINY)


def test_workers_load_variants(finished, tmp_path):
    found = experiments.compare(out=tmp_path / "out", workers=2, **PAIR, **TINY)
    assert measured(found) == measured(finished)
    (tmp_path / "out" / "records.jsonl").unlink()  # their checkpoints are those of the variant
    found = experiments.compare(out=tmp_path / "out", resume=True, **PAIR, **TINY)
    assert measured(found) == measured(finished)


def test_saved_fits_and_diagnoses_know_variants(finished, tmp_path, capsys):
    fits = saved_fits(finished.folder)
    assert [fit.problem.name for fit in fits.values()] == ["gaussian_lvm", "lvm_3"]
    assert fits["lvm_3-amortized"].draws(2)["z"].shape[-1] == 3
    settings = [f"--measure={name}={value}" for name, value in FEW.items()]
    with pytest.raises(SystemExit) as caught:
        main(["diagnose", str(finished.folder), "--out", str(tmp_path / "there"), *settings])
    assert caught.value.code == 0
    assert "## lvm_3, amortized" in capsys.readouterr().out
    assert (tmp_path / "there" / "lvm_3-amortized" / "diagnosis.md").exists()


REFUSED = {
    "the name of a registered model": (
        {"models": ["vae"], "variants": {"vae": LVM}},
        "variant 'vae' has the name of a model; name it otherwise",
    ),
    "the name of a user's file": (
        {"models": ["./lvm_3.py", "lvm_3"]},
        "variant 'lvm_3' has the name of a model",
    ),
    "a name twice": ({"models": ["lvm_3", "lvm_3"]}, "named twice in the comparison"),
    "an unknown model": (
        {"variants": {"lvm_3": LVM | {"model": "gausian_lvm"}}},
        "unknown model of variant 'lvm_3': 'gausian_lvm'; known: gaussian_lvm,",
    ),
    "a variant of a variant": (
        {"variants": {"lvm_3": LVM, "lvm_4": {"model": "lvm_3"}}, "models": ["lvm_3", "lvm_4"]},
        "unknown model of variant 'lvm_4': 'lvm_3'; known: ",
    ),
    "never used": (
        {"models": ["gaussian_lvm"]},
        "variant 'lvm_3' is not among the models of the suite",
    ),
    "no name": ({"variants": {"a/b": LVM}}, "a variant's name is letters, digits, '_' and '-'"),
    "an unknown option": (
        {"variants": {"lvm_3": LVM | {"options": {"latent": 3}}}},
        "unknown option of model 'gaussian_lvm': 'latent'; known: latent_dim,",
    ),
    "no model behind it": ({"variants": {"lvm_3": {}}}, "variants.lvm_3.model: field required"),
    "a misspelt field": (
        {"variants": {"lvm_3": LVM | {"option": {}}}},
        "variants.lvm_3.option: extra inputs are not permitted",
    ),
    "settings of no variant": ({"fit_for": {"lvm_4": {}}}, "unknown model 'lvm_4'; known: lvm_3,"),
    "an unknown guide that stands alone": ({"guides": "all"}, "unknown guide 'all'; known: "),
    "without no guide": (
        {"guides": "suitable", "without": ["amortised"]},
        "unknown guide or pair in without: 'amortised'; known: amortized,",
    ),
    "without no pair": (
        {"guides": "suitable", "without": ["lvm_3-amortised"]},
        "'lvm_3-amortised'; known: lvm_3-amortized,",
    ),
    "without of nothing": (
        {"without": ["oracle"]},
        'without leaves guides out of those that suit: it needs guides = "suitable"',
    ),
    "nothing left": (
        {"guides": "suitable", "without": guides.names()},
        "no registered guide suits gaussian_lvm",
    ),
    "a misspelt option of a guide": (
        {"guides": "suitable", "guide_options": {"amortized": {"hiden": []}}},
        "guide 'amortized' has options and no model: unknown option of guide 'amortized': 'hiden'",
    ),
    "an option by which a guide suits nothing": (
        {"guides": "suitable", "guide_options": {"amortized": {"hidden": [0]}}},
        "guide 'amortized' has options and no model: ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_suites_get_a_sentence(case, tmp_path):
    values, sentence = REFUSED[case]
    with pytest.raises(zoo.ZooError) as caught:
        experiments.compare(out=tmp_path / "out", **(PAIR | values), **TINY)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_models_leave_a_suites_variants_behind():
    """The models that a caller names are fitted without what the suite sets for its variants."""
    own = load_suite("guides")
    assert "vae_10" in own.variants
    changed = _changed(own, {"models": ["vae"], "guides": ["amortized"], "seeds": 1}, {})
    assert not changed.variants
    assert "vae_10" not in changed.fit_for
    assert changed.without == []
    (run,), _ = plan(changed)
    assert run.label == "vae-amortized"
    alone = _changed(own, {"models": ["gaussian_lvm"], "guides": None, "seeds": 1}, {})
    assert "vae-oracle" in own.without
    assert set(own.without) - {"vae-oracle"} == {*alone.without}
    kept = _changed(own, {"models": ["vae_10"], "guides": ["amortized"], "seeds": 1}, {})
    (run,), _ = plan(kept)
    assert run.fit.learning_rate == own.fit_for["vae_10"]["learning_rate"]


def fits(name, problem):
    """Whether a guide can be built for a problem, and has a log q."""
    try:
        return guides.build(name, problem).family != "delta"
    except zoo.ZooError:
        return False
    except AttributeError:  # a guide without a family of the zoo's
        return True


def test_suitable_is_every_guide_that_suits_and_can_be_measured():
    models = ["gaussian_lvm", "bernoulli_mixture", "made"]
    runs, problems = plan(Suite(models=models, guides="suitable", without=["constant"], seeds=1))
    for model in models[:2]:
        found = {run.guide for run in runs if run.name == model}
        left = next(run.unsuited for run in runs if run.name == model)
        assert not found & left.keys()
        assert found | left.keys() == {*guides.names()} - {"empty"}
        assert found == {n for n in found | left.keys() if fits(n, problems[model])} - {"constant"}
        assert left["constant"] == "the suite leaves it out"
        assert {"amortized", "mean_field"} <= found
        assert all(why and "\n" not in why for why in left.values())
    (empty,) = [run for run in runs if run.name == "made"]
    assert (empty.guide, empty.unsuited) == ("empty", {})
    assert "point estimate" in runs[0].unsuited["delta"]


def test_a_guide_may_be_left_out_for_one_model():
    runs, _ = plan(suite(guides="suitable", without=["lvm_3-oracle"], seeds=1))
    oracles = [run.label for run in runs if run.guide == "oracle"]
    assert oracles == ["gaussian_lvm-oracle"]


def test_suitable_stands_beside_guides_that_are_named():
    runs, _ = plan(
        suite(
            models=["gaussian_lvm"],
            variants={},
            guides=["mean_field", "suitable"],
            without=["amortized"],
            seeds=1,
        )
    )
    names = [run.guide for run in runs]
    assert names[0] == "mean_field"
    assert len(set(names)) == len(names) > 2
    assert "amortized" not in names


def test_a_guide_that_breaks_is_left_out_with_its_reason(monkeypatch):
    """What is no error of the zoo's ends in a sentence as well, and the other guides go on."""
    from experiments import suitable

    def breaks(problem, guide, minibatches):
        if guide.name == "constant":
            raise RuntimeError("of no use\nat all")

    monkeypatch.setattr(suitable, "refuse_traps", breaks)
    runs, _ = plan(suite(guides="suitable", seeds=1))
    sentence = "guide 'constant' does not run beside gaussian_lvm: RuntimeError: of no use"
    assert runs[0].unsuited["constant"] == sentence
    with pytest.raises(zoo.ZooError, match=r"RuntimeError: of no use$"):
        plan(suite(guides=["constant"]))


def test_why_a_guide_is_left_out_is_kept_beside_the_config():
    run = plan(suite(guides="suitable", without=["top_down"], seeds=1))[0][0]
    assert "unsuited" not in run.model_dump(mode="json")
    assert pickle.loads(pickle.dumps(run)).unsuited == run.unsuited  # as a worker gets it
    found = experiments.single.identity(run)
    assert found["unsuited"]["top_down"] == "the suite leaves it out"
    assert json.loads(json.dumps(found)) == found


def test_the_suite_guides_is_listed(capsys):
    with pytest.raises(SystemExit):
        main(["list"])
    assert "guides" in suite_names()
    assert "suites: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_suite_guides_takes_what_suits_six_models(monkeypatch):
    # Conformance asks the same of every pair.
    monkeypatch.setattr("experiments.suitable.refuse_traps", lambda *arguments: None)
    runs, problems = plan(load_suite("guides"))
    assert list(problems) == [
        *("bernoulli_mixture", "gaussian_lvm", "vae", "vae_10", "bernoulli_lvm"),
        "linear_gaussian_ssm",
    ]
    assert {run.seed for run in runs} == {0, 1, 2, 3, 4}
    assert all(run.measure.costs for run in runs)
    for name in problems:
        assert {"amortized", "constant", "mean_field"} <= {r.guide for r in runs if r.name == name}
    assert not {run.guide for run in runs} & {"top_down", "delta", "semi_supervised"}
