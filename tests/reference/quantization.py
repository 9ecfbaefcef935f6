"""ggml's quantised types, read obviously: blocks of 32 elements, each operation in float32.

The same bytes as the numpy code of the ``gguf`` package, which are ggml's own.
"""

from __future__ import annotations

import numpy as np

F = np.float32
BLOCK = 32
BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}


def is_affine(kind):
    return kind.endswith("_1")


def block_bytes(kind):
    return 2 + 2 * is_affine(kind) + BITS[kind] * BLOCK // 8


def middle(kind):
    """Return the code of 0, in a type without minimum; codes of 8 bits have signs."""
    return 0 if is_affine(kind) or kind == "Q8_0" else 1 << (BITS[kind] - 1)


def read(kind, rows):
    """Return scales, minima (n, 1) and codes (n, 32) of all blocks."""
    blocks = np.ascontiguousarray(rows).reshape(-1, block_bytes(kind))
    halves = blocks[:, :4].copy().view(np.float16).astype(F)
    scale, minimum = (
        halves[:, :1],
        halves[:, 1:] if is_affine(kind) else np.zeros_like(halves[:, :1]),
    )
    rest = blocks[:, 2 + 2 * is_affine(kind) :]
    if kind == "Q8_0":
        return scale, minimum, rest.view(np.int8).astype(int)
    packed = rest[:, -BLOCK // 2 :]
    codes = np.concatenate([packed & 15, packed >> 4], axis=1).astype(int)
    if BITS[kind] == 5:
        codes += 16 * np.unpackbits(rest[:, :4], axis=1, bitorder="little")
    return scale, minimum, codes


def write(kind, scale, minimum, codes):
    """Return the blocks of (n, 1) scales and minima and (n, 32) codes."""
    parts = [scale.astype(np.float16).view(np.uint8)]
    if is_affine(kind):
        parts.append(minimum.astype(np.float16).view(np.uint8))
    if kind == "Q8_0":
        return np.concatenate([*parts, codes.astype(np.int8).view(np.uint8)], axis=1)
    if BITS[kind] == 5:
        parts.append(np.packbits((codes >> 4).astype(bool), axis=1, bitorder="little"))
    low, high = np.split(codes & 15, 2, axis=1)
    return np.concatenate([*parts, (low | high << 4).astype(np.uint8)], axis=1)


def dequantize(kind, rows):
    scale, minimum, codes = read(kind, rows)
    with np.errstate(all="ignore"):
        values = scale * (codes - middle(kind)).astype(F)
        values = values + minimum if is_affine(kind) else values
    return values.astype(F).reshape(len(rows), rows.shape[1] // block_bytes(kind) * BLOCK)


def quantize(kind, values):
    blocks = values.reshape(-1, BLOCK)
    with np.errstate(all="ignore"):
        scale, minimum = grid(kind, blocks)
        inverse = np.where(scale == 0, F(0), 1 / scale)
        if kind == "Q8_0":
            size = np.abs(blocks * inverse)
            whole = np.floor(size)
            codes = np.sign(blocks) * (whole + (size - whole >= F(0.5)))  # ties go away from 0
        else:
            codes = np.trunc((blocks - minimum) * inverse + F(middle(kind) + 0.5))
            codes = np.minimum(codes, (1 << BITS[kind]) - 1)
        codes = np.where(np.isfinite((blocks - minimum) * inverse), codes, 0).astype(int)
        rows = write(kind, scale, minimum, codes)
    return rows.reshape(len(values), values.shape[1] // BLOCK * block_bytes(kind))


def grid(kind, blocks):
    """Return scale and minimum, in float32, that fit blocks best."""
    rows = np.arange(len(blocks))[:, None]
    # The first of several, as zeros have signs and opposites are equally large.
    least, greatest, largest = (
        blocks[rows, found.argmax(axis=1)[:, None]] for found in (-blocks, blocks, np.abs(blocks))
    )
    if is_affine(kind):
        return ((greatest + F(0)) - (least + F(0))) / F((1 << BITS[kind]) - 1), least
    scale = np.abs(largest) / F(127) if kind == "Q8_0" else largest / F(-middle(kind))
    return scale, np.zeros_like(scale)


#: By which a change is amplified.
FACTORS = [F(quarters / 4 * 2**power) for power in range(5) for quarters in (4, 5, 6, 7)]


def quantize_amplified(kind, base, wanted):
    blocks = [
        amplified_block(kind, *(values[None] for values in pair))
        for pair in zip(base.reshape(-1, BLOCK), wanted.reshape(-1, BLOCK), strict=True)
    ]
    return np.array(blocks, np.uint8).reshape(len(base), -1)


def amplified_block(kind, base, wanted):
    """Return the block whose change along the wanted one has a length nearest to that one's."""
    change = change_sums(base, wanted, wanted)[0]
    nearest, best = None, None
    with np.errstate(all="ignore"):
        for factor in FACTORS:
            values = wanted if factor == 1 else base + factor * (wanted - base)
            block = quantize(kind, values)
            there = change_sums(base, wanted, dequantize(kind, block))[1]
            if nearest is None or abs(change - there) < nearest:
                nearest, best = abs(change - there), block
            if there >= change:
                break
    return best


def change_sums(base, wanted, got):
    """Return three sums in double, of lanes of sixteen elements, then of these."""
    change, made = (
        np.pad((values.astype(float) - base).ravel(), (0, -base.size % 16))
        for values in (wanted, got)
    )
    sums = []
    for one, other in ((change, change), (made, change), (made, made)):
        lanes = np.zeros(16)
        for products in (one * other).reshape(-1, 16):
            lanes += products
        total = 0.0
        for lane in lanes:
            total += lane
        sums.append(total)
    return sums
