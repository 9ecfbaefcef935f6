"""Locks on folders: shared or alone, and never on a folder that is no longer there."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from pathlib import Path

import pytest

from nola_edge.vllm import locks

DESCRIPTORS = "/proc/self/fd"


def held_open(folder):
    """What this process has open of a folder, where the system tells; others come and go."""
    numbers = os.listdir(DESCRIPTORS) if os.path.exists(DESCRIPTORS) else []
    paths = [Path(os.path.realpath(f"{DESCRIPTORS}/{number}")) for number in numbers]
    return [path for path in paths if path.is_relative_to(folder)]


def test_who_may_have_it(tmp_path):
    one = locks.try_lock(tmp_path, shared=True)
    two = locks.try_lock(tmp_path, shared=True)
    assert None not in (one, two)
    assert locks.try_lock(tmp_path, shared=False) is None
    os.close(one)
    assert locks.try_lock(tmp_path, shared=False) is None
    os.close(two)
    alone = locks.try_lock(tmp_path, shared=False)
    assert alone is not None
    assert locks.try_lock(tmp_path, shared=True) is None
    os.close(alone)


@pytest.mark.parametrize("kind", ["absent", "file", "link"])
def test_what_is_no_folder(tmp_path, kind):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    assert locks.try_lock(tmp_path / kind, shared=True) is None
    assert not held_open(tmp_path)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_folder_that_is_moved_away_meanwhile(tmp_path, monkeypatch, replaced):
    """Between opening and locking it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    real = fcntl.flock

    def late(fd, operation):
        folder.rename(tmp_path / "away")
        if replaced:
            folder.mkdir()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert locks.try_lock(folder, shared=True) is None
    monkeypatch.undo()
    away = locks.try_lock(tmp_path / "away", shared=False)
    assert away is not None  # nothing was kept
    os.close(away)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
def test_a_folder_that_cannot_be_opened(tmp_path, monkeypatch, code):
    """That is no reason to think that it is not there."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match=re.escape(os.strerror(code))):
        locks.try_lock(tmp_path, shared=True)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOLCK))):
        locks.try_lock(tmp_path, shared=True)
    assert not held_open(tmp_path)
