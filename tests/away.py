"""Parameters away from their start, where mistakes would hide: small, alike, often zero."""

import torch

import zoo


def moved(module, by=0.5):
    """The module in torch's default type, its parameters moved by normal draws times `by`."""
    module.to(torch.get_default_dtype())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module


def moved_problem(name, by=0.5, **options):
    """A problem, built with the options, whose model is moved."""
    problem = zoo.load(name, **options)
    moved(problem.model, by)
    return problem
