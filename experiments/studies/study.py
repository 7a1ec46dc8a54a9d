"""`Study`: what a study's file registers."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.svi.config import Settings


@dataclass(frozen=True)
class Study:
    """A question, how it is measured, and what is made of the answer.

    settings: a class of Settings whose defaults are the full run; quick: what the quick run, of
    less than a minute on two cores, sets otherwise.
    measure(settings, device): the results, a nest of dicts, lists, numbers and strings, as JSON
    has it.  Of them alone are made: claims(results), a list of Claims; tables(results), of Tables;
    draw(results), a Figure; figure: what is to be seen there, in a sentence.
    answers: parts of the sentences of the claims that answer the question; they are told first.
    reading: {measure: a sentence that says how to read it}.
    """

    question: str
    settings: type[Settings]
    quick: dict
    measure: Callable
    claims: Callable
    tables: Callable
    draw: Callable
    figure: str
    reading: dict[str, str]
    answers: tuple[str, ...] = ()

    def answering(self, claims):
        """Of the claims, the first that each of `answers` is found in, where there is one."""
        among = ([c for c in claims if part in c.sentence][:1] for part in self.answers)
        return [claim for found in among for claim in found]

    def ordered(self, claims):
        """The claims, those that answer the question first."""
        first = self.answering(claims)
        return first + [claim for claim in claims if claim not in first]
