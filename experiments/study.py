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

RECORD, TABLE, FIGURE = "record.json", "table.md", "figure.png"
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
    record = {
        "study": Path(name).stem,
        "quick": quick,
        "settings": chosen.model_dump(mode="json"),
        "environment": environment,
        "device": str(device),
        "seconds": time.perf_counter() - started,
        "results": results,
    }
    return _told(found, json.loads(_text(record)), folder)  # all is made of what the file will say


def _told(found, record, folder):
    """A Finding, made from a record's results alone; its files too, unless the folder is None."""
    if folder is not None:
        _write_record(folder, record)  # so that no measurement is lost where words for it fail
    claims = found.claims(record["results"])
    record |= {"question": found.question, "claims": [claim.record() for claim in claims]}
    text = page_text(found, record, claims)
    if folder is not None:
        _write_record(folder, record)
        (folder / TABLE).write_text(text)
        with mpl.rc_context(STYLE):
            found.draw(record["results"]).savefig(folder / FIGURE)
        write_page(folder / "report.html", page(found, record, claims, folder / FIGURE))
    return Finding(record, claims, text, folder)


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
    parts.append(listed(found.ordered(claims)))
    for table in found.tables(record["results"]):
        parts += [f"*{table.title}*", markdown(table)] + ([table.caption] if table.caption else [])
    return "\n\n".join(parts) + "\n"


def listed(claims):
    """The claims as a list in Markdown, each with its verdict."""
    return "\n".join(f"- **{claim.verdict}** {claim.words}" for claim in claims)


def read(folder):
    """(Study, record, claims) of what `study` left in a folder.

    Raises ZooError where there is no such record.
    """
    record = json.loads(_found(folder).read_text())
    claims = [Claim(**claim) for claim in record["claims"]]
    return studies.load(record["study"]), record, claims


def remake(folder, target):
    """Write the files of a study's `folder` to `target`, as the study has them today.

    All are made from the results alone, so that better words need no new run.  Returns a Finding.
    """
    record = json.loads(_found(folder).read_text())
    svi_fit.prepare(Path(target))
    return _told(studies.load(record["study"]), record, Path(target))


def _empty(folder):
    """The folder, made where it is not; refused where there is something in it."""
    require(not folder.exists() or folder.is_dir(), f"--out {folder} is a file; name a folder")
    full = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    require(not full, f"{folder} is not empty; name another --out")
    svi_fit.prepare(folder)
    return folder


def _found(folder):
    """The path of the record in a folder."""
    path = Path(folder) / RECORD
    require(path.is_file(), f"no study's {RECORD} in {folder}")
    return path


def _text(record):
    return json.dumps(records.finite(record), indent=1) + "\n"


def _write_record(folder, record):
    checkpoint.write_bytes(folder / RECORD, _text(record).encode())


def page(found, record, claims, figure):
    """The Page of a Study, its record and its claims; figure: the path of its PNG."""
    environment = record["environment"]
    changed = ", with changes that were not committed" if environment["dirty"] else ""
    return Page(
        title=found.question,
        lead=_lead(record, claims),
        claims=[(claim.verdict, claim.words) for claim in found.ordered(claims)],
        tables=found.tables(record["results"]),
        pictures=[Picture(figure, found.figure)],
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
    open_ = [claim for claim in claims if not claim.certain]
    texts = [claim.holds for claim in open_ if claim.texts]
    own = [claim.holds for claim in open_ if not claim.texts]
    tested = sum(claim.p is not None for claim in open_)
    parts = ["A quick run, of smaller settings."] if record["quick"] else []
    also = f" and {sum(own)} of {len(own)} of this study's own" if own else ""
    parts.append(f"The data support {sum(texts)} of {len(texts)} claims of the texts{also}.")
    certain = [claim.holds for claim in claims if claim.certain]
    if certain:
        parts.append(
            f"Of {len(certain)} that hold by algebra, whatever the data, {sum(certain)} do."
        )
    if tested:
        parts.append(
            f"{tested} were tested, each by itself at {LEVEL:g}, either way: were all of them "
            f"untrue, {LEVEL * tested:.2g} at most would be expected to be supported by luck, and "
            "were all true, as many to be refuted."
        )
    return " ".join(parts)
