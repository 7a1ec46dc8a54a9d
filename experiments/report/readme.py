"""README's part that is made from the committed records.

`python -m experiments.report.readme FOLDER ...` takes the records and figures of comparisons into
experiments/results and makes that part anew; without folders it only makes it anew.
"""

import shutil
import sys
from pathlib import Path

from experiments import records
from experiments.report.table import csv_table, markdown_table
from experiments.settings import load_suite
from zoo.errors import require

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
FIGURES = {
    "gaps.png": "Gaps to the exact evidence, split into what the family and what the encoder loses",
    "elbo.png": "The bound on the training data during training, against steps and seconds",
    "vae-latent-plane.png": "The VAE's plane: posterior means of the training digits by class",
    "vae-pictures.png": "Digits, their reconstructions, and draws from the prior",
}


def take(folder):
    """Copy a comparison's records and figures to results/NAME-DEVICE, as table and all."""
    found = records.read(Path(folder) / "records.jsonl")
    require(found, f"no records in {folder}")
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
    return load_suite(folder.name.rpartition("-")[0]).title


def results_text():
    """Tables of every folder in experiments/results, and the figures of the card."""
    parts = []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        parts.append(markdown_table(title_of(folder), records.read(folder / "records.jsonl")))
        suite = folder.name.rpartition("-")[0]
        parts.append(f"Made by `zoo compare {suite} --out runs/{suite}`.\n")
        if suite == "card":
            for name, words in FIGURES.items():
                if (folder / "figures" / name).exists():
                    path = (folder / "figures" / name).relative_to(ROOT)
                    parts.append(f"![{words}]({path.as_posix()})\n\n*{words}.*\n")
    return "\n".join(parts)


def made_anew(readme):
    """The README text with its results part made from the records."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{results_text()}\n{END}{after}"


def main(folders):
    """Take the comparisons in `folders`, and make README anew."""
    for folder in folders:
        take(folder)
    path = ROOT / "README.md"
    path.write_text(made_anew(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
