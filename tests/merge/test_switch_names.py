"""A switch with adapters that call layers otherwise than the base's files do."""

from __future__ import annotations

import os

import pytest

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import (
    ArgumentError,
    MismatchError,
    NolaEdgeWarning,
)
from tests.conftest import MODULES, load_all
from tests.merge.checks import bits


def renamed(tmp_path, name):
    """Write an adapter that calls the base's layers.0 and layers.1 something else."""
    modules = {module.replace("layers.", name): shape for module, shape in MODULES.items()}
    trained_adapter(modules, r=4, num_basis=10, seed=11).save(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("given", [{"text.blocks": "layers"}, ["text.blocks=layers"]])
def test_names_that_the_base_has_otherwise(tiny, tmp_path, given):
    """The same bits as by a merge with these rules; other adapters have no use for them."""
    base, adapter = tiny
    other = renamed(tmp_path, "text.blocks.")
    wanted = tmp_path / "wanted"
    ne.merge_checkpoint(base, [(other, 0.5), adapter], wanted, rename=given)
    before = bits(load_all(base))
    with ne.ArraySwitch(load_all(base), base, rename=given) as switch:
        switch.add("plain", adapter)
        switch.add("renamed", other)
        switch.use("plain")
        switch.use([("renamed", 0.5), ("plain", 1.0)])
        assert bits(switch.arrays) == bits(load_all(wanted))
        switch.use(None)
        assert bits(switch.arrays) == before
    with ne.ArraySwitch(load_all(base), base) as switch:
        switch.add("renamed", other)
        with pytest.raises(MismatchError, match="3 of 3 modules"):
            switch.use("renamed")
        assert bits(switch.arrays) == before


def test_rules_that_no_adapter_has_a_use_for(tiny, tmp_path):
    """Said when all have been used: another may have been meant."""
    base, adapter = tiny
    other = renamed(tmp_path, "text.blocks.")
    with ne.ArraySwitch(load_all(base), base, rename={"zz": "yy"}) as switch:
        switch.add("plain", adapter)
        with pytest.warns(NolaEdgeWarning, match="^rename: 'zz' does not occur in any") as caught:
            switch.use("plain")
        assert [warning.filename for warning in caught] == [__file__]
        switch.use(None)
        switch.use("plain")  # said once
    with ne.ArraySwitch(load_all(base), base, rename={"text.blocks": "layers", "z": "y"}) as switch:
        switch.add("plain", adapter)
        switch.add("renamed", other)
        for name in ("plain", "renamed", None):
            switch.use(name)


def test_rules_that_are_wrong_are_named(tiny, tmp_path):
    """Where they find a layer of the same shape, its weights in memory tell."""
    base, adapter = tiny
    arrays = load_all(base)
    before = bits(arrays)
    arrays["layers.0.q.weight"][0, 0] += 1
    changed = bits(arrays)
    for rules, says in (({"text.blocks": "layers"}, True), (None, False)):
        with ne.ArraySwitch(arrays, base, rename=rules) as switch:
            switch.add("one", renamed(tmp_path, "text.blocks.") if says else adapter)
            with pytest.raises(MismatchError, match="differs from the base") as caught:
                switch.use("one")
        hint = "or correct rename, which says that it is 'text.blocks.0.q.weight' of the adapter"
        assert str(caught.value).endswith(hint) is says
        assert bits(arrays) == changed != before


def test_what_is_no_rule_opens_nothing(tiny):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ArgumentError, match="must be NEW=OLD"):
        ne.ArraySwitch({}, tiny[0], rename=["layers"])
    assert len(os.listdir("/proc/self/fd")) == before
