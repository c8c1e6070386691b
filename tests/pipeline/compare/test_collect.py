"""Test `compare.collect`: a run that cannot be read is left out with the reason."""

import errno
import os

from pipeline.compare import collect
from pipeline.records import rundir


def test_a_run_on_a_disk_that_fails_is_damaged(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(rundir, "read_yaml", failing)
    run = collect._read(tmp_path)
    assert run.state == "damaged"
    assert run.why.startswith(f"{tmp_path}: {os.strerror(errno.EIO)}; ")
