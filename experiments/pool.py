"""Tasks on worker processes that end with their parent, however it ends."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager
from multiprocessing.connection import wait

import torch

from experiments.svi.interrupt import Interrupted, noticing

REPORT_SECONDS = 0.2


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
        self.task = None

    def give(self, task):
        """Start a task."""
        self.task = task
        self.pipe.send(task)

    def end(self):
        """Ask the process to end, and wait until it has."""
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()


def run_all(tasks, function, workers, threads, on_step, on_result, on_death):
    """Run function(task, report) for every task on `workers` processes.

    on_step(task, step) and on_result(task, result) are called here; on_death(task) where a worker
    died at its task.  Raises Interrupted on SIGINT or SIGTERM, once the workers have ended.
    """
    waiting, crew = list(tasks), []
    with noticing() as interrupted:
        try:
            crew = [Worker(function, threads) for _ in range(min(workers, len(waiting)))]
            for worker in crew:
                worker.give(waiting.pop(0))
            while crew and not interrupted():
                for pipe in wait([worker.pipe for worker in crew], timeout=REPORT_SECONDS):
                    worker = next(worker for worker in crew if worker.pipe is pipe)
                    _listen(worker, crew, waiting, function, threads, on_step, on_result, on_death)
        finally:
            for worker in crew:
                worker.end()
        if interrupted():
            raise Interrupted


def _listen(worker, crew, waiting, function, threads, on_step, on_result, on_death):
    """Take one message of a worker, and give it its next task when it is done."""
    try:
        kind, value = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        on_death(worker.task)
        worker.end()
        crew.remove(worker)
        if waiting:
            crew.append(Worker(function, threads))
            crew[-1].give(waiting.pop(0))
        return
    if kind == "step":
        on_step(worker.task, value)
        return
    on_result(worker.task, value)
    if waiting:
        worker.give(waiting.pop(0))
    else:
        worker.end()
        crew.remove(worker)


def _serve(pipe, function, threads):
    """What a worker does until it is told to end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(threads)
    last = 0.0

    def report(step):
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            pipe.send(("step", step))

    try:
        while True:
            pipe.send(("done", function(pipe.recv(), report)))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        os._exit(0)


@contextmanager
def _deaf_to_interrupts():
    """SIGINT is ignored inside, and by the processes started inside."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
