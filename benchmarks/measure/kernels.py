"""expand, project and merge against the way it is done in torch (or numpy, without torch)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from measure.timing import Figure, alternate
from nola_edge import _core, ops
from nola_edge.dtypes import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RANK, FEATURES, NUM_BASIS = 16, 4096, 512
_ELEMENTS = RANK * FEATURES * NUM_BASIS


class Peer:
    """The dense way: seed a generator, draw the whole basis, contract it."""

    def __init__(self) -> None:
        try:
            import torch
        except ImportError:
            self.torch: Any = None
            self.name = "numpy way"
        else:
            self.torch = torch
            self.name = "torch way"
            torch.set_num_threads(1)

    def _draw(self) -> Any:
        """Seed a generator and draw k x r x in uniform numbers."""
        shape = (NUM_BASIS, RANK, FEATURES)
        if self.torch is None:
            return np.random.Generator(np.random.Philox(1)).random(shape, np.float32)
        generator = self.torch.Generator().manual_seed(1)
        return self.torch.empty(shape).uniform_(-1, 1, generator=generator)

    def expand(self, coefficients: Any) -> object:
        """Draw k x r x in uniform numbers and combine them."""
        basis = self._draw()
        if self.torch is None:
            return np.tensordot(coefficients, basis, 1)
        return self.torch.einsum("k,krn->rn", self.torch.from_numpy(coefficients), basis)

    def project(self, grad: Any) -> object:
        """Draw them again for the gradient."""
        basis = self._draw()
        if self.torch is None:
            return np.tensordot(basis, grad, 2)
        return self.torch.einsum("krn,rn->k", basis, self.torch.from_numpy(grad))

    def merger(self, weight: Any, b: Any, a: Any) -> Callable[[], object]:
        """Return fp32 product, cast, add."""
        if self.torch is None:
            return lambda: np.add(weight, (b @ a).astype(weight.dtype), out=weight)
        torch = self.torch
        stored = torch.from_numpy(weight.view(np.int16)).view(torch.bfloat16)
        left, right = torch.from_numpy(b), torch.from_numpy(a)
        return lambda: stored.add_((left @ right).to(torch.bfloat16))


def kernel_figures(rounds: int) -> Iterator[Figure]:
    """Yield the kernels' figures on one thread, and expand's on two."""
    peer = Peer()
    rng = np.random.default_rng(0)
    coefficients = rng.standard_normal(NUM_BASIS).astype(np.float32)
    grad = rng.standard_normal((RANK, FEATURES)).astype(np.float32)

    def expand(basis: ops.Basis, threads: int = 1) -> Callable[[], object]:
        return lambda: ops.expand(
            coefficients,
            seed=1,
            stream=2,
            shape=(RANK, FEATURES),
            basis=basis,
            num_threads=threads,
        )

    def compare(
        name: str, run: Callable[[], object], against: Callable[[], object], target: float
    ) -> Figure:
        ours, theirs = alternate(run, against, rounds=rounds)
        rate = f"{_ELEMENTS / ours / 1e9:.1f} G basis elements/s"
        return Figure(name, peer.name, ours, theirs, target, True, rate)

    drawn = lambda: peer.expand(coefficients)  # noqa: E731
    yield compare("expand rademacher, 16 x 4096, k = 512", expand("rademacher"), drawn, 150)
    yield compare("expand uniform, same size", expand("uniform"), drawn, 15)
    yield compare(
        "project rademacher, same size",
        lambda: ops.project(grad, seed=1, stream=2, num_basis=NUM_BASIS, num_threads=1),
        lambda: peer.project(grad),
        80,
    )
    if "avx2" in _core.supported_isas() and _core.active_isa() != "avx2":
        active = _core.active_isa()
        _core.force_isa("avx2")
        yield compare("expand rademacher, AVX2 forced", expand("rademacher"), drawn, 100)
        _core.force_isa(active)
    # Less than a millisecond each: many rounds, or waking the second core is what is measured.
    two, one = alternate(expand("rademacher", 2), expand("rademacher"), rounds=50 * rounds)
    yield Figure("expand, two threads", "one thread", two, one, 1.8, True)
    yield from _merge_figures(peer, rounds)


def _merge_figures(peer: Peer, rounds: int) -> Iterator[Figure]:
    size, rank = 4096, 16
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((size, size), np.float32).astype(numpy_dtype("BF16"))
    copy = np.empty_like(weight)
    b = rng.standard_normal((size, rank)).astype(np.float32) * np.float32(1e-3)
    a = rng.standard_normal((rank, size)).astype(np.float32) * np.float32(1e-3)

    def merge() -> None:
        ops.merge_(weight, b, a, 1.0, num_threads=1)

    source, target = weight.view(np.uint16), copy.view(np.uint16)
    ours, theirs = alternate(merge, lambda: np.copyto(target, source), rounds=5 * rounds)
    yield Figure("merge bf16 4096 x 4096, r = 16", "memcpy", ours, theirs, 3.0, False)
    ours, theirs = alternate(merge, peer.merger(copy, b, a), rounds=rounds)
    yield Figure("merge bf16 4096 x 4096, r = 16", peer.name, ours, theirs, 10, True)
