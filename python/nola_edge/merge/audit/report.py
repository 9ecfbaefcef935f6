"""What a verification found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nola_edge.merge.audit.faults import HARMLESS
from nola_edge.merge.parts import lines_name


@dataclass(frozen=True)
class Difference:
    """One tensor that is not what base and adapters give.

    Attributes
    ----------
    tensor : str
    problem : str
        ``"missing"``, ``"unexpected"``, ``"dtype"``, ``"shape"`` or ``"values"``.
    detail : str
        For people.
    elements : int
        Differing elements (for ``"values"``).
    largest : float
        Largest absolute difference, NaN where it cannot be computed.
    part : float
        For values of a tensor that adapters are merged into, like the numbers that follow; NaN
        elsewhere. How much of the wanted change is there:
        <found - base, wanted> / <wanted, wanted>, where `wanted` is the change in fp32 before it
        is rounded. 1 is right, 0 dropped, -1 subtracted.
    right_part : float
        The same for a correct merge: 1, except for what its rounding takes or adds.
    factor : float
        What the change was multiplied by as far as can be told: `part` of the elements that change
        by some ulps, which rounding leaves alone.
    ulps : float
        Largest distance from the right value, in units of the last place that the largest of
        base, found and right value has; of a quantised type in steps (see `unit`). Infinite where
        a value is infinite or NaN.
    beyond : float
        Share of elements that are more than one ulp from the right value.
    unit : {"ulp", "step"}
        What `ulps` counts. A step of a quantised type is the scale of the element's block, the
        largest of base, found and right.
    fault : str, optional
        What explains the difference; None where the problem is not the values.
        Right but for roundings: ``"rounding"``, ``"rounded twice"``, ``"adapter order"`` (several
        were summed in another order), ``"imprecise"`` (computed in another precision than fp32, the
        change is right to a percent or so). Wrong: ``"dropped"``, ``"adapter dropped"`` and
        ``"weights swapped"`` (of some of several, see `adapters`), ``"subtracted"``,
        ``"merged twice"``, ``"rsLoRA off"``, ``"rsLoRA on"``, ``"DoRA off"``, ``"scaled"`` (by
        `factor`), ``"truncated"`` (to BF16, instead of rounded), ``"transposed"``,
        ``"another layer"``, ``"row order"`` (of attention heads, in GGUF), ``"expert layout"`` (of
        stacks of experts), ``"fp16 overflow"``, ``"not finite"`` (in another dtype),
        ``"broken weights"`` (right but for some), ``"unwanted"`` (where the adapters add nothing),
        ``"unknown"``. Of tensors that nothing is merged into: ``"whole tensor"`` (which an adapter
        brings), ``"untouched"`` (which none changes).
    source : str, optional
        The tensor whose change is in this one, for ``"another layer"``.
    adapters : tuple of str
        Paths of the adapters that were dropped, or have each other's weights, where several are
        merged and it is not all of them; of ``"subtracted"``, two whose weights are opposite: it
        may be that they have each other's.
    matrix : int, optional
        Which of a stack it is of whose values this is said, where adapters are merged into some.
    lines : (start, stop), optional
        The rows of which this is said, where a tensor holds several modules; columns, where it is
        stored as (in, out).
    module : str, optional
        Whose lines they are, by an adapter's name; None if no adapter changes them.
    """

    tensor: str
    problem: str
    detail: str
    elements: int = 0
    largest: float = float("nan")
    part: float = float("nan")
    right_part: float = float("nan")
    factor: float = float("nan")
    ulps: float = float("nan")
    beyond: float = float("nan")
    unit: str = "ulp"
    fault: str | None = None
    source: str | None = None
    adapters: tuple[str, ...] = ()
    matrix: int | None = None
    lines: tuple[int, int] | None = None
    module: str | None = None

    @property
    def name(self) -> str:
        """Return the tensor's name, with the number of a matrix or with a module and its lines."""
        if self.lines is not None:
            return lines_name(self.tensor, self.lines, self.module)
        return self.tensor if self.matrix is None else f"{self.tensor}[{self.matrix}]"

    @property
    def measured(self) -> bool:
        """Whether the numbers from `part` on are known."""
        return not math.isnan(self.ulps)

    @property
    def harmless(self) -> bool:
        """Whether nothing but rounding makes the difference."""
        return self.fault in HARMLESS

    def within(self, ulps: float) -> bool:
        """Whether nothing but rounding makes the difference, of at most so many ulps."""
        return self.harmless and self.ulps <= ulps


@dataclass(frozen=True)
class FileDifference:
    """One file that is not what a merge writes, the tensors in it apart.

    Attributes
    ----------
    file : str
        Its path in the merged folder, or its name.
    problem : str
        ``"missing"``, ``"unexpected"``, ``"content"``, ``"header"``, ``"kind"`` (a file for a
        folder, or the reverse) or ``"index"`` (a shard that the index does not name); in GGUF
        ``"metadata"``, ``"layout"`` or ``"padding"``.
    detail : str
        For people.
    """

    file: str
    problem: str
    detail: str


@dataclass(repr=False)
class VerifyReport:
    """What a comparison found.

    Attributes
    ----------
    tensors : int
        Tensors compared.
    merged : int
        Of these, tensors that the adapters change.
    weights : int
        The matrices that the adapters change: as `merged`, but each of a stack counts, and each
        module of a tensor that holds several.
    nbytes : int
        Bytes compared.
    differences : list of Difference
        Of tensors.
    files : list of FileDifference
        Of everything else; empty where only tensors were compared.
    """

    tensors: int = 0
    merged: int = 0
    weights: int = 0
    nbytes: int = 0
    differences: list[Difference] = field(default_factory=list)
    files: list[FileDifference] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether everything that was compared is there and every bit agrees."""
        return not self.differences and not self.files

    def within(self, ulps: float) -> bool:
        """Whether all agrees except for rounding of merged weights, by at most so many ulps.

        A mistake that is certain does not pass, even if the change is too small to show in `ulps`:
        a dropped adapter is not rounding.

        Parameters
        ----------
        ulps : float
            Units in the last place, or steps of a quantised type; see :class:`Difference`.
        """
        return not self.files and all(difference.within(ulps) for difference in self.differences)

    def __bool__(self) -> bool:
        return self.identical

    def __repr__(self) -> str:
        differ = f"{len(self.differences)} tensor(s) and {len(self.files)} other file(s) differ"
        found = "identical" if self.identical else differ
        return f"<VerifyReport: {found}, {self.tensors} tensors compared, {self.merged} merged>"
