"""The command `zoo`: every bad argument ends with one line and exit status 2."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.memory import keep_freed
from zoo.errors import ZooError, unknown

INTERRUPTED = 130  # the shell's status for a program that SIGINT ended
# Typer's base of usage errors, which it takes from click or from a copy of its own.
ClickException = typer.BadParameter.__mro__[2]

app = typer.Typer(
    help="Latent variable models that know their own truth, and guides compared against it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False, soft_wrap=True)

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Guides = Annotated[
    list[str],
    typer.Option("--guide", help="Name of a guide, or a Python file; repeatable."),
]
Setting = Annotated[
    list[str], typer.Option("--set", metavar="NAME=VALUE", help="A field of FitConfig; repeatable.")
]
Measure = Annotated[
    list[str],
    typer.Option("--measure", metavar="NAME=VALUE", help="A field of MeasureConfig; repeatable."),
]
Option = Annotated[
    list[str],
    typer.Option(
        "--option", "-o", metavar="NAME=VALUE", help="An option of the model; repeatable."
    ),
]
GuideOption = Annotated[
    list[str],
    typer.Option(
        "--guide-option", "-g", metavar="NAME=VALUE", help="An option of the guide; repeatable."
    ),
]


@app.command("list")
def list_():
    """List the models, at their default sizes, and the guides, data sets, suites and studies."""
    import guides
    from experiments import settings, studies
    from experiments.report import catalog
    from zoo import data

    print(f"{catalog.plain()}\n")
    for kind, names in (
        ("guides", guides.names()),
        ("data sets", data.names()),
        ("suites", settings.suite_names()),
        ("studies", studies.names()),
    ):
        print(f"{kind}: {', '.join(names)}")


@app.command()
def data(name: Annotated[str, typer.Argument(help="Name of a data set.")]):
    """Fetch and prepare a data set, and describe it."""
    from zoo import data

    found = data.load(name)
    parts = {"train": found.train, "valid": found.valid, "test": found.test}
    print(f"{found.name}")
    for part, rows in parts.items():
        if rows is not None:
            low, high, mean = rows.min().item(), rows.max().item(), rows.mean().item()
            shape = " x ".join(map(str, rows.shape))
            print(f"  {part}: {shape}, values from {low:g} to {high:g}, mean {mean:.5f}")
    print(f"  image: {found.image_shape or 'no'}; labels: {found.train_labels is not None}")
    print(f"  licence: {found.licence}\n  source: {found.source}")


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="Name of a model, or a Python file.")],
    guide: Annotated[str, typer.Argument(help="Name of a guide, or a Python file.")],
    steps: int = 2000,
    seeds: int = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and posterior.nc.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints.")] = False,
    device: Device = "auto",
    option: Option = [],  # noqa: B006
    guide_option: GuideOption = [],  # noqa: B006
    setting: Setting = [],  # noqa: B006
):
    """Fit one guide to one model by SVI with Trace_ELBO."""
    import experiments
    import guides
    import zoo
    from experiments.saved import note_fit
    from experiments.settings import read_settings

    problem, guide_options = zoo.load(model, **read_settings(option)), read_settings(guide_option)
    with console.status(f"{problem.name}, {guide}: {seeds} x {steps} steps"):
        found = experiments.fit(
            problem,
            guides.build(guide, problem, **guide_options),
            steps=steps,
            seeds=seeds,
            device=device,
            out=out,
            resume=resume,
            **read_settings(setting),
        )
    if out is not None:
        note_fit(out, problem, model, guide, guide_options, found.seeds)
    _report_fit(found, out)


def _report_fit(found, out):
    """Print a line a seed, and write posterior.nc where there is a place and a posterior."""
    from experiments.measure import bridge

    point = getattr(found.guides[0], "family", None) == "delta"
    _print_bounds(found, point)
    if point:
        console.print("a point estimate has no log q, so there is no posterior.nc to write")
    elif out is not None:
        bridge.write(found.to_datatree(predictive=False), out / "posterior.nc")


def _print_bounds(found, point):
    """A line a seed: the bound, or for a point estimate the density that it maximizes."""
    what = "log joint density" if point else "train ELBO"
    bounds = [-losses[-1] for losses in found.losses] if point else found.elbo_per_datum
    for seed, bound, losses in zip(found.seeds, bounds, found.losses, strict=True):
        print(f"seed {seed}: {what} {bound:.4f} nats a datum after {len(losses)} steps")


@app.command()
def compare(
    what: Annotated[
        list[str] | None, typer.Argument(help="A suite, or models by name or Python file.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for records, tables and figures.")] = Path(
        "runs/card"
    ),
    guide: Guides = [],  # noqa: B006
    seeds: Annotated[int | None, typer.Option(help="How many seeds.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of every run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Processes; 0: the cores, 1 on a GPU.")] = 0,
    setting: Setting = [],  # noqa: B006
    measure: Measure = [],  # noqa: B006
):
    """Compare guides over models and seeds, with gaps and error bars."""
    from experiments.compare import compare as run
    from experiments.settings import read_settings
    from experiments.svi import device as devices

    what = what or ["card"]
    is_suite = _is_suite(what)
    fit_settings = read_settings(setting) | ({} if steps is None else {"steps": steps})
    on_cpu = devices.resolve(device).type == "cpu"
    bar = Bar()
    try:
        found = run(
            None if is_suite else what,
            guide or None,
            seeds,
            out,
            suite=what[0] if is_suite else "card",
            device=device,
            resume=resume,
            workers=workers or (os.cpu_count() or 1 if on_cpu else 1),
            watcher=bar,
            fit=fit_settings,
            measure=read_settings(measure),
        )
    finally:
        bar.end_all()
    print(found.table)
    console.print(f"records, table, figures and posteriors: {out}")
    console.print(f"to read them in a browser: {out / 'report.html'}")
    if found.failed:
        raise typer.Exit(1)


def _is_suite(what):
    """Whether it is one suite, and not models; one line for a name that is neither."""
    import zoo
    from experiments.settings import suite_names

    if len(what) != 1 or what[0].endswith(".py"):
        return False
    known = suite_names() + zoo.names()
    if what[0] not in known:
        raise unknown("suite or model", what[0], known)
    return what[0] in suite_names()


@app.command()
def diagnose(
    folder: Annotated[Path, typer.Argument(help="What `compare --out` or `fit --out` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for texts and figures; FOLDER/diagnosis if none.")
    ] = None,
    measure: Measure = [],  # noqa: B006
):
    """Measure saved fits anew, datum by datum: gaps, Pareto k, ranks; texts and figures."""
    import experiments
    from experiments.saved import saved_fits
    from experiments.settings import MeasureConfig, read_settings
    from experiments.svi.config import validated

    settings = read_settings(measure)
    validated(MeasureConfig, **settings)
    out = out or folder / "diagnosis"
    for label, found in saved_fits(folder).items():
        with console.status(label):
            diagnosis = experiments.diagnose(found, out / label, **settings)
        print(diagnosis.text)
    console.print(f"texts and figures: {out}")


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A Python file, or the name of a model.")],
    guide: Guides = [],  # noqa: B006
    option: Option = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Seed of what the checks draw.")] = 0,
):
    """Check a model, and guides for it: densities, gradients, scales, draws, docstring.

    Without --guide these are every registered guide that suits the model, and the guide in the
    model's own file where it has one. The exit status is 1 where a check fails.
    """
    import experiments
    import guides
    import zoo
    from experiments.check import table
    from experiments.settings import read_settings

    try:
        problem = zoo.load(model, **read_settings(option))
    except ZooError:
        if guides.stands_in(model) and not zoo.stands_in(model):
            raise ZooError(
                f"{model} holds a guide and no model: zoo check MODEL --guide {model}"
            ) from None
        raise
    own = [model] if not guide and guides.stands_in(model) else []
    results = experiments.check(problem, guide or None, also=own, seed=seed)
    print(table(results))
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@app.command()
def study(
    name: Annotated[
        str | None, typer.Argument(help="Name of a study, or a Python file; none: list them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for record, table, figure and page.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small: less than a minute.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the questions, run nothing.")] = False,
    device: Device = "auto",
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the study; repeatable."),
    ] = [],  # noqa: B006
):
    """Answer a question of the lectures by an experiment, with its claims tested over seeds."""
    from experiments import studies
    from experiments.settings import read_settings
    from experiments.study import study as run

    if list_ or name is None:
        names = studies.names()
        width = max(map(len, names))
        print("\n".join(f"{own:{width}}  {studies.load(own).question}" for own in names))
        return
    with console.status(f"{name}{', quick' if quick else ''}"):
        found = run(
            name, out or Path("runs") / Path(name).stem, quick, device, **read_settings(setting)
        )
    print(found.text)
    console.print(f"record, table, figure: {found.folder}")
    console.print(f"to read them in a browser: {found.folder / 'report.html'}")


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Folder for bench.md, bench.json, figures.")] = Path(
        "runs/bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases: under two minutes.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit status 1 unless every bound holds.")
    ] = False,
    case: Annotated[
        list[str], typer.Option("--case", metavar="TEXT", help="Cases with this in their name.")
    ] = [],  # noqa: B006
    at_once: Annotated[
        int, typer.Option(help="Cases timed at a time, each on its own core; more adds noise.")
    ] = 1,
    device: Device = "cpu",
):
    """Time a step of SVI beside PyTorch by hand, Pyro and NumPyro; tables and figures."""
    from experiments.benchmarks.bench import bench as run

    found = run(out, quick, check, device, case, at_once, console.print)
    print(found.page)
    console.print(f"tables, every figure and pictures: {out}")
    if check and not found.ok:
        raise typer.Exit(1)


@app.command()
def new(name: Annotated[str, typer.Argument(help="Name of the model, and of its file.")]):
    """Write NAME.py: a commented model and guide to start from, which passes `zoo check`."""
    from experiments.new import commands, write

    path = write(name)
    print("\n  ".join([f"{path.name} is written; next:", *commands(name)]))


class Bar(Progress):
    """The progress bar of a comparison: one unit a run."""

    def __init__(self):
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.1f}/{task.total} runs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.fractions = {}

    def begin(self, runs, done):
        """Before the first run."""
        self.fractions = {(run.label, run.seed): 1.0 for run in done}
        self.task = self.add_task("compare", total=len(runs))
        self._show("compare")
        self.start()

    def step(self, runs, steps):
        """Runs have taken so many steps together; measures are the last half of a run's unit."""
        for run in runs:
            share = 0.5 * steps / (run.fit.steps * len(runs))
            self.fractions[run.label, run.seed] = max(
                share, self.fractions.get((run.label, run.seed), 0)
            )
        self._show(runs[0].label)

    def end(self, run, record):
        """A run has ended."""
        self.fractions[run.label, run.seed] = 1.0
        self._show(f"{run.label}, seed {run.seed}")

    def end_all(self):
        """The comparison is over, or never began."""
        if self.fractions or self.tasks:
            self.stop()

    def _show(self, words):
        self.update(self.task, completed=sum(self.fractions.values()), description=words)


def main(arguments=None):
    """Run the command; returns nothing, exits with its status."""
    keep_freed()
    try:
        status = app(args=arguments, prog_name="zoo", standalone_mode=False)
    except (ZooError, ClickException) as error:
        message = error.format_message() if isinstance(error, ClickException) else str(error)
        if message:  # the help has been printed already where there is none
            console.print(f"zoo: {message}", markup=False)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:  # Typer may answer an interrupt itself, and returns its status.
        console.print("zoo: interrupted; a fit or a comparison with an --out goes on with --resume")
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
