"""`compare`: models x guides x seeds, to records, tables and figures."""

import json
import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import zoo
from experiments import pool, records, single
from experiments.report import write_report
from experiments.saved import saved_fits, write_posterior
from experiments.settings import Suite, load_problem, load_suite, plan
from experiments.svi import checkpoint
from experiments.svi import fit as svi_fit
from experiments.svi.config import validated
from zoo.errors import require, require_count


@dataclass(frozen=True)
class Comparison:
    """What a comparison left: its folder, its records in the order of the plan, its table."""

    folder: Path
    records: list
    table: str

    @property
    def failed(self):
        """The records of runs that failed."""
        return [record for record in self.records if record["status"] != "ok"]


class Quiet:
    """The watcher of a comparison that tells nobody; a progress bar has the same methods."""

    def begin(self, runs, done):
        """Before the first run."""

    def step(self, runs, steps):
        """The runs of a model and guide have taken so many steps together."""

    def end(self, run, record):
        """A run has ended."""


def compare(
    models=None,
    guides=None,
    seeds=None,
    out="runs/card",
    suite="card",
    device="auto",
    resume=False,
    workers=1,
    watcher=None,
    **settings,
):
    """Fit every model with every guide and seed, and report how far each is from the truth.

    models: names, Python files or Problems; guides: names; seeds: how many, or a list; each the
    suite's where None.  settings: further fields of Suite (fit, model_options ...), merged into
    the suite's.  workers: processes; more than one needs models by name.  resume: go on in `out`.
    Writes out/{report.html, records.jsonl, table.md, table.csv, figures/*.png} and a posterior.nc
    for each model and guide.  Returns a Comparison.
    Raises ZooError, before anything is written, for bad arguments.
    """
    models, guides = _listed(models), _listed(guides)
    given = {m.name: m for m in models or [] if isinstance(m, zoo.Problem)}
    names = None if models is None else [getattr(m, "name", str(m)) for m in models]
    suite = _changed(
        load_suite(suite), {"models": names, "guides": guides, "seeds": seeds}, settings
    )
    runs, problems = plan(suite, device, given)
    require_count(workers=workers)
    require(workers == 1 or not given, "problems made in Python run in one process: workers=1")
    require(isinstance(out, str | Path), f"out must be a folder, got {out!r}")
    folder = Path(out)
    done = _open(folder, runs, resume)
    _execute(runs, problems, folder, done, workers, watcher or Quiet())
    found = {records.key(record): record for record in records.read(folder / "records.jsonl")}
    ordered = [found[_key(run)] for run in runs]
    fits = _posteriors(problems, folder, ordered)
    table = write_report(folder, suite.title, ordered, fits)
    return Comparison(folder, ordered, table)


def _listed(names):
    """A list of names or Problems, of one that stands alone too; None as it is."""
    return [names] if isinstance(names, str | Path | zoo.Problem) else names


def _changed(suite, chosen, settings):
    """The suite with the caller's choices in place of its own."""
    values = suite.model_dump() | {k: v for k, v in chosen.items() if v is not None}
    if chosen["models"] is not None and chosen["models"] != suite.models:
        values["title"] = f"Comparison of {', '.join(Path(name).stem for name in values['models'])}"
        _forget_variants(values, {*values["variants"]} - {*values["models"]})
        _forget_pairs(values, {*suite.models} - {*values["models"]})
    for name, value in settings.items():
        merged = isinstance(values.get(name), dict)
        require(not merged or isinstance(value, dict), f"{name} must be a dict, got {value!r}")
        values[name] = values[name] | value if merged else value
    if chosen.get("guides") is not None:  # they are for every model, whatever the suite has for one
        values["guides_for"] = settings.get("guides_for", {})
        values["without"] = settings.get("without", [])
    for name, own in values["fit_for"].items():
        # What the caller sets for every model outweighs what the suite sets for one.
        chosen_for = settings.get("fit_for", {}).get(name, {})
        values["fit_for"][name] = own | settings.get("fit", {}) | chosen_for
    return validated(Suite, **values)


def _forget_variants(values, names):
    """Take variants out of a suite's values, with what it sets for them."""
    for where in ("variants", "fit_for", "guides_for", "model_options"):
        values[where] = {name: own for name, own in values[where].items() if name not in names}


def _forget_pairs(values, models):
    """Take MODEL-GUIDE pairs of these models out of what a suite leaves out."""
    values["without"] = [n for n in values["without"] if n.rpartition("-")[0] not in models]


def _open(folder, runs, resume):
    """The keys of the runs that are recorded in the folder, which is made where it is not."""
    require(not folder.exists() or folder.is_dir(), f"--out {folder} is a file; name a folder")
    plan_file, planned = folder / "plan.json", [_key(run) for run in runs]
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        require(plan_file.exists(), f"{folder} is not empty and no comparison; name another --out")
        require(resume, f"{folder} holds a comparison: go on with --resume, or name another --out")
        require(
            _read_plan(plan_file) == planned,
            f"{folder} holds another comparison (other models, guides, seeds or settings); "
            "name another --out",
        )
    svi_fit.prepare(folder)
    checkpoint.write_bytes(plan_file, json.dumps(planned, indent=1).encode())
    for leftover in folder.rglob(".*.tmp"):  # of a writer that was killed
        leftover.unlink(missing_ok=True)
    found = records.read(folder / "records.jsonl")
    done = {records.key(record) for record in found if record["status"] != "died"}
    for run in runs:
        path = folder / run.label / f"seed-{run.seed}.safetensors"
        if path.exists() and _key(run) not in done:
            checkpoint.read(path)
    return done


def _read_plan(path):
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError):
        return None


def _key(run):
    return records.key({"config": run.model_dump(mode="json")})


def _execute(runs, problems, folder, done, workers, watcher):
    """Run what is not recorded, and append a record for each.

    All seeds of a model and guide are trained together, so that what a seed ends with does not
    depend on which of the others were recorded before; those have their checkpoints.
    """
    path = folder / "records.jsonl"
    watcher.begin(runs, [run for run in runs if _key(run) in done])
    groups = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    waiting = [group for group in groups.values() if _not_in(done, group)]

    def keep(group, found):
        for run, record in zip(_not_in(done, group), found, strict=True):
            records.append(path, record)
            watcher.end(run, record)

    if workers > 1 and waiting:
        # The largest first, so that in the end no worker is left alone with the longest.
        size = {name: problem.num_parameters for name, problem in problems.items()}
        waiting.sort(key=lambda group: size[group[0].name], reverse=True)
        cores = os.cpu_count() or 1
        threads = max(1, cores // min(workers, len(groups)))
        function = partial(_by_name, folder=folder, done=done)
        lost = partial(_keep_dead, keep, done)
        pool.Pool(function, workers, threads, watcher.step, keep, lost).run(waiting)
        return
    for group in waiting:
        problem = problems[group[0].name]
        report = partial(watcher.step, group)
        keep(group, single.run(group, problem, folder, report, _seeds_in(done, group)))


def _not_in(done, group):
    return [run for run in group if _key(run) not in done]


def _seeds_in(done, group):
    return [run.seed for run in group if _key(run) in done]


def _keep_dead(keep, done, group, status):
    """The records of runs whose process died; `resume` runs them again."""
    error = f"its process died with exit status {status}, for want of memory perhaps"
    died = {"status": "died", "error": error}
    keep(group, [single.identity(run) | died for run in _not_in(done, group)])


def _by_name(group, report, folder, done):
    """The runs of a model and guide in a worker process, which loads the problem itself."""
    first = group[0]
    problem = _load(first.model, first.variant, json.dumps(first.model_options))
    return single.run(group, problem, folder, report, _seeds_in(done, group))


@cache
def _load(model, variant, options):
    return load_problem(model, variant, json.loads(options))


def _posteriors(problems, folder, ordered):
    """The Fit of every model and guide that has finished seeds, with its posterior.nc written."""
    if not any(record["status"] == "ok" for record in ordered):
        return {}
    found = saved_fits(folder, problems)
    labels = [label for label in dict.fromkeys(r["label"] for r in ordered) if label in found]
    num_draws = ordered[0]["config"]["measure"]["num_draws"]
    for label in labels:  # of groups in which a seed failed; the others' are there
        write_posterior(found[label], folder / label, num_draws)
    return {label: found[label] for label in labels}
