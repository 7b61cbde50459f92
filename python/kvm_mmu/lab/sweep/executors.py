"""Who computes: this process, a pool of processes, a Dask cluster, or any `concurrent.futures.Executor`."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown


class InThisProcess(Executor):
    """Computes at once, one after another, when it is asked."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Compute now.

        Args:
            fn: what to call.
            args: with these.
            kwargs: and these.

        Returns:
            A future that is done.
        """
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def opened(executor: str | Executor | None, jobs: int | None) -> Iterator[Executor]:
    """An executor for the time of a sweep; one that was made here is shut down, unfinished work cancelled.

    Args:
        executor: an executor; `processes`, `dask://HOST:PORT` or `module:object` (an executor, or a function that
            makes one); None: processes where `jobs` says more than one.
        jobs: processes; None: as many as there are processors.

    Raises:
        UsageError: no such executor, or its library is not installed.
    """
    if isinstance(executor, Executor):
        yield executor
        return
    if executor is not None and not isinstance(executor, str):
        raise UsageError(f"executor {shown(executor)}: expected a concurrent.futures.Executor or its name")
    count = jobs if jobs is not None else len(os.sched_getaffinity(0))
    if not 1 <= count <= 4096:
        raise UsageError(f"jobs {count}: expected 1 to 4096")
    if executor in (None, "processes"):
        made: Executor = InThisProcess() if count == 1 else _processes(count)
    elif executor.startswith("dask://"):
        with _dask(executor) as made:
            yield made
        return
    else:
        made = _imported(executor)
    try:
        yield made
    finally:
        made.shutdown(wait=True, cancel_futures=True)


def _processes(count: int) -> Executor:
    # A fresh interpreter: nothing of this process's threads, locks and signals is in it.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_ignore_interrupts)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise UsageError(f"executor {address}: Dask is not installed: pip install 'kvm_mmu[dask]'") from error
    host = address.removeprefix("dask://")
    try:
        client = distributed.Client(f"tcp://{host}", timeout="10s")
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"executor {address}: no scheduler answers there: {error}") from error
    with client:
        made: Executor = client.get_executor()
        yield made


def _imported(text: str) -> Executor:
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise UsageError(f"executor {text!r}: expected processes, dask://HOST:PORT or module:object")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
        made = found if isinstance(found, Executor) else found()
    except Exception as error:
        raise UsageError(f"executor {text!r}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, Executor):
        raise UsageError(
            f"executor {text!r}: expected a concurrent.futures.Executor, found {type(made).__name__}"
        )
    return made
