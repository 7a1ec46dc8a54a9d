"""The refusal of latents that a guide or a family does not suit.

It says what is wrong; what suits instead is added by `guides.build`, which tries.
"""

from zoo.errors import ZooError


class Unsuited(ZooError):
    """A guide or a family has no q for a problem's latents."""


def require_suited(condition, sentence):
    """Raise `Unsuited(sentence)` unless the condition holds."""
    if not condition:
        raise Unsuited(sentence)
