"""The page of a comparison: all that its records and figures say."""

from datetime import UTC, datetime

from experiments.report import choice
from experiments.report.columns import READING, get, guide_of, model_of
from experiments.report.page import Page
from experiments.report.table import failures, tables

FROM_PYTHON = "experiments.compare(...)"
FACTS = {
    "device": ("environment", "device"),
    "threads": ("environment", "threads"),
    "python": ("environment", "python"),
    "commit": ("environment", "commit"),
}


def page(title, records, pictures):
    """The Page of a comparison: the tables of table.md, its pictures and settings.

    Above them stand runs that failed, and what the rule of the page of choices says.
    """
    shown = tables(records)
    return Page(
        title=title,
        lead=_lead(records),
        tables=shown,
        pictures=pictures,
        command=_command(records),
        settings=_settings(records),
        reading=_reading(shown),
        findings=[*failures(records), *choice.sentences(records)],
        facts=_facts(records),
    )


def _lead(records):
    densities = records[0]["config"]["measure"].get("densities")
    question = (
        "How well each model predicts data that it was not fitted to"
        if densities
        else "How far each guide is from the exact answer of its model, why, and at what cost"
    )
    counts = {
        "model": len(set(map(model_of, records))),
        "guide": len(set(map(guide_of, records))),
        "seed": len({record["seed"] for record in records}),
        "run": len(records),
    }
    *parts, runs = (f"{n:,} {noun}{'s' if n > 1 else ''}" for noun, n in counts.items())
    return f"{question}. {', '.join(parts)}: {runs}."


def _reading(shown):
    """A sentence for each measure in the tables, in their order."""
    names = dict.fromkeys(name for table in shown for name in table.head if name in READING)
    return {name: f"{READING[name][0].upper()}{READING[name][1:]}." for name in names}


def _command(records):
    """The command as typed; a comparison that was begun in another way has none."""
    found = (get(record, ("environment", "command")) for record in records)
    return next(filter(None, found), FROM_PYTHON)


def _settings(records):
    """The resolved settings: what all runs share, and what each model and guide has beside."""
    configs = {r["label"]: {k: v for k, v in r["config"].items() if k != "seed"} for r in records}
    shared = _shared(list(configs.values()))
    own = {label: _without(config, shared) for label, config in configs.items()}
    seeds = list(dict.fromkeys(record["seed"] for record in records))
    return {"every run": shared | {"seeds": seeds}} | {k: v for k, v in own.items() if v}


def _shared(values):
    """What a list of nested dicts has in common."""
    first, found = values[0], {}
    for name, value in first.items():
        every = [other.get(name) for other in values]
        if all(other == value for other in every):
            found[name] = value
        elif all(isinstance(other, dict) for other in every) and (nested := _shared(every)):
            found[name] = nested
    return found


def _without(values, shared):
    """Nested dicts without what is `shared` with others."""
    found = {}
    for name, value in values.items():
        if name not in shared:
            found[name] = value
        elif value != shared[name]:
            found[name] = _without(value, shared[name])
    return found


def _facts(records):
    """Where and with what the runs were made; several, where they went on elsewhere."""
    facts = {name: _distinct(records, path) for name, path in FACTS.items()}
    if any(get(record, ("environment", "dirty")) for record in records):
        facts["commit"] += ", with changes that were not committed"
    packages = get(records[0], ("environment", "versions")) or {}
    facts |= {name: _distinct(records, ("environment", "versions", name)) for name in packages}
    facts["page written"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {name: words for name, words in facts.items() if words}


def _distinct(records, path):
    found = dict.fromkeys(get(record, path) for record in records)
    return ", ".join(str(value) for value in found if value is not None)
