"""What a comparison is: suites as data, and the plan of runs that a suite stands for."""

import hashlib
import tomllib
from importlib import resources
from pathlib import Path

from pydantic import Field, field_validator

import guides
import zoo
from experiments.measure.calibration import RANKS_APART
from experiments.measure.elbo import draw, latent_names
from experiments.svi import device as devices
from experiments.svi.config import FitConfig, Settings, validated
from experiments.svi.estimators import resolve
from experiments.svi.fit import seed_list
from experiments.svi.run import as_module
from guides.checks import refuse_traps
from zoo.errors import ZooError, explained, require, unknown

HELD_OUT = 3  # rows of which a guide is asked before anything is fitted


class MeasureConfig(Settings):
    """What is measured of a fitted guide, and how much is spent on it."""

    num_draws: int = Field(100, ge=2)
    """Draws of each posterior for the bound and for posterior.nc."""
    search: bool = True
    """Whether the best of the family is searched for, which splits the gap; a table's rows for
    held-out data are in any case."""
    restarts: int = Field(3, ge=0)
    """Further searches for the best of the family, of which each datum keeps the best."""
    pareto_rows: int = Field(1000, ge=1)
    """The largest number of data whose Pareto k is found."""
    pareto_draws: int = Field(1000, ge=100)
    """Draws a datum for its Pareto k."""
    simulations: int = Field(500, ge=0)
    """Data simulated from the fitted model for ranks and coverage; 0 leaves them out."""
    rank_draws: int = Field(199, ge=19)
    """Draws among which a simulated latent is ranked: 19, 39, 59 ..., whose intervals are exact."""
    interval_rows: int = Field(100, ge=0)
    """Data whose evidence is put between two bounds where it is not known exactly; 0: none."""
    interval_draws: int = Field(5000, ge=1)
    """Draws a datum of the importance-weighted bound for that."""
    densities: bool = False
    """Whether the negative log likelihood of the held-out data is measured, for a table of models
    of any kind."""
    nll_draws: int = Field(5000, ge=1)
    """Draws a datum of the importance-weighted bound for that where it is not known exactly."""
    interval_temperatures: int = Field(200, ge=1)
    """Temperatures of annealed importance sampling for that, with 16 chains a datum."""

    @field_validator("rank_draws")
    @classmethod
    def _intervals_end_between_ranks(cls, value):
        if (value + 1) % RANKS_APART:
            raise ValueError("rank_draws must be 19, 39, 59 or another multiple of 20 less 1")
        return value


class Suite(Settings):
    """Models x guides x seeds with their settings, as a TOML file in experiments/suites says it.

    fit: fields of FitConfig; measure: of MeasureConfig; fit_for, model_options, guide_options: by
    name of model or guide; guides_for: other guides for some models.  A model without latents gets
    the guide `empty`, whatever the guides.
    """

    title: str = "Comparison"
    models: list[str] = Field(min_length=1)
    guides: list[str] = Field(min_length=1)
    seeds: int | list[int] = 5
    fit: dict = {}
    measure: dict = {}
    fit_for: dict[str, dict] = {}
    guides_for: dict[str, list[str]] = {}
    model_options: dict[str, dict] = {}
    guide_options: dict[str, dict] = {}


class RunConfig(Settings):
    """One run, everything resolved: what a record repeats word for word."""

    model: str
    model_options: dict = {}
    data: str
    """Hash of the data's rows."""
    source: str | None = None
    """Hash of a user's own file."""
    guide: str
    guide_options: dict = {}
    seed: int
    device: str
    fit: FitConfig
    measure: MeasureConfig

    @property
    def label(self):
        """Name of the run without its seed, and of its folder: model-guide."""
        return f"{Path(self.model).stem}-{Path(self.guide).stem}"


def suite_names():
    """Sorted names of the suites."""
    return sorted(path.stem for path in _suite_files())


def load_suite(name):
    """The suite of that name.  Raises ZooError for an unknown one."""
    for path in _suite_files():
        if path.stem == name:
            return validated(Suite, **tomllib.loads(path.read_text()))
    raise unknown("suite", name, suite_names())


def plan(suite, device="auto", problems=None):
    """(runs, problems): the RunConfig of every run, and each model's problem by name.

    problems: those that the caller made; the others are loaded.  Every name, option and pair is
    checked here, before anything is written.
    """
    problems = dict(problems or {})
    device = str(devices.resolve(device))
    for where in (suite.fit_for, suite.model_options, suite.guides_for):
        _known("model", where, {Path(model).stem for model in suite.models}, zoo.names())
    _known("guide", suite.guide_options, set(suite.guides), guides.names())
    measure = validated(MeasureConfig, **suite.measure)
    _check_names(suite)
    runs = []
    for model in suite.models:
        name = Path(model).stem
        options = suite.model_options.get(name, {})
        if name not in problems:
            problems[name] = zoo.load(model, **options)
        elif options:
            raise ZooError(f"{name} was made in Python: give its options there, not as settings")
        identity = problems[name].identity
        fit = validated(FitConfig, **(suite.fit | suite.fit_for.get(name, {})))
        fit = resolve(fit, problems[name])
        for guide in _guides(suite, problems[name]):
            guide_options = guides.resolve(guide, suite.guide_options.get(guide, {}))
            built = guides.build(guide, problems[name], **guide_options)
            check_guide(problems[name], built, fit)
            runs += [
                RunConfig(
                    model=model,
                    model_options=identity["options"],
                    data=identity["data"],
                    source=_source(model),
                    guide=guide,
                    guide_options=guide_options,
                    seed=seed,
                    device=device,
                    fit=fit,
                    measure=measure,
                )
                for seed in seed_list(suite.seeds)
            ]
    labels = [(run.label, run.seed) for run in runs]
    require(len(set(labels)) == len(labels), "a model or guide is named twice in the comparison")
    return runs, problems


def _check_names(suite):
    """Refuse guides that are neither registered nor files, also where none of them is taken."""
    for guide in {*suite.guides, *(name for names in suite.guides_for.values() for name in names)}:
        if Path(guide).suffix != ".py" and guide not in guides.names():
            raise unknown("guide", guide, guides.names())


def _guides(suite, problem):
    """The guides to fit to a problem: the one that is possible where it has no latents."""
    if not problem.latents:
        return ["empty"]
    return suite.guides_for.get(problem.name, suite.guides)


def check_guide(problem, guide, fit):
    """Refuse a guide that does not match the problem, or that a comparison cannot measure.

    It must have a log q, and an answer for held-out rows, at once or as a table that is fitted to
    them.
    """
    name = getattr(guide, "name", getattr(guide, "__name__", type(guide).__name__))
    require(
        getattr(guide, "family", None) != "delta",
        f"guide {name!r} is a point estimate: it has no log q, so no bound and no gap to compare; "
        "experiments.fit finds the point",
    )
    guide = as_module(guide, problem)
    refuse_traps(problem, guide, fit.takes_minibatches(len(problem.data.train)))
    if problem.joint or getattr(guide, "tabular", False):
        latent_names(guide, problem.data.train)
    else:
        with explained(f"a comparison asks guide {name!r} of held-out rows, and it has no answer"):
            draw(problem.model, guide, problem.data.test[:HELD_OUT], 2)


def _source(model):
    """A short hash of a user's file, None for a registered model."""
    path = Path(model)
    if path.suffix != ".py":
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _known(kind, settings, here, registered):
    """Refuse settings for a model or guide that exists nowhere."""
    for name in settings:
        if name not in here and name not in registered:
            raise unknown(kind, name, sorted(here | set(registered)))


def _suite_files():
    folder = resources.files("experiments.suites")
    return [path for path in folder.iterdir() if path.name.endswith(".toml")]


def read_value(text):
    """A setting as a person types it: TOML where it reads as TOML, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_settings(pairs):
    """{name: value} of texts `name=value`."""
    settings = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise ZooError(f"expected name=value, got {pair!r}")
        settings[name] = read_value(text)
    return settings
