"""The parts of README and docs that are made: from committed results, and from the zoo itself.

`python -m experiments.report.readme FOLDER ...` takes what `zoo compare`, `zoo study`, `zoo bench`
or one of PAGES left in folders into experiments/results and makes those parts anew; without folders
it only makes them anew.
"""

import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

from experiments import records, studies
from experiments.report import catalog, choice
from experiments.report.figures import WORDS
from experiments.report.table import csv_table, markdown, markdown_table, tables
from experiments.settings import load_suite
from experiments.study import RECORD, listed, remake
from experiments.study import read as read_study
from zoo.errors import require

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
STUDIES = RESULTS / "studies"
BENCH, CARD = "bench", "card"
PAGES = ("gradients", "objectives")
"""Modules of experiments.benchmarks that write DIR/NAME.md and DIR/NAME.json."""
CHOICE = "guides"
"""The suite whose records say which guide to take."""
SHOWN = [CARD, "ladder", "densities", "densities_14", "mnist"]
"""The suites whose tables stand in docs/results.md itself, in this order."""
FIGURES = {
    "gaps.png": WORDS["gaps.png"],
    "elbo.png": WORDS["elbo.png"],
    "vae-latent-plane.png": "The VAE's plane: posterior means of the training digits by class",
    "vae-pictures.png": "Digits, their reconstructions, and draws from the prior",
}


def take_bench(folder):
    """Copy a benchmark's page, figures and JSON to results/bench-DEVICE."""
    device = json.loads((folder / "bench.json").read_text())["environment"]["device_type"]
    target = RESULTS / f"{BENCH}-{device}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(".*"))


def take_page(name, folder):
    """Copy one of PAGES to results/NAME-cpu."""
    target = RESULTS / f"{name}-cpu"
    target.mkdir(exist_ok=True)
    for suffix in ("md", "json"):
        shutil.copy(folder / f"{name}.{suffix}", target)


def take_study(folder):
    """Take a study's record to results/studies/NAME-DEVICE, with text and figure made anew."""
    record = json.loads((folder / RECORD).read_text())
    require(not record["quick"], f"{folder} holds a quick run: run the study without --quick")
    device = record["device"].partition(":")[0]
    target = STUDIES / f"{record['study']}-{device}"
    remake(folder, target)
    (target / "report.html").unlink()  # too large to commit, and made anew where it is wanted


def take(folder):
    """Copy a comparison's records and figures to results/NAME-DEVICE, as table and all."""
    found = records.read(Path(folder) / "records.jsonl")
    require(found, f"no records in {folder}")
    planned = json.loads((Path(folder) / "plan.json").read_text())
    found.sort(key=lambda record: planned.index(records.key(record)))  # not as they ended
    target = RESULTS / f"{Path(folder).name}-{found[0]['config']['device'].split(':')[0]}"
    title = title_of(target)
    shutil.rmtree(target, ignore_errors=True)
    (target / "figures").mkdir(parents=True)
    for record in found:
        require(record["status"] == "ok", f"{folder} holds a run that failed: {record['run']}")
        records.append(target / "records.jsonl", record)
    (target / "table.md").write_text(markdown_table(title, found))
    (target / "table.csv").write_text(csv_table(found))
    for path in (Path(folder) / "figures").glob("*.png"):
        shutil.copy(path, target / "figures")


def title_of(folder):
    """The title of the suite whose results stand in a folder NAME-DEVICE."""
    return load_suite(_suite(folder)).title


def _suite(folder):
    return folder.name.rpartition("-")[0]


def _device(folder):
    return folder.name.rpartition("-")[2]


def card_text():
    """The default comparison's first table and figure, of every device."""
    parts = []
    for folder in folders(bench=False):
        if _suite(folder) == CARD:
            first, *_ = tables(records.read(folder / "records.jsonl"))
            parts += [f"**{title_of(folder)}**", markdown(first), first.caption]
            parts.append(_pictured(folder / "figures" / "gaps.png", FIGURES["gaps.png"]))
    return "\n\n".join(parts) + "\n"


def studies_text():
    """Each study: its question, the claims that answer it, and how many the data support."""
    return "\n".join(_studied(name) for name in studies.names())


def _studied(name):
    """A study's question, and below it what every device's record answers."""
    lines = [f"- [{name}](experiments/studies/{name}.py): {studies.load(name).question}"]
    for folder in sorted(STUDIES.glob(f"{name}-*")):
        found, _, claims = read_study(folder)
        answers = f"{listed(found.answering(claims))}\n- {_verdict(folder, claims)}"
        lines.append(textwrap.indent(answers, "  "))
    return "\n".join(lines) + "\n"


def _verdict(folder, claims):
    claims = [claim for claim in claims if not claim.certain]
    held, refuted = (sum(getattr(claim, name) for claim in claims) for name in ("holds", "refuted"))
    table, against = (folder / "table.md").relative_to(ROOT), f", {refuted} refuted" * (refuted > 0)
    of = f"{held} of {len(claims)} claims are supported{against}"
    return f"[{of}]({table.as_posix()}), {_device(folder)}"


def findings_text():
    """What every study found: its claims with their verdicts, and its figure."""
    parts = []
    for name in studies.names():
        for folder in sorted(STUDIES.glob(f"{name}-*")):
            found, record, claims = read_study(folder)
            parts += [f"## {found.question}", listed(found.ordered(claims))]
            parts.append(_pictured(folder / "figure.png", found.figure))
            table = (folder / "table.md").relative_to(ROOT).as_posix()
            command, seconds = record["environment"]["command"], record["seconds"]
            parts.append(f"[Tables]({table}); made by `{command}` in {seconds:.0f} seconds.")
    return "\n\n".join(parts) + "\n"


def _pictured(path, words):
    return f"![{words}]({path.relative_to(ROOT).as_posix()})\n\n*{words}.*"


def results_text():
    """The comparisons of SHOWN, each with its table, and where those of the others are."""
    every = folders(bench=False)
    shown = [f for name in SHOWN for f in every if _suite(f) == name]
    parts = [_shown(folder) for folder in shown]
    others = [folder for folder in every if folder not in shown and _suite(folder) != CHOICE]
    if others:
        parts.append("**More comparisons, each with its records**\n")
        parts.append("\n".join(map(_linked, others)) + "\n")
    return "\n".join(parts)


def _shown(folder):
    suite = _suite(folder)
    parts = [
        markdown_table(title_of(folder), records.read(folder / "records.jsonl")),
        f"Made by `zoo compare {suite} --out runs/{suite}`.\n",
    ]
    if suite == CARD:
        for name, words in FIGURES.items():
            if (folder / "figures" / name).exists():
                parts.append(f"{_pictured(folder / 'figures' / name, words)}\n")
    return "\n".join(parts)


def _linked(folder):
    suite, table = _suite(folder), (folder / "table.md").relative_to(ROOT)
    made = f"by `zoo compare {suite} --out runs/{suite}`"
    return f"- [{title_of(folder)}]({table.as_posix()}), {made}"


def choice_text():
    """Which guide to take and at what cost, devices side by side, and a figure of each."""
    every = [folder for folder in folders(bench=False) if _suite(folder) == CHOICE]
    found = {_device(folder): records.read(folder / "records.jsonl") for folder in every}
    parts = [choice.page(found)] if found else []
    for folder in every:
        path = folder / "figures" / "costs.png"
        if path.exists():
            words = f"{WORDS['costs.png']}, {_device(folder)}"
            parts.append(f"{_pictured(path, words)}\n")
        parts.append(f"{_linked(folder)}\n")
    return "\n".join(parts)


def pages_text():
    """The tables of PAGES, one after the other."""
    found = [RESULTS / f"{name}-cpu" / f"{name}.md" for name in PAGES]
    return "\n".join(path.read_text() for path in found if path.exists())


def bench_text():
    """The page of every benchmark in experiments/results."""
    parts = []
    for folder in folders(bench=True):
        _, _, page = (folder / "bench.md").read_text().partition("\n")
        parts.append(page.strip() + "\n")
        for path in sorted((folder / "figures").glob("*.png")):
            words = f"Milliseconds a step against {path.stem}"
            parts.append(f"![{words}]({path.relative_to(ROOT).as_posix()})\n")
    return "\n".join(parts)


def folders(bench):
    """Folders of experiments/results: those of benchmarks, or of comparisons."""
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir() and path != STUDIES)
    folders = [path for path in folders if _suite(path) not in PAGES]
    return [path for path in folders if path.name.startswith(f"{BENCH}-") == bench]


PARTS = {
    CARD: card_text,
    "choice": choice_text,
    "models": catalog.markdown,
    "guides": catalog.guides_markdown,
    "studies": studies_text,
    "findings": findings_text,
    "results": results_text,
    "pages": pages_text,
    BENCH: bench_text,
}
"""What is made, by the name that its place has."""


def documents():
    """README and the pages in docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def made_anew(path):
    """The text of a document with its made parts made from the committed results."""
    text, up = path.read_text(), "../" * len(path.relative_to(ROOT).parent.parts)
    for part, make in PARTS.items():
        begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
        if begin not in text:
            continue
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        own = re.sub(r"\]\((?!https?:|#)", f"]({up}", make())
        text = f"{before}{begin}\n\n{own}\n{end}{after}"
    return text


def main(folders):
    """Take what stands in `folders`, and make README and docs anew."""
    for folder in map(Path, folders):
        pages = [name for name in PAGES if (folder / f"{name}.md").exists()]
        for name in pages:
            take_page(name, folder)
        if not pages:
            _taker(folder)(folder)
    for path in documents():
        path.write_text(made_anew(path))


def _taker(folder):
    """What takes a folder: a benchmark's, a study's or a comparison's."""
    if (folder / "bench.json").exists():
        return take_bench
    return take_study if (folder / RECORD).exists() else take


if __name__ == "__main__":
    main(sys.argv[1:])
