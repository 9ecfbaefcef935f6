"""What must hold of the four readers, whatever bytes they are given.

A reader returns, or raises a ``NolaEdgeError`` of one printable line. What it accepted can be
written, and is the same when it is read again; written once more, it is the same bytes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nola_edge.adapters.nola_config import AdapterConfig
from nola_edge.adapters.nola_files import load_config
from nola_edge.adapters.packed import FORMAT_1, load_packed, write_packed
from nola_edge.adapters.peft_folder import CONFIG_NAME, write_config, write_tensors
from nola_edge.errors import NolaEdgeError
from nola_edge.files.copying import pwrite_all
from nola_edge.files.gguf import GgufFile
from nola_edge.files.safetensors import SafetensorsFile, encode_header
from nola_edge.gguf.layout import Layout

#: Between the parts of a packed adapter: configuration and names, coefficients, scales, tensors.
PARTS = b"\xff\xff"
MOST_CHARACTERS = 1000

#: Of a read file: what is compared with another read.
Content = Any
Read = Callable[[Path], Content]
Write = Callable[[Path, Path], None]


def check(reader: str, data: bytes, folder: Path) -> bool:
    """Check a reader with a file's bytes; return whether it accepted them.

    Raises
    ------
    AssertionError
        If a promise is broken.
    Exception
        Any but a ``NolaEdgeError``, if the reader or the writer raises it.
    """
    prepare, name, read, rewrite = READERS[reader]
    paths = [folder / number / name for number in ("first", "second", "third")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
    try:
        prepare(data, paths[0])
        before = read(paths[0])
    except NolaEdgeError as error:
        text = str(error)
        assert text.isprintable(), text
        assert len(text) <= MOST_CHARACTERS, len(text)
        return False
    rewrite(paths[0], paths[1])
    assert read(paths[1]) == before
    rewrite(paths[1], paths[2])
    assert paths[2].read_bytes() == paths[1].read_bytes()
    return True


def _as_it_is(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _read_safetensors(path: Path) -> Content:
    with SafetensorsFile.open(path) as file:
        tensors = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
        numbers: dict[str, bytes | str] = {}
        for name in tensors:
            try:
                numbers[name] = file.read(name).tobytes()
                assert file.array(name).tobytes() == numbers[name]
            except NolaEdgeError as error:
                numbers[name] = error.message
        return file.metadata, tensors, numbers


def _rewrite_safetensors(source: Path, target: Path) -> None:
    with SafetensorsFile.open(source) as file:
        infos = sorted(file.tensors.values(), key=lambda info: (info.start, info.stop))
        entries = [(info.name, info.dtype, info.shape, info.nbytes) for info in infos]
        begin = encode_header(entries, file.metadata)
        data = source.read_bytes()[file.header_size :]
    target.write_bytes(begin + data)


def _packed_from_parts(data: bytes, path: Path) -> None:
    """Put parts into the container, so that the fuzzer needs to invent neither it nor zlib."""
    if PARTS not in data:
        path.write_bytes(data)
        return
    about, coefficients, scales, *whole = (data + PARTS * 2).split(PARTS)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    if scales:
        tensors["scales"] = np.frombuffer(scales[: len(scales) // 4 * 4], "<f4")
        tensors["coefficients"] = np.frombuffer(coefficients, np.uint8)
    else:
        tensors["coefficients"] = np.frombuffer(coefficients[: len(coefficients) // 4 * 4], "<f4")
    tensors["about"] = np.frombuffer(zlib.compress(about, 1), np.uint8)
    for number, part in enumerate(whole[:-2]):
        tensors[f"whole.head.{number}"] = np.frombuffer(part[: len(part) // 2 * 2], "<f2")
    write_tensors(path, tensors, {"format": FORMAT_1})


def _read_packed(path: Path) -> Content:
    config, modules, whole, expected = load_packed(path)
    return (
        config,
        {name: (c.alpha.tobytes(), c.beta.tobytes()) for name, c in modules.items()},
        {name: (v.dtype, v.shape, v.array().tobytes()) for name, v in whole.items()},
        expected,
    )


def _rewrite_packed(source: Path, target: Path) -> None:
    write_packed(target, *load_packed(source))


def _read_gguf(path: Path) -> Content:
    with GgufFile.open(path) as file:
        tensors = {}
        for name, info in file.tensors.items():
            data = bytearray(info.nbytes)
            file.read_into(memoryview(data), info.start)
            tensors[name] = (info.dtype, info.shape, bytes(data))
        # As text: NaN differs from itself.
        return file.version, repr(file.metadata), file.alignment, tensors


def _rewrite_gguf(source: Path, target: Path) -> None:
    """As a merge that changes nothing writes it."""
    with GgufFile.open(source) as file:
        layout = Layout(file, {})
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, layout.size)
            pwrite_all(fd, layout.infos, file.infos_start)
            for begin, end, offset in layout.untouched():
                data = bytearray(end - begin)
                file.read_into(memoryview(data), begin)
                pwrite_all(fd, data, offset)
        finally:
            os.close(fd)


def _read_configuration(path: Path) -> AdapterConfig:
    return load_config(path.parent)


def _rewrite_configuration(source: Path, target: Path) -> None:
    write_config(target, load_config(source.parent).to_json())


#: Reader -> how bytes become a file, its name, how it is read, how what was read is written.
READERS: dict[str, tuple[Callable[[bytes, Path], None], str, Read, Write]] = {
    "safetensors": (_as_it_is, "model.safetensors", _read_safetensors, _rewrite_safetensors),
    "packed": (_packed_from_parts, "adapter.nola", _read_packed, _rewrite_packed),
    "gguf": (_as_it_is, "model.gguf", _read_gguf, _rewrite_gguf),
    "configuration": (_as_it_is, CONFIG_NAME, _read_configuration, _rewrite_configuration),
}
