"""Fits as a comparison, or `zoo fit`, left them in a folder."""

import json
from pathlib import Path

import guides
from experiments import records
from experiments.settings import load_problem
from experiments.svi import checkpoint
from experiments.svi import fit as svi_fit
from zoo.errors import ZooError, require

FIT_FILE = "fit.json"
TREE_CELLS = 500_000  # draws x data of a seed in posterior.nc
FACTS = ("model", "model_options", "data", "guide", "guide_options")


def note_fit(folder, problem, model, guide, guide_options, seeds):
    """Write what `saved_fits` needs to know of a single fit beside its checkpoints.

    model: name or file of the model; guide: name of the guide.
    """
    facts = {"model": model, "guide": guide, "guide_options": guide_options, "seeds": list(seeds)}
    facts |= {"model_options": problem.options, "data": problem.data.digest}
    checkpoint.write_bytes(Path(folder) / FIT_FILE, json.dumps(facts, default=str).encode())


def write_posterior(fit, folder, num_draws):
    """Write posterior.nc of a Fit into the folder of its checkpoints, unless it is there.

    num_draws: of a seed, fewer where the data are many.
    """
    from experiments.measure import bridge

    path = Path(folder) / "posterior.nc"
    if not path.exists():
        num_draws = max(2, min(num_draws, TREE_CELLS // len(fit.problem.data.train)))
        bridge.write(fit.to_datatree(num_draws, predictive=False), path)


def saved_fits(folder, problems=None):
    """{label: Fit} of the finished runs in a folder that `zoo compare` or `zoo fit` wrote.

    problems: {name: Problem} of those that were made in Python.
    Raises ZooError where the folder holds no fits, or where their model or data are another's now.
    """
    folder, problems = Path(folder), dict(problems or {})
    require(folder.is_dir(), f"no such folder: {folder}")
    found = {}
    for label, (where, facts) in _noted(folder).items():
        variant = facts.get("variant")
        name = variant or Path(facts["model"]).stem
        if name not in problems:
            problems[name] = load_problem(facts["model"], variant, facts["model_options"])
        problem = problems[name]
        require(
            problem.data.digest == facts["data"],
            f"{folder} holds fits of {name} to other data than it has now",
        )
        guide = guides.build(facts["guide"], problem, **facts["guide_options"])
        found[label] = svi_fit.load(problem, guide, where, facts["seeds"])
    return found


def _noted(folder):
    """{label: (folder of its checkpoints, what it is a fit of)}."""
    if (folder / FIT_FILE).exists():
        try:
            read = json.loads((folder / FIT_FILE).read_text())
            facts = {name: read[name] for name in (*FACTS, "seeds")}
            label = f"{Path(facts['model']).stem}-{Path(facts['guide']).stem}"
            return {label: (folder, facts)}
        except (ValueError, KeyError, TypeError) as error:
            raise ZooError(f"{folder / FIT_FILE} is damaged: {error}") from error
    found = {}
    for record in records.read(folder / "records.jsonl"):
        if record["status"] == "ok":
            config = record["config"]
            missing = [name for name in FACTS if name not in config]
            require(not missing, f"{folder} was written by another version: no {missing}")
            facts = {name: config[name] for name in FACTS} | {"seeds": []}
            facts["variant"] = config.get("variant")
            _, known = found.setdefault(record["label"], (folder / record["label"], facts))
            known["seeds"].append(record["seed"])
    require(
        found, f"{folder} holds no fits; `zoo compare --out` and `zoo fit --out` write such folders"
    )
    for _, facts in found.values():
        facts["seeds"].sort()
    return found
