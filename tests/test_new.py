"""`zoo new NAME`, and `zoo check` of what it wrote and of files with a fault."""

import re

import pytest

import experiments
import guides
import zoo
from experiments import new
from experiments.cli import main


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file that `zoo new thesis_model` writes, in the current folder."""
    monkeypatch.chdir(tmp_path)
    assert new.write("thesis_model").resolve() == tmp_path / "thesis_model.py"
    return tmp_path / "thesis_model.py"


def status_of(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_it_is_short_and_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status_of(["new", "thesis_model"]) == 0
    assert "next: zoo check thesis_model.py" in capsys.readouterr().out
    lines = (tmp_path / "thesis_model.py").read_text().splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100
    assert not any("@NAME@" in line for line in lines)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis_model.py"]


def test_it_passes_every_check_as_it_stands(path, capsys):
    assert status_of(["check", "thesis_model.py"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[1] == "model"
    assert {"amortized", "mean_field", "thesis_model"} <= set(out.splitlines()[0].split())
    assert "FAILED" not in out
    assert re.fullmatch(r"\d+ checks hold, \d+ do not apply \(-\)", out.splitlines()[-1])


def test_its_evidence_and_density_are_checked(path):
    """Nothing of it is left out: it has a second density, and an evidence above every bound."""
    found = {(r.subject, r.check): r for r in experiments.check(zoo.load(str(path)))}
    for name in (("model", "density"), ("amortized", "bound"), ("mean_field", "bound")):
        assert found[name].ok
        assert found[name].sentence == ""


FAULTS = {
    "another noise in log_joint": ("(residual**2)", "(residual**3)", "density: log_joint differs"),
    "a detached mean": ("mean = loc +", "mean = loc.detach() +", "parameters: parameter 'loc'"),
    "no scaling": ("datum(x, index) as", "datum(x if index is None else x[index]) as", "minibatch"),
    "no observation": ("obs=rows)", "obs=None if rows is None else 0 * rows)", "data: the density"),
    "a variance in the evidence": ("scale**2 *", "scale**4 * 0.02 *", "bound: the bound is"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_put_into_it_is_found(fault, path, capsys):
    right, wrong, sentence = FAULTS[fault]
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    assert status_of(["check", "thesis_model.py", "--guide=mean_field"]) == 1
    failures = re.findall("FAILED .*", capsys.readouterr().out)
    assert any(sentence in line for line in failures), failures


@pytest.mark.slow
def test_it_runs_in_a_comparison(path, capsys):
    arguments = ["compare", "thesis_model.py", "--guide=amortized", "--guide=thesis_model.py"]
    assert status_of([*arguments, "--steps=20", "--seeds=1", "--workers=1", "--out=out"]) == 0
    out = capsys.readouterr().out
    assert "| thesis_model | amortized |" in out
    assert "| thesis_model | thesis_model |" in out


def test_it_fits(path):
    problem = zoo.load(str(path))
    fit = experiments.fit(problem, guides.build(str(path), problem), steps=200)
    gap = fit.log_evidence(problem.data.train).mean() - fit.elbo_per_datum
    assert -0.01 < gap < 0.5
    assert fit.history[0, -1] > fit.history[0, 0]
