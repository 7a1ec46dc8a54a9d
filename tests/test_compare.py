"""Comparisons: records, resumption, failures, a user's own model."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch

import experiments
import zoo
from experiments import records
from experiments.settings import load_suite
from experiments.svi.interrupt import Interrupted

FEW = {"num_draws": 4, "restarts": 0, "simulations": 20, "pareto_draws": 100}
TINY = {"fit": {"steps": 12, "batch_size": 700, "checkpoint_seconds": 1e-3}, "measure": FEW}
PAIRS = ["gaussian_lvm", "bernoulli_mixture"]


def stable(record):
    """A record without what differs between runs of the same program: times and memory."""
    record = dict(record, trace={k: v for k, v in record["trace"].items() if k != "seconds"})
    return {k: v for k, v in record.items() if k not in ("cost", "environment")}


def tiny_compare(out, models=PAIRS, **options):
    return experiments.compare(models, seeds=2, out=out, **(TINY | options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small comparison, uninterrupted."""
    return tiny_compare(tmp_path_factory.mktemp("whole") / "out")


def test_comparison_leaves_what_it_promises(finished):
    folder = finished.folder
    assert len(finished.records) == 2 * 2 * 2
    assert (folder / "table.md").read_text() == finished.table
    assert (folder / "table.csv").read_text().count("\n") == 5
    assert {path.name for path in (folder / "figures").iterdir()} >= {"elbo.png", "gaps.png"}
    for model in PAIRS:
        for guide in load_suite("card").guides:
            assert (folder / f"{model}-{guide}" / "posterior.nc").stat().st_size > 1e4


def test_record_holds_the_resolved_config_and_its_environment(finished):
    record = finished.records[0]
    fit = record["config"]["fit"]
    assert fit["estimator"] == "pathwise"
    assert fit["num_particles"] == 1
    assert fit["steps"] == record["cost"]["steps"] == 12
    assert set(record["environment"]) == {
        *("commit", "dirty", "python", "versions", "device", "threads", "command")
    }
    found = record["measures"]["gaps"]
    total = found["log_evidence_per_datum"] - found["elbo_per_datum"]
    assert found["total_gap_per_datum"] == pytest.approx(total, abs=1e-9)
    assert found["row_steps"] > 0
    held_out = record["measures"]["held_out"]
    assert held_out["elbo_per_datum"] == found["elbo_per_datum"]
    over = record["measures"]["train"]["elbo_per_datum"] - held_out["elbo_per_datum"]
    assert held_out["generalization_gap_per_datum"] == pytest.approx(over, abs=1e-12)
    assert record["cost"]["steps_per_second"] > 0
    assert record["cost"]["peak_process_memory_bytes"] > 1e6


def test_settings_of_the_caller_outweigh_the_suites():
    from experiments.compare import _changed
    from experiments.settings import plan

    card = load_suite("card")
    assert card.fit_for["vae"]["learning_rate"] != 0.5
    for settings, expected in (
        ({}, card.fit_for["vae"]["learning_rate"]),
        ({"fit": {"learning_rate": 0.5}}, 0.5),
        ({"fit": {"learning_rate": 0.5}, "fit_for": {"vae": {"learning_rate": 0.25}}}, 0.25),
    ):
        suite = _changed(card, {"models": ["vae"], "seeds": 1}, settings)
        runs, _ = plan(suite)
        assert {run.fit.learning_rate for run in runs} == {expected}


def test_table_is_the_mean_and_error_of_the_records(finished):
    bounds = [r["measures"]["held_out"]["elbo_per_datum"] for r in finished.records[:2]]
    mean, se = sum(bounds) / 2, abs(bounds[0] - bounds[1]) / 2
    assert f"| {mean:.3f} ± {se:.3f} |" in finished.table


def test_resume_skips_what_is_recorded(finished, monkeypatch):
    from experiments import single

    monkeypatch.setattr(single, "run", lambda *_: pytest.fail("ran again"))
    again = tiny_compare(finished.folder, resume=True)
    assert again.records == finished.records
    assert again.table == finished.table


def test_resume_measures_the_missing_seed_alone(finished, tmp_path, monkeypatch):
    from experiments import single

    folder, measured, measure = tmp_path / "out", [], single._measured
    shutil.copytree(finished.folder, folder)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:3] + lines[4:]))
    monkeypatch.setattr(
        single, "_measured", lambda run, *rest: (measured.append(run.seed), measure(run, *rest))[1]
    )
    again = tiny_compare(folder, resume=True)
    assert measured == [json.loads(lines[3])["seed"]]
    assert list(map(stable, again.records)) == list(map(stable, finished.records))


def test_without_resume_nothing_is_overwritten(finished):
    before = (finished.folder / "records.jsonl").read_bytes()
    with pytest.raises(zoo.ZooError, match="go on with --resume"):
        tiny_compare(finished.folder)
    with pytest.raises(zoo.ZooError, match="another comparison"):
        tiny_compare(finished.folder, resume=True, measure=FEW | {"num_draws": 5})
    assert (finished.folder / "records.jsonl").read_bytes() == before


def test_interruption_and_resumption_end_with_the_same_records(finished, tmp_path):
    class Impatient(experiments.compare.__globals__["Quiet"]):
        steps = 0

        def step(self, runs, steps):
            self.steps += 1
            if self.steps == 31:
                raise Interrupted

    with pytest.raises(Interrupted):
        tiny_compare(tmp_path, watcher=Impatient())
    assert 0 < len(records.read(tmp_path / "records.jsonl")) < 8
    again = tiny_compare(tmp_path, resume=True)
    assert list(map(stable, again.records)) == list(map(stable, finished.records))


def test_worker_processes_give_the_same_records(finished, tmp_path):
    found = tiny_compare(tmp_path, workers=2)
    assert list(map(stable, found.records)) == list(map(stable, finished.records))


def test_a_run_that_fails_is_recorded_and_the_others_go_on(diverging_problem, tmp_path):
    found = experiments.compare(
        [diverging_problem, "gaussian_lvm"],
        ["amortized"],
        seeds=1,
        out=tmp_path,
        fit=TINY["fit"] | {"learning_rate": 0.1},
        measure=FEW,
    )
    assert [record["status"] for record in found.records] == ["failed", "ok"]
    assert "the loss is nan at site 'x' of the model" in found.failed[0]["error"]
    assert "diverging-amortized-0 failed" in found.table
    assert "| diverging | amortized | unknown |" in found.table


def test_a_line_cut_short_is_dropped(tmp_path):
    path = tmp_path / "records.jsonl"
    one = {"config": {}, "status": "ok", "label": "a-b", "seed": 0}
    records.append(path, one)
    with open(path, "ab") as file:
        file.write(b'{"a": 2')
    assert records.read(path) == [one]
    records.append(path, one | {"value": float("nan")})
    assert records.read(path) == [one, one | {"value": None}]


def compare_in_a_process(out, workers):
    """What a killed process was doing: a comparison of four runs, gone on with."""
    torch.set_num_threads(1)
    experiments.compare(["gaussian_lvm"], seeds=2, out=out, resume=True, workers=workers, **TINY)


@pytest.mark.slow
def test_killed_twenty_times_and_resumed_ends_with_the_same_records(tmp_path):
    """SIGKILL at random moments, with and without worker processes; each start goes on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments"])
    seed = int.from_bytes(os.urandom(4), "little")
    print("moments from seed", seed)
    moments = random.Random(seed)

    def start(folder, workers):
        process = context.Process(target=compare_in_a_process, args=(tmp_path / folder, workers))
        process.start()
        return process

    start("warm", 1).join()
    started = time.monotonic()
    start("whole", 1).join()
    length = time.monotonic() - started
    kills, folders = 0, ["killed-0"]
    while kills < 20:
        workers = 1 + (kills % 4 == 3)
        process = start(folders[-1], workers)
        process.join(moments.uniform(0.02, 0.4) * length + 5 * (workers - 1))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            folders.append(f"killed-{len(folders)}")
    final = start(folders[-1], 1)
    final.join()
    assert final.exitcode == 0
    expected = list(map(stable, records.read(tmp_path / "whole" / "records.jsonl")))
    for folder in folders:
        found = records.read(tmp_path / folder / "records.jsonl")
        assert sorted(map(str, map(stable, found))) == sorted(map(str, expected))


@contextmanager
def running_command(out, errors):
    """The command in a process group of its own, which ends with the test, however it ends."""
    command = [sys.executable, "-m", "experiments.cli", "compare", "gaussian_lvm", f"--out={out}"]
    process = subprocess.Popen(
        [
            *command,
            "--steps=100000",
            "--set=engine=eager",
            "--set=checkpoint_seconds=0.05",
            "--workers=2",
        ],
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        start_new_session=True,
        # Where the tests run in a shell's background, an interrupt is ignored, here too.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)],
)
def test_a_signal_ends_it_with_a_checkpoint_and_one_line(number, whole_group, tmp_path):
    with (
        open(tmp_path / "errors", "w") as errors,
        running_command(tmp_path / "out", errors) as process,
    ):
        deadline = time.monotonic() + 180
        while not list((tmp_path / "out").glob("*/seed-*.safetensors")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        assert process.wait(timeout=180) == 130
    said = (tmp_path / "errors").read_text()
    assert "zoo: interrupted; " in said
    assert "failed" not in said
    assert all(r["status"] == "ok" for r in records.read(tmp_path / "out" / "records.jsonl"))
    assert "Traceback" not in said
    assert not [path.name for path in (tmp_path / "out").rglob(".*")]
