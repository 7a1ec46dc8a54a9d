"""`Guide`: one family and one source per latent, run as a Pyro guide."""

from copy import deepcopy

import pyro
from pyro.nn import PyroModule
from torch import nn

import zoo
from guides.families import choose_each, common
from guides.sources import ByLatent, Shared, Table
from guides.unsuited import require_suited
from zoo.errors import require


class Guide(PyroModule):
    """q(z) = prod_latents family(source(x, index)); a Pyro guide `guide(x, index=None)`.

    local_source(latent, family) makes the source of a latent in the plate; a latent outside it
    has one free row.  joined: a `Joined` of all latents, whose vector then has the family.
    Raises ZooError for a model without latents, unless local_source is None.
    """

    def __init__(self, name, problem, local_source, family="auto", joined=None):
        super().__init__(zoo.unique(name))
        names = ", ".join(latent.name for latent in problem.latents)
        require(names or local_source is None, f"{problem.name} has no latents: take guide 'empty'")
        require_suited(
            not names or local_source, f"guide {name!r} has no q for the latents {names}"
        )
        self.name, self.joined = name, joined
        self.refine = None  # a module that has better rows than the sources': refine(x, rows)
        self.plate = problem.plate
        self.has_local = any(latent.local for latent in problem.latents)
        self.latents = (joined.latent,) if joined else problem.latents
        self._own(choose_each(family, self.latents))
        self.family = common(self.families, family)
        self.sources = ByLatent()
        for latent in self.latents:
            q = self.families[latent.name]
            self.sources[latent.name] = (
                local_source(latent, q) if latent.local else Shared(q.initial_row)
            )

    def forward(self, x=None, index=None):
        values = {}
        self._sample(values, False, {n: self.sources[n](None, index) for n in self._names(False)})
        if self.has_local:
            # Before the plate, since what refines rows runs a model, which opens its own.
            parameters = self.rows(x, index)
            with zoo.datum(x, index, self.plate):
                self._sample(values, True, parameters, index)

    @property
    def tabular(self):
        """Whether a local latent has a free row a datum, so that new data need new rows."""
        return any(isinstance(source, Table) for source in self.sources.values())

    def rows(self, x, index=None):
        """The parameters of q for every row of x: {latent: (n, num_parameters)}."""
        x = x if index is None else x[index]
        rows = {name: self.sources[name](x, index) for name in self._names(True)}
        return rows if self.refine is None else self.refine(x, rows)

    def distribution(self, latent_name, rows):
        """q of that latent for rows of parameters, batch (n,)."""
        networks = self.networks  # Pyro sees that a guide's parameters are read
        held = networks is not None and latent_name in networks
        return (networks if held else self.families)[latent_name](rows)

    def with_table(self, problem, num_data, start=None):
        """The same families with a free row for each of `num_data` data.

        start: {latent: (num_data, num_parameters)} to start from, else the families' start.
        Latents outside the plate keep their rows, and are trained no further; so are the families'
        own networks, where they have some.
        Raises ZooError where one distribution stands over all data.
        """
        require(
            self.joined is None or not problem.joint,
            f"guide {self.name!r} is one distribution over the latents of all data: for other "
            "data build it anew",
        )
        families = deepcopy(self.families)  # whose networks are trained no further
        guide = Guide(
            self.name,
            problem,
            lambda _, q: Table(num_data, q.initial_row),
            families,
            self.joined,
        )
        guide.family = self.family
        if guide.networks is not None:
            guide.networks.requires_grad_(False)
        for latent in self.latents:
            name = latent.name
            if not latent.local:
                guide.sources[name].load_state_dict(self.sources[name].state_dict())
                guide.sources[name].requires_grad_(False)
            elif start is not None:
                guide.sources[name].rows.weight.data.copy_(start[name])
        return guide.eval()  # else Pyro warns of every parameter that is not trained

    def _own(self, families):
        """Take families, {latent: family}, and be the module that holds their networks."""
        self.families, self.networks = families, None
        networks = {name: q for name, q in families.items() if isinstance(q, nn.Module)}
        if networks:
            self.networks = ByLatent()
            for name, q in networks.items():
                self.networks[name] = q

    def _names(self, local):
        return [latent.name for latent in self.latents if latent.local == local]

    def _sample(self, values, local, parameters, index=None):
        """Sample the latents inside the plate (local) or outside it; add them to `values`."""
        infer = {"is_auxiliary": True} if self.joined else None
        for name in self._names(local):
            q = self.distribution(name, parameters[name])
            values[name] = pyro.sample(name, q, infer=infer)
        if self.joined and values:
            self.joined.sample(values[self.joined.latent.name], local, index)
