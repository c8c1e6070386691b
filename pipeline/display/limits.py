"""Recognize errors that a limit of the shell (`ulimit`) causes, and say which limit to raise."""

from __future__ import annotations

import os
import re
import resource
import signal

THREAD = r"new thread|pthread_create|thread.{0,20} failed"
MEMORY = rf"(?:can(?:'t|not)|unable to|failed to) (?:allocate|map)|bad_alloc|\bMemoryError|{THREAD}"
PROCESSES = rf"Resource temporarily unavailable|{THREAD}"
LIMITS = (  # option of ulimit, its resource, bytes or pieces of its unit, words of its errors
    ("-v", resource.RLIMIT_AS, 1024, MEMORY),
    ("-d", resource.RLIMIT_DATA, 1024, MEMORY),
    ("-u", resource.RLIMIT_NPROC, 1, PROCESSES),
    ("-n", resource.RLIMIT_NOFILE, 1, r"Too many open files"),
    ("-f", resource.RLIMIT_FSIZE, 1024, r"File too large"),
    ("-t", resource.RLIMIT_CPU, 1, signal.SIGXCPU.name),
)
CRASH = "bad_alloc"  # libraries that get no memory crash, mostly with one of these signals
CRASHES = {signal.SIGABRT: CRASH, signal.SIGSEGV: CRASH, signal.SIGBUS: CRASH}


def cure(text: str) -> str:
    """Return which limits of this process can have caused an error, and what to do; "" if none.

    Args:
        text: the text of the error.
    """
    low = [
        f"ulimit {option} is {bound // unit}"
        for option, number, unit, words in LIMITS
        if (bound := resource.getrlimit(number)[0]) != resource.RLIM_INFINITY
        and not (number == resource.RLIMIT_NPROC and os.geteuid() == 0)  # root has no such limit
        and re.search(words, text, re.IGNORECASE)
    ]
    return f"{' and '.join(low)}: raise {'it' if len(low) == 1 else 'them'}" if low else ""


def cure_of_death(number: signal.Signals) -> str:
    """Return the cure for a process that a signal killed; "" if no limit can have caused it."""
    if number == signal.SIGKILL and _used_up():
        number = signal.SIGXCPU
    return cure(CRASHES.get(number, number.name))


def _used_up() -> bool:
    """Whether children of this process used as much CPU time as the hard limit, which kills."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    return most != resource.RLIM_INFINITY and used.ru_utime + used.ru_stime >= most


def on_memory() -> bool:
    """Whether the memory of this process is limited, by `ulimit -v` or `ulimit -d`."""
    return bool(cure(CRASH))
