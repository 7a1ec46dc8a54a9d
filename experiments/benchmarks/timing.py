"""Timing: blocks of steps of every entry by turns, in one process on one thread."""

import gc
import math
import time
from dataclasses import asdict, dataclass
from statistics import median

from experiments.benchmarks.cases import RING, Absent, Case


@dataclass(frozen=True)
class Entry:
    """A contender on a case."""

    case: Case
    contender: str


@dataclass
class Row:
    """What an entry cost.

    milliseconds: of a step, all seeds together, one number a round.  compile_seconds: the first
    block less a later one.  cores: CPU seconds of this process over wall seconds.  last_loss: nats.
    absent: why there are no numbers, None where there are.
    """

    case: Case
    contender: str
    milliseconds: list[float]
    compile_seconds: float | None = None
    cores: float | None = None
    last_loss: float | None = None
    absent: str | None = None

    def __post_init__(self):
        if isinstance(self.case, dict):
            self.case = Case(**(self.case | {"hidden": tuple(self.case["hidden"])}))

    @property
    def median(self):
        """Milliseconds of a step."""
        return median(self.milliseconds)

    def record(self):
        """The row for JSON; Row(**record) reads it."""
        return asdict(self)


def measure(entries, prepare, rounds, seconds):
    """A Row for every entry, in order.

    prepare(entry) -> steps(n).  Blocks have as many steps as the first entry takes in `seconds`;
    every round runs a block of each entry, and begins one entry later than the last.
    """
    rows = [Row(entry.case, entry.contender, []) for entry in entries]
    steps = {}
    for i, entry in enumerate(entries):
        _attempt(rows[i], lambda i=i, entry=entry: steps.update({i: prepare(entry)}))
    present = [i for i in steps if rows[i].absent is None]
    count = _block(steps[present[0]], seconds) if present else 0
    first = {}
    for i in present:
        _attempt(rows[i], lambda i=i: first.update({i: _timed(steps[i], count)}))
        _attempt(rows[i], lambda i=i: steps[i](count))
    present = [i for i in present if rows[i].absent is None]
    cores = {i: [] for i in present}
    for turn in range(rounds):
        gc.collect()
        start = turn % max(len(present), 1)
        for i in present[start:] + present[:start]:
            wall, processor, rows[i].last_loss = _timed(steps[i], count)
            rows[i].milliseconds.append(1000 * wall / count)
            cores[i].append(processor / wall)
    for i in present:
        if not math.isfinite(rows[i].last_loss):
            rows[i].absent, rows[i].last_loss = "failed: its loss is not finite", None
            continue
        rows[i].cores = median(cores[i])
        later = rows[i].median * count / 1000
        rows[i].compile_seconds = max(first[i][0] - later, 0.0)
    return rows


def _timed(steps, count):
    """(wall seconds, CPU seconds, last loss) of a block; steps ends with a number, so it waits."""
    wall, processor = time.perf_counter(), time.process_time()
    loss = steps(count)
    return time.perf_counter() - wall, time.process_time() - processor, loss


def _block(steps, seconds):
    """How many steps fill that many seconds: a number from 2 to RING."""
    steps(2)
    each = min(_timed(steps, 4)[0] for _ in range(3)) / 4
    return int(min(max(seconds / each, 2), RING))


def _attempt(row, function):
    """Run the function, and note in the row why it could not; a failed row is left alone."""
    if row.absent is not None:
        return
    try:
        function()
    except Absent as error:
        row.absent = str(error)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        row.absent = f"failed: {type(error).__name__}: {reason}"
