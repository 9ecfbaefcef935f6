"""Adapters in few bits, written and read by hand from docs/adapter-format.md."""

from __future__ import annotations

import json

import numpy as np

from nola_edge.files.safetensors import SafetensorsFile
from tests.conftest import write_safetensors

PREFIX = "base_model.model."


def integers_of(packed, count, bits):
    """Undo the packing, as one large number whose lowest bits are the first coefficient's."""
    number = int.from_bytes(packed.tobytes(), "little")
    return [(number >> (i * bits)) % 2**bits - 2 ** (bits - 1) for i in range(count)]


def packed_by_hand(integers, bits):
    number = sum((q + 2 ** (bits - 1)) << (i * bits) for i, q in enumerate(integers))
    return np.frombuffer(number.to_bytes((len(integers) * bits + 7) // 8, "little"), np.uint8)


def values_of(folder):
    """Return (alpha, beta) of each module as the stored integers and scales say."""
    config = json.loads((folder / "adapter_config.json").read_text())
    bits, counts = config["coefficient_bits"], (config["num_basis_a"], config["num_basis_b"])
    with SafetensorsFile.open(folder / "adapter_model.safetensors") as file:
        tensors = {name: np.array(file.array(name)) for name in file.tensors}
    found = {}
    for name in tensors:
        if not name.endswith(".nola_alpha"):
            continue
        pair = []
        for factor, count in zip(("alpha", "beta"), counts, strict=True):
            part = name.replace("nola_alpha", f"nola_{factor}")
            scale, *first = tensors[f"{part}_scale"]
            values = np.float32(integers_of(tensors[part], count, bits)) * scale
            values[: len(first)] = first
            pair.append(values)
        found[name.removeprefix(PREFIX).removesuffix(".nola_alpha")] = tuple(pair)
    return found


def save_by_largest(adapter, folder, bits):
    """Save as every adapter was before `exact_first_alpha`: the scale is the largest one's."""
    largest = 2 ** (bits - 1) - 1
    tensors = {}
    for module, held in adapter.modules.items():
        for factor in ("alpha", "beta"):
            values = getattr(held, factor)
            # Cut to 16 bits: up to the last of them what rounding to nearest gives.
            scale = (abs(values).max(keepdims=True) / np.float32(largest)).view(np.uint32)
            scale = (scale & np.uint32(0xFFFFFF00)).view(np.float32)
            q = np.clip(np.rint(values / scale), -largest, largest).astype(int).tolist()
            name = f"{PREFIX}{module}.nola_{factor}"
            tensors |= {name: packed_by_hand(q, bits), f"{name}_scale": scale}
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {**adapter.config.to_json(), "coefficient_bits": bits}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def save_rounded(adapter, folder, bits):
    adapter.quantize(bits).save(folder)


#: How a file of few bits may have come about.
FORMS = {"largest": save_by_largest, "exact first": save_rounded}


def save_both(adapter, folder, form, bits):
    """Save an adapter in few bits, and the same values as floats; return both paths."""
    FORMS[form](adapter, folder / "few", bits)
    adapter.replace(values_of(folder / "few")).save(folder / "floats")
    return folder / "few", folder / "floats"
