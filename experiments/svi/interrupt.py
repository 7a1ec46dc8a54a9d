"""SIGINT and SIGTERM end a run at the next step, after its checkpoint."""

import signal
import threading
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """The user, or the machine, asked the run to end; its checkpoint is written."""


@contextmanager
def noticing():
    """Yields a function that says whether a signal came; outside the main thread it never does."""
    caught = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
