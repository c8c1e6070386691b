"""Test `display.limits`: the limit of the shell that caused an error is named."""

import os
import resource
import signal
from types import SimpleNamespace

import pytest

from pipeline.display import limits
from pipeline.display.errors import from_os_error
from pipeline.execution import processes

ERRORS = {
    "MemoryError: no reason given": "-v",
    "ImportError: libtorch_cpu.so: failed to map segment from shared object": "-v",
    "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes": "-v",
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9 MiB for an array": "-v",
    "RuntimeError: std::bad_alloc": "-v",
    "OSError: [Errno 12] Cannot allocate memory": "-v",
    "RuntimeError: can't start new thread": "-u",
    "BlockingIOError: [Errno 11] Resource temporarily unavailable": "-u",
    "OSError: [Errno 24] Too many open files": "-n",
    "OSError: [Errno 27] File too large": "-f",
    "SIGXCPU": "-t",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB": None,
    "RuntimeError: The size of tensor a (3) must match the size of tensor b (4)": None,
    "RuntimeError: DataLoader worker (pid 7) exited unexpectedly": None,
}


@pytest.fixture
def limited(monkeypatch):
    """Return a function that makes this process appear to have the given limits of ulimit."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    numbers = {option: number for option, number, *_ in limits.LIMITS}

    def limit(*options):
        low = {numbers[option] for option in options}
        bound = {True: (2048, 2048), False: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)}
        monkeypatch.setattr(resource, "getrlimit", lambda number: bound[number in low])

    return limit


@pytest.mark.parametrize(("text", "option"), ERRORS.items(), ids=list(ERRORS))
def test_an_error_names_the_limit_that_caused_it(text, option, limited):
    limited("-v", "-u", "-n", "-f", "-t")
    cure = limits.cure(text)
    assert f"ulimit {option} is " in cure if option else cure == ""
    limited()
    assert limits.cure(text) == ""


def test_all_possible_limits_are_named_and_none_for_the_threads_of_root(limited, monkeypatch):
    limited("-v", "-d")
    assert limits.cure("MemoryError") == "ulimit -v is 2 and ulimit -d is 2: raise them"
    limited("-u")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert limits.cure("can't start new thread") == ""


def test_a_death_names_the_limit_that_caused_it(limited):
    limited("-v", "-t")
    assert limits.cure_of_death(signal.SIGABRT) == "ulimit -v is 2: raise it"
    assert limits.cure_of_death(signal.SIGXCPU) == "ulimit -t is 2048: raise it"
    assert limits.cure_of_death(signal.SIGKILL) == ""


@pytest.mark.parametrize(
    ("seconds", "message"), [(1000, ""), (1100, "ulimit -t is 2048: raise it")]
)
def test_sigkill_names_the_limit_of_cpu_time_if_that_was_used_up(
    limited, monkeypatch, seconds, message
):
    used = SimpleNamespace(ru_utime=seconds, ru_stime=seconds)
    monkeypatch.setattr(resource, "getrusage", lambda who: used)
    limited("-t")
    assert limits.cure_of_death(signal.SIGKILL) == message
    end = processes.End(rank=0, code=-signal.SIGKILL)
    assert message in str(end) and ("memory" in str(end)) is not bool(message)
    limited()
    assert limits.cure_of_death(signal.SIGKILL) == ""


def test_an_error_of_the_system_names_its_limit(limited):
    limited("-f")
    message = str(from_os_error(OSError(27, "File too large", "/x/y"), "here"))
    assert message == "/x/y: File too large; ulimit -f is 2: raise it and launch again"
