"""`Run`: one seed's model, guide, optimizer and everything else that a step changes."""

import time
from copy import deepcopy

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import nn

from experiments.svi import checkpoint, discrete
from experiments.svi.optimizer import JointOptimizer
from guides.sources import Table
from zoo.errors import explained, require
from zoo.program import Program


class Batches:
    """Rows of each minibatch: a fresh shuffle every epoch, of which the tail is left out.

    So every batch has the same size; which rows the tail holds is drawn anew every epoch.
    """

    def __init__(self, num_data, batch_size, device):
        self.num_data = num_data
        self.size = min(batch_size or num_data, num_data)
        self.orders = torch.arange(num_data, device=device)[None]
        self.steps_per_epoch = num_data // self.size
        self.minibatches = self.size < num_data

    def at(self, step):
        """Row indices of that step, in an order drawn anew where an epoch begins."""
        if self.minibatches and step % self.steps_per_epoch == 0:
            self.orders = torch.randperm(self.num_data, device=self.orders.device)[None]
        return self.rows(step)

    def rows(self, step):
        """Row indices of that step in the orders as they are, None where it takes all rows."""
        if not self.minibatches:
            return None
        start = step % self.steps_per_epoch * self.size
        return self.order(step)[start : start + self.size]

    def order(self, step):
        """The order of the rows in that step's epoch; `orders` holds one epoch or several."""
        return self.orders[step // self.steps_per_epoch % len(self.orders)]


class Run:
    """The state of one SVI run; `losses` are in nats a datum, `seconds` since the start.

    own: what the estimator itself learns or keeps, a module, where it does.
    """

    def __init__(self, model, guide, data, config, seed, own=None):
        self.config, self.seed, self.data = config, seed, data
        self.modules = nn.ModuleDict({"model": model, "guide": guide})
        if own is not None:
            self.modules["estimator"] = own
        self.batches = Batches(len(data), config.batch_size, data.device)
        self.optimizer = JointOptimizer(self.modules, config)
        self.losses, self.seconds, self.flats, self.finished = [], [], 0, False
        self.problem = None
        self.error, self.engine = None, {}
        self.optimizer_tensors = self.optimizer.tensors
        self._started = time.perf_counter()

    @classmethod
    def start(cls, problem, guide, config, seed, device):
        """A run on copies of model and guide whose initial values are drawn by `seed`."""
        torch.manual_seed(seed)
        modules = nn.ModuleList(deepcopy([problem.model, as_module(guide, problem)]))
        reset(modules)
        for module in modules.modules():
            if isinstance(module, Table):
                module.sparse()
        own = discrete.module(config, problem)
        own = None if own is None else own.to(device)
        run = cls(*modules.to(device), problem.data.train.to(device), config, seed, own)
        run.problem = problem.identity
        run.keep_random()
        return run

    def keep_random(self):
        """Note torch's random state, for `resume_random` to go on from."""
        self.random = {"random": torch.get_rng_state()}
        if self.data.is_cuda:
            self.random["random_cuda"] = torch.cuda.get_rng_state(self.data.device)

    def resume_random(self):
        """Put torch's random state where this run left it."""
        torch.set_rng_state(self.random["random"])
        if "random_cuda" in self.random and self.data.is_cuda:
            torch.cuda.set_rng_state(self.random["random_cuda"], self.data.device)

    @property
    def step(self):
        """Number of steps taken."""
        return len(self.losses)

    @property
    def alive(self):
        """Whether there are steps to take."""
        return not self.finished and self.error is None

    def start_clock(self):
        """Count the seconds of further steps from now on."""
        self._started = time.perf_counter() - (self.seconds[-1] if self.seconds else 0.0)

    def tick(self, loss):
        """Note the loss of a step, and when it was."""
        self.losses.append(loss / len(self.data))
        self.seconds.append(time.perf_counter() - self._started)

    def extend(self, losses, seconds):
        """Note the losses (k,) of several steps, in nats a datum, that took `seconds` together."""
        last = self.seconds[-1] if self.seconds else 0.0
        count = len(losses)
        self.losses += losses.tolist()
        self.seconds += [last + seconds * (i + 1) / count for i in range(count)]

    def save(self, path):
        """Write a checkpoint to `path`."""
        tensors = {f"module.{k}": v for k, v in self.modules.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizer_tensors().items()}
        self.keep_random()
        tensors |= self.random | {
            "order": self.batches.order(self.step),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }
        checkpoint.write(path, tensors, self._facts() | {"step": self.step, "engine": self.engine})

    def load(self, path):
        """Go on from a checkpoint of the same config and seed."""
        tensors, facts = checkpoint.read(path)
        for name, value in self._facts().items():
            require(
                name in ("flats", "finished") or facts.get(name) == value,
                f"{path} is the checkpoint of another run: its {name} is {facts.get(name)!r}, "
                f"here {value!r}",
            )
        load_modules(self.modules, tensors, path)
        device = self.data.device
        moments = checkpoint.part(tensors, "optimizer.")
        # Step counts of a fused Adam live where its parameters do.
        self.optimizer.load_tensors({k: v.to(device) for k, v in moments.items()})
        self.batches.orders = tensors["order"].to(device)[None]
        self.losses, self.seconds = tensors["losses"].tolist(), tensors["seconds"].tolist()
        self.flats, self.finished = facts["flats"], facts["finished"]
        self.start_clock()
        self.engine = facts.get("engine", {})
        self.random = checkpoint.part(tensors, "random")
        self.random = {f"random{name}": state for name, state in self.random.items()}
        self.resume_random()

    def _facts(self):
        config = self.config.model_dump(exclude={"checkpoint_seconds"})
        return {
            "problem": self.problem,
            "seed": self.seed,
            "config": config,
            "flats": self.flats,
            "finished": self.finished,
        }


def as_module(guide, problem):
    """The guide itself where it is a module, else its function as one; ready to run."""
    with explained("the guide does not run on the training data"):
        if not isinstance(guide, nn.Module):
            return Program(guide, problem.data.train)
        if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
            # It makes its parameters when it first runs: until then it can load none.
            with torch.random.fork_rng([]), pyro.get_param_store().scope():
                guide(problem.data.train)
    return guide


def load_modules(modules, tensors, path):
    """Put a checkpoint's parameters into modules of the same shape."""
    try:
        modules.load_state_dict(checkpoint.part(tensors, "module."))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        require(False, f"{path} is the checkpoint of another model or guide: {reason}")


def reset(modules):
    """Draw every parameter's initial value afresh, as torch's own layers do."""
    for module in modules.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
