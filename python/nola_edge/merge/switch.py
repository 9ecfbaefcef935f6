"""Switch weights that stay in memory between adapters, exactly.

Every switch rewrites the tensors that change, merged from the base's file; nothing is ever
subtracted, so nothing drifts, however often you switch. The file is read and never mapped, since
whoever makes it shorter meanwhile would end a process that reads a mapping.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from nola_edge import arguments
from nola_edge.adapters.renames import Renames
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import ArgumentError, ChangedError, MismatchError, printable, warn
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.hub import base_path
from nola_edge.merge.gate import Gate
from nola_edge.merge.kept_factors import KeptFactors, KeptTerm
from nola_edge.merge.known_adapters import KnownAdapters
from nola_edge.merge.one_pass import filling_in_one_pass
from nola_edge.merge.open import MergedCheckpoint
from nola_edge.merge.overlaps import array_extent, find_overlaps, have_common_element
from nola_edge.merge.plan import MergePlan, load_adapters, plan_merge
from nola_edge.merge.result import FromFile
from nola_edge.merge.weighted import weighted
from nola_edge.threads import check_threads
from nola_edge.workers import Buffers, Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.merge.low_rank import Term
    from nola_edge.workers import Job

    #: What weights hold: the base, an adapter, or several with weights.
    State: TypeAlias = str | Sequence[tuple[str, float]] | None
    #: What to switch to; without weights, those of several are 1.
    Selection: TypeAlias = State | Sequence[str] | Mapping[str, float]


class Switch(ABC):
    """Weights in memory that hold the base, or the base with adapters merged.

    A subclass says where the weights are. Thousands of adapters may be added: a path costs nothing,
    and an adapter is read only when it is switched to.

    Parameters
    ----------
    base : path or str
        The safetensors file, folder or Hub id that the weights were loaded from; stays open.
    check_base : bool
        Refuse an adapter that records the fingerprint of another base.
    rename : mapping from NEW to OLD, or iterable of "NEW=OLD", optional
        As for :func:`nola_edge.merge_checkpoint`, for all adapters: one that has no use for a rule
        leaves it to others. A warning says so if none of them had a use for any.
    num_threads : int, optional
        For merging; default: the processors this process may use.
    keep_bytes : int
        Memory for factors that later switches need again; :attr:`kept_bytes` tells how much of it
        is used. All factors of rank 16 for a 7B LLaMA take 160 MB. 0: none are kept.

    Raises
    ------
    NolaEdgeError
        If the base cannot be used.
    """

    def __init__(
        self,
        base: str | Path,
        *,
        check_base: bool = True,
        rename: Mapping[str, str] | Iterable[str] | None = None,
        num_threads: int | None = None,
        keep_bytes: int = 256 << 20,
    ) -> None:
        check_threads(num_threads)
        self._kept = KeptFactors(arguments.integer("keep_bytes", keep_bytes, 0, 1 << 62))
        self._renames = Renames(rename)
        self._base = Checkpoint.open(base_path(base))
        self._check_base = check_base
        self._num_threads = num_threads
        self._known = KnownAdapters()
        #: What the weights hold: how they were merged, and of what. One attribute, as a signal may
        #: come between two assignments …
        self._held: tuple[MergePlan, State] = MergePlan(self._base, ()), None
        #: … except for these tensors, where a switch was cut short so often that it put none back.
        self._unsettled: list[str] = []
        self._workers: Workers | None = None
        self._seen: set[str] = set()
        #: Names of adapters that were matched with the base, by the caller's rules too.
        self._tried: set[str] = set()
        self._warned = False
        self._lost = False
        self._gate = Gate()

    def __repr__(self) -> str:
        active = self._held[1]
        holds = "the base" if active is None else printable(repr(active))
        if self._lost:
            holds = "neither base nor adapter"
        return (
            f"<{type(self).__name__} {printable(self._base.path)}: holds {holds}, knows "
            f"{printable(', '.join(self._known) or 'no adapter')}>"
        )

    @property
    def names(self) -> list[str]:
        """Return the names of the adapters, in the order in which they were added."""
        return list(self._known)

    @property
    def kept_bytes(self) -> int:
        """Return the bytes of factors that are kept for later switches."""
        return self._kept.nbytes

    @property
    def active(self) -> State:
        """Return what the weights hold: None (the base), a name, or names with weights.

        Raises
        ------
        ChangedError
            If a switch failed and left them in none of these states.
        """
        self._check_not_lost()
        return self._held[1]

    def add(self, name: str, adapter: LowRankAdapter | str | Path) -> None:
        """Add an adapter under a name; a path is read only when it is switched to.

        Raises
        ------
        ArgumentError
            If the name is taken.
        """
        self._known.add(name, adapter)

    def remove(self, name: str) -> None:
        """Forget an adapter; the weights keep what they hold.

        Raises
        ------
        ArgumentError
            If there is none of that name.
        """
        self._known.remove(name)

    def use(self, selection: Selection) -> None:
        """Switch; waits until nobody is :meth:`running`.

        Parameters
        ----------
        selection : None, name, or sequence of names or of pairs (name, weight)
            None: back to the base. A mapping from names to weights will do too.

        Raises
        ------
        ArgumentError
            If a name is not known, or a weight not a number.
        ChangedError
            If the base changed since it was opened; the weights then keep their values. If it
            changed while they were being written, they cannot be restored: this call and every
            later one is refused, including :meth:`running`.
        NolaEdgeError
            If an adapter does not fit, or a merged weight would not be finite; the weights then
            keep their values.
        """
        if self._base.shards[0].fd < 0:
            raise ArgumentError("was closed; make a new one", field="switch")
        terms = [] if selection is None else weighted(selection, str, "not the name of an adapter")
        adapters = [(self._known.load(name), weight) for name, weight in terms]
        plan = self._planned(adapters) if adapters else MergePlan(self._base, ())
        self._warn_of_rules(name for name, _ in terms)
        if plan.added:
            raise MismatchError(
                "is missing, but an adapter brings it: there would be nothing to switch back to; "
                "save the model with a tensor of that name (save_pretrained), and make that the "
                "base of the switch",
                file=self._base.path,
                field=next(iter(plan.added)),
            )
        state = selection if isinstance(selection, str) else terms or None
        with self._gate.alone():
            self._check_not_lost()
            held = _changed(self._held[0])
            names = list(dict.fromkeys([*_changed(plan), *held, *self._unsettled]))
            self._check(names, plan.called)
            self._check_base_is_held(names, plan.called)
            self._base.check_unchanged()
            self._unsettled = names
            try:
                self._write(plan, names)
                self._held = plan, state
            except BaseException:
                self._put_back(names)
                raise
            self._unsettled = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep switches waiting inside a ``with`` block; any number of threads may be running.

        A thread that is running cannot switch: it would wait for itself.
        """
        with self._gate.shared():
            self._check_not_lost()
            if self._unsettled:
                raise ChangedError(
                    "a switch was cut short while weights were being written; call use again",
                    field="switch",
                )
            yield

    def close(self) -> None:
        """Close the base; the weights keep what they hold."""
        self._base.close()

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _planned(self, adapters: Sequence[tuple[LowRankAdapter, float]]) -> MergePlan:
        """Check adapters against the base; their factors are kept."""
        loaded = load_adapters(adapters)
        plan = plan_merge(self._base, loaded, check_base=self._check_base, renames=self._renames)
        return self._keeping(plan)

    def _warn_of_rules(self, names: Iterable[str]) -> None:
        """Warn, once, where all adapters have been used and none had a use for a rule."""
        self._tried.update(names)
        rules = self._renames.rules
        if self._warned or not rules or not self._tried.issuperset(self._known):
            return
        if len(self._renames.unused) == len(rules):
            self._warned = True
            warn(
                f"rename: {printable(repr(next(iter(rules))))} does not occur in any module name "
                "of the adapters of this switch, nor does another NEW of its rules; correct them, "
                "or leave them out"
            )

    def _keeping(self, plan: MergePlan) -> MergePlan:
        """Return a plan that keeps the factors of its adapters."""
        merges: dict[str, tuple[Term, ...]] = {
            name: tuple(KeptTerm.of(term, self._kept) for term in terms)
            for name, terms in plan.merges.items()
        }
        return replace(plan, merges=merges)

    def _write(self, plan: MergePlan, names: list[str]) -> None:
        """Rewrite tensors, directly in the memory that holds them where possible."""
        self._kept.begin()
        merged, apart = MergedCheckpoint(plan, self._num_threads), list[str]()
        self._workers = Workers(self._num_threads)
        with self._workers as workers:
            workers.each(self._writing(plan, names, apart))
        for name in apart:
            self._store(name, merged.read(name))
        self._base.check_unchanged()

    def _writing(self, plan: MergePlan, names: list[str], apart: list[str]) -> Iterator[Job]:
        """Yield the work on tensors in memory; add those that lie elsewhere to `apart`."""
        buffers = Buffers()
        for name in names:
            result, memory = plan.result(name), self._memory(name)
            if memory is None or not isinstance(result, FromFile) or not result.info.nbytes:
                apart.append(name)
            else:
                yield from filling_in_one_pass(result, memory, buffers, self._num_threads)

    def _put_back(self, names: list[str]) -> None:
        """Write what was there before, unless the base no longer tells what that was."""
        if self._workers is not None:
            self._workers.close()  # once more: the signal may have come as that began
        self._lost = True
        try:
            self._base.check_unchanged()
            self._write(self._held[0], names)
        except ChangedError:
            self._check_not_lost()
        self._lost, self._unsettled = False, []

    def _check_not_lost(self) -> None:
        if self._lost:
            raise ChangedError(
                "changed, or a switch was cut short twice, while weights were being written: they "
                "hold neither the base nor an adapter; load them again and make a new switch",
                file=self._base.path,
            )

    def _check_base_is_held(self, names: list[str], called: Mapping[str, str]) -> None:
        """Refuse weights that are not the base's, the first time that they would be changed."""
        plain = MergedCheckpoint(MergePlan(self._base, ()), self._num_threads)
        for name in names:
            if name not in self._seen:
                if not self._holds(name, plain.read(name)):
                    raise MismatchError(
                        "in memory differs from the base; load the weights from this base, with "
                        f"nothing merged, before switching{self._renamed(name, called)}",
                        file=self._base.path,
                        field=name,
                    )
                self._seen.add(name)

    def _renamed(self, tensor: str, called: Mapping[str, str]) -> str:
        """Say that rules, which may be wrong, made this tensor of what an adapter has."""
        own = called.get(tensor, tensor)
        if not self._renames or own == tensor:
            return ""
        return f"; or correct rename, which says that it is {printable(own)!r} of the adapter"

    @abstractmethod
    def _check(self, names: list[str], called: Mapping[str, str]) -> None:
        """Refuse names whose tensors in memory cannot take what the base's have.

        Parameters
        ----------
        names : list of str
            Of the base's tensors.
        called : mapping
            Those of them that the adapters call otherwise -> how.
        """

    @abstractmethod
    def _holds(self, name: str, values: NDArray[Any]) -> bool:
        """Tell whether a tensor in memory has these values."""

    @abstractmethod
    def _memory(self, name: str) -> memoryview | None:
        """Return the bytes of a tensor in memory where it holds just what the base's file does."""

    @abstractmethod
    def _store(self, name: str, values: NDArray[Any]) -> None:
        """Write a tensor in memory."""


def _changed(plan: MergePlan) -> list[str]:
    return [*plan.merged, *plan.replaced]


class ArraySwitch(Switch):
    """Switch a mapping of numpy arrays between adapters, in place; see :class:`Switch`.

    >>> switch = ArraySwitch(arrays, "base")        # doctest: +SKIP
    >>> switch.add("french", "adapters/french")     # doctest: +SKIP
    >>> switch.use("french")                        # doctest: +SKIP
    >>> switch.use(None)                            # doctest: +SKIP

    Parameters
    ----------
    arrays : mapping from the base's tensor names to arrays
        With the base's shapes and dtypes, writable; those that no adapter changes may be missing.
    base, check_base, rename, num_threads, keep_bytes
        See :class:`Switch`.
    """

    def __init__(
        self, arrays: MutableMapping[str, NDArray[Any]], base: str | Path, **options: Any
    ) -> None:
        super().__init__(base, **options)
        self.arrays = arrays

    def _check(self, names: list[str], called: Mapping[str, str]) -> None:
        shared = find_overlaps(
            {name: array_extent(array) for name, array in self.arrays.items() if array.nbytes},
            lambda one, other: have_common_element(self.arrays[one], self.arrays[other]),
        )
        for name in names:
            if name not in self.arrays:
                raise MismatchError("is not among the arrays", file=self._base.path, field=name)
            if name in shared:
                raise MismatchError(
                    f"is the same memory as {printable(shared[name])}; give each its own",
                    file=self._base.path,
                    field=name,
                )
            array, info = self.arrays[name], self._base.tensors[name][1]
            dtype = numpy_dtype(info.dtype)
            if array.shape != info.shape or array.dtype != dtype or not array.flags.writeable:
                raise MismatchError(
                    f"is {array.dtype} {array.shape}"
                    f"{'' if array.flags.writeable else ', read-only'}; the base has {dtype} "
                    f"{info.shape}, and it must be writable",
                    file=self._base.path,
                    field=name,
                )

    def _holds(self, name: str, values: NDArray[Any]) -> bool:
        # As bytes: a NaN equals itself, and zeros have signs.
        mine = np.ascontiguousarray(self.arrays[name]).view(np.uint8)
        return bool(np.array_equal(mine, np.ascontiguousarray(values).view(np.uint8)))

    def _memory(self, name: str) -> memoryview | None:
        array = self.arrays[name]
        return array.reshape(-1).view(np.uint8).data if array.flags.c_contiguous else None

    def _store(self, name: str, values: NDArray[Any]) -> None:
        np.copyto(self.arrays[name], values)
