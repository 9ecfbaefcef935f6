"""What the tests of switching begin with."""

import pytest

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from tests.conftest import MODULES, load_all, tiny_adapter


@pytest.fixture
def switch(tiny, tmp_path):
    """A switch over the tiny base's arrays that knows two adapters of different modules."""
    base, _ = tiny
    with ne.ArraySwitch(load_all(base), base) as made:
        made.add("first", tiny_adapter())
        part = {name: MODULES[name] for name in ("layers.1.q",)}
        trained_adapter(part, r=2, num_basis=7, seed=5).save(tmp_path / "second")
        made.add("second", tmp_path / "second")
        yield made
