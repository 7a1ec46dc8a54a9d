"""The tables of a run as Markdown."""

from experiments.benchmarks.bounds import BOUND_BY_OVERHEAD, NUMPYRO, Table, ratio
from experiments.benchmarks.contenders import BY_HAND, CONTENDERS, title


def report(result):
    """The whole page: what was measured, where, and by which command."""
    base = [Table(group) for group in result["base"]]
    parts = ["# One step of SVI", caption(result)]
    if base:
        names = [n for n in CONTENDERS if any(table.row(n) for table in base)]
        parts += ["## Milliseconds a step", steps_table(base, names)]
        parts += ["## Ratios of medians [quartiles over rounds]", ratios_table(base)]
        parts += ["## Several seeds at once, milliseconds a step", seeds_table(base)]
        parts += ["## Seconds to compile", compile_table(base, names)]
    if result["tables"]:
        parts += ["## A table of N rows, milliseconds a step", growth_table(result["tables"])]
    parts += ["## Must hold", "\n".join(f"- {c.sentence}" for c in result["checks"])]
    parts += ["## Left out", left_out(result)]
    return "\n\n".join(parts) + "\n"


def caption(result):
    """What the numbers are."""
    facts = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rates = [group["operations_per_second"] for group in groups(result)]
    speed = f"{min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GFLOP/s" if rates else "not measured"
    cores = [row.cores for row in present(result)]
    used = f"; CPU seconds a wall second: at most {max(cores):.2f}" if cores else ""
    return (
        f"Medians of {result['rounds']} rounds in which the contenders of a case take turns, "
        f"one process a case, {_at_once(result)}"
        + ("held to one core and thread" if facts["device_type"] == "cpu" else "on the GPU")
        + f"{used}. Same starting parameters, batches of the same size, Adam at a constant rate; "
        "a step is one gradient step of all seeds together. "
        "By hand and NumPyro: dense Adam over a table's every row unless said otherwise; "
        "SparseAdam, row-wise and ours touch the batch's rows only, with Adam's moments as they "
        "were when the row was last seen. limit: the step's products of matrices at the rate of a "
        f"large one ({speed}, measured in the same processes); a row is bound by overhead where a "
        f"fused step of one seed takes more than {BOUND_BY_OVERHEAD} times that. "
        f"Compilation cache: {result['cache']}. Device: {facts['device']}; {versions}; "
        f"python {facts['python']}; commit {facts['commit']}"
        f"{' and changes' if facts['dirty'] else ''}; command: {facts['command'] or 'none'}."
    )


def _at_once(result):
    count = result.get("at_once", 1)
    return "" if count == 1 else f"{count} cases at a time, each "


def groups(result):
    """Every group of the run."""
    return result["base"] + ([result["tables"]] if result["tables"] else [])


def present(result):
    """The rows that have numbers."""
    return [row for group in groups(result) for row in group["rows"] if row.absent is None]


def steps_table(base, names):
    """A line per case, a column per contender."""
    lines = [
        [table.case.name, *(_milliseconds(table.row(name)) for name in names), f"{table.limit:.3f}"]
        for table in base
    ]
    return markdown(["case", *map(title, names), "limit"], lines)


def ratios_table(base):
    """The ratios that are asked for, with their spread."""
    lines = []
    for table in base:
        fused = table.row("fused")
        lines.append(
            [
                table.case.name,
                _ratio(ratio(fused, table.fastest(BY_HAND))),
                _ratio(ratio(fused, table.fastest(NUMPYRO))),
                _ratio(ratio(table.row("pyro"), fused)),
                _ratio(ratio(table.row("pyro"), table.fastest(BY_HAND))),
                _ratio(ratio(table.row("fused", seeds=16), fused, 1 / 16)),
                "yes" if table.bound_by_overhead else "no" if table.fastest(["fused"]) else "–",
            ]
        )
    heads = ["fused / by hand", "fused / NumPyro", "pyro SVI / fused", "pyro SVI / by hand"]
    return markdown(
        ["case", *heads, "16 seeds / 16 times one", "fused is bound by overhead"], lines
    )


def seeds_table(base):
    """Several seeds in one program, by contender and number of seeds."""
    keys = sorted({(r.contender, r.case.seeds) for t in base for r in t.rows if r.case.seeds > 1})
    keys = sorted({(name, 1) for name, _ in keys} | set(keys))
    heads = ["case", *(f"{title(name)}, {seeds}" for name, seeds in keys)]
    return markdown(
        heads, [[t.case.name, *(_milliseconds(t.row(*key)) for key in keys)] for t in base]
    )


def compile_table(base, names):
    """The first block of steps less a later one."""
    lines = [[t.case.name, *(_seconds(t.row(name)) for name in names)] for t in base]
    return markdown(["case", *map(title, names)], lines)


def growth_table(group):
    """A line per number of rows, a column per contender."""
    table = Table(group)
    names = list(dict.fromkeys(row.contender for row in table.rows))
    counts = sorted({row.case.num_data for row in table.rows})
    lines = [
        [f"{count:,}", *(_milliseconds(table.row(name, num_data=count)) for name in names)]
        for count in counts
    ]
    return markdown(["N", *map(title, names)], lines)


def left_out(result):
    """Who did not take part, and why; each reason once with its cases."""
    reasons = {}
    for group in groups(result):
        for row in group["rows"]:
            if row.absent is not None:
                reasons.setdefault((title(row.contender), row.absent), []).append(row.case.name)
    lines = [
        f"- {name}: {why} ({len(cases)} row{'' if len(cases) == 1 else 's'}, first {cases[0]})"
        for (name, why), cases in reasons.items()
    ]
    return "\n".join([*lines, *(f"- {line}" for line in result["skipped"])]) or "Nothing."


def markdown(heads, lines):
    """A table; the first column is text, the others numbers."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *lines])


def _milliseconds(row):
    if row is None:
        return ""
    return "–" if row.absent else f"{row.median:.3g}" if row.median < 100 else f"{row.median:.0f}"


def _seconds(row):
    return "" if row is None else "–" if row.absent else f"{row.compile_seconds:.1f}"


def _ratio(found):
    return "–" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
