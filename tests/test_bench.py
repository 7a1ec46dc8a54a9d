"""Benchmarks: every contender computes the same step, and the figures are what was timed."""

import json
import math
import subprocess
import time
from dataclasses import replace
from statistics import mean, stdev

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from experiments.benchmarks import bench, bounds, cases, contenders, handwritten, limit, timing
from experiments.benchmarks import report as reports
from experiments.benchmarks.cases import Absent, Batches, Case
from experiments.benchmarks.timing import Entry, Row
from experiments.cli import main

SMALL = [
    Case("bernoulli_mixture", guide, 15, (), 60, 7, 2, learning_rate=1e-20)
    for guide in cases.GUIDES
]
SMALL += [replace(case, model="gaussian_lvm") for case in SMALL]
SMALL += [replace(case, model="vae", hidden=(5, 3)) for case in SMALL[2:]]
COMPILED = ("handwritten_compiled", "compiled", "fused")
NAMES = [name for name in contenders.CONTENDERS if name not in COMPILED]
EPOCHS = 20


def off_start(case):
    """The case, all of whose parameters start where none is zero."""
    generator = torch.Generator().manual_seed(1)
    start = {}
    for name, value in case.start.items():
        inputs = value.shape[-1] if value.dim() > 1 else 1
        noise = torch.randn(value.shape, generator=generator)
        start[name] = value + 0.3 * noise / math.sqrt(inputs)
        if name.startswith("guide") and value.shape[-1] == 2 * case.latent_dim:
            start[name][..., case.latent_dim :] -= 0.7  # scales whose logarithms do not cancel
    vars(case)["start"] = start
    return case


def present(case, names):
    """{name: steps} of the contenders that take part."""
    found = {}
    for name in names:
        try:
            found[name] = contenders.prepare(Entry(case, name))
        except Absent:
            assert name in ("handwritten_rows", "handwritten_graph", "numpyro_rows")
    return found


def oracle(case):
    """Minus the bound of all data, by the model's second density: (value, its error)."""
    modules, (problem, _) = case.modules(case.build()), case.built()
    with torch.no_grad():
        rows = modules["guide"].rows(case.data)["z"]
        if case.discrete:
            q, values = rows.softmax(-1), range(rows.shape[-1])
            log_p = [
                problem.log_joint(modules["model"], case.data, torch.full((len(q),), k))
                for k in values
            ]
            return -(q * (torch.stack(log_p, -1) - q.log())).sum().item(), 0.0
        loc, log_scale = rows.double().chunk(2, -1)
        q = torch.distributions.Normal(loc, log_scale.exp())
        z = q.sample((4000,))
        log_p = problem.log_joint(modules["model"], case.data, z.float())
        draws = q.log_prob(z).sum((-1, -2)) - log_p.sum(-1)
    return draws.mean().item(), draws.std().item() / math.sqrt(len(draws))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.model}-{case.guide}")
def test_every_contender_has_the_bound_for_its_loss(case):
    case = off_start(replace(case))
    truth, error = oracle(case)
    # The others take the same loss as these; a test below sees that.
    names = [name for name in NAMES if name not in ("pyro", "numpyro_jit", "numpyro_rows")]
    found = present(case, names)
    assert len(found) == (5 if case.guide == "mean_field" else 4)
    for name, steps in found.items():
        losses = [mean(steps(1) for _ in range(4)) for _ in range(EPOCHS)]  # which rows cancels
        se = math.hypot(stdev(losses) / math.sqrt(EPOCHS), error)
        assert abs(mean(losses) - truth) < 4.5 * se + 1e-5 * abs(truth), (name, truth, se)
        assert se < 0.01 * abs(truth), name


@pytest.mark.parametrize("guide", cases.GUIDES)
def test_without_draws_every_contender_takes_the_same_steps(guide):
    case = off_start(Case("bernoulli_mixture", guide, 60, (), 60, 7, learning_rate=0.03))
    found = {
        name: [steps(1) for _ in range(40)]
        for name, steps in present(case, [n for n in NAMES if n != "eager"]).items()
    }
    expected = found.pop("handwritten")
    assert expected[-1] < expected[0] - 25
    for name, losses in found.items():
        assert losses == pytest.approx(expected, rel=2e-5), name
    eager = contenders.prepare(Entry(case, "eager"))
    assert [eager(1) for _ in range(40)] == pytest.approx(expected, rel=2e-5)


TRAINED = [*SMALL[2:4], *(pytest.param(case, marks=pytest.mark.slow) for case in SMALL[4:])]


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: f"{case.model}-{case.guide}")
def test_trained_for_a_while_all_stand_at_the_same_loss(case):
    case = off_start(replace(case, batch_size=60, learning_rate=0.02))

    def level(steps):
        return mean([steps(1) for _ in range(250)][-60:])

    by_hand = [level(handwritten.prepare(case)) for _ in range(8)]
    spread = stdev(by_hand) * math.sqrt(1 + 1 / len(by_hand))
    begun = mean(handwritten.prepare(case)(1) for _ in range(30))
    assert begun - mean(by_hand) > 30 * spread  # what a wrong gradient would not reach
    numpyro = "numpyro_rows" if case.guide == "mean_field" else "numpyro_jit"
    for name, steps in present(case, [numpyro, "eager"]).items():
        assert abs(level(steps) - mean(by_hand)) < 6 * spread, name


@pytest.mark.parametrize("variant", ["numpyro_scan", "numpyro_rows"])
def test_several_seeds_are_runs_of_their_own(variant):
    case = off_start(replace(SMALL[2], batch_size=60))
    vars(case)["ring"] = torch.arange(60).expand(cases.RING, -1)  # draws alone differ
    several = replace(case, seeds=3)
    vars(several).update(start=case.start, ring=case.ring)
    truth, error = oracle(case)
    alone, together = (contenders.prepare(Entry(c, variant)) for c in (case, several))
    one = stdev(alone(1) for _ in range(200))
    losses = [together(1) for _ in range(200)]
    assert abs(mean(losses) - truth) < 4.5 * math.hypot(error, one / math.sqrt(600))
    assert 0.45 < stdev(losses) / one < 0.72  # 1 / sqrt(3) where the seeds are independent


def test_steps_go_on_where_the_last_ended():
    case = off_start(Case("bernoulli_mixture", "mean_field", 60, (), 60, 7, learning_rate=0.03))
    for name in ("handwritten", "pyro", "numpyro_jit", "eager"):
        one, other = (contenders.prepare(Entry(case, name)) for _ in range(2))
        one(3)
        assert one(2) == pytest.approx(other(5), rel=1e-5), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("guide", cases.GUIDES)
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_contenders_take_the_same_steps(name, guide):
    case = off_start(Case("bernoulli_mixture", guide, 60, (), 60, 7, learning_rate=0.03))
    steps = contenders.prepare(Entry(case, name))
    by_hand = handwritten.prepare(case)
    expected = [by_hand(1) for _ in range(20)]
    assert [steps(1) for _ in range(20)] == pytest.approx(expected, rel=2e-5)


@pytest.mark.gpu
def test_a_cuda_graph_takes_the_same_steps():
    case = Case("bernoulli_mixture", "amortized", 60, (), 60, 7, 2, 1, 0.03, "cuda")
    plain, captured = handwritten.prepare(case), handwritten.prepare_graph(case)
    assert [captured(1) for _ in range(20)] == pytest.approx(
        [plain(1) for _ in range(20)], rel=1e-4
    )


def test_batches_are_full_and_an_epoch_has_every_row_once():
    ring = Case("gaussian_lvm", "mean_field", 15, (), 70, 3).ring
    assert ring.shape == (cases.RING, 15)
    for epoch in ring.split(4)[:20]:
        assert len(epoch.unique()) == 60
    assert not torch.equal(ring[:4].sort().values, ring[4:8].sort().values)
    batches = Batches(ring)
    assert torch.equal(batches.take(500), ring[:500])
    assert torch.equal(batches.take(13), ring[:13])  # 12 are left: it begins again


COUNTED = [*SMALL, cases.vae(4, 6, "amortized", 8), cases.vae(4, 6, "mean_field", 8)]


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: f"{case.name}")
def test_the_limit_counts_the_products_of_a_step(case):
    loss = handwritten.loss(case, handwritten.leaves(case))
    with FlopCounterMode(display=False) as counter:
        loss(case.ring[0]).backward()
    assert limit.operations(case) == counter.get_total_flops()


@pytest.mark.usefixtures("clock")
def test_the_rate_of_a_large_product(monkeypatch):
    monkeypatch.setitem(limit.SIZE, "cpu", 256)
    seconds = []
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seconds.append(a.shape) or time.sleep(0.01))
    assert limit.rate() == pytest.approx(2 * 256**3 / 0.01, rel=0.02)
    assert set(seconds) == {(256, 256)}


def pretend(milliseconds, first=0.0, log=None, loss=1.0):
    """A contender that takes that long, and longer at first."""
    calls = []

    def steps(n):
        calls.append(n)
        if log is not None:
            log.append(milliseconds)
        time.sleep(n * milliseconds / 1000 + (first if len(calls) == 1 else 0))
        return loss

    return steps


@pytest.mark.usefixtures("clock")
def test_timing_takes_turns_and_finds_ratios_and_compilation():
    log, case = [], SMALL[0]
    makes = {"a": (2.0, 0.0), "b": (6.0, 0.3)}
    entries = [Entry(case, name) for name in makes]
    rows = timing.measure(entries, lambda e: pretend(*makes[e.contender], log), 6, 0.02)
    assert log[-12:] == [2.0, 6.0, 6.0, 2.0] * 3
    assert [len(row.milliseconds) for row in rows] == [6, 6]
    assert bounds.ratio(rows[1], rows[0]).value == pytest.approx(3, rel=0.02)
    assert rows[1].compile_seconds == pytest.approx(0.3, abs=0.001)
    assert all(row.cores == 0 for row in rows)  # it slept


def test_timing_lists_who_cannot_take_part_and_who_fails():
    def prepare(entry):
        if entry.contender == "absent":
            raise Absent("not here")
        if entry.contender == "broken":
            return lambda n: 1 / 0
        return pretend(0.1, loss=math.nan if entry.contender == "nan" else 2.0)

    names = ["absent", "fine", "broken", "nan"]
    rows = timing.measure([Entry(SMALL[0], name) for name in names], prepare, 2, 0.001)
    said = [row.absent for row in rows]
    assert said[:2] == ["not here", None]
    assert said[2] == "failed: ZeroDivisionError: division by zero"
    assert said[3] == "failed: its loss is not finite"
    assert rows[1].last_loss == 2.0


def row(case, contender, median, **fields):
    """A row whose rounds are around a median, or an absent one."""
    rounds = [] if median is None else [0.9 * median, median, 1.2 * median]
    return Row(case, contender, rounds, 0.5, 1.0, 1.0, None if rounds else "not here", **fields)


def group(case, limit_milliseconds=0.1, seeds=None, **medians):
    """A group of one case as a worker returns it."""
    rows = [row(case, name, median) for name, median in medians.items()]
    rows += [row(replace(case, seeds=s), "fused", m) for s, m in (seeds or {}).items()]
    return {
        "rows": rows,
        "limit_milliseconds": limit_milliseconds,
        "operations_per_second": 5e10,
        "core": 0,
    }


CASE = cases.vae(16, 64, "amortized")


def statuses(base, tables=None, seconds=None, device="cpu"):
    """{what: status} of the checks."""
    found = bounds.checks(base, tables, seconds, device)
    return {c.what.split(": ", 1)[-1]: c.status for c in found}


def test_bounds_pass_and_miss_by_the_ratios_of_medians():
    good = {"fused": 0.4, "handwritten": 0.5, "pyro": 2.1, "numpyro_jit": 0.6, "numpyro_scan": 0.4}
    assert set(statuses([group(CASE, seeds={16: 3.0}, **good)]).values()) == {
        "pass",
        "not measured",
    }
    for change, missed in (
        ({"handwritten": 0.39}, "fused / by hand"),
        ({"numpyro_scan": 0.35}, "fused / the better NumPyro"),
        ({"pyro": 1.9}, "pyro.infer.SVI / fused"),
    ):
        found = statuses([group(CASE, seeds={16: 3.0}, **good | change)])
        assert found[missed] == "MISS"
    found = statuses([group(CASE, seeds={16: 3.3}, **good)])
    assert found["16 seeds at once / 16 times one"] == "MISS"
    bound_by_products = statuses([group(CASE, 0.3, seeds={16: 3.3}, **good)])
    assert "16 seeds at once / 16 times one" not in bound_by_products


def test_bounds_of_the_whole_run():
    first = group(CASE, fused=0.4, numpyro_scan=0.39)
    second = group(cases.vae(128, 200, "amortized"), fused=1.0, numpyro_jit=1.0, pyro=1.7)
    found = statuses([first, second])
    assert found["fused / the better NumPyro, geometric mean"] == "MISS"
    assert found["pyro.infer.SVI / fused"] == "MISS"  # 1.7, where 1.8 is asked for
    assert found["fused / by hand"] == "not measured"
    few, many = cases.table_cases((1000, 5000))
    grown = group(few, fused=1.0)
    grown["rows"].append(row(many, "fused", 1.25))
    what = "a step at the largest N / at the smallest"
    assert statuses([], grown)[what] == "MISS"
    grown["rows"][-1] = row(many, "fused", 1.15)
    assert statuses([], grown)[what] == "pass"
    compare = "zoo compare, seconds with an empty compilation cache"
    assert statuses([], None, 91.0)[compare] == "MISS"
    assert statuses([], None, 80.0)[compare] == "pass"


def test_bounds_on_a_gpu():
    good = {"fused": 0.1, "pyro": 1.1, "handwritten_graph": 0.1}
    assert set(statuses([group(CASE, seeds={16: 0.19}, **good)], device="cuda").values()) == {
        "pass"
    }
    bad = {"fused": 0.12, "pyro": 1.1, "handwritten_graph": 0.1}
    found = statuses([group(CASE, seeds={16: 0.25}, **bad)], device="cuda")
    assert set(found.values()) == {"MISS"}


def result(base, tables=None, quick=False):
    """A run's result with these groups."""
    return {
        "quick": quick,
        "rounds": 3,
        "cache": "as found",
        "environment": bench.environment("cpu"),
        "base": base,
        "tables": tables,
        "skipped": ["zoo compare: no time"],
        "checks": bounds.checks(base, tables, None, "cpu"),
    }


def test_the_page_json_and_figures(tmp_path):
    good = {"fused": 0.4, "handwritten": 0.512, "pyro": 2.1, "numpyro_scan": None}
    few, many = cases.table_cases((1000, 5000))
    grown = group(few, fused=1.0)
    grown["rows"].append(row(many, "fused", 1.25))
    found = bench.write(tmp_path, result([group(CASE, seeds={16: 3.0}, **good)], grown))
    assert f"| {CASE.name} | 0.512 | 2.1 | – | 0.4 | 0.100 |" in found.page
    assert "0.78 [0.78, 0.78]" in found.page  # every round has the same ratio
    assert "MISS: mean_field, fused" in found.page
    assert "numpyro, scan: not here (1 row" in found.page
    assert "zoo compare: no time" in found.page
    assert (tmp_path / "bench.md").read_text() == found.page
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert Row(**kept["base"][0]["rows"][0]) == row(CASE, "fused", 0.4)
    assert kept["environment"]["versions"]["numpyro"]
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "batch.png",
        "rows.png",
        "seeds.png",
    ]


def test_the_spread_is_that_of_the_rounds():
    above = Row(CASE, "a", [1.0, 2.0, 3.0, 4.0, 5.0])
    below = Row(CASE, "b", [1.0, 1.0, 1.0, 1.0, 1.0])
    found = bounds.ratio(above, below, 0.5)
    assert (found.value, found.low, found.high) == (1.5, 0.75, 2.25)


@pytest.mark.parametrize(("quick", "ok"), [(True, True), (False, False)])
def test_what_was_not_measured_passes_under_quick_alone(quick, ok):
    base = [group(CASE, fused=0.4, handwritten=0.5)]
    assert bench.Bench("", bounds.checks(base, None, None, "cpu"), {"quick": quick}).ok is ok


@pytest.mark.parametrize("quick", [True, False])
def test_one_miss_is_a_miss(quick):
    base = [group(CASE, fused=0.4, handwritten=0.5, pyro=1.0)]
    assert not bench.Bench("", bounds.checks(base, None, None, "cpu"), {"quick": quick}).ok


def test_some_cases_can_pass_without_the_others():
    base = [group(CASE, fused=0.4, handwritten=0.5)]
    found = bounds.checks(base, None, None, "cpu", whole=False)
    assert not any("zoo compare" in check.what or "largest N" in check.what for check in found)
    assert len(bounds.checks(base, None, None, "cpu")) == len(found) + 3


def test_nothing_measured_is_no_pass():
    base = [group(CASE, fused=None, handwritten=0.5)]
    assert not bench.Bench("", bounds.checks(base, None, None, "cpu"), {"quick": True}).ok


def test_every_contender_is_planned_and_absent_ones_give_a_reason():
    planned = bench.plan(False, "cpu")
    assert len(planned) == 11
    names = {entry.contender for entries in planned.values() for entry in entries}
    assert names == set(contenders.CONTENDERS) - {"handwritten_graph"}
    seeds = {e.case.seeds for e in planned[CASE.name] if e.contender == "fused"}
    assert seeds == {1, 4, 16}
    with pytest.raises(Absent, match="needs a CUDA device"):
        contenders.prepare(Entry(SMALL[0], "handwritten_graph"))


def test_without_numpyro_its_rows_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(contenders, "has_numpyro", lambda: False)
    with pytest.raises(Absent, match=r"pip install latent-zoo\[bench\]"):
        contenders.prepare(Entry(SMALL[0], "numpyro_scan"))
    monkeypatch.setattr(
        bench, "time_group", lambda entries, *_: group(entries[0].case, handwritten=0.5)
    )
    said = []
    found = bench.bench(tmp_path, quick=True, device="cpu", say=said.append)
    assert "pip install latent-zoo[bench]; the NumPyro rows are left out" in said[0]
    assert "the NumPyro rows: numpyro or jax is not installed" in found.page


def test_a_group_that_dies_or_is_out_of_time_is_listed(monkeypatch, tmp_path):
    def time_group(entries, *_):
        if entries[0].case.num_data == 1000:
            raise subprocess.TimeoutExpired("worker", 1)
        if entries[0].case.guide == "mean_field":
            raise zoo.ZooError("its process died")
        return group(entries[0].case, fused=0.4, handwritten=0.5)

    monkeypatch.setattr(bench, "time_group", time_group)
    found = bench.bench(tmp_path, quick=True, device="cpu", say=lambda words: None)
    assert "- tables: --quick has no more time" in found.page
    assert found.page.count("its process died") == 2
    lost = [check for check in found.checks if check.status == "not measured"]
    assert sum("mean_field: fused / by hand" in check.what for check in lost) == 2
    assert len(found.result["base"]) == 2


def test_nothing_timed_is_an_error(monkeypatch, tmp_path):
    def time_group(entries, *_):
        raise zoo.ZooError("its process died")

    monkeypatch.setattr(bench, "time_group", time_group)
    with pytest.raises(zoo.ZooError, match=r"nothing could be timed; .* died"):
        bench.bench(tmp_path, quick=True, device="cpu", say=lambda words: None)
    assert not (tmp_path / "bench.md").exists()


def refused(arguments, capsys):
    """The one line of a refused command."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_bad_input(capsys, tmp_path):
    out = tmp_path / "out"
    line = refused(["bench", "--case=vea", f"--out={out}"], capsys)
    assert "unknown case 'vea'; known: " in line
    assert f", {CASE.name}, " in line
    line = refused(["bench", "--device=tpu", f"--out={out}"], capsys)
    assert "unknown device" in line
    assert not out.exists()
    out.write_text("mine")
    assert "is a file; name a folder" in refused(["bench", f"--out={out}"], capsys)
    assert out.read_text() == "mine"


def test_a_worker_that_dies_is_explained_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(bench.worker, "__name__", "no_such_module")
    entries = [Entry(SMALL[0], "handwritten")]
    with pytest.raises(zoo.ZooError, match=r"ended with 1: .*No module named") as caught:
        bench.time_group(entries, bench.QUICK, bench.worker.environment("cpu"), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_times_a_case_in_a_process_of_one_core(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "QUICK", bench.Effort(5, 0.02, 600.0))  # a busy machine takes longer
    arguments = ["bench", "--quick", "--case=gaussian_lvm, batch 256, mean_field"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, f"--out={tmp_path}"])
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert page.strip() == (tmp_path / "bench.md").read_text().strip()
    kept = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["contender"]: row for row in kept["base"][0]["rows"] if row["case"]["seeds"] == 1}
    for name in ("handwritten", "pyro", "numpyro_scan", "numpyro_rows"):
        assert rows[name]["absent"] is None, name
        assert rows[name]["cores"] < 1.1
        assert rows[name]["last_loss"] == pytest.approx(rows["handwritten"]["last_loss"], rel=0.05)
    assert rows["pyro"]["milliseconds"] > rows["handwritten"]["milliseconds"]
    assert reports.title("pyro") in page
