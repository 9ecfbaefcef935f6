"""A sharded folder, and what its readers refuse."""

import numpy as np
import pytest

from nola_edge.errors import NolaEdgeError
from nola_edge.files.checkpoint import Checkpoint
from tests.conftest import snapshot, write_sharded

TENSORS = {f"t{i}": np.full((2, 3), i, np.float32) for i in range(5)}


@pytest.fixture
def sharded(tmp_path):
    write_sharded(tmp_path / "base", TENSORS, 2)
    return tmp_path / "base"


def refused(folder, message):
    before = snapshot(folder.parent)
    with pytest.raises(NolaEdgeError) as caught, Checkpoint.open(folder) as checkpoint:
        checkpoint.companions()
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(folder.parent) == before
