"""The tests of this folder are marked `torch`, and left out where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

NEEDED = ("torch",)
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/pytorch/" in item.path.as_posix():
            item.add_marker(pytest.mark.torch)
