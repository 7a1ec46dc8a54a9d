"""`Case`: what is timed: a model, a guide, data, a batch, and where all contenders start."""

from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch

import guides
import zoo
from experiments.svi.run import reset
from zoo.errors import unknown

RING = 512  # batches that stand ready; a contender that has taken all begins again


class Absent(Exception):
    """A contender that cannot take part here, with the reason."""


@dataclass(frozen=True)
class Case:
    """A frozen description; what is made of it is made once a process.

    hidden: widths of the VAE's decoder and encoder.  num_data, width: of rows drawn at random;
    None takes the digits.  seeds: runs trained at once.  Every rate is constant.
    """

    model: str
    guide: str
    batch_size: int
    hidden: tuple[int, ...] = ()
    num_data: int | None = None
    width: int | None = None
    latent_dim: int = 2
    seeds: int = 1
    learning_rate: float = 1e-3
    device: str = "cpu"
    seed: int = 0

    @property
    def name(self):
        """What tells this case from others, but for its seeds and rows."""
        sizes = "-".join(map(str, (self.width, *self.hidden, self.latent_dim)))
        model = f"vae {sizes}" if self.model == "vae" else self.model
        return f"{model}, batch {self.batch_size}, {self.guide}"

    @property
    def discrete(self):
        """Whether the latent is summed over rather than drawn."""
        return self.model == "bernoulli_mixture"

    @property
    def encoder_hidden(self):
        """Widths of an encoder's hidden layers: the guide's own where the case says nothing."""
        return self.hidden or (100, 100)

    def options(self):
        """The model's options."""
        data = "digits" if self.num_data is None else (rows(self), rows(self)[:2])
        if self.discrete:
            return {"data": data}
        own = {"data": data, "latent_dim": self.latent_dim}
        return own | ({"hidden": self.hidden} if self.hidden else {})

    def build(self):
        """(problem, guide) made anew, under names of their own in Pyro's store."""
        problem = zoo.load(self.model, **self.options())
        hidden = {"hidden": self.encoder_hidden} if self.guide == "amortized" else {}
        return problem, guides.build(self.guide, problem, **hidden)

    def built(self):
        """(problem, guide), the same whenever asked; copy them before training."""
        return _build(_plain(self))

    def modules(self, pair):
        """The model and guide of a pair as one module on the device, at the common start."""
        problem, guide = pair
        both = torch.nn.ModuleDict({"model": problem.model, "guide": guide}).to(self.device)
        with torch.no_grad():
            for name, parameter in both.named_parameters():
                parameter.copy_(self.start[name])
        return both

    @cached_property
    def start(self):
        """{name: tensor}: where every contender starts, under names as model.* and guide.*."""
        return {name: value.to(self.device) for name, value in _start(_plain(self)).items()}

    @cached_property
    def data(self):
        """The rows, (n, d) on the device."""
        return self.built()[0].data.train.to(self.device)

    @cached_property
    def scale(self):
        """What a batch's bound is multiplied by: n / batch."""
        return len(self.data) / self.batch_size

    @cached_property
    def ring(self):
        """Rows of RING full batches, (RING, batch): a fresh shuffle every epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        per_epoch = len(self.data) // self.batch_size
        epochs = [
            torch.randperm(len(self.data), generator=generator)[: per_epoch * self.batch_size]
            for _ in range(-(-RING // per_epoch))
        ]
        return torch.cat(epochs).reshape(-1, self.batch_size)[:RING].to(self.device)


class Batches:
    """One contender's place in a ring of batches, (RING, ...) in any library's arrays."""

    def __init__(self, ring):
        self.ring, self.position = ring, 0

    def take(self, count):
        """The next `count` batches, (count, ...); never past the end."""
        if self.position + count > len(self.ring):
            self.position = 0
        self.position += count
        return self.ring[self.position - count : self.position]


@cache
def rows(case):
    """Random rows of a case that names their number: binary pixels, or normal ones.

    Columns differ in their means, and normal ones in their scales.
    """
    generator = torch.Generator().manual_seed(case.seed)
    values = torch.randn(case.num_data, case.width, generator=generator)
    shift = torch.linspace(-1, 1, case.width)
    return (
        values * (1.5 + shift) + shift if case.model == "gaussian_lvm" else values.gt(shift) * 1.0
    )


def _plain(case):
    return replace(case, device="cpu", seeds=1, learning_rate=1.0)


@cache
def _build(case):
    return case.build()


@cache
def _start(case):
    problem, guide = case.built()
    both = torch.nn.ModuleDict({"model": problem.model, "guide": guide})
    with torch.random.fork_rng([]):
        torch.manual_seed(case.seed)
        reset(both)
    return {name: value.detach().clone() for name, value in both.named_parameters()}


def vae(batch_size, hidden, guide, num_data=4096):
    """A 784-H-H-20 VAE with Bernoulli pixels."""
    return Case("vae", guide, batch_size, (hidden, hidden), num_data, 784, 20)


SIZES = ((16, 64), (128, 200), (512, 400))  # batch and hidden width of the VAE
GUIDES = ("mean_field", "amortized")
COUNTS = (1000, 10_000, 100_000, 1_000_000)


def base_cases():
    """The cases of the main table."""
    small = [Case(m, g, 256) for m in ("bernoulli_mixture", "gaussian_lvm") for g in GUIDES]
    return small + [vae(b, h, g) for b, h in SIZES for g in GUIDES]


def quick_cases():
    """Those of them that every bound needs at least one of."""
    return [
        vae(16, 64, "amortized"),
        Case("gaussian_lvm", "amortized", 256),
        Case("bernoulli_mixture", "mean_field", 256),
        vae(128, 200, "mean_field"),
    ]


def table_cases(counts=COUNTS):
    """mean_field of a narrow model over more and more rows."""
    return [Case("gaussian_lvm", "mean_field", 256, (), count, 20) for count in counts]


def choose(names):
    """The base cases whose name holds each of the texts.  Raises ZooError where none does."""
    known = base_cases()
    for name in names:
        if not any(name in case.name for case in known):
            raise unknown("case", name, [case.name for case in known])
    return [case for case in known if any(name in case.name for name in names)]
