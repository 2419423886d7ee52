# SPDX-License-Identifier: Apache-2.0
"""The rows of `layers` as a table, as geometric means over the grid, and as a plot."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Row = dict[str, Any]
OURS = "seqjax Auto()"
PASSES = ("forward", "step")
GROUP = ("threads", "dtype", "kind")
FIRST_FORMS = ("tanh", "plain", "after")


def label(row: Mapping) -> str:
    """The system, with the form of its equations where it is not the usual one."""
    return row["system"] if row["form"] in FIRST_FORMS else f"{row['system']} [{row['form']}]"


def entry(row: Mapping) -> str:
    """Sizes as `--entries` takes them."""
    text = f"{row['B']}x{row['T']}x{row['H']}"
    return text if row["D"] == row["H"] else f"{text}x{row['D']}"


def groups(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows that have the same values, in their order."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def best(rows: Iterable[Row], which: str, *, on_jax: bool) -> Row | None:
    """The fastest peer on one entry, by its ratio to the seqjax layer with the same equations.

    >>> rows = [{"system": name, "on_jax": True, "step_speedup": {"median": m}} for name, m in (("a", 2.0), ("b", 1.5))]
    >>> best(rows, "step", on_jax=True)["system"]
    'b'
    """
    peers = [row for row in rows if not row["system"].startswith("seqjax") and f"{which}_speedup" in row]
    peers = [row for row in peers if row["on_jax"] or not on_jax]
    return min(peers, key=lambda row: row[f"{which}_speedup"]["median"], default=None)


def summary(rows: Iterable[Row]) -> list[Row]:
    """For each kind of cell and pass: how many times faster `Auto()` is than the best peer on each entry.

    Geometric means over the grid, the least, and where that is; of compilation and memory against flax, the worst.
    """
    found = []
    for key, group in groups(rows, *GROUP).items():
        labels = dict(zip(GROUP, key, strict=True))
        for which in PASSES:
            for scope, on_jax in (("JAX peer", True), ("peer", False)):
                fastest = {name: best(some, which, on_jax=on_jax) for name, some in _entries(group).items()}
                ratios = {name: row[f"{which}_speedup"]["median"] for name, row in fastest.items() if row is not None}
                if ratios:
                    worst = min(ratios, key=ratios.__getitem__)
                    found.append({
                        **labels, "summary": f"{which}, speed over the best {scope}",
                        "geometric_mean": float(np.exp(np.mean(np.log(list(ratios.values()))))),
                        "least": ratios[worst], "least_at": worst, "entries": len(ratios),
                    })  # fmt: skip
        for field, what in (("compile_seconds", "time to compile a step"), ("temporary_bytes", "memory of a step")):
            shares = {f"{name} over {peer}": share for name, peer, share in _shares(group, field)}
            if shares:
                worst = max(shares, key=shares.__getitem__)
                found.append({
                    **labels, "summary": f"{what}, over flax",
                    "geometric_mean": float(np.exp(np.mean(np.log(list(shares.values()))))),
                    "most": shares[worst], "most_at": worst, "entries": len(_entries(group)),
                })  # fmt: skip
    return found


def sentence(row: Row) -> str:
    """A row of `summary` in words."""
    extreme = "least" if "least" in row else "most"
    return (
        f"{row['threads']} thread(s), {row['dtype']}, {row['kind']}: {row['summary']}: {row['geometric_mean']:.2f} "
        f"(geometric mean of {row['entries']} entries), {extreme} {row[extreme]:.2f} at {row[f'{extreme}_at']}"
    )


def table(rows: Iterable[Row]) -> None:
    """Prints milliseconds, compilation and memory of every system, and the ratios to the best peers."""
    for (threads, dtype, kind), group in groups(rows, *GROUP).items():
        columns = _entries(group)
        print(f"\n{kind}, {dtype}, {threads} thread(s): forward / training step in ms (share of the roofline, %)")
        _line("", columns)
        for name in dict.fromkeys(map(label, group)):
            _line(name, [_times(row) for row in _of(name, columns)])
        for which in PASSES:
            for scope, on_jax in (("best JAX peer", True), ("best peer", False)):
                found = [best(some, which, on_jax=on_jax) for some in columns.values()]
                _line(f"{which}: x {scope}", [_ratio(row, which) for row in found])
                _line("", ["" if row is None else label(row) for row in found])
        print("training step: seconds to compile / MiB of temporaries")
        for name in dict.fromkeys(map(label, group)):
            _line(name, [_compiled(row) for row in _of(name, columns)])


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """How many times as long as `Auto()` every system takes, on every entry."""
    import matplotlib.pyplot as plt

    lines = [(key, which) for key in groups(rows, "threads", "dtype") for which in PASSES]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))  # of one colour in all panels
    shape = (len(lines), len(kinds))
    figure, axes = plt.subplots(*shape, figsize=(6.5 * shape[1], 3.6 * shape[0]), squeeze=False, layout="constrained")
    for line, ((threads, dtype), which) in zip(axes, lines, strict=True):
        for axis, kind in zip(line, kinds, strict=True):
            chosen = [r for r in rows if (r["threads"], r["dtype"], r["kind"]) == (threads, dtype, kind)]
            names = list(_entries(chosen))
            for system in dict.fromkeys(map(label, chosen)):
                points = [row for row in chosen if label(row) == system and f"{which}_speedup" in row]
                if not points or system.startswith(f"{OURS} ["):  # the peers' other equations: 1 as well
                    continue
                number = systems.index(points[0]["system"])
                at = [names.index(entry(row)) + 0.07 * (number - len(systems) / 2) for row in points]
                ratios = [row[f"{which}_speedup"] for row in points]
                bars = [[r["median"] - r["low"] for r in ratios], [r["high"] - r["median"] for r in ratios]]
                marker = "_" if system.startswith("seqjax") else "o"
                heights = [r["median"] for r in ratios]
                size = 4 if marker == "o" else 9
                axis.errorbar(at, heights, bars, fmt=marker, color=f"C{number}", ms=size, label=system, lw=0.8)
            axis.axhline(1, color="black", linewidth=0.6)
            axis.set_yscale("log")
            axis.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=8)
            axis.set_title(f"{kind}, {which}, {dtype}, {threads} thread(s)", fontsize=10)
            axis.set_ylabel("time over that of Auto()", fontsize=8)
            axis.grid(alpha=0.3, which="both")
            if axis in (line[0], line[-1]) or len(kinds) < 3:
                axis.legend(fontsize=6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _entries(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(entry(row), []).append(row)
    return found


def _shares(rows: Iterable[Row], field: str) -> Iterable[tuple[str, str, float]]:
    """`Auto()`'s value over that of either flax, on each entry."""
    for name, some in _entries(rows).items():
        values = {row["system"]: row[field] for row in some if row.get(field) and row["form"] in FIRST_FORMS}
        for peer in ("flax linen", "flax nnx"):
            if peer in values and OURS in values:
                yield name, peer, values[OURS] / values[peer]


def _of(name: str, columns: Mapping[str, list[Row]]) -> list[Row | None]:
    return [next((row for row in some if label(row) == name), None) for some in columns.values()]


def _line(name: str, cells: Iterable[str]) -> None:
    print(f"{name:37}" + "".join(f"{cell:>24}" for cell in cells))


def _times(row: Row | None) -> str:
    if row is None or not row["agrees"]:
        return "-" if row is None else "does not agree"
    shares = " / ".join(f"{100 * row[f'{which}_roofline']:.0f}" for which in PASSES)
    return " / ".join(f"{1e3 * row[f'{which}_seconds']:.3g}" for which in PASSES) + f" ({shares})"


def _ratio(row: Row | None, which: str) -> str:
    if row is None:
        return "-"
    return "{median:.2f} [{low:.2f}, {high:.2f}]".format(**row[f"{which}_speedup"])


def _compiled(row: Row | None) -> str:
    if row is None or row.get("compile_seconds") is None:
        return "-"
    return f"{row['compile_seconds']:.2f} / {row['temporary_bytes'] / 2**20:.2f}"
