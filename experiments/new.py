"""`zoo new NAME`: a model and a guide in one commented file, to start from."""

import importlib.util
import keyword
import os
from pathlib import Path

import guides
import zoo
from zoo.errors import require

TEMPLATE = '''\
"""@NAME@: one sentence on the question that this model answers.

Story:
    z_n     ~ Normal(0, 1)                       hidden score of datum n
    x_n | z ~ Normal(loc + z_n weight, scale)    what is observed, event (d,)

Next, to test what is written here, and to fit two guides, the one below among them:
    @CHECK@
    @COMPARE@
"""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

import guides
import zoo
from guides.guide import Guide
from guides.sources import Encoder


def model(x=None, index=None, d=1):  # x: (n, d), None for a draw of the prior; index: a minibatch
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(d))
    loc = pyro.param("loc", lambda: torch.zeros(d))
    scale = pyro.param("scale", lambda: torch.ones(()), constraints.positive)
    with zoo.datum(x, index) as rows:  # the plate of the data: scales a minibatch to all of them
        z = pyro.sample("z", dist.Normal(torch.zeros_like(scale), 1.0))
        mean = loc + z[..., None] * weight  # index from the right: draws add dimensions on the left
        pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=rows)


def log_joint(model, x, z):  # log p(x, z) of every row, written a second time with plain sums
    weight, loc, scale = map(model.constrained, ("weight", "loc", "scale"))
    residual = (x - loc - z[..., None] * weight) / scale
    d = x.shape[-1]
    constants = 0.5 * (1 + d) * torch.log(torch.tensor(2 * torch.pi)) + d * scale.log()
    return -0.5 * z**2 - 0.5 * (residual**2).sum(-1) - constants


def log_evidence(model, x):  # exact log p(x), (n,) nats; leave it and the Truth out if unknown
    weight, loc, scale = map(model.constrained, ("weight", "loc", "scale"))
    noise = scale**2 * torch.ones_like(loc)
    return dist.LowRankMultivariateNormal(loc, weight[:, None], noise).log_prob(x)


@zoo.register
def build(data="digits"):  # an option of the model, such as -o data=plants
    truth = zoo.Truth("T0", "z integrates out to a normal", log_evidence)
    rows = zoo.data.as_dataset(data)
    return zoo.Problem(lambda x=None, i=None: model(x, i, rows.width), rows, log_joint, truth)


@guides.register
def build_guide(problem, hidden=()):  # a family (by the support) and a source: here an encoder
    def source(latent, family):
        return Encoder(problem.data.train, hidden, family.num_parameters)

    return Guide("@NAME@", problem, source)
'''


def filled(name):
    """The template's text for that name."""
    check, compare = commands(name)
    text = TEMPLATE.replace("@CHECK@", check).replace("@COMPARE@", compare)
    return text.replace("@NAME@", name)


def commands(name):
    """The commands that check and compare what stands in `name`.py."""
    file = f"{name}.py"
    return (
        f"zoo check {file}",
        f"zoo compare {file} --guide amortized --guide {file} --out runs/mine",
    )


def write(name, folder="."):
    """Write `name`.py into a folder; returns its path.

    Raises ZooError for a name that is no Python identifier or is taken, or where nothing can be
    written.
    """
    require(
        name.isascii() and name.isidentifier() and not keyword.iskeyword(name),
        f"a name is letters, digits and '_', begins with no digit and is no word of Python, "
        f"got {name!r}",
    )
    for kind, names in (("model", zoo.names()), ("guide", guides.names())):
        require(name not in names, f"{name!r} is the name of a registered {kind}; choose another")
    path = Path(folder) / f"{name}.py"
    require(not os.path.exists(path), f"{path} is there already; choose another name")
    require(
        importlib.util.find_spec(name) is None,
        f"{name!r} is the name of a Python module, which the file would hide; choose another",
    )
    try:
        with path.open("x") as file:
            file.write(filled(name))
    except OSError as error:
        require(False, f"cannot write {path}: {error.strerror}")
    return path
