"""LoRA, DoRA and VeRA trained by PEFT on the spot: by files, at load and in memory, as PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.torch.arrays import tensor_view
from tests.cli.in_process import call
from tests.conftest import load_all, snapshot
from tests.integrations.lora_family import CASES, FAMILIES, logits, renames, save_own_names, train

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch, transformers, PEFT among themselves
    pytest.mark.usefixtures("one_thread"),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGEST_RANK = 8
#: PEFT rounds what it adds to an embedding in bfloat16 before it adds it.
ROUNDED_TWICE_BY_PEFT = ("embedding", "whole layers")


@dataclass
class Trained:
    """A base, an adapter, and what PEFT makes of them.

    Attributes
    ----------
    base : Path
        The folder that transformers saved.
    own_names : Path
        The same tensors, named as in the model.
    adapter : Path
    before, unmerged : torch.Tensor
        Logits of the base, and with PEFT's adapter beside it.
    peft : dict
        The weights after PEFT's ``merge_and_unload``.
    expected : dict
        The weights of a merge from files.
    """

    make: Any
    method: str
    dtype: torch.dtype
    base: Path
    own_names: Path
    adapter: Path
    before: torch.Tensor
    unmerged: torch.Tensor
    peft: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]

    @property
    def cls(self):
        return type(self.make())

    def model(self, path=None):
        return self.cls.from_pretrained(path or self.base).eval()


def name_of(case):
    make, method, dtype = case
    return f"{make.__name__}, {method}, {dtype}"


@pytest.fixture(
    scope="module",
    params=[(make, method, dtype) for dtype in DTYPES for make, method in CASES],
    ids=name_of,
)
def trained(request, tmp_path_factory):
    make, method, dtype = request.param
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(1)
    model = make().to(DTYPES[dtype]).eval()
    model.save_pretrained(folder / "base")
    save_own_names(model, folder / "own.safetensors")
    before = logits(model)
    wrapped = train(model, FAMILIES[make][method](), folder / "adapter")
    unmerged = logits(wrapped)
    with ne.open_merged(folder / "own.safetensors", folder / "adapter") as merged:
        expected = {name: tensor_view(values) for name, values in merged.items()}
    return Trained(
        make, method, DTYPES[dtype], folder / "base", folder / "own.safetensors",
        folder / "adapter", before, unmerged, wrapped.merge_and_unload().state_dict(), expected,
    )  # fmt: skip


def holds(model, tensors):
    """Tell whether a model has the bits of tensors, and nothing else."""
    state = model.state_dict()
    return state.keys() == tensors.keys() and all(
        torch.equal(state[name], values) for name, values in tensors.items()
    )


def test_weights_are_those_of_peft(trained):
    """In float32 sums round too: a unit in the last place of the largest weight for each rank."""
    assert trained.peft.keys() == trained.expected.keys()
    if trained.dtype == torch.float32:
        for name, wanted in trained.peft.items():
            bound = LARGEST_RANK * torch.finfo(torch.float32).eps * float(wanted.abs().max())
            assert float((trained.expected[name] - wanted).abs().max()) <= bound, name
    elif trained.method not in ROUNDED_TWICE_BY_PEFT:
        equal = [(trained.expected[name] == w).sum() for name, w in trained.peft.items()]
        assert sum(equal) >= 0.9999 * sum(w.numel() for w in trained.peft.values()) - 1


def test_logits_are_those_of_peft_before_it_merges(trained):
    """But for roundings of the dtype, of which sums of float32 gather more."""
    found = logits(nt.load_merged(trained.cls, trained.base, trained.adapter).eval())
    roundings = 4 if trained.dtype == torch.bfloat16 else 32
    bound = roundings * torch.finfo(trained.dtype).eps * float(trained.unmerged.abs().max())
    assert float((trained.before - trained.unmerged).abs().max()) > 2 * bound
    assert float((found - trained.unmerged).abs().max()) <= bound


@pytest.mark.parametrize("trained", [(*case, "fp32") for case in CASES], indirect=True, ids=name_of)
def test_the_command_line(trained, tmp_path):
    merged = tmp_path / "merged"
    given = [trained.base, trained.adapter, *renames(trained.make)]
    assert call("merge", *given, "-o", merged, "-q").returncode == 0
    assert call("verify", merged, *given).returncode == 0
    assert holds(trained.model(merged), trained.expected)


@pytest.mark.parametrize("make", FAMILIES)
def test_each_of_all_methods_for_one_base(make, tmp_path):
    """Every output is what its adapter makes of the base alone, as the command line checks too."""
    torch.manual_seed(1)
    model = make().to(torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base)
    adapters = []
    for number, config in enumerate(FAMILIES[make].values()):
        adapters.append(tmp_path / f"{number}")
        train(type(model).from_pretrained(base), config(), adapters[-1])
    out, given = tmp_path / "out", [base, *adapters, "--each", *renames(make)]
    assert call("merge", *given, "-o", out).returncode == 0
    assert call("verify", out, *given).returncode == 0
    for adapter in adapters:
        alone = tmp_path / f"alone-{adapter.name}"
        assert call("merge", base, adapter, *renames(make), "-o", alone).returncode == 0
        assert snapshot(out / adapter.name) == snapshot(alone)


def test_models_in_memory(trained):
    """While it is loaded, in place, and switched to and back."""
    loaded = nt.load_merged(trained.cls, trained.base, trained.adapter)
    assert holds(loaded, trained.expected)
    model = trained.model()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    changed = nt.merge_(model, trained.adapter)
    assert holds(model, trained.expected)
    different = {n for n, v in before.items() if not torch.equal(v, trained.expected[n])}
    assert different <= set(changed)
    model.load_state_dict(before)
    with nt.AdapterSwitch(model, trained.own_names) as switch:
        switch.add("one", trained.adapter)
        switch.use("one")
        assert holds(model, trained.expected)
        switch.use(None)
        assert holds(model, before)


@pytest.mark.parametrize("trained", [(*case, "bf16") for case in CASES], indirect=True, ids=name_of)
def test_arrays_in_memory(trained):
    arrays = load_all(trained.own_names)
    with ne.ArraySwitch(arrays, trained.own_names) as switch:
        switch.add("one", trained.adapter)
        switch.use("one")
        for name, wanted in trained.expected.items():
            assert torch.equal(tensor_view(arrays[name]), wanted), name
        switch.use(None)
        plain = load_file(trained.own_names)
        assert all(torch.equal(tensor_view(arrays[name]), plain[name]) for name in plain)
