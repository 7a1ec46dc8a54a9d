"""Bad input ends with one line and exit status 2, before anything is written."""

import os
import sys
from pathlib import Path

import pytest
import torch

import experiments
import guides
import zoo
from experiments import new
from experiments.cli import main

COMMANDS = {
    "unknown model": (["compare", "vea"], "unknown suite or model 'vea'; known: vae,"),
    "unknown model of fit": (["fit", "gausian_lvm", "amortized"], "known: gaussian_lvm,"),
    "unknown guide": (
        ["compare", "vae", "--guide=amortised"],
        "unknown guide 'amortised'; known: am",
    ),
    "unknown guide of fit": (
        ["fit", "vae", "meanfield"],
        "unknown guide 'meanfield'; known: mean_f",
    ),
    "unknown data set": (["data", "mnst"], "unknown data set 'mnst'; known: mnist,"),
    "unknown data of a model": (["fit", "vae", "amortized", "-o", "data=plant"], "known: plants,"),
    "unknown option": (
        ["fit", "vae", "amortized", "-o", "latent_dims=3"],
        "unknown option of model 'vae': 'latent_dims'; known: latent_dim,",
    ),
    "unknown setting": (["compare", "--set=step=3"], "unknown option 'step'; known: steps,"),
    "setting without value": (["compare", "--set=steps"], "expected name=value, got 'steps'"),
    "setting of a wrong type": (
        ["compare", "--set=steps=many"],
        "steps: input should be a valid int",
    ),
    "negative rate": (
        ["compare", "vae", "--set=learning_rate=-1"],
        "learning_rate: input should be",
    ),
    "rate that is no number": (
        ["compare", "--set=learning_rate=nan"],
        "learning_rate: input should",
    ),
    "negative steps": (["fit", "vae", "amortized", "--steps=-1"], "steps: input should be greater"),
    "no steps": (
        ["compare", "--steps=0"],
        "steps: input should be greater than or equal to 1, got 0",
    ),
    "negative seeds": (["compare", "--seeds=-2"], "seeds must be at least 1, got -2"),
    "no seeds": (["fit", "vae", "amortized", "--seeds=0"], "seeds must be at least 1, got 0"),
    "latent_dim of zero": (
        ["fit", "vae", "amortized", "-o", "latent_dim=0"],
        "from 1 to the data's 64",
    ),
    "latent_dim above the data": (
        ["fit", "gaussian_lvm", "amortized", "-o", "latent_dim=65"],
        "latent_dim must be a whole number from 1 to the data's 64, got 65",
    ),
    "latent_dim no number": (["fit", "vae", "amortized", "-o", "latent_dim=two"], "got 'two'"),
    "latent_dim true": (["fit", "vae", "amortized", "-o", "latent_dim=true"], "got True"),
    "hidden no list": (["fit", "vae", "amortized", "-o", "hidden=5"], "such as [100, 100], got 5"),
    "window of one epoch": (["compare", "--set=flat_window=1"], "must be 0 or at least 10"),
    "resume of nothing": (["fit", "vae", "amortized", "--resume"], "name it with out"),
    "settings of no model": (["compare", "mnits"], "known: mnist,"),
    "no components": (["fit", "bernoulli_mixture", "amortized", "-o", "num_components=0"], "got 0"),
    "unknown noise": (["fit", "gaussian_lvm", "amortized", "-o", "noise=diag"], "known: diagonal,"),
    "kind of no flow": (
        ["fit", "vae", "flow", "-g", "kind=planar"],
        "kind must be one of spline, iaf, maf, got 'planar'",
    ),
    "unknown option of a guide": (
        ["fit", "gaussian_lvm", "low_rank", "-g", "ranks=2"],
        "known: rank",
    ),
    "layer of no width": (["fit", "vae", "amortized", "-o", "hidden=[0]"], "widths of at least 1"),
    "score for a continuous latent": (
        ["compare", "vae", "--set=estimator=enumeration"],
        "nothing to enumerate: no latent is discrete; use pathwise",
    ),
    "path through a discrete latent": (
        ["compare", "bernoulli_mixture", "--set=estimator=pathwise"],
        "no path through discrete z: use score or enumeration",
    ),
    "one particle for the score function": (
        ["compare", "bernoulli_mixture", "--set=estimator=score", "--set=num_particles=1"],
        "score needs num_particles of at least 2",
    ),
    "no such file": (["compare", "nowhere.py"], "no such file: "),
    "unknown device": (["compare", "--device=tpu"], "unknown device"),
    "unknown command": (["compares"], "No such command 'compares'"),
    "missing argument": (["fit", "vae"], "Missing argument 'guide'"),
    "unknown flag": (["compare", "--sed=3"], "No such option: --sed"),
    "check of no file": (["check", "nowhere.py"], "no such file: "),
    "check of an unknown model": (["check", "vea"], "unknown model 'vea'; known: vae,"),
    "check with an unknown guide": (
        ["check", "vae", "--guide=amortised"],
        "unknown guide 'amortised'; known: amortized,",
    ),
    "check with a guide that is no file": (
        ["check", "vae", "--guide=nowhere.py"],
        "no such file: ",
    ),
    "check with an unknown option": (["check", "vae", "-o", "dim=2"], "unknown option of model"),
    "check of nothing": (["check"], "Missing argument 'model'"),
    "new without a name": (["new"], "Missing argument 'name'"),
    "new that begins with a digit": (["new", "2d"], "begins with no digit"),
    "new with a dash": (["new", "my-model"], "letters, digits and '_'"),
    "new in another folder": (["new", "../mine"], "letters, digits and '_'"),
    "new with its ending": (["new", "mine.py"], "letters, digits and '_'"),
    "new that is a word of Python": (["new", "class"], "is no word of Python, got 'class'"),
    "new that is a model": (["new", "vae"], "'vae' is the name of a registered model"),
    "new that is a guide": (["new", "amortized"], "'amortized' is the name of a registered guide"),
    "new that hides a module": (["new", "torch"], "'torch' is the name of a Python module"),
    "new with too long a name": (["new", "x" * 300], "cannot write xxx"),
    "negative workers": (
        ["compare", "--workers=-1"],
        "workers must be a whole number of at least 1",
    ),
}


def refused(arguments, capsys):
    """The one line that the command printed before it exited with status 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("zoo: ")
    return err


@pytest.mark.parametrize("case", COMMANDS)
def test_command(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = COMMANDS[case]
    assert message in refused(arguments, capsys)
    assert not list(tmp_path.iterdir())


def test_cuda_without_a_gpu(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(["compare", "--device=cuda", f"--out={tmp_path / 'out'}"], capsys)
    assert "device cuda asked for, but torch sees no CUDA GPU here" in message
    assert not list(tmp_path.iterdir())


def test_out_that_is_a_file(capsys, tmp_path):
    path = tmp_path / "out"
    path.write_text("mine")
    assert "is a file; name a folder" in refused(["compare", f"--out={path}"], capsys)
    assert path.read_text() == "mine"


def test_out_below_a_file_or_unwritable(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    message = refused(["compare", f"--out={tmp_path}/file/out"], capsys)
    assert "cannot write to" in message
    assert "cannot write to" in refused(["compare", "--out=/proc/out"], capsys)


def test_out_that_holds_other_things(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    message = refused(["compare", f"--out={tmp_path}"], capsys)
    assert "is not empty and no comparison" in message
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{", '["other"]', "\x00"])
def test_resume_of_an_alien_plan(capsys, tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    message = refused(["compare", f"--out={tmp_path}", "--resume"], capsys)
    assert "holds another comparison" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", "cannot be imported: SyntaxError"),
        ("import nothing_like_this", "cannot be imported: ModuleNotFoundError"),
        ("x = 1", "registers no model; decorate its `build` with @register"),
        (
            "import zoo\n@zoo.register\ndef build():\n    return zoo.Problem(lambda x=None, "
            "index=None: None, zoo.data.load('digits'))",
            "the model observes no data",
        ),
        (
            "import zoo\n@zoo.register\ndef build():\n    return zoo.Problem(lambda x=None, "
            "index=None: x[:, 99], zoo.data.load('digits'))",
            "the model does not run on rows of shape (2, 64): IndexError",
        ),
        (
            "import zoo\n@zoo.register\ndef build():\n    return 3",
            "build must return a zoo.Problem",
        ),
    ],
)
def test_a_users_file_that_is_no_model(text, message, capsys, tmp_path):
    path = tmp_path / f"mine_{abs(hash(text))}.py"
    path.write_text(text)
    assert message in refused(["compare", str(path), f"--out={tmp_path / 'out'}"], capsys)
    assert message in refused(["check", str(path)], capsys)
    assert not (tmp_path / "out").exists()


def test_a_users_file_with_a_dataclass(tmp_path):
    """Under `from __future__ import annotations` it looks its own module up in sys.modules."""
    path = tmp_path / "sizes.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport zoo\n"
        "@dataclass\nclass Sizes:\n    width: int = 2\n\n@zoo.register\ndef build():\n"
        "    return zoo.load('gaussian_lvm', latent_dim=Sizes().width)"
    )
    zoo.load(str(path))
    assert "zoo_file_sizes" in sys.modules
    assert "sizes" not in sys.modules  # by its own name it might hide a module
    (tmp_path / "faulty.py").write_text("x = 1 / 0")
    with pytest.raises(zoo.ZooError, match="cannot be imported: ZeroDivisionError"):
        zoo.load(str(tmp_path / "faulty.py"))
    assert "zoo_file_faulty" not in sys.modules
    del sys.modules["zoo_file_sizes"]


def test_new_leaves_a_file_that_is_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("my thesis")
    assert "mine.py is there already" in refused(["new", "mine"], capsys)
    assert (tmp_path / "mine.py").read_text() == "my thesis"


def test_new_in_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(zoo.ZooError, match="cannot write"):
        new.write("my_own_model", tmp_path / "file")
    with pytest.raises(zoo.ZooError, match="cannot write"):
        new.write("my_own_model", tmp_path / "nowhere")


NAN, INF = float("nan"), float("inf")
DATA = {
    "NaN": ("gaussian_lvm", [[0.0, NAN], [1.0, 0.0]], "holds nan at row 0, column 1"),
    "infinity": ("gaussian_lvm", [[0.0, 1.0], [INF, 0.0]], "holds inf at row 1, column 0"),
    "no bit": ("bernoulli_mixture", [[0.0, 2.0], [1.0, 0.0]], "observes 2, outside the support"),
    "gray for Bernoulli pixels": ("vae", [[0.0, 0.5], [1.0, 0.0]], "observes 0.5, outside"),
    "no rows": ("vae", torch.zeros(0, 3), "0 rows, but at least 2 needed"),
    "one row": ("gaussian_lvm", [[0.0, 1.0]], "1 row, but at least 2 needed"),
    "no columns": ("gaussian_lvm", torch.zeros(3, 0), "has no columns"),
    "a vector": ("vae", [0.0, 1.0], "must be rows (n, d), got shape (2,)"),
    "words": ("vae", [["a", "b"]], "must be a set's name or rows of numbers"),
    "test rows of another width": (
        "gaussian_lvm",
        (torch.rand(3, 2), torch.rand(3, 4)),
        "test rows have 4 columns, train rows 2",
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_data(case):
    name, data, message = DATA[case]
    with pytest.raises(zoo.ZooError) as caught:
        zoo.load(name, data=data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 5), "5 columns, vae has 64"),
        (torch.full((3, 64), 0.5), "outside the support"),
        (torch.zeros(0, 64), "0 rows"),
        (torch.full((3, 64), NAN), "holds nan"),
    ],
)
def test_rows_that_the_truth_is_asked_for(x, message):
    problem = zoo.load("vae")
    for question in (problem.log_evidence, problem.posterior):
        with pytest.raises(zoo.ZooError, match=message):
            question(x)


def test_no_plate_and_no_good_name_are_refused():
    import pyro
    import pyro.distributions as dist

    def model(x=None, index=None):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([5, 3]).to_event(2), obs=x)

    data = zoo.data.as_dataset(torch.rand(5, 3))
    with pytest.raises(zoo.ZooError, match=r"does not run|stand in no plate"):
        zoo.Problem(model, data)
    with pytest.raises(zoo.ZooError, match="a problem's name is letters"):
        zoo.Problem(model, data, name="ppca_0.5")


def test_damaged_records_and_checkpoints_stop_a_resumption(capsys, tmp_path):
    out = tmp_path / "out"
    arguments = ["compare", "gaussian_lvm", "--guide=amortized", "--seeds=1", "--steps=2"]
    arguments += [f"--out={out}", "--workers=1"]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    capsys.readouterr()
    (out / "records.jsonl").write_text('{"a": 1}\n')
    assert "is no file of records" in refused([*arguments, "--resume"], capsys)
    (out / "records.jsonl").unlink()
    path = out / "gaussian_lvm-amortized" / "seed-0.safetensors"
    path.write_bytes(path.read_bytes()[:99])
    assert "is no checkpoint of this project, or truncated" in refused(
        [*arguments, "--resume"], capsys
    )


def test_two_plates_are_refused():
    import pyro
    import pyro.distributions as dist

    def model(x=None, index=None):
        with zoo.datum(x, index) as rows, pyro.plate("pixel", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if rows is None else rows.T)

    with pytest.raises(zoo.ZooError, match=r"several plates \(datum, pixel\)"):
        zoo.Problem(model, zoo.data.as_dataset(torch.rand(5, 3)))


def test_problems_made_in_python_run_in_one_process(tmp_path):
    with pytest.raises(zoo.ZooError, match="workers=1"):
        experiments.compare([zoo.load("vae")], out=tmp_path / "out", workers=2)
    with pytest.raises(zoo.ZooError, match="give its options there"):
        experiments.compare(
            [zoo.load("vae")], out=tmp_path / "out", model_options={"vae": {"latent_dim": 7}}
        )
    with pytest.raises(zoo.ZooError, match="named twice"):
        experiments.compare(["vae", "vae"], out=tmp_path / "out")
    assert not Path(tmp_path / "out").exists()


def test_guide_options_are_checked_like_the_models():
    with pytest.raises(
        zoo.ZooError, match="unknown option of guide 'amortized': 'hiden'; known: hid"
    ):
        guides.build("amortized", zoo.load("vae"), hiden=())


@pytest.mark.parametrize("seeds", [[2**63], [-1], [0.5], [], "ab"])
def test_seeds_are_whole_numbers_of_63_bits(seeds):
    problem = zoo.load("gaussian_lvm")
    guide = guides.build("amortized", problem)
    with pytest.raises(zoo.ZooError, match=r"whole numbers from 0 to 2\^63 - 1, got"):
        experiments.fit(problem, guide, seeds=seeds, steps=2)


def test_the_largest_seed_is_fitted():
    problem = zoo.load("gaussian_lvm")
    guide = guides.build("amortized", problem)
    assert experiments.fit(problem, guide, seeds=[2**63 - 1], steps=2).seeds == (2**63 - 1,)


def test_a_name_is_no_problem():
    with pytest.raises(zoo.ZooError, match=r"as zoo\.load makes it of a name, got 'gaussian_lvm'"):
        experiments.fit("gaussian_lvm", "amortized", steps=2)


def test_what_is_no_problem_gets_no_guide():
    for thing in ("vae", None, torch.nn.Sequential(torch.nn.Tanh())):
        with pytest.raises(zoo.ZooError, match=r"a guide takes a Problem, as .* got") as caught:
            guides.build("mean_field", thing)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["laplace", "oracle", "importance", "top_down"])
def test_guides_without_a_row_a_datum_are_not_fitted_to_rows(name):
    problem = zoo.load("gaussian_lvm")
    with pytest.raises(zoo.ZooError, match=f"'{name}' has no row of parameters a datum"):
        experiments.fit_rows(problem, guides.build(name, problem), problem.data.test)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"out": None}, "out must be a folder, got None"),
        ({"workers": "2"}, "workers must be a whole number of at least 1, got '2'"),
        ({"workers": 1.5}, "workers must be a whole number of at least 1, got 1.5"),
        ({"fit": 3}, "fit must be a dict, got 3"),
        ({"models": "gausian_lvm"}, "unknown model 'gausian_lvm'; known: gaussian_lvm"),
        ({"measure": {"rank_draws": 25}}, "rank_draws: must be 19, 39"),
        (
            {"guides": [torch.nn.Sequential(torch.nn.Tanh())]},
            "guides.0: input should be a valid string",
        ),
    ],
)
def test_arguments_of_a_comparison(arguments, sentence, tmp_path):
    with pytest.raises(zoo.ZooError) as caught:
        experiments.compare(**{"out": tmp_path / "out"} | arguments)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_model_or_guide_that_stands_alone_is_a_list_of_one(tmp_path):
    few = {"num_draws": 4, "restarts": 0, "simulations": 0, "pareto_draws": 100}
    found = experiments.compare(
        "gaussian_lvm", "linear", 1, tmp_path / "out", fit={"steps": 2}, measure=few
    )
    assert [record["label"] for record in found.records] == ["gaussian_lvm-linear"]
