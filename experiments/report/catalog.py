"""The models at their default sizes, and the guides: what `zoo list` prints and README shows."""

import math
import re

import guides
import zoo
from zoo.testing import module_text

COLUMNS = ("model", "latents", "truth", "parameters", "source")


def rows():
    """A row of texts a model: name, latents, truth, number of parameters, source."""
    return [_row(name) for name in zoo.names()]


def markdown():
    """The table as Markdown, every name a link to its file."""
    linked = [(f"[{name}](zoo/{name}.py)", *others) for name, *others in rows()]
    lines = [COLUMNS, ("---", "---", "---", "---:", "---"), *linked]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plain():
    """The table as text in columns, of the truth its level alone."""
    lines = [COLUMNS, *((*row[:2], row[2].partition(":")[0], *row[3:]) for row in rows())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def guides_markdown():
    """A row for each guide: what it is, and what it cannot represent, as its file says."""
    lines = [("guide", "is", "cannot represent"), ("---", "---", "---")]
    for name in guides.names():
        text = module_text(guides.build_function(name))
        what = text.partition("\n\n")[0].partition(": ")[2].rstrip(".")
        limit = " ".join(text.partition("Cannot represent:")[2].split())
        lines.append((f"[{name}](guides/{name}.py)", what, re.split(r"[.;] ", limit)[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _row(name):
    problem = zoo.load(name)
    latents = "; ".join(map(_words, problem.latents)) or "none"
    truth = f"{problem.truth.level}: {problem.truth.how}"
    return name, latents, truth, f"{problem.num_parameters:,}", _source(name)


def _words(latent):
    """A latent in words, such as `z: 4 numbers a datum` or `z: one of 10 a datum`."""
    return f"{latent.name}: {_kind(latent)} {'a datum' if latent.local else 'shared'}"


def _kind(latent):
    size, values = math.prod(latent.event_shape), latent.entry_values
    if not latent.support.is_discrete:
        return f"{size} number{'s' if size > 1 else ''}"
    if latent.event_shape:
        return f"{size} whole numbers below {values}" if values != 2 else f"{size} bits"
    return f"one of {latent.num_values}" if latent.num_values else "a whole number"


def _source(name):
    """Authors and year of the model's first source; of more than three authors the first."""
    text = module_text(zoo.build_function(name)).partition("Source:")[2]
    authors, year = re.match(r"(.*?) (\d{4})", " ".join(text.split())).groups()
    first, *others = authors.replace(" & ", ", ").split(", ")
    return f"{first if len(others) > 2 else authors}{' et al.' * (len(others) > 2)} {year}"
