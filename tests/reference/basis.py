"""The counter basis, version 1: streams, elements, gain, expand and project."""

from __future__ import annotations

import math

import numpy as np

from nola_edge.testing.reference import fma32
from tests.reference.philox import philox4x32_10

F32 = np.float32


def stream_id(module: str, factor: str) -> int:
    digest = 0xCBF29CE484222325
    for byte in f"{module}:{factor}".encode():
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return digest


def gain(basis: str, k: int) -> np.float32:
    sigma = 1.0 if basis == "rademacher" else math.sqrt(3 / (2**32 - 1))
    return F32(sigma / math.sqrt(k))


def word(elements, draw: int, seed: int, stream: int):
    """The 32-bit word of every flat element index at one draw."""
    stripe, within = elements // 64, elements % 64
    which, lane = within // 16, within % 16
    counter = (16 * stripe + lane, draw, stream & 0xFFFFFFFF, stream >> 32)
    words = np.stack(philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32)))
    return np.take_along_axis(words, which[None], axis=0)[0]


def basis_matrix(i: int, shape, *, seed: int, stream: int, basis: str):
    """Basis matrix i as exact float32 integers."""
    elements = np.arange(shape[0] * shape[1], dtype=np.int64)
    if basis == "rademacher":
        bit = word(elements, i // 32, seed, stream) >> np.uint32(i % 32) & np.uint32(1)
        return np.where(bit == 1, F32(-1), F32(1)).reshape(shape)
    half = word(elements, i // 2, seed, stream) >> np.uint32(16 * (i % 2)) & np.uint32(0xFFFF)
    return (2 * half.astype(np.int64) - 65535).astype(F32).reshape(shape)


def expand(coefficients, *, seed: int, stream: int, shape, basis: str):
    coefficients = np.asarray(coefficients, F32)
    scaled = coefficients * gain(basis, len(coefficients))
    acc = np.zeros(shape, F32)

    def term(i):
        if i >= len(scaled):
            return F32(0)
        return scaled[i] * basis_matrix(i, shape, seed=seed, stream=stream, basis=basis)

    if basis == "rademacher":
        for i in range(0, len(scaled), 4):
            acc = acc + ((term(i) + term(i + 1)) + (term(i + 2) + term(i + 3)))
        return acc
    for i, c in enumerate(scaled):
        values = basis_matrix(i, shape, seed=seed, stream=stream, basis=basis)
        acc = fma32(c, values, acc)
    return acc


def project(grad, k: int, *, seed: int, stream: int, basis: str):
    """In float64: what the fast one must approach."""
    grad = np.asarray(grad, np.float64)
    g = float(gain(basis, k))
    return np.array(
        [
            g * (grad * basis_matrix(i, grad.shape, seed=seed, stream=stream, basis=basis)).sum()
            for i in range(k)
        ]
    )
