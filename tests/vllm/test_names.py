"""Names come from whoever can send a request: no name leads out of the folder."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nola_edge.errors import ArgumentError, NolaEdgeError
from nola_edge.vllm.names import find_adapter
from tests.conftest import snapshot, tiny_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Adapters with a secret beside the folder and links to it; module-wide, for hypothesis."""
    parent = tmp_path_factory.mktemp("names")
    tiny_adapter().save(parent / "secret")
    inside = parent / "adapters"
    inside.mkdir()
    tiny_adapter().save(inside / "a")
    tiny_adapter().save(inside / ".hidden")
    tiny_adapter().pack(inside / "packed.nola")
    (inside / "alias").symlink_to("a")
    (inside / "out").symlink_to("../secret")
    (inside / "away.nola").symlink_to(parent / "secret")
    (inside / "nowhere").symlink_to("absent")
    (inside / "loop").symlink_to("loop")
    return inside


PARTS = ["a", "out", "secret", "adapters", "packed", ".nola", "..", ".", "/", "\\", "\0", "\n", "~"]
NAMES = st.one_of(
    st.text(), st.text(alphabet="a./\\\0"), st.lists(st.sampled_from(PARTS)).map("".join)
)


@given(name=NAMES)
@example("../secret")
@example("a/../../secret")
@example("\ud800")
@example("x" * 5000)
def test_no_name_leads_out(folder, name):
    before = snapshot(folder.parent)
    found, message = None, ""
    try:
        found = find_adapter(folder, name)
    except NolaEdgeError as error:
        message = str(error)
    assert message.isprintable()
    if found is not None:
        assert found.parent == folder
        assert found.resolve().parent == folder.resolve()
        assert found.name in (name, f"{name}.nola")
    assert snapshot(folder.parent) == before


@given(name=NAMES, bad=st.sampled_from("/\\\0\n\x7f\u202e\ud800"), place=st.integers(0, 5))
def test_what_is_no_plain_name_is_refused(folder, name, bad, place):
    with pytest.raises(ArgumentError, match="not the plain name of an adapter"):
        find_adapter(folder, name[:place] + bad + name[place:])


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "../secret", "/etc", "a/", "./a"])
def test_hidden_and_relative_names(folder, name):
    with pytest.raises(ArgumentError, match="lora_name"):
        find_adapter(folder, name)


def test_absolute_names(folder):
    with pytest.raises(ArgumentError):
        find_adapter(folder, str(folder / "a"))


@pytest.mark.parametrize("name", ["out", "away", "away.nola", "nowhere", "loop"])
def test_links_that_lead_out_or_nowhere(folder, name):
    with pytest.raises(NolaEdgeError, match=r"leads out of the folder|is a broken link"):
        find_adapter(folder, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", "a"),
        ("alias", "alias"),
        ("packed", "packed.nola"),
        ("packed.nola", "packed.nola"),
        ("A" * 300, None),
        ("absent", None),
        ("secret", None),
    ],
)
def test_what_is_found(folder, name, expected):
    assert find_adapter(folder, name) == (expected and folder / expected)


def test_the_name_itself_goes_before_the_packed_file(folder, tmp_path):
    tiny_adapter().save(tmp_path / "x")
    tiny_adapter().pack(tmp_path / "x.nola")
    assert find_adapter(tmp_path, "x") == tmp_path / "x"
    assert os.path.samefile(find_adapter(tmp_path, "x.nola"), tmp_path / "x.nola")
