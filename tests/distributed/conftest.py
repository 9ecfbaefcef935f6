"""Everything in this folder needs torch, and runs two processes over gloo."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/distributed/" in item.path.as_posix():
            item.add_marker(pytest.mark.torch)
