"""By hand: the step that a careful user of PyTorch writes for one model and guide.

Plain tensors, the one-draw bound of Trace_ELBO (for the mixture the exact sum over components)
with everything that cancels left out, gradients by autograd, one fused Adam for all parameters.
"""

import torch
from torch.nn import functional as F

from experiments.benchmarks.cases import Absent, Batches
from guides.sources import Encoder
from zoo.gaussian_lvm import MIN_SCALE

WARM_UP = 3  # steps before a capture, as torch asks for


def prepare(case, sparse=False, compiled=False):
    """steps(n) of the case; sparse: a table under SparseAdam; compiled: under torch.compile."""
    if sparse and case.guide != "mean_field":
        raise Absent("there is no table of rows")
    if sparse and case.device != "cpu":
        raise Absent("SparseAdam waits for the device at every step")
    parameters = leaves(case)
    loss_of = loss(case, parameters, sparse)
    loss_of = torch.compile(loss_of) if compiled else loss_of
    optimizers = adams(case, parameters, sparse)
    batches = Batches(case.ring)

    def steps(n):
        for index in batches.take(n):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            value = loss_of(index)
            value.backward()
            for optimizer in optimizers:
                optimizer.step()
        return value.item()

    return steps


def prepare_graph(case):
    """steps(n) with the whole step captured as a CUDA graph; dense Adam."""
    if case.device == "cpu":
        raise Absent("a CUDA graph needs a CUDA device")
    parameters = leaves(case)
    loss_of = loss(case, parameters)
    optimizer = torch.optim.Adam(
        parameters.values(), lr=case.learning_rate, fused=True, capturable=True
    )
    position = torch.zeros(1, dtype=torch.long, device=case.device)

    def step():
        value = loss_of(case.ring.index_select(0, position)[0])
        value.backward()
        optimizer.step()
        position.add_(1).remainder_(len(case.ring))
        return value.detach()

    graph, value = _capture(step, optimizer)
    _begin_anew(case, parameters, optimizer, position)

    def steps(n):
        for _ in range(n):
            graph.replay()
        return value.item()

    return steps


def leaves(case):
    """{name: leaf tensor} at the common start."""
    return {name: value.clone().requires_grad_() for name, value in case.start.items()}


def adams(case, parameters, sparse=False):
    """One fused Adam; with `sparse` one SparseAdam beside it for the table."""
    tables = [p for name, p in parameters.items() if sparse and name.endswith("rows.weight")]
    dense = [p for p in parameters.values() if not any(p is table for table in tables)]
    found = [torch.optim.Adam(dense, lr=case.learning_rate, fused=True)]
    if tables:
        found.append(torch.optim.SparseAdam(tables, lr=case.learning_rate))
    return found


def loss(case, parameters, sparse=False):
    """loss(index): minus the bound of all data in nats, from the rows at index (b,)."""
    rows_of = _rows_of(case, parameters, sparse)
    of_batch = {"vae": _vae, "gaussian_lvm": _gaussian, "bernoulli_mixture": _mixture}[case.model](
        case, parameters
    )
    data, scale = case.data, case.scale

    def of(index):
        x = data.index_select(0, index)
        return -scale * of_batch(x, rows_of(x, index))

    return of


def _rows_of(case, p, sparse):
    """rows(x, index): the parameters of q of a batch, (b, m)."""
    if case.guide == "mean_field":
        table = p["guide.sources.z.rows.weight"]
        return lambda x, index: F.embedding(index, table, sparse=sparse)
    encoder = Encoder(case.data, (), 1)  # for its center and spread alone
    center, inverse = encoder.center, 1 / encoder.spread
    network = _network(p, "guide.sources.z.network", len(case.encoder_hidden))
    return lambda x, index: network((x - center) * inverse)


def _network(p, prefix, num_hidden):
    """A perceptron with hyperbolic tangents, from tensors."""
    *hidden, (weight, bias) = [
        (p[f"{prefix}.{2 * i}.weight"], p[f"{prefix}.{2 * i}.bias"]) for i in range(num_hidden + 1)
    ]

    def run(h):
        for w, b in hidden:
            h = F.linear(h, w, b).tanh()
        return F.linear(h, weight, bias)

    return run


def _draw(rows):
    """z (b, k) from (loc, log scale), and log p(z) - log q(z), summed: 2 pi cancels."""
    loc, log_scale = rows.chunk(2, -1)
    noise = torch.randn_like(loc)
    z = torch.addcmul(loc, log_scale.exp(), noise)
    return z, (0.5 * (noise.square() - z.square()) + log_scale).sum()


def _vae(case, p):
    decoder = _network(p, "model.decoder", len(case.hidden))

    def bound(x, rows):
        z, rest = _draw(rows)
        return rest - F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")

    return bound


def _gaussian(case, p):
    weight, loc, log_scale = p["model.weight"], p["model.loc"], p["model.log_scale"]
    half_log_two_pi = 0.9189385332046727

    def bound(x, rows):
        z, rest = _draw(rows)
        scale = MIN_SCALE + log_scale.exp()
        squares = (x - F.linear(z, weight, loc)).square().sum()
        return rest - 0.5 * squares / scale.square() - x.numel() * (scale.log() + half_log_two_pi)

    return bound


def _mixture(case, p):
    logits, weight_logits = p["model.logits"], p["model.weight_logits"]

    def bound(x, rows):
        log_q = rows.log_softmax(-1)
        log_prior = weight_logits.log_softmax(-1) - F.softplus(logits).sum(-1)
        return (log_q.exp() * (F.linear(x, logits, log_prior) - log_q)).sum()

    return bound


def _capture(step, optimizer):
    """(graph, loss): the step as a CUDA graph, whose replays leave the loss in that tensor."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            optimizer.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)  # gradients are then of the graph's own memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()
    return graph, value


def _begin_anew(case, parameters, optimizer, position):
    """Undo what the steps before the capture changed."""
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(case.start[name])
        for state in optimizer.state.values():
            for moment in state.values():
                moment.zero_()
        position.zero_()
