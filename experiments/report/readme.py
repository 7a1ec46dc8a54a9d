"""README's parts that are made: from results of comparisons and of the benchmark, and the models.

`python -m experiments.report.readme FOLDER ...` takes what `zoo compare`, `zoo bench` or one of
PAGES left in folders into experiments/results and makes those parts anew; without folders it only
makes them anew.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from experiments import records
from experiments.report import catalog, choice
from experiments.report.table import csv_table, markdown_table
from experiments.settings import load_suite
from zoo.errors import require

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
BENCH = "bench"
PAGES = ("gradients", "objectives")
"""Modules of experiments.benchmarks that write DIR/NAME.md and DIR/NAME.json."""
CHOICE = "guides"
"""The suite whose records say which guide to take."""
SHOWN = ["card", "ladder", "densities", "densities_14", "mnist"]
"""The suites whose tables stand in README itself, in this order."""
FIGURES = {
    "gaps.png": "Gaps to the exact evidence, split into what the family and what the encoder loses",
    "elbo.png": "The bound on the training data during training, against steps and seconds",
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
    if suite == "card":
        for name, words in FIGURES.items():
            if (folder / "figures" / name).exists():
                path = (folder / "figures" / name).relative_to(ROOT)
                parts.append(f"![{words}]({path.as_posix()})\n\n*{words}.*\n")
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
            words = f"What guides lose against what a new datum costs, {_device(folder)}"
            parts.append(f"![{words}]({path.relative_to(ROOT).as_posix()})\n\n*{words}.*\n")
        parts.append(f"{_linked(folder)}\n")
    return "\n".join(parts)


def pages_text():
    """The tables of PAGES, one after the other, their headings made smaller."""
    found = [RESULTS / f"{name}-cpu" / f"{name}.md" for name in PAGES]
    text = "\n".join(path.read_text() for path in found if path.exists())
    return re.sub("^## ", "### ", text, flags=re.MULTILINE)


def bench_text():
    """The page of every benchmark in experiments/results, its headings made smaller."""
    parts = []
    for folder in folders(bench=True):
        _, _, page = (folder / "bench.md").read_text().partition("\n")
        parts.append(re.sub("^## ", "### ", page.strip(), flags=re.MULTILINE) + "\n")
        for path in sorted((folder / "figures").glob("*.png")):
            words = f"Milliseconds a step against {path.stem}"
            parts.append(f"![{words}]({path.relative_to(ROOT).as_posix()})\n")
    return "\n".join(parts)


def folders(bench):
    """Folders of experiments/results: those of benchmarks, or of comparisons."""
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir())
    folders = [path for path in folders if _suite(path) not in PAGES]
    return [path for path in folders if path.name.startswith(f"{BENCH}-") == bench]


def made_anew(readme):
    """The README text with its made parts made from the committed results."""
    parts = {
        "choice": choice_text(),
        "results": results_text(),
        "pages": pages_text(),
        BENCH: bench_text(),
        "models": catalog.markdown(),
    }
    for part, text in parts.items():
        begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
        if begin not in readme:
            continue
        before, _, rest = readme.partition(begin)
        _, _, after = rest.partition(end)
        readme = f"{before}{begin}\n\n{text}\n{end}{after}"
    return readme


def main(folders):
    """Take what stands in `folders`, and make README anew."""
    for folder in map(Path, folders):
        pages = [name for name in PAGES if (folder / f"{name}.md").exists()]
        for name in pages:
            take_page(name, folder)
        if not pages:
            (take_bench if (folder / "bench.json").exists() else take)(folder)
    path = ROOT / "README.md"
    path.write_text(made_anew(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
