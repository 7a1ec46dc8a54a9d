"""`zoo diagnose` on what `zoo compare` and `zoo fit` left, and what it says of other folders."""

import json

import pytest
import torch

import experiments
import guides
import zoo
from experiments.cli import main
from experiments.diagnose import predictive_checks
from experiments.report import diagnosis

FEW = {
    "num_draws": 8,
    "restarts": 0,
    "simulations": 20,
    "rank_draws": 19,
    "pareto_rows": 30,
    "pareto_draws": 100,
}
SETTINGS = [f"--measure={name}={value}" for name, value in FEW.items()]
FIGURES = {"gaps.png", "k.png", "ranks.png", "worst.png"}


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, arguments)))
    return caught.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A short comparison of two models."""
    out = tmp_path_factory.mktemp("diagnose") / "out"
    fit = {"steps": 30, "batch_size": 700}
    experiments.compare(
        ["vae", "bernoulli_mixture"], ["amortized"], seeds=2, out=out, fit=fit, measure=FEW
    )
    return out


def test_a_comparison_is_diagnosed_guide_by_guide(folder, capsys):
    assert run("diagnose", folder, *SETTINGS) == 0
    said = capsys.readouterr().out
    for label, missing in (("vae-amortized", set()), ("bernoulli_mixture-amortized", {"k", "w"})):
        left = {path.name for path in (folder / "diagnosis" / label).iterdir()}
        gone = {name for name in FIGURES if name[0] in missing}
        assert left == (FIGURES - gone) | {"diagnosis.md"}
        assert (folder / "diagnosis" / label / "diagnosis.md").read_text() in said
    assert "Pareto k was left out: the weights of discrete latents are bounded." in said
    assert said.count("| sd_of_row_sums |") == 2
    assert said.count("A classifier tells draws of the guide") == 2


def test_its_numbers_are_those_of_the_records(folder):
    """The same measures of the same checkpoints, bit for bit."""
    from experiments import records
    from experiments.saved import saved_fits

    recorded = [r for r in records.read(folder / "records.jsonl") if r["label"] == "vae-amortized"]
    found = experiments.diagnose(saved_fits(folder)["vae-amortized"], **FEW).records()
    for one, record in zip(found, sorted(recorded, key=lambda r: r["seed"]), strict=True):
        assert json.loads(json.dumps(one)) == record["measures"]


def test_options_of_a_fits_guide_are_kept(tmp_path):
    from experiments.saved import saved_fits

    out = tmp_path / "out"
    assert run("fit", "gaussian_lvm", "low_rank", "-g", "rank=2", "--steps=5", "--out", out) == 0
    [found] = saved_fits(out).values()
    assert found.guides[0].families["z"].rank == 2


def test_a_single_fit_is_diagnosed(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("fit", "gaussian_lvm", "mean_field", "--steps=20", "--out", out) == 0
    assert run("diagnose", out, "--out", tmp_path / "there", *SETTINGS) == 0
    assert "## gaussian_lvm, mean_field" in capsys.readouterr().out
    left = {path.name for path in (tmp_path / "there" / "gaussian_lvm-mean_field").iterdir()}
    assert left >= {"diagnosis.md", "k.png"}


def test_a_joint_problem_has_one_k_and_no_ranks():
    problem = zoo.load("eight_schools")
    fit = experiments.fit(problem, guides.build("mean_field", problem), steps=50)
    found = experiments.diagnose(fit, **(FEW | {"interval_rows": 2, "interval_temperatures": 5}))
    (one,) = found.measured
    assert one.k.shape == (1,)
    assert one.calibration is None
    assert "held_out" not in one.record()
    assert "Ranks were left out" in found.text


def test_worst_data_are_named_by_their_place_in_the_data():
    problem = zoo.load("gaussian_lvm")
    fit = experiments.fit(problem, guides.build("amortized", problem), steps=20)
    found = experiments.diagnose(fit, **FEW)
    (one,) = found.measured
    worst = one.record()["pareto"]["worst"][0]
    assert worst["index"] == one.rows[one.k.argmax()].item()
    assert worst["k"] == one.k.max().item()
    assert diagnosis.k_histogram(fit, found.measured) is not None
    assert torch.equal(one.labels, problem.data.test_labels[one.rows])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "no such folder: nowhere"),
        (["."], ". holds no fits; `zoo compare --out` and `zoo fit --out` write such folders"),
        ([".", "--measure=simulation=3"], "unknown option 'simulation'; known: simulations,"),
        (
            [".", "--measure=pareto_draws=5"],
            "pareto_draws: input should be greater than or equal to",
        ),
    ],
)
def test_other_folders_get_a_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("diagnose", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"zoo: {sentence}")
    assert not list(tmp_path.iterdir())


def test_damaged_and_alien_fits_get_a_sentence(folder, tmp_path, capsys):
    out = tmp_path / "out"
    run("fit", "gaussian_lvm", "mean_field", "--steps=2", "--out", out)
    facts = json.loads((out / "fit.json").read_text())
    for content, sentence in (
        ("{", "fit.json is damaged"),
        ('{"model": "vae", "guide": "mean_field"}', "fit.json is damaged"),
        (json.dumps(facts | {"data": "0"}), "holds fits of gaussian_lvm to other data"),
        (json.dumps(facts | {"guide": "amortized"}), "is the checkpoint of another model or guide"),
    ):
        (out / "fit.json").write_text(content)
        assert run("diagnose", out) == 2
        assert sentence in capsys.readouterr().err


def test_predictive_checks_see_what_a_fit_misses():
    """Pixels of digits vary together; one component makes them independent."""
    problem = zoo.load("bernoulli_mixture", num_components=1)
    fit = experiments.fit(
        problem, guides.build("mean_field", problem), steps=300, learning_rate=0.1
    )
    (checks,) = predictive_checks(fit.problems[0], fit.guides[0]).values()
    found = {check.statistic: check for check in checks}
    assert abs(found["mean"].mean - found["mean"].observed) < 0.02
    assert found["sd_of_row_sums"].p_value < 0.02
    # Digits have much the same amount of ink, less spread than pixels that know nothing of another.
    assert found["sd_of_row_sums"].observed < found["sd_of_row_sums"].low


def test_a_point_estimate_is_fitted_and_not_compared(tmp_path, capsys):
    assert run("fit", "eight_schools", "delta", "--steps=20", "--out", tmp_path / "fit") == 0
    said = capsys.readouterr()
    assert "seed 0: log joint density" in said.out
    assert "no log q" in said.err
    assert run("diagnose", tmp_path / "fit") == 2
    assert "has no log q" in capsys.readouterr().err
    out = tmp_path / "out"
    assert run("compare", "eight_schools", "--guide=delta", "--out", out) == 2
    assert "is a point estimate: it has no log q" in capsys.readouterr().err
    assert not out.exists()


def test_a_point_estimate_is_refused():
    problem = zoo.load("eight_schools")
    fit = experiments.fit(problem, guides.build("delta", problem), steps=20)
    with pytest.raises(zoo.ZooError, match="has no log q: it is a point estimate"):
        experiments.diagnose(fit)
