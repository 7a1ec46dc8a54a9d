"""SIGINT and SIGTERM end a run at the next step, after its checkpoint."""

import signal
import threading
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """The user, or the machine, asked the run to end; its checkpoint is written."""


@contextmanager
def noticing():
    """Yields a function that says whether a signal came; outside the main thread it never does.

    A second signal does not wait: it raises KeyboardInterrupt.  Signals that this process ignores
    stay ignored.
    """
    caught = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def notice(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, notice) for number in heard}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
