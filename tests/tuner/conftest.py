"""Everything in this folder needs torch and PEFT."""

from __future__ import annotations

import pytest

pytest.importorskip("peft")


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/tuner/" in item.path.as_posix():
            item.add_marker(pytest.mark.torch)
