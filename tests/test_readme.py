"""README, docs and CONTRIBUTING say what is so: commands run, tables are the records'."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import experiments
import guides
import zoo
from experiments import records
from experiments.cli import main
from experiments.measure import elbo as measure_elbo
from experiments.report import readme, table

ROOT = Path(__file__).parents[1]
DOCUMENTS = readme.documents()
TEXT = "\n".join(path.read_text() for path in DOCUMENTS)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
QUICK_MEASURE = {"num_draws": 4, "restarts": 0, "simulations": 20, "pareto_draws": 100}
QUICK_MEASURE |= {"pareto_rows": 20, "interval_rows": 2, "interval_temperatures": 2}
QUICK_OPTIONS = [f"--measure={name}={value}" for name, value in QUICK_MEASURE.items()]
QUICK = {
    "fit": ["--steps=3"],
    "compare": ["--steps=2", "--seeds=1", "--set=batch_size=500", "--workers=1", *QUICK_OPTIONS],
    "diagnose": QUICK_OPTIONS,
    "study": ["--quick", "--set=steps=20", "--set=seeds=2"],
}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def zoo_commands():
    """The commands of each block of the documents that has any, in order."""
    found = []
    for block in blocks(TEXT, "sh"):
        commands = [shlex.split(line, comments=True) for line in block.splitlines()]
        found.append([command[1:] for command in commands if command and command[0] == "zoo"])
    # The benchmark takes minutes, and has tests of its own.
    found = [[c for c in commands if c[0] != "bench"] for commands in found]
    return [commands for commands in found if commands]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("commands", zoo_commands(), ids=lambda commands: commands[0][0])
def test_commands_run(commands, tmp_path, monkeypatch, capsys):
    """Block by block as they stand, with few steps; suites of MNIST on its first rows."""
    monkeypatch.chdir(tmp_path)
    for command in commands:
        if {"mnist", "densities"} & set(command):
            shrink_mnist(monkeypatch)
        with pytest.raises(SystemExit) as caught:
            main([*command, *QUICK.get(command[0], [])])
        assert caught.value.code == 0, capsys.readouterr().err
        assert capsys.readouterr().out
        if "--out" in command:
            assert list((tmp_path / command[command.index("--out") + 1]).iterdir())


def shrink_mnist(monkeypatch):
    """The suite as it is, on the first rows of its data."""
    from zoo.data import sets

    whole = sets.load("binarized_mnist")
    part = whole.map(lambda rows: rows[:40])
    monkeypatch.setattr(sets, "load", lambda name: part if "mnist" in name else whole)


def test_make_targets_are_the_commands_that_readme_names():
    makefile = (ROOT / "Makefile").read_text()
    assert "zoo compare --out $(RUNS)/card" in makefile
    assert "RUNS ?= runs\n" in makefile
    for target in re.findall(r"`?make (\w+)", TEXT + CONTRIBUTING):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("block", blocks(TEXT, "python"))
def test_python_runs(block, capsys):
    names = {}
    exec(block, names)
    if "fit" in names:
        fit, x = names["fit"], names["problem"].data.train
        assert (fit.log_evidence(x).mean(1) - fit.elbo_per_datum > -0.01).all()
    if "tree" in names:
        assert set(names["tree"].children) >= {"posterior", "log_likelihood", "sample_stats"}
    if "facts" in names:
        assert all(names["facts"]["criteria"].values())


def test_contributed_model_runs_and_knows_its_density(tmp_path):
    (block,) = blocks(CONTRIBUTING, "python")
    assert block.count("\n") < 40
    path = tmp_path / "poisson_factors.py"
    path.write_text(block)
    found = experiments.compare(
        [str(path)], seeds=1, out=tmp_path / "out", fit={"steps": 30}, measure=QUICK_MEASURE
    )
    assert not found.failed
    assert "| poisson_factors | mean_field |" in found.table
    problem = zoo.load(str(path))
    fit = experiments.fit(problem, guides.build("amortized", problem), steps=5)
    draws = measure_elbo.draw(fit.models[0], fit.guides[0], problem.data.train, 3)
    joint = problem.log_joint(fit.models[0], problem.data.train, z=draws.latents["z"])
    torch.testing.assert_close(joint, draws.log_p)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_made_parts_are_what_the_generator_makes(path):
    assert readme.made_anew(path) == path.read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_committed_mnist_record_reaches_its_target():
    """A test ELBO of at least -105 nats within ten minutes of training."""
    found = records.read(readme.RESULTS / "mnist-cpu" / "records.jsonl")
    (record,) = [r for r in found if r["config"]["guide"] == "amortized"]
    assert record["config"]["model_options"]["hidden"] == [200, 200]
    assert record["measures"]["held_out"]["elbo_per_datum"] >= -105
    assert record["cost"]["seconds"] <= 600


def by_model(suite):
    """{model: its records} of a suite's comparison on a CPU."""
    found = {}
    for record in records.read(readme.RESULTS / f"{suite}-cpu" / "records.jsonl"):
        found.setdefault(record["config"]["model"], []).append(record)
    return found


def test_committed_densities_reach_their_targets():
    """Nats a held-out image, after at most a quarter of an hour of training a model."""
    found = {name: of_one for name, (of_one,) in by_model("densities").items()}
    nll = {name: r["measures"]["density"]["nll_per_datum"] for name, r in found.items()}
    by = {name: r["measures"]["density"]["nll_by"] for name, r in found.items()}
    most = {"made": 95, "nade": 100, "bernoulli_mixture": 143, "bernoulli_lvm": 122, "vae": 98}
    assert all(nll[name] <= limit for name, limit in most.items())
    assert nll["hierarchical_vae"] <= nll["vae"]
    latent = {"bernoulli_lvm", "vae", "hierarchical_vae"}
    assert {name for name in by if by[name] != "exact"} == latent
    for record in found.values():
        assert record["cost"]["seconds"] <= 900


def test_committed_pixel_models_are_better_than_nade():
    found = by_model("densities_14")
    nll = {name: r["measures"]["density"]["nll_per_datum"] for name, (r,) in found.items()}
    assert max(nll["pixel_cnn"], nll["pixel_rnn"]) < nll["nade"]


def test_committed_clusters_and_labels_reach_their_targets():
    purities = [r["measures"]["held_out"]["purity"] for r in by_model("clusters")["gmvae"]]
    assert len(purities) == 5
    assert sum(purities) / 5 >= 0.6
    (record,) = by_model("labels")["ss_vae"]
    assert record["config"]["model_options"]["num_labels"] == 1000
    assert record["measures"]["held_out"]["label_error"] <= 0.08


def test_committed_bounds_of_32_switches_are_two_sided():
    for record in by_model("switches")["bernoulli_lvm"]:
        assert record["config"]["model_options"]["latent_dim"] == 32
        found = record["measures"]["gaps"]
        low, high = (found[f"log_evidence_{end}_per_datum"] for end in ("lower", "upper"))
        assert found["interval_elbo_per_datum"] < low <= high < low + 0.5


@pytest.mark.parametrize("folder", readme.folders(bench=False), ids=lambda path: path.name)
def test_committed_tables_are_those_of_their_records(folder):
    found = records.read(folder / "records.jsonl")
    assert (folder / "table.md").read_text() == table.markdown_table(readme.title_of(folder), found)
    assert (folder / "table.csv").read_text() == table.csv_table(found)
    assert all(record["status"] == "ok" for record in found)
