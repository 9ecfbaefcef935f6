"""The environment configures the plug-in, or says in one line why it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.errors import ArgumentError
from nola_edge.vllm.settings import Settings
from tests.vllm.checks import refused

P = "NOLA_EDGE_VLLM_"


def read(tmp_path: Path, **values: str) -> Settings | None:
    (tmp_path / "adapters").mkdir(exist_ok=True)
    given = {"ADAPTERS": str(tmp_path / "adapters"), **values}
    return Settings.from_environment({P + name: value for name, value in given.items()})


def test_nothing_is_configured():
    assert Settings.from_environment({}) is None
    assert Settings.from_environment({"NOLA_EDGE_ISA": "portable", P + "ADAPTERS": ""}) is None


def test_defaults(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = read(tmp_path)
    assert settings == Settings(
        tmp_path / "adapters", None, tmp_path / ".cache/nola-edge/vllm", 10**10, "F32"
    )
    assert not settings.cache.exists()
    environment = {P + "ADAPTERS": str(tmp_path), "XDG_CACHE_HOME": "/elsewhere"}
    assert Settings.from_environment(environment).cache == Path("/elsewhere/nola-edge/vllm")


def test_all_that_can_be_said(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read(
        tmp_path, ADAPTERS="adapters", BASE="base", CACHE="c", CACHE_BYTES="1.5 GiB", DTYPE="BF16"
    ) == Settings(
        tmp_path / "adapters", tmp_path / "base", tmp_path / "c", 3 << 29, "BF16"
    )  # absolute: vLLM's workers may run in another folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ADAPTERS": "nowhere"}, "ADAPTERS: .*nowhere is not a folder"),
        ({"ADAPTERS": "", "BASE": "."}, "ADAPTERS: is not set, but NOLA_EDGE_VLLM_BASE is"),
        ({"BASE": "nowhere"}, "BASE: .*nowhere does not exist"),
        ({"CACHE": "{adapters}"}, "CACHE: .* lies in NOLA_EDGE_VLLM_ADAPTERS"),
        ({"CACHE": "{adapters}/cache"}, "CACHE: .* lies in NOLA_EDGE_VLLM_ADAPTERS"),
        ({"CACHE": "{adapters}/../link"}, "CACHE: .* lies in NOLA_EDGE_VLLM_ADAPTERS"),
        ({"DTYPE": "float64"}, "DTYPE: is 'float64', must be one of F32, F16, BF16"),
        ({"CACHE_BYTES": "lots"}, "CACHE_BYTES: is 'lots', not a size such as 2GB"),
        ({"CACHE_BYTES": "-1GB"}, "CACHE_BYTES: is '-1GB'"),
        ({"CACHE_BYTES": "0"}, "CACHE_BYTES: is '0'"),
        ({"CACHE_BYTES": "1e3"}, "CACHE_BYTES: is '1e3'"),
        ({"CACHE_BYTES": "nan"}, "CACHE_BYTES: is 'nan'"),
        ({"CACHE_SIZE": "2GB"}, "CACHE_SIZE: is not a variable of nola-edge"),
    ],
)
def test_a_wrong_configuration(tmp_path, values, message):
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (tmp_path / "link").symlink_to(adapters)
    values = {name: value.replace("{adapters}", str(adapters)) for name, value in values.items()}
    refused(tmp_path, lambda: read(tmp_path, **values), message, ArgumentError)


@given(
    number=st.integers(1, 10**6),
    unit=st.sampled_from([("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9), ("Ti", 2**40)]),
    space=st.sampled_from(["", " "]),
    b=st.sampled_from(["", "B"]),
)
def test_sizes(tmp_path, number, unit, space, b):
    text = f"{number}{space}{unit[0]}{b}"
    assert read(tmp_path, CACHE_BYTES=text).max_bytes == number * unit[1]


@given(text=st.text(min_size=1))
def test_any_text_is_a_size_or_one_line(tmp_path, text):
    count, message = 1, ""
    try:
        count = read(tmp_path, CACHE_BYTES=text).max_bytes
    except ArgumentError as error:
        message = str(error)
    assert count >= 1
    assert message.isprintable()
