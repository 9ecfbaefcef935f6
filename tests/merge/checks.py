"""What the tests of merging have in common."""

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.errors import (
    MismatchError,
)
from tests.conftest import (
    load_all,
    snapshot,
)
from tests.reference import merge as reference

F = np.float32


def bits(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


def merged(base, adapters, tmp_path, **options):
    ne.merge_checkpoint(base, adapters, tmp_path / "out", **options)
    assert ne.verify_checkpoint(tmp_path / "out", base, adapters).identical
    return load_all(tmp_path / "out")


def factors(adapter, module, shape):
    c = adapter.modules[module]
    return reference.factors(adapter.config, module, c.alpha, c.beta, *shape)


def refused(tiny, tmp_path, message, adapter=None, error=MismatchError, output=None, **options):
    before = snapshot(tmp_path)
    with pytest.raises(error) as caught:
        ne.merge_checkpoint(
            tiny[0], tiny[1] if adapter is None else adapter, output or tmp_path / "out", **options
        )
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before
