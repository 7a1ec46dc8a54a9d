"""Tasks on worker processes that end with their parent, however it ends."""

import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from contextlib import contextmanager
from multiprocessing.connection import wait

import torch

from experiments.memory import keep_freed
from experiments.svi.interrupt import Interrupted, noticing
from zoo.errors import ZooError

REPORT_SECONDS = 0.2
PATIENCE = 15  # seconds that a worker has for its last checkpoint


class Worker:
    """A process that runs one task at a time and tells of it through a pipe."""

    def __init__(self, function, threads):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function, threads), daemon=True)
        # A keyboard's interrupt reaches the whole group; the parent alone answers it.
        with _deaf_to_interrupts():
            self.process.start()
        theirs.close()
        self.task, self.ready = None, False

    def end(self):
        """Ask the process to end, and see that it does."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


class Pool:
    """Runs function(task, report) for tasks, and tells its owner what happens.

    on_step(task, step), on_result(task, result); on_death(task, exit_status) where a worker died
    at its task.
    """

    def __init__(self, function, workers, threads, on_step, on_result, on_death):
        self.function, self.workers, self.threads = function, workers, threads
        self.on_step, self.on_result, self.on_death = on_step, on_result, on_death

    def run(self, tasks):
        """Run every task.  Raises Interrupted on a signal, once the workers have ended."""
        self.waiting, self.crew = list(tasks), []
        with noticing() as interrupted:
            try:
                while (self.waiting or self.crew) and not interrupted():
                    while self.waiting and len(self.crew) < self.workers:
                        self._hire()
                    for pipe in wait([worker.pipe for worker in self.crew], REPORT_SECONDS):
                        if not interrupted():
                            self._listen(next(w for w in self.crew if w.pipe is pipe))
            finally:
                for worker in self.crew:
                    worker.end()
            if interrupted():
                raise Interrupted

    def _hire(self):
        worker = Worker(self.function, self.threads)
        worker.task = self.waiting.pop(0)
        self.crew.append(worker)

    def _listen(self, worker):
        """Take one message of a worker, and give it its next task when it is done."""
        try:
            kind, value = worker.pipe.recv()
            if kind == "step":
                self.on_step(worker.task, value)
                return
            if kind == "done":
                self.on_result(worker.task, value)
                worker.task = self.waiting.pop(0) if self.waiting else None
            worker.ready = True
            if worker.task is not None:
                worker.pipe.send(worker.task)
                return
        except (EOFError, ConnectionError):
            self._bury(worker)
        self.crew.remove(worker)
        worker.end()

    def _bury(self, worker):
        worker.process.join(PATIENCE)
        status = worker.process.exitcode
        if status == 0:  # it was asked to end, so are we
            raise Interrupted
        if not worker.ready:
            raise ZooError(
                f"a worker process ended at its start (exit status {status}): call from under "
                "`if __name__ == '__main__':`, or with workers=1"
            )
        if worker.task is not None:
            self.on_death(worker.task, status)


def _serve(pipe, function, threads):
    """What a worker does until it is told to end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(threads)
    keep_freed()
    last = 0.0

    def report(step):
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            pipe.send(("step", step))

    try:
        pipe.send(("ready", None))
        while True:
            pipe.send(("done", function(pipe.recv(), report)))
    except (KeyboardInterrupt, EOFError, ConnectionError):
        multiprocessing.util._run_finalizers(0)  # semaphores of libraries, which would be missed
        os._exit(0)


@contextmanager
def _deaf_to_interrupts():
    """SIGINT is ignored inside, and by the processes started inside."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
