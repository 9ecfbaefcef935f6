"""The operators ``nola_edge::expand`` and ``nola_edge::project``: schema, shapes, gradients.

Nothing here knows a device. ``cpu.py`` registers the kernels for CPU tensors, ``cuda.py`` those for
CUDA tensors; another device adds its own file beside them. Both operators are linear and each is
the other's adjoint, so each is the other's backward and every higher derivative exists.

torch's dispatcher enters Python twice for an operator written in Python, which costs more than a
small expansion. :func:`expand` and :func:`project` therefore call a plain tensor's kernel directly,
and leave everything else (compilation, functorch, tensor subclasses, dispatch modes) to torch.

Streams are unsigned 64-bit numbers and torch's integers are signed: here a stream is its
two's complement, which :func:`signed_stream` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from nola_edge.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Extent = Sequence[int]
    #: seed, stream (signed), basis, shape, rows, cols
    Source = tuple[int, int, str, Extent, Extent, Extent]
    _Pair = tuple[int, int]
    #: basis, seed, stream (unsigned), num_basis, shape, rows, cols
    Matrix = tuple[str, int, int, int, _Pair, _Pair, _Pair]

LIBRARY = torch.library.Library("nola_edge", "DEF")

_BASIS = "int seed, int stream, str basis, SymInt[2] shape, SymInt[2] rows, SymInt[2] cols"
LIBRARY.define(
    f"expand(Tensor coefficients, {_BASIS}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)
LIBRARY.define(
    f"project(Tensor grad, SymInt num_basis, {_BASIS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def signed_stream(stream: int) -> int:
    """Return a stream in ``0 .. 2**64 - 1`` as the int64 that the operators take."""
    return stream - (1 << 64) if stream >> 63 else stream


def core_matrix(
    num_basis: int, seed: int, stream: int, basis: str, shape: Extent, rows: Extent, cols: Extent
) -> Matrix:
    """Return the matrix of so many bases of a source as the compiled modules take it."""
    unsigned = stream & 0xFFFF_FFFF_FFFF_FFFF  # undoes signed_stream
    extents = ((shape[0], shape[1]), (rows[0], rows[1]), (cols[0], cols[1]))
    return basis, seed, unsigned, num_basis, *extents


def check_coefficients(coefficients: torch.Tensor) -> None:
    """Refuse what is not a vector of floating-point coefficients."""
    if coefficients.dim() != 1:
        raise ArgumentError(
            f"must have 1 dimension, got {tuple(coefficients.shape)}", field="coefficients"
        )
    if not coefficients.is_floating_point():
        raise ArgumentTypeError(
            f"must be floating point, got {coefficients.dtype}", field="coefficients"
        )


def check_grad(grad: torch.Tensor, rows: Extent, cols: Extent) -> None:
    """Refuse a gradient that is not of the slice's shape."""
    if not grad.is_floating_point():
        raise ArgumentTypeError(f"must be floating point, got {grad.dtype}", field="grad")
    wanted = (rows[1] - rows[0], cols[1] - cols[0])
    if grad.dim() != 2 or grad.shape[0] != wanted[0] or grad.shape[1] != wanted[1]:
        raise ArgumentError(f"has shape {tuple(grad.shape)}, the slice has {wanted}", field="grad")


_KERNELS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {}


def register_kernels(
    device: str, expand: Callable[..., torch.Tensor], project: Callable[..., torch.Tensor]
) -> None:
    """Give the operators their kernels for a type of device, such as ``"cpu"``."""
    _KERNELS[device] = expand, project
    LIBRARY.impl("expand", expand, device.upper())
    LIBRARY.impl("project", project, device.upper())


_GROUP_KERNELS: dict[str, tuple[Callable[..., list[torch.Tensor]], ...]] = {}


def register_group_kernels(
    device: str,
    expand_group: Callable[..., list[torch.Tensor]],
    project_group: Callable[..., list[torch.Tensor]],
) -> None:
    """Give a type of device kernels that serve many matrices of one seed and basis at once."""
    _GROUP_KERNELS[device] = expand_group, project_group


def has_group_kernels(device: str) -> bool:
    """Tell whether a type of device works on its own, beside the host."""
    return device in _GROUP_KERNELS


def expand_group(
    coefficients: Sequence[torch.Tensor], sources: Sequence[Source]
) -> list[torch.Tensor]:
    """Expand matrices of one device, seed and basis together; plain tensors, no gradients."""
    device = coefficients[0].device.type
    if device in _GROUP_KERNELS:
        return _GROUP_KERNELS[device][0](coefficients, sources)
    return [_KERNELS[device][0](c, *s) for c, s in zip(coefficients, sources, strict=True)]


def project_group(
    grads: Sequence[torch.Tensor], num_basis: Sequence[int], sources: Sequence[Source]
) -> list[torch.Tensor]:
    """Project gradients in the same way, by the shortest route that torch's state allows."""
    device = grads[0].device.type
    if device in _GROUP_KERNELS and all(is_plain(g) and not _is_traced(g) for g in grads):
        return _GROUP_KERNELS[device][1](grads, num_basis, sources)
    return [project(g, k, s) for g, k, s in zip(grads, num_basis, sources, strict=True)]


def has_kernels(device: str) -> bool:
    """Tell whether a type of device has kernels."""
    return device in _KERNELS


@torch.library.register_fake("nola_edge::expand", lib=LIBRARY)
def _expand_fake(
    coefficients: torch.Tensor,
    seed: int,
    stream: int,
    basis: str,
    shape: Extent,
    rows: Extent,
    cols: Extent,
) -> torch.Tensor:
    check_coefficients(coefficients)
    size = (rows[1] - rows[0], cols[1] - cols[0])
    return coefficients.new_empty(size, dtype=torch.float32)


@torch.library.register_fake("nola_edge::project", lib=LIBRARY)
def _project_fake(
    grad: torch.Tensor,
    num_basis: int,
    seed: int,
    stream: int,
    basis: str,
    shape: Extent,
    rows: Extent,
    cols: Extent,
) -> torch.Tensor:
    check_grad(grad, rows, cols)
    return grad.new_empty((num_basis,), dtype=torch.float32)


def _expand_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    coefficients, *ctx.basis = inputs
    ctx.num_basis, ctx.dtype = coefficients.shape[0], coefficients.dtype


def _expand_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    projected = torch.ops.nola_edge.project(grad, ctx.num_basis, *ctx.basis)
    return (projected.to(ctx.dtype), *([None] * len(ctx.basis)))


def _project_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    grad, _, *ctx.basis = inputs
    ctx.dtype = grad.dtype


def _project_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    expanded = torch.ops.nola_edge.expand(grad, *ctx.basis)
    return (expanded.to(ctx.dtype), None, *([None] * len(ctx.basis)))


torch.library.register_autograd(
    "nola_edge::expand", _expand_backward, setup_context=_expand_context, lib=LIBRARY
)
torch.library.register_autograd(
    "nola_edge::project", _project_backward, setup_context=_project_context, lib=LIBRARY
)


def _vmap(operator: Any) -> Any:
    """Map over a batch of tensors one by one: only the tensor argument can be batched."""

    def rule(info: Any, in_dims: tuple[int | None, ...], tensor: torch.Tensor, *rest: Any) -> Any:
        batch = tensor.movedim(in_dims[0] or 0, 0)
        if len(batch) == 0:
            one = operator(batch.new_zeros(batch.shape[1:]), *rest)
            return one.new_empty((0, *one.shape)), 0
        return torch.stack([operator(part, *rest) for part in batch]), 0

    return rule


torch.library.register_vmap("nola_edge::expand", _vmap(torch.ops.nola_edge.expand), lib=LIBRARY)
torch.library.register_vmap("nola_edge::project", _vmap(torch.ops.nola_edge.project), lib=LIBRARY)


class _Expand(torch.autograd.Function):
    """Expand of a plain tensor, without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, coefficients: torch.Tensor, source: Source) -> torch.Tensor:
        ctx.source = source
        ctx.num_basis, ctx.dtype = coefficients.shape[0], coefficients.dtype
        return _KERNELS[coefficients.device.type][0](coefficients, *source)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return project(grads[0], ctx.num_basis, ctx.source).to(ctx.dtype), None


@dataclass(frozen=True)
class _Held:
    """A source that functorch takes for one thing, and not for a tree of numbers to map over."""

    source: Source


class _ExpandTransformed(torch.autograd.Function):
    """The same in the form that functorch and forward-mode derivatives want; slower to enter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(coefficients: torch.Tensor, held: _Held) -> torch.Tensor:
        return torch.ops.nola_edge.expand(coefficients, *held.source)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        coefficients, ctx.held = inputs
        ctx.num_basis, ctx.dtype = coefficients.shape[0], coefficients.dtype

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return project(grads[0], ctx.num_basis, ctx.held.source).to(ctx.dtype), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        return expand(tangents[0], ctx.held.source)


class _ProjectTransformed(torch.autograd.Function):
    """Its adjoint, in the same form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: torch.Tensor, num_basis: int, held: _Held) -> torch.Tensor:
        return torch.ops.nola_edge.project(grad, num_basis, *held.source)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        grad, ctx.num_basis, ctx.held = inputs
        ctx.dtype = grad.dtype

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return expand(grads[0], ctx.held.source).to(ctx.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        return project(tangents[0], ctx.num_basis, ctx.held.source)


def _is_transformed() -> bool:
    """Tell whether functorch or a forward-mode derivative looks at every operation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether nobody but torch's own kernels would look at an operation on this tensor."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type in _KERNELS
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not _is_transformed()
    )


def _is_traced(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()


def expand(coefficients: torch.Tensor, source: Source) -> torch.Tensor:
    """Call ``nola_edge::expand`` by the shortest way."""
    if is_plain(coefficients):
        if _is_traced(coefficients):
            return _Expand.apply(coefficients, source)
        return _KERNELS[coefficients.device.type][0](coefficients, *source)
    if _is_transformed():
        return _ExpandTransformed.apply(coefficients, _Held(source))
    return torch.ops.nola_edge.expand(coefficients, *source)


def project(grad: torch.Tensor, num_basis: int, source: Source) -> torch.Tensor:
    """Call ``nola_edge::project`` by the shortest way."""
    if is_plain(grad) and not _is_traced(grad):
        return _KERNELS[grad.device.type][1](grad, num_basis, *source)
    if _is_transformed():
        return _ProjectTransformed.apply(grad, num_basis, _Held(source))
    return torch.ops.nola_edge.project(grad, num_basis, *source)
