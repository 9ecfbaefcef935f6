"""What several contracts check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from nola_edge.errors import NolaEdgeError
from nola_edge.testing.files import digests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: For tests that several classes inherit.
INHERITED = settings(
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.function_scoped_fixture],
)


def refusal(folder: Path, work: Callable[[], Any]) -> NolaEdgeError:
    """Return the error of work that is refused in one line and changes nothing in a folder."""
    before = digests(folder)
    with pytest.raises(NolaEdgeError) as caught:
        work()
    error = caught.value
    assert str(error).isprintable(), repr(error)
    assert str(folder) in str(error.file), f"the file is not named: {error}"
    assert digests(folder) == before, f"something changed on disk: {error}"
    return error
