# SPDX-License-Identifier: Apache-2.0
"""One HTML file that holds all: findings, pictures and numbers, nothing loaded from elsewhere."""

import base64
import html
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.diagnose import plots
from experiments.diagnose.finding import Finding
from experiments.diagnose.measure import Numbers
from experiments.diagnose.subject import Subject

LABELS = {"problem": "Problem", "note": "Note", "good": "Good"}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { margin: .3rem 0 .8rem; } .dim { color: #666; } img { max-width: 100%; }
code { background: #f4f4f4; padding: 0 .25em; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid #ccc; } td { border-bottom: 1px solid #eee; }
.level { border-radius: 3px; padding: 0 .4em; color: #fff; font-size: .85em; white-space: nowrap; }
.problem { background: #b03a00; } .note { background: #00639b; } .good { background: #00785a; }
"""


def page(subject: Subject, numbers: Numbers, found: Sequence[Finding]) -> str:
    """The report as HTML."""
    padded = "; shorter ones are shifted so that all end at the same step" * (subject.seen.batch.mask is not None)
    backward = any(" backward " in layer.name for layer in numbers.layers)
    mirrored = "; the first step of a backward layer is the last one of a sequence" * backward
    ids = np.issubdtype(np.asarray(subject.seen.batch.xs).dtype, np.integer)
    how = "exact" if numbers.exact else "estimated from random projections"
    sections = [_section(
        "Gradient flow",
        "Norm of the loss's gradient in the state of every recurrent layer (of an LSTM, h and c together), over all "
        f"sequences{padded}{mirrored}. The loss is {subject.seen.objective}.",
        plots.flow(numbers.layers),
    )]  # fmt: skip
    if numbers.profile is not None:
        sections.append(_section(
            "Memory horizon",
            f"How much the last output moves with {'the vector of an id' if ids else 'an input'} of so many steps "
            f"before ({how}, root mean square over sequences).",
            plots.memory(numbers),
        ))  # fmt: skip
    if any(layer.gates for layer in numbers.layers):
        sections.append(_section(
            "Saturation",
            "How much of the time gates and activations are within 0.05 of a bound, or a relu is off.",
            plots.saturation(numbers.layers),
        ))  # fmt: skip
    sections.append(_section(
        "Jacobians of single steps",
        "Largest singular value and spectral radius, median over sequences: how much a step stretches.",
        plots.jacobians(numbers.layers),
    ))  # fmt: skip
    sections.append(_section(
        "Lyapunov exponents",
        "The rate at which a small difference of states grows (above 0) or is forgotten (below 0), in nats a step: "
        "the largest exponent of every sequence, their mean and the sample standard deviation.",
        plots.exponents(numbers.layers),
    ))  # fmt: skip
    if numbers.clipping is not None:
        sections.append(_section(
            "Clipping in training",
            f"{numbers.clipping.clip_fraction:.1%} of the steps were clipped, {numbers.clipping.skip_count} skipped. "
            "The norm is that of logged steps.",
            plots.clipping(numbers.clipping),
        ))  # fmt: skip
    title = html.escape(f"Diagnosis: {subject.name}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p class="dim">after {subject.step:,} training steps, on {html.escape(subject.seen.inputs)}</p>\n'
        f"<p><code>{html.escape(repr(subject.model))}</code></p>\n"
        f"{_findings(found)}\n{''.join(sections)}</body>\n</html>\n"
    )


def check(path: pathlib.Path) -> None:
    """Makes the folder of a report, and refuses a path that cannot be written, before anything is measured.

    Raises:
      OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    path.open("ab").close()
    if not existed:
        path.unlink()


def _findings(found: Sequence[Finding]) -> str:
    rows = "".join(
        f'<tr><td><span class="level {f.level}">{LABELS[f.level]}</span></td><td>{html.escape(f.about)}</td>'
        f'<td>{html.escape(f.sentence)}<br><span class="dim">{html.escape(f.number)}</span></td></tr>\n'
        for f in found
    )
    return f"<h2>Findings</h2>\n<table>\n{rows}</table>\n"


def _section(title: str, caption: str, svg: str) -> str:
    """A picture by itself in an `img`: names inside one SVG cannot meet those of another."""
    data = base64.b64encode(svg.encode()).decode()
    return (
        f"<h2>{html.escape(title)}</h2>\n<p>{html.escape(caption)}</p>\n"
        f'<img alt="{html.escape(title)}" src="data:image/svg+xml;base64,{data}">\n'
    )
