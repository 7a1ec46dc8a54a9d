"""`study`: a study's question put to the data, its record, tables, figure and page."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch

from experiments import records, studies
from experiments.report.figures import STYLE
from experiments.report.page import Page, Picture, write_page
from experiments.report.table import markdown
from experiments.studies.claims import LEVEL, Claim
from experiments.svi import checkpoint
from experiments.svi import device as devices
from experiments.svi import fit as svi_fit
from experiments.svi.config import validated
from zoo.errors import require

RECORD = "record.json"


@dataclass(frozen=True)
class Finding:
    """What a study left: its record, claims, tables as text, and folder if there is one."""

    record: dict
    claims: list[Claim]
    text: str
    folder: Path | None


def study(name, out=None, quick=False, device="auto", **settings):
    """Answer a study's question, and write out/{record.json, table.md, figure.png, report.html}.

    name: of a study, or a Python file that registers one.  quick: its settings for less than a
    minute on two cores.  settings: fields of the study's Settings that differ from either.
    Returns a Finding.  Raises ZooError, before anything is measured, for bad arguments.
    """
    found = studies.load(name)
    chosen = validated(found.settings, **(found.quick if quick else {}) | settings)
    device = devices.resolve(device)
    folder = None if out is None else _empty(Path(out))
    started = time.perf_counter()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        results = found.measure(chosen, device)
    claims = found.claims(results)
    record = {
        "study": Path(name).stem,
        "question": found.question,
        "quick": quick,
        "settings": chosen.model_dump(mode="json"),
        "environment": records.environment(devices.name(device)),
        "device": str(device),
        "seconds": time.perf_counter() - started,
        "claims": [claim.record() for claim in claims],
        "results": results,
    }
    text = page_text(found, record, claims)
    if folder is not None:
        _write(folder, found, record, claims, text)
    return Finding(record, claims, text, folder)


def page_text(found, record, claims):
    """The claims and the tables as Markdown."""
    parts = [f"**{found.question}**", "\n".join(f"- {claim.words}" for claim in claims)]
    for table in found.tables(record["results"]):
        parts += [f"*{table.title}*", markdown(table)] + ([table.caption] if table.caption else [])
    return "\n\n".join(parts) + "\n"


def read(folder):
    """(Study, record, claims) of what `study` left in a folder.

    Raises ZooError where there is no such record.
    """
    path = Path(folder) / RECORD
    require(path.is_file(), f"no study's {RECORD} in {folder}")
    record = json.loads(path.read_text())
    claims = [Claim(**claim) for claim in record["claims"]]
    return studies.load(record["study"]), record, claims


def _empty(folder):
    """The folder, made where it is not; refused where there is something in it."""
    require(not folder.exists() or folder.is_dir(), f"--out {folder} is a file; name a folder")
    full = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    require(not full, f"{folder} is not empty; name another --out")
    svi_fit.prepare(folder)
    return folder


def _write(folder, found, record, claims, text):
    """All files of a study; the record comes first, since all others are made from it."""
    content = json.dumps(records.finite(record), indent=1) + "\n"
    checkpoint.write_bytes(folder / RECORD, content.encode())
    (folder / "table.md").write_text(text)
    picture = Picture(folder / "figure.png", found.question)
    with mpl.rc_context(STYLE):
        found.draw(record["results"]).savefig(picture.path)
    environment = record["environment"]
    versions = ", ".join(f"{name} {own}" for name, own in environment["versions"].items())
    page = Page(
        title=found.question,
        lead=_lead(claims),
        findings=[claim.words for claim in claims],
        tables=found.tables(record["results"]),
        pictures=[picture],
        command=environment["command"] or f"zoo study {record['study']}",
        settings=record["settings"],
        reading=found.reading,
        facts={
            "device": environment["device"],
            "seconds": f"{record['seconds']:.0f}",
            "commit": str(environment["commit"]),
            "versions": versions,
        },
    )
    write_page(folder / "report.html", page)


def _lead(claims):
    """How many of the claims the data support, and how many might have been luck."""
    held, tested = sum(claim.holds for claim in claims), sum(c.p is not None for c in claims)
    return (
        f"Of {len(claims)} claims the data support {held}. {tested} were tested over replicates, "
        f"each by itself at {LEVEL:g}: were none of them true, {LEVEL * tested:.2g} would still be "
        "supported on average."
    )
