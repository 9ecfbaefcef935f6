"""Load, create, validate and save adapters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge import arguments, ops
from nola_edge.adapters.base import LowRankAdapter, with_rslora_mistaken
from nola_edge.adapters.expected import together
from nola_edge.adapters.fingerprints import (
    basis_fingerprint,
    modules_fingerprint,
    shapes_fingerprint,
)
from nola_edge.adapters.hub import adapter_path
from nola_edge.adapters.nola_checks import check_contents, check_fingerprints, still_true
from nola_edge.adapters.nola_config import PEFT_TYPE, AdapterConfig
from nola_edge.adapters.nola_files import Coefficients, load_folder, named_tensors
from nola_edge.adapters.packed import Contents, load_packed, packed_obstacle, write_packed
from nola_edge.adapters.peft_folder import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    adapter_obstacle,
    write_config,
    write_tensors,
)
from nola_edge.adapters.quantize import check_bits, rounded
from nola_edge.adapters.start import check_shape, target_names, unit_start
from nola_edge.adapters.tensor_parts import check_owners
from nola_edge.adapters.whole_tensors import check_saved_modules
from nola_edge.errors import AdapterError, printable
from nola_edge.files.hub import base_path
from nola_edge.files.input_file import opening
from nola_edge.files.strict_json import MAX_CONFIG_BYTES
from nola_edge.files.tensors import TensorMapping

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from numpy.typing import NDArray

    from nola_edge.adapters.base import Factor
    from nola_edge.adapters.expected import ExpectedResult
    from nola_edge.adapters.tensor_parts import TensorPart
    from nola_edge.files.tensors import Tensor


class Adapter(LowRankAdapter):
    """A NOLA adapter: configuration, coefficients per module, and whole tensors.

    Attributes
    ----------
    config : AdapterConfig
    modules : dict
        Module name -> :class:`Coefficients`, in the order of the file.
    whole_tensors : TensorMapping
        Tensor name -> array, for ``modules_to_save`` and biases; those of a file are read only when
        they are accessed.
    path : Path or None
        Where it was loaded from.
    expected : tuple of ExpectedResult
        What merging it must give, for each base that its publisher named; a packed file alone has
        them. They are of this adapter: what :meth:`replace` and :meth:`quantize` return has none.
    """

    modules: dict[str, Coefficients]

    def __init__(
        self,
        config: AdapterConfig,
        modules: Mapping[str, Coefficients],
        whole_tensors: Mapping[str, NDArray[Any] | Tensor] | None = None,
        *,
        path: Path | None = None,
        expected: Iterable[ExpectedResult] = (),
    ) -> None:
        self.config = still_true(config, modules)
        self.modules = dict(modules)
        self.whole_tensors = TensorMapping(whole_tensors or {})
        self.path = path
        self.expected = tuple(expected)
        check_contents(self.config, self.modules, path)
        check_owners(self.config.tensors, self.modules, self.whole_tensors, path)

    def __repr__(self) -> str:
        config = self.config
        where = "in memory" if self.path is None else printable(self.path)
        bits = "" if config.coefficient_bits is None else f" of {config.coefficient_bits} bits"
        whole = len(self.whole_tensors)
        parts = [
            f"NOLA rank {config.r}",
            f"{config.num_basis_a} + {config.num_basis_b} coefficients{bits}",
            f"{len(self.modules)} module{'s' * (len(self.modules) != 1)}",
            *[f"{whole} whole tensor{'s' * (whole != 1)}"] * (whole > 0),
            f"seed {config.seed}",
        ]
        return f"<Adapter {where}: {', '.join(parts)}>"

    @property
    def scaling(self) -> float:
        """Return s, in double."""
        return self.config.scaling

    @property
    def method(self) -> str:
        """Return ``"NOLA"``."""
        return "NOLA"

    def rank(self, module: str) -> int:
        """Return r, the same for every module."""
        self.find(module)
        return self.config.r

    def scaling_of(self, module: str) -> float:
        """Return s, the same for every module, in double."""
        self.find(module)
        return self.config.scaling

    def mistaken_scaling(self, module: str) -> float:
        """Return s of a module where rsLoRA is mistaken, in double."""
        scaling, used = self.scaling_of(module), self.config.use_rslora
        return with_rslora_mistaken(scaling, self.rank(module), used)

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether target weights are stored as (in, out), as GPT-2's Conv1D does."""
        return self.config.fan_in_fan_out

    @property
    def base_fingerprint(self) -> str | None:
        """Return the fingerprint of the base that it was trained on, if it records one."""
        return self.config.base_fingerprint

    @property
    def shapes_fingerprint(self) -> str | None:
        """Return the fingerprint of its modules' shapes, if it records one."""
        return self.config.shapes_fingerprint

    @property
    def tensors(self) -> Mapping[str, TensorPart]:
        """Return which stored tensors its modules are, if their own names do not say so."""
        return self.config.tensors

    @property
    def bias(self) -> str:
        """Return ``"none"``, or which biases were trained."""
        return self.config.bias

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """Return the modules whose tensors it stores whole."""
        return self.config.modules_to_save

    @property
    def bookkeeping(self) -> dict[str, Any]:
        """Return fields that say how it was trained or found."""
        return self.config.bookkeeping

    def origin(self, module: str, factor: Factor) -> Hashable:
        """Return the coefficients, with what names their basis."""
        found = self.find(module)
        coefficients = found.alpha if factor == "A" else found.beta
        config = self.config
        return config.basis, config.seed, config.r, module, factor, coefficients.tobytes()

    def work(self, factor: Factor) -> int:
        """Return the coefficients of a factor: each is a multiply-add for every element."""
        return self.config.num_basis_a if factor == "A" else self.config.num_basis_b

    @property
    def held_bytes(self) -> int:
        """Return the bytes that it holds in memory."""
        return 4 * self.num_coefficients + super().held_bytes

    @property
    def num_coefficients(self) -> int:
        """Return how many numbers were trained, not counting whole tensors."""
        return sum(c.alpha.size + c.beta.size for c in self.modules.values())

    @classmethod
    def load(cls, path: str | Path, *, revision: str | None = None) -> Adapter:
        """Load an adapter folder or a packed file, or download a folder by its Hub id.

        Only JSON and safetensors are read, never pickle.

        Parameters
        ----------
        path : path or str
            ``owner/name``, or ``owner/name@revision``, is looked up on the Hub only if nothing
            called ``owner`` exists locally and ``HF_HUB_OFFLINE`` is not set; a log message says
            so.
        revision : str, optional
            On the Hub.

        Raises
        ------
        NolaEdgeError
            If a file is missing, broken or cannot be read, a field or a tensor is not understood,
            counts disagree, or a coefficient is not finite.
        """
        folder = adapter_path(path, revision)
        packed = folder.is_file()
        with opening(folder):
            found = load_packed(folder) if packed else Contents(*load_folder(folder))
        config, modules, whole, expected = found
        check_saved_modules(whole, config, folder if packed else folder / CONFIG_NAME)
        if modules:
            check_fingerprints(config, modules, folder if packed else folder / CONFIG_NAME)
        try:
            return cls(config, modules, whole, path=folder, expected=expected)
        except AdapterError as error:
            error.file = folder if packed else folder / WEIGHTS_NAME
            raise

    @classmethod
    def create(
        cls,
        modules: Mapping[str, tuple[int, int]],
        *,
        r: int,
        num_basis_a: int,
        num_basis_b: int,
        seed: int,
        lora_alpha: float,
        basis: str = "rademacher",
        use_rslora: bool = False,
        beta_unit: float = 1.0,
        fan_in_fan_out: bool = False,
        base: str | Path | None = None,
    ) -> Adapter:
        """Create a fresh adapter, which changes nothing: alpha is a scaled unit vector, beta zero.

        Parameters
        ----------
        modules : mapping
            Module name -> (out_features, in_features).
        r, num_basis_a, num_basis_b, seed, lora_alpha, basis, use_rslora, beta_unit, fan_in_fan_out
            See :class:`AdapterConfig`.
        base : path or str, optional
            A checkpoint, or its Hub id, whose fingerprint is recorded.

        Raises
        ------
        AdapterError
            If a field is out of range.
        MismatchError
            If `base` lacks a module, or has it with another shape.
        """
        for module, shape in modules.items():
            check_shape(module, shape)
        config = AdapterConfig(
            r=r,
            num_basis_a=num_basis_a,
            num_basis_b=num_basis_b,
            seed=seed,
            lora_alpha=lora_alpha,
            basis=basis,
            use_rslora=use_rslora,
            beta_unit=beta_unit,
            fan_in_fan_out=fan_in_fan_out,
            modules_fingerprint=modules_fingerprint(modules),
            shapes_fingerprint=shapes_fingerprint(modules),
            bookkeeping={"target_modules": target_names(modules)},
        )
        fresh: dict[str, Coefficients] = {}
        for module, (_, in_features) in modules.items():
            alpha = unit_start(num_basis_a, in_features)
            fresh[module] = Coefficients(alpha, np.zeros(num_basis_b, np.float32))
        adapter = cls(config, fresh)
        if base is not None:
            from nola_edge.adapters.belongs import fingerprint_of_base

            found = fingerprint_of_base(adapter, base_path(base))
            adapter = cls(dataclasses.replace(config, base_fingerprint=found), fresh)
        return adapter

    def replace(
        self, modules: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    ) -> Adapter:
        """Return an adapter with other coefficients, (alpha, beta) for each module given.

        Raises
        ------
        AdapterError
            If a count differs from the configuration's, or there is no such module.
        NotFiniteError
            If a coefficient is infinite or NaN.
        """
        unknown = [name for name in modules if name not in self.modules]
        if unknown:
            raise AdapterError("is not a module of the adapter", file=self.path, field=unknown[0])
        new = {name: Coefficients(alpha, beta) for name, (alpha, beta) in modules.items()}
        return Adapter(self.config, {**self.modules, **new}, self.whole_tensors)

    def factors(
        self,
        module: str,
        out_features: int,
        in_features: int,
        num_threads: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Expand the two factors of a module (docs/basis-v1.md).

        Parameters
        ----------
        module : str
            The adapter's own name for it.
        out_features, in_features : int
        num_threads : int, optional

        Returns
        -------
        A : (r, in_features) float32
        B : (out_features, r) float32

        Raises
        ------
        UnknownModuleError
            If the adapter has no such module; it is a KeyError too.
        """
        return (
            self.factor_a(module, in_features, num_threads=num_threads),
            self.factor_b(module, out_features, num_threads=num_threads),
        )

    def factor_a(
        self,
        module: str,
        in_features: int,
        cols: ops.Range | None = None,
        num_threads: int | None = None,
        *,
        rows: ops.Range | None = None,
    ) -> NDArray[np.float32]:
        """Expand A, or the columns, or rows, (start, stop) of it: float32."""
        shape = (self.config.r, in_features)
        alpha = self.find(module).alpha
        return self._expand(
            alpha, module, "A", shape, rows=rows, cols=cols, num_threads=num_threads
        )

    def factor_b(
        self,
        module: str,
        out_features: int,
        rows: ops.Range | None = None,
        num_threads: int | None = None,
        *,
        cols: ops.Range | None = None,
    ) -> NDArray[np.float32]:
        """Expand B, or the rows, or columns, (start, stop) of it: float32."""
        shape = (out_features, self.config.r)
        beta = self.find(module).beta
        return self._expand(beta, module, "B", shape, rows=rows, cols=cols, num_threads=num_threads)

    def _expand(
        self,
        coefficients: NDArray[np.float32],
        module: str,
        factor: Factor,
        shape: tuple[int, int],
        **options: Any,
    ) -> NDArray[np.float32]:
        basis: Any = self.config.basis
        stream = ops.stream_id(module, factor)
        return ops.expand(
            coefficients, seed=self.config.seed, stream=stream, shape=shape, basis=basis, **options
        )

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the adapter as a PEFT folder, with fingerprints of its basis and modules.

        Results that it expects are left out: a folder has no place for them.

        Parameters
        ----------
        path : path
            Absent or complete at every instant.
        force : bool
            Replace an existing folder.

        Raises
        ------
        OutputError
        """
        from nola_edge.files.atomic import AtomicOutput

        path = arguments.path("path", path)
        config = self._fingerprinted()
        tensors = named_tensors(config, self.modules, self.whole_tensors.tensors)
        with AtomicOutput(
            path,
            inputs=self._inputs(path, force),
            force=force,
            directory=True,
            replaces=adapter_obstacle(PEFT_TYPE),
        ) as out:
            with out.file(WEIGHTS_NAME) as weights:
                write_tensors(weights, tensors)
            with out.file(CONFIG_NAME) as file:
                write_config(file, config.to_json(), MAX_CONFIG_BYTES)

    def _inputs(self, path: str | Path, force: bool) -> list[Path]:
        """Return what may not be written to; with `force` the adapter may replace itself."""
        if self.path is None or (force and Path(path).resolve() == self.path.resolve()):
            return []
        return [self.path]

    def pack(
        self, path: str | Path, *, force: bool = False, expect: Iterable[ExpectedResult] = ()
    ) -> None:
        """Write the adapter as one file, for shipping (docs/adapter-format.md, *Packed*).

        Parameters
        ----------
        path : path
            Absent or complete at every instant.
        force : bool
            Replace an existing file.
        expect : iterable of ExpectedResult
            What merging it must give: :func:`nola_edge.expect_checkpoint` and
            :func:`nola_edge.gguf.expect_gguf` find that. Gone through once it is known that the
            file can be written. The adapter's own `expected` are kept, but for those of the same
            names.

        Raises
        ------
        OutputError
            If the file cannot be written.
        AdapterError
            If a result has no name of its own.
        ArgumentTypeError
            If something in `expect` is no such result.
        """
        from nola_edge.files.atomic import AtomicOutput

        path = arguments.path("path", path)
        with AtomicOutput(
            path,
            inputs=self._inputs(path, force),
            force=force,
            directory=False,
            replaces=packed_obstacle,
        ) as out:
            config, whole = self._fingerprinted(), self.whole_tensors.tensors
            expected = together(self.expected, expect)
            with out.file() as file:
                write_packed(file, config, self.modules, whole, expected)

    def quantize(self, bits: int) -> Adapter:
        """Return the adapter with coefficients rounded to few bits, to be stored that way.

        The first of every alpha stays exact.

        Parameters
        ----------
        bits : {3, 4, 8}

        Raises
        ------
        ArgumentError
            If `bits` is not supported.
        """
        config = dataclasses.replace(
            self.config, coefficient_bits=check_bits(bits), exact_first_alpha=True
        )
        modules = {
            name: Coefficients(rounded(c.alpha, bits, exact_first=True), rounded(c.beta, bits))
            for name, c in self.modules.items()
        }
        return Adapter(config, modules, self.whole_tensors, path=self.path)

    def _fingerprinted(self) -> AdapterConfig:
        return dataclasses.replace(
            self.config,
            basis_fingerprint=basis_fingerprint(self.config.seed),
            modules_fingerprint=modules_fingerprint(self.modules),
        )
