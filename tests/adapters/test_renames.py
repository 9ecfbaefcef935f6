"""Names that a base has otherwise: rules of a caller, and what a refusal suggests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.adapters.renames import Renames
from nola_edge.adapters.stored_names import StoredNames, namesake
from nola_edge.adapters.suggested import suggested_renames
from nola_edge.adapters.tensor_parts import TensorPart
from nola_edge.errors import ArgumentError

PART = st.text("abc", min_size=1, max_size=2)
NAME = st.lists(PART, min_size=1, max_size=5).map(".".join)


def slow_rename(name, rules):
    """Replace whole parts from left to right, the longest rule first."""
    parts, found = name.split("."), []
    while parts:
        fitting = [new for new in rules if parts[: len(new.split("."))] == new.split(".")]
        if not fitting:
            found.append(parts.pop(0))
            continue
        new = max(fitting, key=lambda rule: len(rule.split(".")))
        found += [rules[new]] if rules[new] else []
        del parts[: len(new.split("."))]
    return ".".join(found)


@given(NAME, st.dictionaries(NAME, st.just("") | NAME, max_size=3))
def test_the_longest_rule_goes_first_and_no_result_is_renamed_again(name, rules):
    expected = slow_rename(name, rules)
    found = Renames(rules).apply(name)
    assert (name if found is None else found) == expected
    as_text = Renames([f"{new}={old}" for new, old in rules.items()]).apply(name)
    assert as_text == found


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ("layers=encoder.layer", TensorPart("vit.encoder.layer.0.attn.q.weight")),
        ("attn.q=attn.qkv[8:16]", TensorPart("vit.layers.0.attn.qkv.weight", (8, 16))),
        ("attn.q=attn.in_proj_weight[0:8]", TensorPart("vit.layers.0.attn.in_proj_weight", (0, 8))),
        ("vit.layers.0.attn.q=w.weight", TensorPart("w.weight")),
        ("vit.layers.0.attn.q=w.weight[0:8]", TensorPart("w.weight", (0, 8))),
        ("vit=", TensorPart("layers.0.attn.q.weight")),
        ("attn.q=w.weight", None),  # the name of a tensor is for a whole name
        ("k=x", None),
        ("tn.q=x", None),
    ],
)
def test_what_a_rule_makes_of_a_module(rule, part):
    tensors = ["vit.layers.0.attn.in_proj_weight"]
    assert Renames([rule]).module("vit.layers.0.attn.q", tensors) == part


@pytest.mark.parametrize(
    "given_rules",
    ["a=b", 3, ["ab"], ["=b"], [".a=b"], ["a..b=c"], [3], {"a": 3}, ["a=\x1b[2J"]],
)
def test_what_is_no_rule(given_rules):
    with pytest.raises(ArgumentError, match="NEW=OLD") as caught:
        Renames(given_rules)
    assert caught.value.field == "rename"
    assert str(caught.value).isprintable()


def test_a_name_with_two_meanings():
    with pytest.raises(ArgumentError, match="gives 'a' two meanings, 'b' and 'c'") as caught:
        Renames(["a=b", "x=y", "a=c"])
    assert caught.value.field == "rename"
    assert Renames(["a=b", "a=b"]).apply("a") == "b"


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_module_whose_name_ends_in_weight(prefix):
    """Which it is, a module or a tensor, the base tells."""
    renames = Renames({"gate": "gate_weight"})
    module = renames.module("l.gate", [f"{prefix}l.gate_weight.weight"])
    assert module == TensorPart("l.gate_weight.weight")
    tensor = renames.module("l.gate", [f"{prefix}l.gate_weight"])
    assert tensor == TensorPart("l.gate_weight")


@pytest.mark.parametrize("old", ["b[8:8]", "b[9:8]", "b[1:2][3:4]", "b[0:01]"])
def test_what_is_no_part(old):
    with pytest.raises(ArgumentError, match="NEW=OLD"):
        Renames({"a": old}).module("a")


@pytest.mark.parametrize("old", ["b[0:]", "b[:64]", "b[x:y]", "b[-1:63]", "b[9:8]", "b[0:64:2]"])
def test_lines_are_two_numbers(old):
    """Whether or not a module has the name."""
    with pytest.raises(ArgumentError, match=r"NEW=OLD, and its \[START:STOP\] must be two numbers"):
        Renames({"a": old})


def test_a_text_is_not_a_list():
    with pytest.raises(ArgumentError, match=r'^rename: .a=b. is not a mapping {"NEW": "OLD"} or a'):
        Renames("a=b")


def test_a_rule_that_nothing_has_to_do_with():
    renames = Renames({"a": "b", "c": "d"})
    renames.module("x.a")
    with pytest.raises(ArgumentError, match="'c' does not occur in any module name"):
        renames.check_used()


def test_rules_go_before_records_and_biases_follow_weights():
    parts = {"a.q": TensorPart("a.qkv.weight", (0, 8)), "a.k": TensorPart("old.weight")}
    names = StoredNames(parts, Renames({"a.k": "new"}))
    assert names.module("a.q") == parts["a.q"]
    assert names.module("a.k") == TensorPart("new.weight")
    assert names.module("a.v") == TensorPart("a.v.weight")
    assert names.tensor("a.q.bias") == TensorPart("a.qkv.bias", (0, 8))
    assert names.tensor("a.k.bias") == TensorPart("new.bias")
    assert names.tensor("a.v.bias") == TensorPart("a.v.bias")


def suggested(modules, tensors, whole=(), given=None):
    return suggested_renames(modules, whole, tensors, StoredNames({}, Renames(given)))


def test_whole_names_of_modules_that_an_adapter_has_whole():
    names = StoredNames({}, Renames({"score": "cls_head.weight"}))
    assert names.tensor("score.weight") == TensorPart("cls_head.weight")
    assert names.tensor("score.bias") == TensorPart("cls_head.bias")
    assert names.tensor("x.score.weight") == TensorPart("x.score.weight")
    assert names.renames.unused == []


def test_suggestions():
    modules = [
        "model.language_model.layers.0.q",
        "model.language_model.layers.1.q",
        "model.visual.blocks.0.mlp.up",
    ]
    tensors = [
        "model.layers.0.q.weight",
        "model.layers.1.q.weight",
        "visual.blocks.0.mlp.up.weight",
    ]
    found = suggested(modules, tensors)
    assert found == {"model.language_model": "model", "model.visual": "visual"}
    renames = Renames(found)
    assert [str(renames.module(m)) for m in modules] == tensors
    assert suggested(modules, tensors, given={"model.visual": "visual"}) == {
        "model.language_model": "model"
    }


def test_suggestions_for_heads():
    tensors = [f"language_model.{n}.weight" for n in ("model.layers.0.q", "lm_head")]
    modules, text = ["model.language_model.layers.0.q"], "language_model.model"
    found = suggested(modules, tensors, ["lm_head.weight", "score.weight"])
    assert found == {"model.language_model": text, "lm_head": "language_model.lm_head"}
    given = {"model.language_model": text}
    found = suggested(modules, tensors, ["lm_head.weight"], given)
    assert found == {"lm_head": "language_model.lm_head"}
    given |= {"lm_head.weight": "lm_head.weight"}  # which says that it is another
    assert suggested(modules, tensors, ["lm_head.weight"], given) == {}


def test_nothing_is_suggested_where_several_rules_would_do():
    tensors = [f"{tower}.layers.0.attn.q.weight" for tower in ("text", "vision")]
    assert suggested(["model.layers.0.attn.q"], tensors) == {}
    both = ["a.x.layers.0.q", "b.x.layers.0.q"]  # to one tensor
    assert suggested(both, ["x.layers.0.q.weight"]) == {}


def test_nothing_is_suggested_that_renames_what_has_its_name():
    tensors = ["text.layers.0.mlp.up.weight", "vis.layers.0.mlp.up.weight", "head.proj.a.weight"]
    assert suggested(["text.layers.0.mlp.up", "text.proj.a"], tensors) == {}
    assert suggested(["text.proj.a"], tensors) == {"text": "head"}


@given(
    st.lists(NAME, min_size=1, max_size=4, unique=True),
    st.lists(NAME, max_size=6),
    st.lists(NAME, max_size=2, unique=True),
    st.dictionaries(NAME, NAME, max_size=1),
)
def test_what_is_suggested_names_tensors_that_are_there(modules, names, saved, given_rules):
    tensors = [f"{name}.weight" for name in names]
    whole = [f"{name}.weight" for name in saved]
    found = suggested(modules, tensors, whole, given_rules)
    if found:
        renames = StoredNames({}, Renames({**given_rules, **found}))
        named = [renames.module(m, tensors).tensor for m in modules]
        assert set(named) <= set(tensors)
        assert len(set(named)) == len(modules)
        others = [renames.tensor(name).tensor for name in whole]
        assert not any(namesake(n, tensors) for n in others if n not in whole)
