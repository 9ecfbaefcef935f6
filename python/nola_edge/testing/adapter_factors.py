"""What the factors of any adapter must hold, and what is said of an adapter."""

from __future__ import annotations

import gc
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.adapters.load import load_adapter
from nola_edge.adapters.summary import rows, summary
from nola_edge.errors import UnknownModuleError
from nola_edge.testing.checks import INHERITED
from nola_edge.testing.files import AdapterFiles
from nola_edge.testing.hooks import AdapterHooks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nola_edge.adapters.base import LowRankAdapter

_OPEN = Path("/proc/self/fd")


class FactorContract(AdapterHooks):
    """Tests of a loaded adapter, without a base."""

    @pytest.fixture(scope="class")
    @classmethod
    def written(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterFiles, Path]:
        """Write an adapter once for all tests that only read it."""
        files = cls().files(cls.modules)
        return files, files.write(tmp_path_factory.mktemp("adapter") / "adapter")

    @pytest.fixture
    def adapter(self, written: tuple[AdapterFiles, Path]) -> LowRankAdapter:
        """Load it."""
        return load_adapter(written[1])

    @pytest.fixture
    def no_collection(self) -> Iterator[None]:
        """Leave alone what others have left open."""
        gc.disable()
        yield
        gc.enable()

    def test_factors_are_those_of_the_reference(
        self, adapter: LowRankAdapter, written: tuple[AdapterFiles, Path]
    ) -> None:
        """And of float32, with the rank and the scaling that are said."""
        assert list(adapter.modules) == list(self.modules)
        for module, (out, into) in self.modules.items():
            b, a, scaling = self.product(written[0], module, (out, into))
            found = adapter.factor_b(module, out), adapter.factor_a(module, into)
            assert [factor.dtype for factor in found] == [np.float32] * 2
            assert [factor.shape for factor in found] == [b.shape, a.shape]
            assert [factor.tobytes() for factor in found] == [b.tobytes(), a.tobytes()]
            assert (adapter.rank(module), adapter.scaling_of(module)) == (a.shape[0], scaling)
            assert adapter.shape(module) in (None, (out, into))
            assert adapter.accepts(module, out, into)

    @INHERITED
    @given(st.data())
    def test_any_window_is_a_part_of_the_whole(
        self, adapter: LowRankAdapter, data: st.DataObject
    ) -> None:
        """Whatever rows and columns are asked for, and by how many threads."""
        module = data.draw(st.sampled_from(list(self.modules)))
        out, into = self.modules[module]
        whole_b, whole_a = adapter.factor_b(module, out), adapter.factor_a(module, into)
        (tb, lb), (ta, la) = (_window(data, f.shape) for f in (whole_b, whole_a))
        threads = data.draw(st.sampled_from([None, 1, 3]))
        b = adapter.factor_b(module, out, tb, threads, cols=lb)
        a = adapter.factor_a(module, into, la, threads, rows=ta)
        for part, whole, top, left in ((b, whole_b, tb, lb), (a, whole_a, ta, la)):
            wanted = whole[slice(*(top or (None,))), slice(*(left or (None,)))]
            assert part.dtype == np.float32
            assert np.array_equal(part, wanted)

    def test_many_threads_read_the_same(self, adapter: LowRankAdapter) -> None:
        """A merge asks for windows from many threads at once."""
        names = list(self.modules) * 8
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda m: adapter.factor_b(m, self.modules[m][0]).tobytes(), names)
            assert list(found) == [adapter.factor_b(m, self.modules[m][0]).tobytes() for m in names]

    def test_a_module_that_it_lacks_is_refused_by_name(self, adapter: LowRankAdapter) -> None:
        """By everything that takes a module."""
        for ask in (adapter.rank, adapter.scaling_of, lambda m: adapter.factor_a(m, 4)):
            with pytest.raises(UnknownModuleError, match=r"layers\.9\.q"):
                ask("layers.9.q")

    def test_a_summary_is_of_every_module(self, adapter: LowRankAdapter) -> None:
        """And can be printed, as text and as JSON."""
        found = summary(adapter)
        assert list(found["modules"]) == list(self.modules)
        for module, said in found["modules"].items():
            assert said["rank"] == adapter.rank(module)
            assert said["scaling"] == adapter.scaling_of(module)
        assert json.loads(json.dumps(found))["bytes"] > 0
        assert all(text.isprintable() for row in rows(found) for text in row)
        json.dumps(dict(adapter.bookkeeping))

    @pytest.mark.usefixtures("no_collection")
    def test_what_it_holds_is_what_it_says(self, written: tuple[AdapterFiles, Path]) -> None:
        """Arrays in memory, and open files; both are given back."""
        load_adapter(written[1])  # what is imported and kept at the first time
        opened = _open_files()
        tracemalloc.start()
        adapter = load_adapter(written[1])
        arrays = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)]
        )
        tracemalloc.stop()
        held = sum(trace.size for trace in arrays.traces)
        assert held <= adapter.held_bytes + 256
        assert adapter.held_bytes <= held + 256
        if opened is not None:
            assert _open_files() == opened + adapter.open_files
            del adapter
            assert _open_files() == opened, "it is part of a circle of references"


def _window(
    data: st.DataObject, shape: tuple[int, ...]
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Draw (start, stop), or none, for each axis."""
    return tuple(data.draw(st.none() | _range(length)) for length in shape)  # type: ignore[return-value]


def _range(length: int) -> st.SearchStrategy[tuple[int, int]]:
    ends = st.tuples(st.integers(0, length), st.integers(0, length))
    return ends.map(lambda pair: (min(pair), max(pair)))


def _open_files() -> int | None:
    """Return how many descriptors this process has, where the system tells."""
    return len(list(_OPEN.iterdir())) if _OPEN.is_dir() else None
