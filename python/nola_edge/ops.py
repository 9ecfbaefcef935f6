"""The numerical operations: expand, project and merge, on numpy arrays.

Thin functions over the C++ core. They hold no state, touch no global random generator and give
the same bits on every instruction set and for any number of threads.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from nola_edge import _core
from nola_edge.arguments import (
    check_arrays,
    integer,
    number,
    pair,
    text,
    threads_or_default,
    wrong_type,
)
from nola_edge.errors import ArgumentError, ArgumentTypeError, NotFiniteError
from nola_edge.pacing import paced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

Basis = Literal["rademacher", "uniform"]
Range = tuple[int, int]
_T = TypeVar("_T")

#: Basis elements, or multiply-adds, that one call into the core takes on before it is timed.
#: The slowest instruction set needs less than a second for them.
_AT_ONCE = 1 << 26
#: Elements that share one run of the generator: narrower slices cost as much.
_STRIPE = 64

#: Dtypes that convert to float32 without rounding.
_EXACT_IN_FLOAT32 = ("float32", "float16", "bfloat16")


def stream_id(module: str, factor: Literal["A", "B"]) -> int:
    """Return the stream of one factor of one module: FNV-1a-64 over ``"<module>:<factor>"``.

    Parameters
    ----------
    module : str
        The adapter's own module name, such as ``"model.layers.0.self_attn.q_proj"``.
    factor : {"A", "B"}

    Returns
    -------
    int
        In ``0 .. 2**64 - 1``.
    """
    return _core.stream_id(text("module", module), text("factor", factor))


def gain(basis: Basis, num_basis: int) -> float:
    """Return g = fl32(sigma / sqrt(num_basis)), the factor on every coefficient."""
    return _core.gain(text("basis", basis), integer("num_basis", num_basis, 1, 1 << 32))


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the four 32-bit words of Philox4x32-10 at one counter (Salmon et al., SC'11)."""
    words = _core.philox(_words("counter", counter, 4), _words("key", key, 2))
    first, second, third, fourth = words
    return first, second, third, fourth


def _words(name: str, value: Any, count: int) -> list[int]:
    if not isinstance(value, tuple | list) or len(value) != count:
        raise wrong_type(name, value, f"{count} words of 32 bits")
    return [integer(name, word, 0, 1 << 32) for word in value]


def _as_float32(values: Any, name: str) -> NDArray[np.float32]:
    """Convert exactly to a contiguous, aligned float32 array; refuse what would be rounded."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # rows of different lengths, say
        raise ArgumentTypeError("is not an array of numbers", field=name) from None
    if not hasattr(values, "dtype") and array.dtype.kind in "fiu":  # Python's own numbers
        array = np.ascontiguousarray(array, dtype=np.float32)
    elif array.dtype.name not in _EXACT_IN_FLOAT32:
        raise ArgumentTypeError(
            f"must be float32, float16 or bfloat16, got {array.dtype.name}; convert it yourself if "
            "rounding is acceptable",
            field=name,
        )
    array = np.asarray(array, dtype=np.float32, order="C")
    return array if array.flags.aligned else array.copy()


def expand(
    coefficients: NDArray[Any] | Sequence[float],
    *,
    seed: int,
    stream: int,
    shape: tuple[int, int],
    basis: Basis = "rademacher",
    rows: Range | None = None,
    cols: Range | None = None,
    num_threads: int | None = None,
) -> NDArray[np.float32]:
    """Combine random matrices: ``g * sum_i coefficients[i] * basis_i`` (NOLA, equation 2).

    The basis is regenerated in registers and never stored.

    Parameters
    ----------
    coefficients : (k,) float32, float16 or bfloat16
        Coefficients of the basis matrices, k >= 1.
    seed : int
        The adapter's seed, ``0 <= seed < 2**63``.
    stream : int
        Which family of matrices, from :func:`stream_id`.
    shape : (int, int)
        Rows and columns of the whole matrix, at most ``2**34`` elements.
    basis : {"rademacher", "uniform"}
        Distribution of the basis elements.
    rows, cols : (start, stop), optional
        The slice to compute; nothing outside it is generated. Default: all.
    num_threads : int, optional
        Default: OpenMP's. At most four for each processor are used.

    Returns
    -------
    (stop - start of rows, stop - start of cols) float32

    Raises
    ------
    ArgumentTypeError
        If a dtype would need rounding, or an argument has the wrong type.
    ArgumentError
        If an argument is out of range; the message begins with the argument's name.
    """
    shape = pair("shape", shape)
    values = _as_float32(coefficients, "coefficients")
    if values.size == 0:
        raise ArgumentError("is empty", field="coefficients")
    source = _source(basis, seed, stream, values.size, shape)
    rows, cols = _window(shape, rows, cols)
    threads = threads_or_default(num_threads)
    inside = rows[0] <= rows[1] <= shape[0] and cols[0] <= cols[1] <= shape[1]
    work = (rows[1] - rows[0]) * (cols[1] - cols[0]) * values.size
    if not inside or work <= _AT_ONCE:
        return _core.expand((*source, rows, cols), values, threads)
    _core.expand((*source, (0, 0), (0, 0)), values, threads)  # checks the other arguments
    out = np.empty((rows[1] - rows[0], cols[1] - cols[0]), np.float32)
    for row_piece, col_piece in _pieces(rows, cols, values.size):
        at = out[row_piece[0] - rows[0] :, col_piece[0] - cols[0] :].ctypes.data
        _core.expand_at((*source, row_piece, col_piece), values.ctypes.data, at, threads)
    return out


def _source(
    basis: str, seed: int, stream: int, num_basis: int, shape: tuple[int, int]
) -> tuple[str, int, int, int, tuple[int, int]]:
    """Return what a matrix of the core is made of, but for its window."""
    return (
        text("basis", basis),
        integer("seed", seed, 0, 1 << 63),
        integer("stream", stream, 0, 1 << 64),
        num_basis,
        shape,
    )


def _window(shape: tuple[int, int], rows: Range | None, cols: Range | None) -> tuple[Range, Range]:
    """Return the rows and columns that are wanted, all of them by default."""
    return (
        (0, shape[0]) if rows is None else pair("rows", rows),
        (0, shape[1]) if cols is None else pair("cols", cols),
    )


def _pieces(rows: Range, cols: Range, num_basis: int) -> Iterator[tuple[Range, Range]]:
    """Yield slices, paced, that lie in one piece in the result: whole rows, or a part of one."""
    row_work = (cols[1] - cols[0]) * num_basis
    if row_work <= _AT_ONCE:
        for piece in paced(*rows, _AT_ONCE // row_work):
            yield piece, cols
        return
    for row in range(*rows):
        for piece in paced(*cols, _AT_ONCE // num_basis, _STRIPE):
            yield (row, row + 1), piece


def project(
    grad: NDArray[Any],
    *,
    seed: int,
    stream: int,
    num_basis: int,
    basis: Basis = "rademacher",
    shape: tuple[int, int] | None = None,
    rows: Range | None = None,
    cols: Range | None = None,
    num_threads: int | None = None,
) -> NDArray[np.float32]:
    """Project a gradient on the basis, the adjoint of :func:`expand`.

    Component i is ``g * sum_e grad[e] * basis_i[e]``. The order of summation depends only on the
    arguments: the same bits for any number of threads.

    Parameters
    ----------
    grad : (rows, cols) float32, float16 or bfloat16
        The gradient of the slice given by `rows` and `cols`.
    num_basis : int
        k, the number of basis matrices.
    shape : (int, int), optional
        The whole matrix; default: the shape of `grad`.
    seed, stream, basis, rows, cols, num_threads
        As for :func:`expand`.

    Returns
    -------
    (k,) float32

    Raises
    ------
    ArgumentError
        As for :func:`expand`.
    """
    values = _as_float32(grad, "grad")
    if shape is None:
        if values.ndim != 2:
            raise ArgumentError(f"must have 2 dimensions, got {values.ndim}", field="grad")
        shape = (values.shape[0], values.shape[1])
    shape = pair("shape", shape)
    source = _source(basis, seed, stream, integer("num_basis", num_basis, 1, 1 << 32), shape)
    matrix = (*source, *_window(shape, rows, cols))
    return _core.project(matrix, values, threads_or_default(num_threads))


def merge_(
    weight: NDArray[Any],
    lora_b: NDArray[np.float32],
    lora_a: NDArray[np.float32],
    scaling: float = 1.0,
    *,
    num_threads: int | None = None,
) -> None:
    """Merge in place: ``weight += scaling * lora_b @ lora_a``, in fp32 and rounded once.

    Parameters
    ----------
    weight : (out, in) float32, float16 or bfloat16 (``ml_dtypes``)
        Changed in place; writable, with contiguous rows. An unaligned array costs a copy.
    lora_b : (out, r) float32, C-contiguous
    lora_a : (r, in) float32, C-contiguous
    scaling : float
        s, rounded to float32.
    num_threads : int, optional
        Default: OpenMP's. At most four for each processor are used.

    Raises
    ------
    ArgumentError
        If an argument does not fit; nothing was changed, the message names the argument.
    NotFiniteError
        If a factor is infinite or NaN, and nothing was changed, or if a merged element is;
        `weight` then holds it.
    """
    _merge(weight, weight, lora_b, lora_a, scaling, num_threads)


def merged(
    weight: NDArray[Any],
    lora_b: NDArray[np.float32],
    lora_a: NDArray[np.float32],
    scaling: float = 1.0,
    *,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """Return ``weight + scaling * lora_b @ lora_a``, in fp32 and rounded once.

    The bits are the same as those of :func:`merge_` into a copy, but no copy is made: the weight is
    read once, possibly from a mapped file, and the result is written once.

    Parameters
    ----------
    weight : (out, in) float32, float16 or bfloat16 (``ml_dtypes``)
        Not changed; with contiguous rows. An unaligned array costs a copy.
    lora_b : (out, r) float32, C-contiguous
    lora_a : (r, in) float32, C-contiguous
    scaling : float
        s, rounded to float32.
    out : array, optional
        Array for the result: with the weight's shape and dtype, writable, with contiguous rows. It
        may be `weight` itself, but may not otherwise overlap it or a factor. Default: a new array.
    num_threads : int, optional
        Default: OpenMP's. At most four for each processor are used.

    Returns
    -------
    (out, in), of the weight's dtype
        `out`, if it was given.

    Raises
    ------
    ArgumentError
        If an argument does not fit; nothing was changed, the message names the argument.
    NotFiniteError
        If a factor is infinite or NaN, and nothing was changed, or if a merged element is; `out`
        then holds it.
    """
    if out is None:
        check_arrays(weight=weight)
        out = np.empty(weight.shape, weight.dtype)
    _merge(weight, out, lora_b, lora_a, scaling, num_threads)
    return out


def _merge(
    weight: NDArray[Any],
    out: NDArray[Any],
    lora_b: NDArray[np.float32],
    lora_a: NDArray[np.float32],
    scaling: float,
    num_threads: int | None,
) -> None:
    check_arrays(weight=weight, out=out, lora_b=lora_b, lora_a=lora_a)
    scaling = number("scaling", scaling)
    if _merge_rows(weight, out, lora_b, lora_a, scaling, threads_or_default(num_threads)):
        return
    for name, value in (("lora_b", lora_b), ("lora_a", lora_a), ("scaling", scaling)):
        if not np.isfinite(value).all():
            raise NotFiniteError("is infinite or NaN; the weight was not changed", field=name)
    raise NotFiniteError("a merged weight is infinite or NaN", field="weight")


def _merge_rows(
    weight: NDArray[Any],
    out: NDArray[Any],
    lora_b: NDArray[np.float32],
    lora_a: NDArray[np.float32],
    scaling: float,
    threads: int,
) -> bool:
    """Merge, much at a time row by row, paced; tell whether all that went in and came is finite."""
    work = weight.size * len(lora_a) if lora_a.ndim else 0
    if work <= _AT_ONCE or not _can_be_cut(weight, out, lora_b, lora_a):
        return _core.merge(weight, out, lora_b, lora_a, scaling, threads)
    if lora_b.dtype == np.float32 and not np.isfinite(lora_b).all():
        return False  # before a row was changed
    finite = True
    for start, stop in paced(0, len(weight), _AT_ONCE * len(weight) // work):
        rows = slice(start, stop)
        source = weight[rows]
        target = source if out is weight else out[rows]
        finite &= _core.merge(source, target, lora_b[rows], lora_a, scaling, threads)
    return finite


def _can_be_cut(
    weight: NDArray[Any], out: NDArray[Any], lora_b: NDArray[Any], lora_a: NDArray[Any]
) -> bool:
    """Tell whether nothing can be wrong with a merge that is not with one of some of its rows."""
    fits = weight.ndim == lora_a.ndim == 2 and lora_b.shape == (len(weight), len(lora_a))
    alike = out.shape == weight.shape and out.dtype == weight.dtype
    apart = not any(np.may_share_memory(out, factor) for factor in (lora_b, lora_a))
    apart &= out is weight or not np.may_share_memory(out, weight)
    return (
        fits
        and alike
        and apart
        and all(array.strides[0] >= array.shape[1] * array.itemsize for array in (weight, out))
    )


def scaled(values: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Return values multiplied by fl32(factor), in the specified floating-point environment.

    Parameters
    ----------
    values : float32
        Any shape.
    factor : float

    Returns
    -------
    float32, of the same shape, C-contiguous
    """
    result = np.array(values, dtype=np.float32, order="C")
    _core.scale_at(result.ctypes.data, result.size, factor)
    return result


def in_specified_environment(work: Callable[[], _T]) -> _T:
    """Call a function in the floating-point environment that the specification assumes.

    For numpy's arithmetic where its bits are promised: round to nearest even, no flush to zero.
    The kernels set it themselves.

    Parameters
    ----------
    work : callable
        Runs on this thread; the environment of other threads is not changed.
    """
    return _core.in_specified_environment(work)


def build_info() -> dict[str, Any]:
    """Describe this build and what it runs on.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``isas`` (compiled in), ``supported_isas`` (this processor),
        ``active_isa``, ``openmp`` (bool), ``cuda_compiler`` (None: built without CUDA),
        ``cuda_architectures`` (compute capabilities with machine code, times ten).

    Raises
    ------
    ArgumentError
        If ``NOLA_EDGE_ISA`` names an instruction set that is unknown or not available here.
    """
    cuda_compiler, cuda_architectures = None, []
    if find_spec("nola_edge._cuda") is not None:
        from nola_edge import _cuda

        cuda_compiler, cuda_architectures = _cuda.compiler, _cuda.architectures
    return {
        "version": _core.__version__,
        "compiler": _core.compiler,
        "isas": _core.compiled_isas(),
        "supported_isas": _core.supported_isas(),
        "active_isa": _core.active_isa(),
        "openmp": _core.openmp,
        "cuda_compiler": cuda_compiler,
        "cuda_architectures": cuda_architectures,
    }
