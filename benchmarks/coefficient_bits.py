"""Compare ways to store coefficients in few bits: bytes, and what each costs in loss.

    python examples/training/smollm2.py --data E2E_FOLDER --method "NOLA 1/4" --save unit
    python benchmarks/coefficient_bits.py --data E2E_FOLDER --adapter unit --out bits.jsonl
    python benchmarks/coefficient_bits.py --table bits.jsonl

Adapters of SmolLM2 are rounded after training, in every way and number of bits, and measured on 200
pairs of the validation part: the loss, and the Kullback-Leibler divergence of what the adapter says
from what it said before, for a token of the sentences. Rounding may lower the loss of an adapter
that has learned too much by heart; only the divergence tells how much it has changed. Every run
appends a line, and passes over what is there. Without `--data`, the errors of the coefficients
themselves are printed, which takes seconds.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from nola_edge import Adapter
from nola_edge.adapters.quantize import SIXTEENTHS, rounded

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "training"))

PATH = click.Path(path_type=Path)
Values = NDArray[np.float64]
#: Coefficients and bits -> what they become, and bytes.
Way = Callable[[Values, int], tuple[Values, int]]

#: Where the grid may end, as parts of the largest magnitude; and more of them.
ENDS = [end / 16 for end in SIXTEENTHS]
FINE_ENDS = [end / 100 for end in range(100, 19, -1)]
SCALE_BYTES, INDEX_BYTES, VALUE_BYTES = 4, 2, 4


def on_grid(values: Values, largest: float, bits: int) -> Values:
    """Round to a grid that ends at `largest`; what lies beyond becomes its end."""
    levels = 2 ** (bits - 1) - 1
    scale = largest / levels or 1.0
    return scale * np.clip(np.rint(values / scale), -levels, levels)


def size(values: Values, bits: int) -> int:
    return -(-len(values) * bits // 8) + SCALE_BYTES


def one_scale(values: Values, bits: int) -> tuple[Values, int]:
    """The grid ends at the largest coefficient."""
    return on_grid(values, abs(values).max(initial=0), bits), size(values, bits)


def least_squares(values: Values, bits: int, ends: Sequence[float] = ENDS) -> tuple[Values, int]:
    """The grid ends where squared errors are least, of several parts of the largest magnitude."""
    tried = [on_grid(values, end * abs(values).max(initial=0), bits) for end in ends]
    return min(tried, key=lambda got: ((got - values) ** 2).sum()), size(values, bits)


def clipped(values: Values, bits: int) -> tuple[Values, int]:
    """The grid ends at a quantile."""
    ordered = np.sort(abs(values))[::-1]
    end = ordered[len(values) // {3: 24, 4: 64}.get(bits, len(values) + 1)]
    return on_grid(values, end, bits), size(values, bits)


def normal_code(values: Values, bits: int) -> tuple[Values, int]:
    """Levels that suit normal numbers best (Lloyd, Max), times the root of the mean square."""
    rms = np.sqrt((values**2).mean()) or 1.0
    code = lloyd_max(bits)
    return rms * code[abs(values[:, None] / rms - code).argmin(1)], size(values, bits)


@functools.cache
def lloyd_max(bits: int) -> Values:
    points = np.random.default_rng(0).standard_normal(100_000)
    code = np.quantile(points, (np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(100):
        nearest = np.searchsorted((code[1:] + code[:-1]) / 2, points)
        code = np.array([points[nearest == i].mean() for i in range(len(code))])
    return code


def in_groups(values: Values, bits: int, group: int, way: Way = one_scale) -> tuple[Values, int]:
    """A scale for every few coefficients."""
    parts = [way(values[i : i + group], bits) for i in range(0, len(values), group)]
    return np.concatenate([got for got, _ in parts]), sum(count for _, count in parts)


def largest_apart(values: Values, bits: int, count: int, way: Way) -> tuple[Values, int]:
    """The few largest exact, each with its index."""
    apart = np.argsort(-abs(values), kind="stable")[:count]
    rest = np.delete(values, apart)
    got, nbytes = values.copy(), way(rest, bits)[1]
    got[np.setdiff1d(np.arange(len(values)), apart)] = way(rest, bits)[0]
    return got, nbytes + count * (INDEX_BYTES + VALUE_BYTES)


def first_apart(way: Way, alpha: Values, beta: Values, bits: int) -> tuple[Values, Values, int]:
    """The first of alpha exact, the others of alpha and beta in some way."""
    (rest, a), (beta, b) = way(alpha[1:], bits), way(beta, bits)
    return np.concatenate([alpha[:1], rest]), beta, a + b + VALUE_BYTES


def all_alike(way: Way, alpha: Values, beta: Values, bits: int) -> tuple[Values, Values, int]:
    (alpha, a), (beta, b) = way(alpha, bits), way(beta, bits)
    return alpha, beta, a + b


def ours(alpha: Values, beta: Values, bits: int) -> tuple[Values, Values, int]:
    """First apart, least squares, as the package does it."""
    a = rounded(alpha.astype(np.float32), bits, exact_first=True)
    b = rounded(beta.astype(np.float32), bits)
    nbytes = size(alpha, bits) + VALUE_BYTES + size(beta, bits)
    return a.astype(np.float64), b.astype(np.float64), nbytes


bind = functools.partial
WAYS: dict[str, Callable[[Values, Values, int], tuple[Values, Values, int]]] = {
    "one scale: before": bind(all_alike, one_scale),
    "first of alpha apart": bind(first_apart, one_scale),
    "first apart, least squares: ours": ours,
    "first apart, least squares of 81 ends": bind(first_apart, bind(least_squares, ends=FINE_ENDS)),
    "first apart, cut off at a quantile": bind(first_apart, clipped),
    "first apart, normal code": bind(first_apart, normal_code),
    "first apart, a scale for 32": bind(first_apart, bind(in_groups, group=32)),
    "least squares": bind(all_alike, least_squares),
    "a scale for 32": bind(all_alike, bind(in_groups, group=32)),
    "a scale for 16": bind(all_alike, bind(in_groups, group=16)),
    "the largest apart": bind(all_alike, bind(largest_apart, count=1, way=one_scale)),
    "the largest apart, least squares": bind(
        all_alike, bind(largest_apart, count=1, way=least_squares)
    ),
    "the four largest apart": bind(all_alike, bind(largest_apart, count=4, way=one_scale)),
}


def relative_error(before: list[Values], after: list[Values]) -> float:
    old, new = np.concatenate(before), np.concatenate(after)
    return float(np.linalg.norm(new - old) / np.linalg.norm(old))


class Judge:
    """SmolLM2 with an adapter, whose coefficients are exchanged."""

    def __init__(self, data: Path, cache: Path, adapter: Path) -> None:
        import peft

        from measure.real_model import HeldOut, real_model

        base, tokenizer = real_model(cache)
        model = peft.PeftModel.from_pretrained(base, adapter)
        self.layers = [m for m in model.modules() if hasattr(m, "nola_alpha")]
        self.before = [tuple(self._values(layer)) for layer in self.layers]
        self.held_out = HeldOut(model.get_base_model().eval(), tokenizer, data, 200, batch=16)
        self.held_out.loss_and_divergence()  # what the others are compared with

    def _values(self, layer: Any) -> Iterator[Values]:
        for held in (layer.nola_alpha, layer.nola_beta):
            yield held["default"].detach().double().numpy()

    def measure(self, way: Any, bits: int) -> dict[str, float]:
        """Return bytes, errors, loss and divergence of a way."""
        after = [way(*pair, bits) for pair in self.before]
        with torch.no_grad():
            for layer, (alpha, beta, _) in zip(self.layers, after, strict=True):
                layer.nola_alpha["default"].copy_(torch.from_numpy(alpha))
                layer.nola_beta["default"].copy_(torch.from_numpy(beta))
        errors = [
            relative_error([pair[i] for pair in self.before], [got[i] for got in after])
            for i in (0, 1)
        ]
        nbytes = sum(count for *_, count in after)
        loss, divergence = self.held_out.loss_and_divergence()
        return {
            "bytes": nbytes,
            "alpha": errors[0],
            "beta": errors[1],
            "loss": loss,
            "divergence": divergence,
        }


def unquantised(alpha: Values, beta: Values, bits: int) -> tuple[Values, Values, int]:
    return alpha, beta, (len(alpha) + len(beta)) * bits // 8


def print_errors(adapter: Path, bits: tuple[int, ...]) -> None:
    """Print bytes and errors of every way, with no model."""
    modules = Adapter.load(adapter).modules.values()
    before = [(c.alpha.astype(np.float64), c.beta.astype(np.float64)) for c in modules]
    for number in bits:
        for name, way in WAYS.items():
            after = [way(*pair, number) for pair in before]
            errors = [relative_error([p[i] for p in before], [a[i] for a in after]) for i in (0, 1)]
            click.echo(
                f"{adapter.name}, {number} bits, {sum(a[2] for a in after):,} bytes, "
                f"alpha {errors[0]:.1%}, beta {errors[1]:.1%}: {name}"
            )


def record(case: dict[str, Any], judge: Callable[[], Judge], way: Any, out: Path) -> None:
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if any(case.items() <= found.items() for found in done):
        return
    line = json.dumps({**case, **judge().measure(way, case["bits"])})
    with out.open("a") as file:
        file.write(line + "\n")
    click.echo(line)


def table(records: list[dict[str, Any]]) -> str:
    """Return Markdown: a row for each way and number of bits, two columns for each adapter."""
    found = {(r["adapter"], r["way"], r["bits"]): r for r in records}
    adapters = list(dict.fromkeys(r["adapter"] for r in records))
    titles = " | ".join(f"{name}: error of α, β | loss | divergence" for name in adapters)
    lines = [f"| | bits | bytes | {titles} |", "|---|---|---|" + "---|---|---|" * len(adapters)]
    for way, bits in dict.fromkeys((r["way"], r["bits"]) for r in records):
        cells = [f"{next(r['bytes'] for r in records if r['way'] == way and r['bits'] == bits):,}"]
        for adapter in adapters:
            got = found.get((adapter, way, bits))
            if got is None:
                cells += ["", "", ""]
                continue
            change = got["loss"] - found[adapter, "unquantised", 32]["loss"]
            cells.append(f"{got['alpha']:.1%}, {got['beta']:.1%}")
            cells.append(f"{got['loss']:.4f}" if bits == 32 else f"{change:+.4f}")
            cells.append(f"{got['divergence']:.4f}")
        lines.append(f"| {way} | {bits} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--data", type=PATH, help="Folder of the E2E files.  [default: no model]")
@click.option("--cache", default="smollm2-cache", type=PATH, show_default=True)
@click.option("--adapter", "adapters", type=PATH, multiple=True, help="Repeatable.")
@click.option("--bits", multiple=True, type=int, default=(4, 3), show_default=True)
@click.option("--way", "names", multiple=True, type=click.Choice(list(WAYS)))
@click.option("--out", type=PATH, help="Lines of JSON, appended to.")
@click.option("--table", "results", type=PATH, help="Show these lines as a table, and do no more.")
def main(
    data: Path, cache: Path, adapters: tuple[Path, ...], bits: tuple[int, ...],
    names: tuple[str, ...], out: Path, results: Path | None,
) -> None:  # fmt: skip
    """Round adapters in every way and measure."""
    if results is not None:
        click.echo(table([json.loads(line) for line in results.read_text().splitlines()]))
        return
    for adapter in adapters:
        if data is None:
            print_errors(adapter, bits)
            continue
        judge = functools.cache(functools.partial(Judge, data, cache, adapter))
        case = {"adapter": adapter.name, "way": "unquantised", "bits": 32}
        record(case, judge, unquantised, out)
        for number in bits:
            for name in names or WAYS:
                case = {"adapter": adapter.name, "way": name, "bits": number}
                record(case, judge, WAYS[name], out)


if __name__ == "__main__":
    main()
