"""What each of two processes runs; started by torchrun, writes what it found as a file.

torchrun --nproc-per-node 2 -m tests.distributed.worker MODE FOLDER
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import (
    Partial,
    Placement,
    Replicate,
    Shard,
    _StridedShard,
)

import nola_edge.torch as nt
from nola_edge import Adapter
from nola_edge.errors import ArgumentError, MismatchError
from nola_edge.peft import NolaConfig
from nola_edge.torch.sharding import computed_shard

STEPS = 5


class Block(nn.Module):
    """Two linear layers, as an MLP of a transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(24, 40)
        self.down = nn.Linear(40, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def make(dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(3)
    return Model().to(dtype)


CONFIG = {
    "r": 4, "num_basis_a": 20, "num_basis_b": 18, "seed": 9, "target_modules": ["up", "down"],
    "lora_alpha": 8,
}  # fmt: skip


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(STEPS, 8, 24, generator=generator),
        torch.randn(STEPS, 8, 24, generator=generator),
    )


def train(model: nn.Module, mine: slice) -> list[torch.Tensor]:
    """Return this process's losses."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    losses = []
    for x, y in zip(*data(), strict=True):
        loss = (model(x[mine]) - y[mine]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def coefficients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("module."): full(p.detach()).clone()
        for name, p in model.named_parameters()
        if "nola_" in name
    }


def data_parallel(_: Path) -> dict[str, object]:
    """DDP: each process has half of the batch."""
    rank = dist.get_rank()
    model = nn.parallel.DistributedDataParallel(get_peft_model(make(), NolaConfig(**CONFIG)))
    losses = train(model, slice(4 * rank, 4 * rank + 4))
    return {"losses": mean(losses), "coefficients": coefficients(model)}


def aligned_start(_: Path) -> dict[str, object]:
    """DDP: each process gives a half of the examples, and a split layer is refused."""
    rank = dist.get_rank()
    model = nn.parallel.DistributedDataParallel(get_peft_model(make(), NolaConfig(**CONFIG)))
    x, y = (values[:, 4 * rank : 4 * rank + 4] for values in data())
    gains = nt.align_start(model, list(zip(x, y, strict=True)), loss=square, progress=False)
    sharded = get_peft_model(make(), NolaConfig(**CONFIG))
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    try:
        nt.align_start(sharded, list(zip(x, y, strict=True)), loss=square, progress=False)
        refused = ""
    except ArgumentError as error:
        refused = str(error)
    return {"gains": gains, "coefficients": coefficients(model), "refused": refused}


def square(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def fully_sharded(_: Path) -> dict[str, object]:
    """FSDP2: every parameter is stored in halves; then each process merges its own."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    model = get_peft_model(make(), NolaConfig(**CONFIG))
    for block in model.base_model.model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = train(model, slice(4 * rank, 4 * rank + 4))
    found = coefficients(model)
    merged = model.merge_and_unload()
    return {"losses": mean(losses), "coefficients": found, "merged": weights(merged)}


def tensor_parallel(_: Path) -> dict[str, object]:
    """Columns of the first layer and rows of the second are split, as in Megatron."""
    mesh = init_device_mesh("cpu", (2,))
    base = make()
    for block in base.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    model = get_peft_model(base, NolaConfig(**CONFIG))
    layer = model.base_model.model.blocks[0].up
    shard = computed_shard(layer.get_base_layer().weight)
    factors = layer.nola_factors["default"].on(shard)
    expanded = tuple(factors.b(layer.nola_beta["default"]).shape)
    # A layer holds no process group, so that copies and pickles work.
    copy.deepcopy(layer.nola_factors)
    losses = train(model, slice(None))
    found = coefficients(model)
    merged = model.merge_and_unload()
    return {
        "losses": losses,
        "coefficients": found,
        "merged": weights(merged),
        "rows": shard.rows,
        "expanded": expanded,
    }


def other_layout(_: Path) -> dict[str, object]:
    """A style that gathers its output is refused, not computed wrongly."""
    base = make()
    style = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(base.blocks[0], init_device_mesh("cpu", (2,)), {"up": style})
    model = get_peft_model(base, NolaConfig(**CONFIG))
    try:
        train(model, slice(None))
    except NotImplementedError as error:
        return {"refused": str(error)}
    return {"refused": None}


def save_sharded(folder: Path) -> dict[str, object]:
    """Coefficients that FSDP2 stores in halves are saved whole, quantised ones too."""
    model = get_peft_model(make(), NolaConfig(**CONFIG, coefficient_bits=4, init_weights=False))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    rank = dist.get_rank()
    model.save_pretrained(folder / f"saved-{rank}")
    state = {name: full(values) for name, values in model.state_dict().items()}
    # The first process has it all and saves; the others have nothing, or nothing but names.
    for number, rest in enumerate(({}, {name: values[:0] for name, values in state.items()})):
        model.save_pretrained(
            folder / f"gathered-{number}",
            state_dict=rest if rank else state,
            is_main_process=rank == 0,
        )
    return {"coefficients": coefficients(model)}


def merge_shards(folder: Path) -> dict[str, object]:
    """merge_ on DTensor weights of every placement and dtype, without communication."""
    mesh = init_device_mesh("cpu", (2,))
    adapter = Adapter.load(folder / "adapter")
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for dim in (0, 1):
            model = make(dtype)
            for name, parameter in list(model.named_parameters()):
                if parameter.dim() == 2:
                    module = model.get_submodule(name.rpartition(".")[0])
                    sharded = distribute_tensor(parameter.data, mesh, [Shard(dim)])
                    module.weight = nn.Parameter(sharded, requires_grad=False)
            nt.merge_(model, adapter)
            found[str(dtype), dim] = weights(model)
    return {"merged": found, "refused": [refusal(mesh, adapter, kind) for kind in UNMERGEABLE]}


def merge_family_shards(folder: Path) -> dict[str, object]:
    """merge_ with LoRA's biases, whole tensors and DoRA, on parameters split along a dimension."""
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, object] = {}
    for name in ("biases", "whole", "dora"):
        for dim in (0, 1):
            model = make(torch.bfloat16)
            for place, parameter in list(model.named_parameters()):
                owner, _, last = place.rpartition(".")
                split = distribute_tensor(parameter.data, mesh, [Shard(dim % parameter.dim())])
                setattr(model.get_submodule(owner), last, nn.Parameter(split, requires_grad=False))
            refused = None
            try:
                nt.merge_(model, folder / name)
            except MismatchError as error:
                refused = str(error)
            found[f"{name}, {dim}"] = refused, weights(model)
    return found


#: Ways to split a weight of which no process then holds one block of rows and columns.
UNMERGEABLE = (_StridedShard(0, split_factor=2), _StridedShard(-1, split_factor=4), Partial())


def refusal(mesh: DeviceMesh, adapter: Adapter, placement: Placement) -> str:
    """What merge_ says to such a weight, the last of a model; what it leaves as it was."""
    model = make()
    last = model.blocks[1].down
    split = DTensor.from_local(
        last.weight.data, mesh, [placement], run_check=False, shape=last.weight.shape,
        stride=last.weight.stride(),
    )  # fmt: skip
    last.weight = nn.Parameter(split, requires_grad=False)
    before = [p.detach().clone() for p in model.parameters() if not isinstance(p.data, DTensor)]
    try:
        nt.merge_(model, adapter)
    except MismatchError as error:
        after = [p for p in model.parameters() if not isinstance(p.data, DTensor)]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        return str(error)
    return "merged"


def load_shards(folder: Path) -> dict[str, object]:
    """Transformers splits a model while it loads, and each process merges into its parts."""
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    from nola_edge.transformers import NolaMergeConfig

    model = LlamaForCausalLM.from_pretrained(
        folder / "base",
        distributed_config=DistributedConfig(tp_plan="auto"),
        quantization_config=NolaMergeConfig(folder / "adapter"),
    )
    split = [name for name, p in model.named_parameters() if isinstance(p.data, DTensor)]
    return {"split": split, "merged": weights(model)}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: full(p.detach()).clone() for name, p in model.named_parameters()}


def mean(losses: list[torch.Tensor]) -> list[torch.Tensor]:
    for loss in losses:
        dist.all_reduce(loss)
    return [loss / dist.get_world_size() for loss in losses]


MODES = {
    f.__name__: f
    for f in (
        data_parallel,
        aligned_start,
        fully_sharded,
        tensor_parallel,
        other_layout,
        save_sharded,
        merge_shards,
        merge_family_shards,
        load_shards,
    )
}


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = MODES[mode](folder)
    torch.save(result, folder / f"{mode}-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
