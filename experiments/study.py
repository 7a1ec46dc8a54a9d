"""`study`: a study's question put to the data, its record, tables, figure and page."""

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch

from experiments import records, studies
from experiments.report.figures import STYLE
from experiments.report.page import Page, Picture, write_page
from experiments.report.table import markdown
from experiments.studies.parts.claims import LEVEL, Claim
from experiments.svi import checkpoint
from experiments.svi import device as devices
from experiments.svi import fit as svi_fit
from experiments.svi.config import validated
from zoo.errors import require

RECORD = "record.json"
FROM_PYTHON = "experiments.study(...)"


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
    On a CPU one thread does it all, so that seconds can be compared.
    Returns a Finding.  Raises ZooError, before anything is measured, for bad arguments.
    """
    found = studies.load(name)
    chosen = validated(found.settings, **(found.quick if quick else {}) | settings)
    device = devices.resolve(device)
    folder = None if out is None else _empty(Path(out))
    started = time.perf_counter()
    with one_thread(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        results = found.measure(chosen, device)
        environment = records.environment(devices.name(device))
    claims = found.claims(results)
    record = {
        "study": Path(name).stem,
        "question": found.question,
        "quick": quick,
        "settings": chosen.model_dump(mode="json"),
        "environment": environment,
        "device": str(device),
        "seconds": time.perf_counter() - started,
        "claims": [claim.record() for claim in claims],
        "results": results,
    }
    if folder is not None:
        picture = _write(folder, found, record, claims)
        write_page(folder / "report.html", page(found, record, claims, picture))
    return Finding(record, claims, page_text(found, record, claims), folder)


@contextmanager
def one_thread():
    """One thread for torch while it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def page_text(found, record, claims):
    """The claims and the tables as Markdown."""
    parts = [f"**{found.question}**", _lead(record, claims)]
    parts.append("\n".join(f"- {claim.words}" for claim in claims))
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


def remake(folder, target):
    """Write record, table and figure of `folder` to `target`, as the study has them today.

    Claims, tables and figure are made from the results alone, so that better words need no new run.
    """
    found, record, _ = read(folder)
    claims = found.claims(record["results"])
    record |= {"question": found.question, "claims": [claim.record() for claim in claims]}
    svi_fit.prepare(Path(target))
    _write(Path(target), found, record, claims)


def _empty(folder):
    """The folder, made where it is not; refused where there is something in it."""
    require(not folder.exists() or folder.is_dir(), f"--out {folder} is a file; name a folder")
    full = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    require(not full, f"{folder} is not empty; name another --out")
    svi_fit.prepare(folder)
    return folder


def _write(folder, found, record, claims):
    """Record, table and figure, a Picture; the record comes first: the others are made from it."""
    content = json.dumps(records.finite(record), indent=1) + "\n"
    checkpoint.write_bytes(folder / RECORD, content.encode())
    (folder / "table.md").write_text(page_text(found, record, claims))
    picture = Picture(folder / "figure.png", found.figure)
    with mpl.rc_context(STYLE):
        found.draw(record["results"]).savefig(picture.path)
    return picture


def page(found, record, claims, picture):
    """The Page of a Study, its record and its claims; picture: of its figure."""
    environment = record["environment"]
    changed = ", with changes that were not committed" if environment["dirty"] else ""
    return Page(
        title=found.question,
        lead=_lead(record, claims),
        findings=[claim.words for claim in claims],
        tables=found.tables(record["results"]),
        pictures=[picture],
        command=environment["command"] or FROM_PYTHON,
        settings=record["settings"],
        reading=found.reading,
        facts={
            "device": environment["device"],
            "threads": str(environment["threads"]),
            "seconds": f"{record['seconds']:.0f}",
            "commit": f"{environment['commit']}{changed}",
            "python": environment["python"],
            "versions": ", ".join(f"{n} {own}" for n, own in environment["versions"].items()),
        },
    )


def _lead(record, claims):
    """How many of the claims the data support, and how many might have been luck."""
    texts = [claim.holds for claim in claims if claim.texts]
    own = [claim.holds for claim in claims if not claim.texts]
    tested = sum(claim.p is not None for claim in claims)
    parts = ["A quick run, of smaller settings."] if record["quick"] else []
    also = f" and {sum(own)} of {len(own)} of this study's own" if own else ""
    parts.append(f"The data support {sum(texts)} of {len(texts)} claims of the texts{also}.")
    if tested:
        parts.append(
            f"{tested} were tested, each by itself at {LEVEL:g}: were all of them untrue, "
            f"{LEVEL * tested:.2g} at most would be expected to be supported by luck."
        )
    return " ".join(parts)
