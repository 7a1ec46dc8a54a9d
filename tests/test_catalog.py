"""`zoo list` shows every model that stands in the folder, and what it says of one is so."""

from pathlib import Path

import pytest

import zoo
from experiments.cli import main
from experiments.report import catalog

FOLDER = Path(zoo.__file__).parent


def test_every_model_in_the_folder_is_listed():
    files = {path.stem for path in FOLDER.glob("*.py") if "@zoo.register" in path.read_text()}
    assert {row[0] for row in catalog.rows()} == files == set(zoo.names())


def test_the_command_prints_a_line_a_model(capsys):
    with pytest.raises(SystemExit):
        main(["list"])
    table, _, rest = capsys.readouterr().out.partition("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["model", *zoo.names()]
    assert [line.split(":")[0] for line in rest.splitlines()] == [
        "guides",
        "data sets",
        "suites",
        "studies",
    ]


def test_a_line_says_what_the_problem_says():
    found = {row[0]: row[1:] for row in catalog.rows()}
    assert found["bernoulli_mixture"] == (
        "z: one of 10 a datum",
        "T0: sum over the components",
        "650",  # 10 prototypes of 64 pixels, and 10 weights
        "Bishop 2006",
    )
    assert found["eight_schools"][0].startswith("mu: 1 number shared; tau: 1 number shared")
    for name, (_, truth, parameters, _) in found.items():
        problem = zoo.load(name)
        assert truth.startswith(f"{problem.truth.level}: ")
        assert int(parameters.replace(",", "")) == problem.num_parameters
