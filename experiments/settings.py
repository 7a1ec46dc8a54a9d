"""What a comparison is: suites as data, and the plan of runs that a suite stands for."""

import hashlib
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

import guides
import zoo
from experiments.measure.calibration import RANKS_APART
from experiments.suitable import SUITABLE, check_names, chosen
from experiments.svi import device as devices
from experiments.svi.config import FitConfig, Settings, validated
from experiments.svi.estimators import resolve
from experiments.svi.fit import seed_list
from zoo.errors import ZooError, require, unknown


class MeasureConfig(Settings):
    """What is measured of a fitted guide, and how much is spent on it."""

    LATER: ClassVar = ("costs",)

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
    costs: bool = False
    """Whether the seconds for a new datum and the memory of training are measured, for a table of
    what guides cost."""

    @field_validator("rank_draws")
    @classmethod
    def _intervals_end_between_ranks(cls, value):
        if (value + 1) % RANKS_APART:
            raise ValueError("must be 19, 39, 59 or another multiple of 20 less 1")
        return value


class Variant(Settings):
    """A model under another name, with options of its own."""

    model: str
    """Name of a registered model, or a Python file."""
    options: dict = {}


class Suite(Settings):
    """Models x guides x seeds with their settings, as a TOML file in experiments/suites says it.

    variants: further names for models, by which everything here knows them.  fit: fields of
    FitConfig; measure: of MeasureConfig; fit_for, model_options, guide_options: by name of model or
    guide; guides_for: other guides for some models.  "suitable" among guides is every registered
    one that suits a model and can be measured, those in `without` left out, or for one model alone
    as MODEL-GUIDE.  A model without latents gets the guide `empty`, whatever the guides.
    """

    title: str = "Comparison"
    models: list[str] = Field(min_length=1)
    variants: dict[str, Variant] = {}
    guides: list[str] = Field(min_length=1)
    without: list[str] = []
    seeds: int | list[int] = 5
    fit: dict = {}
    measure: dict = {}
    fit_for: dict[str, dict] = {}
    guides_for: dict[str, list[str]] = {}
    model_options: dict[str, dict] = {}
    guide_options: dict[str, dict] = {}

    @field_validator("guides", mode="before")
    @classmethod
    def _one_word(cls, value):
        return [SUITABLE] if value == SUITABLE else value


class RunConfig(Settings):
    """One run, everything resolved: what a record repeats word for word."""

    LATER: ClassVar = ("variant",)

    model: str
    variant: str | None = None
    """The name of the model with these options, where it is not the model's own."""
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
    unsuited: dict[str, str] = Field({}, exclude=True)
    """Guides that were left out for this model, and why; no part of what tells runs apart."""

    @property
    def name(self):
        """The name of the model, by which its problem is known."""
        return self.variant or Path(self.model).stem

    @property
    def label(self):
        """Name of the run without its seed, and of its folder: model-guide."""
        return f"{self.name}-{Path(self.guide).stem}"


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
    given, problems = problems or {}, {}
    device = str(devices.resolve(device))
    _check(suite)
    measure = validated(MeasureConfig, **suite.measure)
    runs = []
    for model in suite.models:
        problem = _problem(suite, model, given)
        problems[problem.name] = problem
        fit = validated(FitConfig, **(suite.fit | suite.fit_for.get(problem.name, {})))
        fit = resolve(fit, problem)
        names = suite.guides_for.get(problem.name, suite.guides)
        found, unsuited = chosen(names, suite.without, problem, fit, suite.guide_options)
        variant = suite.variants.get(model)
        of_model = {
            "model": variant.model if variant else model,
            "variant": model if variant else None,
            "model_options": problem.identity["options"],
            "data": problem.identity["data"],
            "source": _source(variant.model if variant else model),
            "unsuited": unsuited,
        }
        runs += [
            RunConfig(
                **of_model,
                guide=guide,
                guide_options=options,
                seed=seed,
                device=device,
                fit=fit,
                measure=measure,
            )
            for guide, options in found.items()
            for seed in seed_list(suite.seeds)
        ]
    _refuse_twice(runs)
    _refuse_idle_options(suite, runs)
    return runs, problems


def load_problem(model, variant=None, options=None):
    """The problem of a model, under the name of the variant where it is one."""
    problem = zoo.load(model, **(options or {}))
    return problem.having(name=variant) if variant else problem


def _problem(suite, model, given):
    """The problem of one of the suite's models, which the caller may have made."""
    name, variant = Path(model).stem, suite.variants.get(model)
    options = (variant.options if variant else {}) | suite.model_options.get(name, {})
    if name not in given:
        return load_problem(variant.model if variant else model, variant and model, options)
    if options or variant:
        raise ZooError(f"{name} was made in Python: give its options there, not as settings")
    return given[name]


def _check(suite):
    """Refuse names that mean nothing here, or two things."""
    _check_variants(suite)
    here = {Path(model).stem for model in suite.models}
    for where in (suite.fit_for, suite.model_options, suite.guides_for):
        _known("model", where, here, zoo.names())
    _known("guide", suite.guide_options, {*suite.guides} - {SUITABLE}, guides.names())
    others = [name for names in suite.guides_for.values() for name in names]
    check_names([*suite.guides, *others], suite.without, here)


def _check_variants(suite):
    """Refuse a variant whose name is taken or no name, whose model is unknown, or that is idle."""
    taken = {Path(model).stem for model in suite.models if model not in suite.variants}
    for name, variant in suite.variants.items():
        require(
            re.fullmatch(r"[A-Za-z0-9_-]+", name),
            f"a variant's name is letters, digits, '_' and '-', got {name!r}",
        )
        require(
            name not in taken and name not in zoo.names(),
            f"variant {name!r} has the name of a model; name it otherwise",
        )
        if Path(variant.model).suffix != ".py" and variant.model not in zoo.names():
            raise unknown(f"model of variant {name!r}:", variant.model, zoo.names())
        require(name in suite.models, f"variant {name!r} is not among the models of the suite")


def _refuse_twice(runs):
    labels = [(run.label, run.seed) for run in runs]
    require(len(set(labels)) == len(labels), "a model or guide is named twice in the comparison")


def _refuse_idle_options(suite, runs):
    """Refuse options of a guide that might suit, and by them perhaps suits no model at all."""
    taken = {run.guide for run in runs}
    for run in runs:
        for guide in run.unsuited.keys() & suite.guide_options.keys() - taken:
            raise ZooError(f"guide {guide!r} has options and no model: {run.unsuited[guide]}")


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
