"""The two errors that a user meets, and the sentence for an unknown name."""

from difflib import SequenceMatcher


class ZooError(ValueError):
    """Bad input: one line that says what is wrong and what is possible."""


class TruthUnavailable(ZooError):
    """The problem does not know the quantity asked for."""


def unknown(kind, name, known):
    """A `ZooError` that lists what is known, the nearest name first."""

    def distance(candidate):
        return -SequenceMatcher(None, str(name), candidate).ratio(), candidate

    return ZooError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known, key=distance))}")


def require(condition, sentence):
    """Raise `ZooError(sentence)` unless the condition holds."""
    if not condition:
        raise ZooError(sentence)
