"""`zoo new NAME`, and `zoo check` of what it wrote and of files with a fault."""

import re

import pytest
import torch

import experiments
import guides
import zoo
from experiments import new
from experiments.cli import main
from zoo import testing


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file that `zoo new thesis_model` writes, in the current folder."""
    monkeypatch.chdir(tmp_path)
    assert new.write("thesis_model").resolve() == tmp_path / "thesis_model.py"
    return tmp_path / "thesis_model.py"


def commands_in(text):
    """The commands in the docstring of the file."""
    return [line.strip() for line in text.splitlines() if line.startswith("    zoo ")]


def status_of(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_it_is_short_and_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status_of(["new", "thesis_model"]) == 0
    text = (tmp_path / "thesis_model.py").read_text()
    first, *commands = capsys.readouterr().out.splitlines()
    assert first == "thesis_model.py is written; next:"
    assert [line.strip() for line in commands] == commands_in(text)
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


def test_it_takes_data_of_another_width(path):
    """What `-o data=...` is for: the width is that of the data."""
    problem = zoo.load(str(path), data=torch.randn(30, 3))
    guide = guides.build(str(path), problem)
    results = experiments.check(problem, guide)
    assert [r for r in results if not r.ok] == []
    assert {r.check for r in results if r.subject == "model" and not r.sentence} >= {
        "density",
        "docstring",
    }


@pytest.mark.data
@pytest.mark.slow
def test_the_option_that_its_comment_names(path):
    (option,) = re.findall("such as (-o .*)", path.read_text())
    assert status_of(["check", "thesis_model.py", "--guide=amortized", *option.split()]) == 0


@pytest.mark.slow
def test_every_command_that_it_names_runs(path, capsys):
    check, compare = (line.split()[1:] for line in commands_in(path.read_text()))
    assert status_of(check) == 0
    assert status_of([*compare, "--steps=20", "--seeds=1", "--workers=1"]) == 0
    out = capsys.readouterr().out
    assert "| thesis_model | amortized |" in out
    assert "| thesis_model | thesis_model |" in out


def test_a_file_that_holds_only_a_guide(path, capsys):
    text = path.read_text()
    (path.parent / "half.py").write_text(text.replace("@zoo.register\n", ""))
    assert status_of(["check", "half.py"]) == 2
    assert "zoo check MODEL --guide half.py" in capsys.readouterr().err
    path.write_text(text.replace('data="digits"', "data=[[0.0, 1.0]]"))  # whose model is at fault
    assert status_of(["check", path.name]) == 2
    assert "at least 2 needed" in capsys.readouterr().err


def test_help_of_check_says_what_it_does(capsys):
    assert status_of(["check", "--help"]) == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for words in ("exit status is 1", "every registered guide that suits", "--seed", "Python file"):
        assert words in text
    for command in ("fit", "compare"):
        assert status_of([command, "--help"]) == 0
        text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
        assert "Name of a guide, or a Python file" in text


def test_seed_of_the_checks(path, monkeypatch):
    seeds = []
    right = [testing.Result("model", "a", True)]
    monkeypatch.setattr(experiments, "check", lambda *_, seed, **__: seeds.append(seed) or right)
    assert status_of(["check", "thesis_model.py", "--seed=7"]) == 0
    assert seeds == [7]


def test_it_fits(path):
    problem = zoo.load(str(path))
    fit = experiments.fit(problem, guides.build(str(path), problem), steps=200)
    gap = fit.log_evidence(problem.data.train).mean() - fit.elbo_per_datum
    assert -0.01 < gap < 0.5
    assert fit.history[0, -1] > fit.history[0, 0]
