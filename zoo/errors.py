"""The two errors that a user meets, and the sentence for an unknown name."""

import math
from contextlib import contextmanager
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


@contextmanager
def explained(sentence):
    """Turn what a user's own code raises inside into one line that begins with `sentence`."""
    try:
        yield
    except ZooError as error:
        line, *more = str(error).splitlines()
        if more:  # of Pyro's, on the shapes at its sites
            raise type(error)(line) from error
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ZooError(f"{sentence}: {reason}") from error


def require(condition, sentence):
    """Raise `ZooError(sentence)` unless the condition holds."""
    if not condition:
        raise ZooError(sentence)


def require_smoothing(smoothing):
    """Raise `ZooError` unless it is a number of imagined rows: finite, and not negative."""
    number = isinstance(smoothing, int | float) and not isinstance(smoothing, bool)
    require(
        number and 0 <= smoothing < math.inf,
        f"smoothing must be a number of at least 0, got {smoothing!r}",
    )


def require_positive(**values):
    """Raise `ZooError` unless every value is a positive, finite number."""
    for name, value in values.items():
        good = isinstance(value, int | float) and not isinstance(value, bool)
        require(good and 0 < value < math.inf, f"{name} must be a positive number, got {value!r}")


def require_flag(**values):
    """Raise `ZooError` unless every value is True or False."""
    for name, value in values.items():
        require(type(value) is bool, f"{name} must be true or false, got {value!r}")


def require_count(**values):
    """Raise `ZooError` unless every value is a whole number of at least 1."""
    for name, value in values.items():
        require(
            type(value) is int and value >= 1,
            f"{name} must be a whole number of at least 1, got {value!r}",
        )
