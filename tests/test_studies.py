"""Studies: every quick run answers its question in time, and its record says all that is shown."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import studies, study
from experiments.cli import main
from experiments.report import readme
from experiments.studies import claims as claimed
from experiments.studies.claims import Claim, above, p_above, within
from experiments.study import page_text, read
from zoo import ZooError

MOST_SECONDS, MOST_SECONDS_OF_A_RECORD = 60, 900
UNSUPPORTED = {
    "elbo_identity": ["SVI brings the q of vae nearer to the posterior"],
}
"""{study: the sentences that its quick run does not support}; all others must hold."""


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.names())
def test_quick_run_supports_its_claims_in_time(name, tmp_path):
    found = study(name, tmp_path / name, quick=True)
    refused = [claim.sentence for claim in found.claims if not claim.holds]
    assert refused == UNSUPPORTED.get(name, []), found.text
    assert found.record["seconds"] < MOST_SECONDS
    assert_whole(tmp_path / name, found)


def assert_whole(folder, found):
    """The files of a study are there, and hold what it found."""
    assert {path.name for path in folder.iterdir()} == {
        "record.json", "table.md", "figure.png", "report.html"
    }  # fmt: skip
    own, record, claims = read(folder)
    assert claims == found.claims
    assert (folder / "table.md").read_text() == found.text == page_text(own, record, claims)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    for table in own.tables(record["results"]):
        for name in table.head:
            assert f">{name}<" in page.replace("&gt;", ">")


def test_committed_records_say_what_is_shown():
    """In time, at the full settings, and made by the study as it stands."""
    for folder in readme.STUDIES.glob("*"):
        own, record, claims = read(folder)
        assert not record["quick"]
        assert record["seconds"] < MOST_SECONDS_OF_A_RECORD
        assert record["settings"] == json.loads(own.settings().model_dump_json())
        assert [claim.words for claim in own.claims(record["results"])] == [c.words for c in claims]
        assert (folder / "table.md").read_text() == page_text(own, record, claims)


TINY = """
from matplotlib.figure import Figure
from experiments import studies
from experiments.report.page import Table
from experiments.studies.claims import above
from experiments.studies.study import Study
from experiments.svi.config import Settings


class Own(Settings):
    seeds: int = 5
    lift: float = 1.0


@studies.register
def build():
    return Study(
        question="Is <b>up</b> above down?",
        settings=Own,
        quick={"seeds": 3},
        measure=lambda s, device: {"values": [s.lift + 0.1 * i for i in range(s.seeds)]},
        claims=lambda results: [above("Up is above", results["values"])],
        tables=lambda results: [Table("Values", ["value"], [["up"]])],
        draw=lambda results: Figure(),
        reading={"value": "How far up."},
    )
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return str(path)


def test_own_study_from_a_file(tiny, tmp_path):
    found = study(tiny, tmp_path / "out", quick=True, lift=2.0)
    assert found.record["study"] == "tiny"
    assert found.record["settings"] == {"seeds": 3, "lift": 2.0}
    assert [claim.holds for claim in found.claims] == [True]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>up" not in page
    assert "&lt;b&gt;up" in page
    down = study(tiny, quick=True, lift=-2.0)
    assert [claim.holds for claim in down.claims] == [False]
    assert "not supported" in down.text
    assert down.folder is None


def test_command_writes_and_lists(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["study", tiny, "--set", "seeds=4", "--out", "there"])
    assert caught.value.code == 0
    assert "Up is above: supported" in capsys.readouterr().out
    assert json.loads(Path("there/record.json").read_text())["settings"]["seeds"] == 4
    with pytest.raises(SystemExit):
        main(["study", "--list"])
    listed = capsys.readouterr().out
    assert all(studies.load(name).question in listed for name in studies.names())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["elbo_identitiy"], "unknown study 'elbo_identitiy'; known: elbo_identity"),
        (["nowhere.py"], "no such file"),
        (["{tiny}", "--set", "seed=3"], "unknown option 'seed'; known: seeds"),
        (["{tiny}", "--set", "seeds=many"], "seeds: input should be a valid integer"),
        (["{tiny}", "--set", "seeds"], "expected name=value"),
        (["{tiny}", "--set", "seeds=1"], "a claim needs at least 2 seeds, got 1"),
        (["{tiny}", "--out", "full"], "full is not empty; name another --out"),
        (["{tiny}", "--out", "file"], "--out file is a file; name a folder"),
        (["{tiny}", "--device", "tpu"], "unknown device"),
        (["elbo_identity", "--quick", "--set", "steps=0"], "steps: input should be greater"),
    ],
)
def test_bad_input_is_one_line(arguments, sentence, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        main(["study", *(part.replace("{tiny}", tiny) for part in arguments)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert (caught.value.code, len(lines)) == (2, 1), lines
    assert sentence in lines[0]
    assert Path("full/notes.txt").read_text() == Path("file").read_text() == "mine"


def test_nothing_is_read_from_a_folder_without_a_record(tmp_path):
    with pytest.raises(ZooError, match=r"no study's record\.json"):
        read(tmp_path)


def test_test_over_seeds_is_students():
    values = np.array([0.3, 0.1, 0.4, 0.2])
    t = values.mean() / (values.std(ddof=1) / 2)
    assert p_above(values) == pytest.approx(stats.t.sf(t, 3))
    assert [p_above([same, same]) for same in (0.5, 0.0, -1)] == [0.0, 1.0, 1.0]


def test_claims_hold_at_the_stated_level():
    """Of seeds that differ by noise alone, one claim in a hundred holds."""
    noise = np.random.RandomState(0).randn(4000, 4)
    share = np.mean([above("noise", row).holds for row in noise])
    se = math.sqrt(claimed.LEVEL * (1 - claimed.LEVEL) / len(noise))
    assert abs(share - claimed.LEVEL) < 3.3 * se


def test_claims_in_words():
    assert above("It rises", [1.0, 1.1, 0.9], " nats", 2).words == (
        "It rises: supported; 1.00 ± 0.06 nats over 3 seeds (p = 0.0017)."
    )
    assert within("It is 0", [1e-9, -2e-9], 1e-8) == Claim(
        "It is 0", "at most 2e-09, where 1e-08 is allowed", True
    )
    assert not within("It is 0", [math.nan], 1.0).holds
    assert not above("It is known", [1.0, math.nan, 1.2]).holds


def test_identity_is_refused_where_a_term_is_wrong():
    """Each of the three terms, off by a ten-millionth of a nat."""
    found = studies.load("elbo_identity")
    row = {"model": "gaussian_lvm", "step": 0, "log_evidence": -1.0, "elbo": -3.0, "kl": 2.0}
    rows = [row | {"seed": s, "step": t, "elbo": -3 + t, "kl": 2 - t + 1e-3 * s * t}
            for s in range(3) for t in (0, 1)]  # fmt: skip
    for r in rows:
        r["log_evidence"] = r["elbo"] + r["kl"]
    results = {"curves": rows, "touching": [{"model": "gaussian_lvm", "seed": 0, "gap": 0.0}]}
    assert found.claims(results)[0].holds
    for term in ("log_evidence", "elbo", "kl"):
        wrong = [r | {term: r[term] + 1e-7} for r in rows]
        assert not found.claims(results | {"curves": wrong})[0].holds


def test_a_lone_seed_shows_no_spread():
    with pytest.raises(ZooError, match="at least 2 seeds"):
        p_above([1.0])
