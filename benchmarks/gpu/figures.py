"""The figures to reach, from a run's document alone.

Knows the names of cases and what each figure compares. Measures nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu.attention import FIGURE_TOKENS
from benchmarks.gpu.files import FILES
from benchmarks.gpu.inputs import FUSED
from benchmarks.gpu.pipeline import FEW, LARGE, MANY, OP, PROTOCOL
from benchmarks.gpu.planes import FIGURE_PAMR

Document = dict[str, Any]


class Unmeasured(Exception):
    """A figure lacks a measurement; the message says which and why."""


@dataclass(frozen=True)
class Figure:
    """One line of the table of figures."""

    number: int
    what: str
    measured: str
    wanted: str
    reached: bool
    value: float | None = None

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def figures(document: Document) -> list[Figure]:
    """Every figure; one that lacks a measurement is not reached, and says what is missing."""
    rows = [plain_attention(document, case) for case in long_attention(document)]
    if not rows:
        rows = [absent(1, "residual_attention at L ≥ 4,097", "≤ 1.15 ×", "no such case")]
    return [
        *rows,
        *reference_attention(document),
        *refinement(document),
        *protocol(document),
        vocabulary(document),
        *large_image(document),
        accuracy(document),
        files(document),
    ]


def find(document: Document, op: str, name: str) -> Document:
    """A case by its op and name."""
    for case in document["cases"]:
        if (case["op"], case["name"]) == (op, name):
            found: Document = case
            return found
    raise Unmeasured(f"no case {name!r} of {op}")


def median(case: Document, variant: str) -> float:
    """Median milliseconds of a variant."""
    return float(measured(case, variant)["median_ms"])


def measured(case: Document, variant: str) -> Document:
    """A variant that was measured."""
    outcome: Document = case["variants"].get(variant, {"status": "absent", "reason": ""})
    if "median_ms" not in outcome:
        raise Unmeasured(
            f"{case['name']}: {variant} {outcome['status']} {outcome['reason']}".rstrip()
        )
    return outcome


def absent(number: int, what: str, wanted: str, reason: object) -> Figure:
    """A figure without its measurement."""
    return Figure(number, what, f"not measured: {reason}", wanted, False)


def long_attention(document: Document) -> list[Document]:
    """Cases of residual_attention from 4,097 tokens on."""
    return [
        case
        for case in document["cases"]
        if case["op"] == "residual_attention" and case["shape"]["tokens"] >= FIGURE_TOKENS
    ]


def plain_attention(document: Document, case: Document) -> Figure:
    """Figure 1: every term at the price of plain attention."""
    what, wanted = f"residual_attention, {case['name']}, against plain SDPA calls", "≤ 1.15 ×"
    try:
        fused, plain = median(case, FUSED), median(case, "sdpa")
    except Unmeasured as reason:
        return absent(1, what, wanted, reason)
    ratio = fused / plain
    return Figure(
        1,
        what,
        f"{ratio:.2f} × ({fused:.2f} ms against {plain:.2f} ms)",
        wanted,
        ratio <= 1.15,
        ratio,
    )


def reference_attention(document: Document) -> list[Figure]:
    """Figure 2: against the reference at the largest length that it fits."""
    fitting = [
        case for case in long_attention(document) if "median_ms" in case["variants"]["reference"]
    ]
    what, wanted = (
        "residual_attention against the reference",
        ("≥ 10 × faster", "≤ 1/20 of its memory"),
    )
    if not fitting:
        return [absent(2, what, bound, "the reference ran at no length") for bound in wanted]
    case = max(fitting, key=lambda each: each["shape"]["tokens"])
    what = f"{what}, {case['name']}"
    try:
        fused, reference = measured(case, FUSED), measured(case, "reference")
    except Unmeasured as reason:
        return [absent(2, what, bound, reason) for bound in wanted]
    faster = reference["median_ms"] / fused["median_ms"]
    times = f"{faster:.1f} × ({reference['median_ms']:.1f} ms against {fused['median_ms']:.2f} ms)"
    less = reference["peak_bytes"] / max(1, fused["peak_bytes"])
    memory = f"1/{less:.0f} ({fused['peak_bytes'] / 1e9:.2f} GB against {reference['peak_bytes'] / 1e9:.1f} GB)"
    return [
        Figure(2, what, times, wanted[0], faster >= 10, faster),
        Figure(2, what, memory, wanted[1], less >= 20, less),
    ]


def refinement(document: Document) -> list[Figure]:
    """Figure 3: PAMR against the reference, and against the copy's bandwidth."""
    what, wanted = f"pamr, {FIGURE_PAMR}", ("≥ 20 × faster", "≥ 60 % of the copy's bandwidth")
    try:
        case = find(document, "pamr", FIGURE_PAMR)
        fused = median(case, FUSED)
    except Unmeasured as reason:
        return [absent(3, what, bound, reason) for bound in wanted]
    try:
        reference = median(case, "reference")
        faster = reference / fused
        text = f"{faster:.1f} × ({reference:.1f} ms against {fused:.2f} ms)"
        first = Figure(3, f"{what}, against the reference", text, wanted[0], faster >= 20, faster)
    except Unmeasured as reason:
        first = absent(3, f"{what}, against the reference", wanted[0], reason)
    rate = 1e-6 * case["bytes"] / fused
    share = rate / document["ceilings"]["copy_gbps"]
    text = f"{share:.0%} ({rate:,.0f} GB/s by the fewest bytes)"
    return [first, Figure(3, what, text, wanted[1], share >= 0.6, share)]


def protocol(document: Document) -> list[Figure]:
    """Figure 4: the released protocol end to end."""
    what, wanted = f"whole pipeline, {PROTOCOL}", ("≥ 25 × faster", "≥ 100 images a second")
    try:
        case = find(document, OP, PROTOCOL)
        fused = median(case, FUSED) / case["items"]
    except Unmeasured as reason:
        return [absent(4, what, bound, reason) for bound in wanted]
    try:
        reference = median(case, "reference") / case["items"]
        faster = reference / fused
        text = f"{faster:.1f} × ({reference:.0f} ms against {fused:.2f} ms an image)"
        first = Figure(4, f"{what}, against the reference", text, wanted[0], faster >= 25, faster)
    except Unmeasured as reason:
        first = absent(4, f"{what}, against the reference", wanted[0], reason)
    rate = 1e3 / fused
    return [first, Figure(4, what, f"{rate:.0f} images a second", wanted[1], rate >= 100, rate)]


def vocabulary(document: Document) -> Figure:
    """Figure 5: many names."""
    what, wanted = "whole pipeline, 847 names against 20", "≤ 4 × the time"
    try:
        many, few = (median(find(document, OP, name), FUSED) for name in (MANY, FEW))
    except Unmeasured as reason:
        return absent(5, what, wanted, reason)
    ratio = many / few
    return Figure(
        5, what, f"{ratio:.2f} × ({many:.1f} ms against {few:.1f} ms)", wanted, ratio <= 4, ratio
    )


def large_image(document: Document) -> list[Figure]:
    """Figure 6: a large image as one window."""
    what, wanted = f"whole pipeline, {LARGE}", ("under 1 s", "under 16 GB")
    try:
        outcome = measured(find(document, OP, LARGE), FUSED)
    except Unmeasured as reason:
        return [absent(6, what, bound, reason) for bound in wanted]
    seconds, memory = outcome["median_ms"] / 1e3, outcome["peak_bytes"] / 1e9
    return [
        Figure(6, what, f"{seconds:.2f} s", wanted[0], seconds < 1, seconds),
        Figure(6, what, f"{memory:.1f} GB", wanted[1], memory < 16, memory),
    ]


def accuracy(document: Document) -> Figure:
    """Figure 7: every op within its budget in every dtype."""
    what, wanted = "errors against float64, every op and dtype", "all within budget"
    checks = document["checks"]
    good = sum(check["status"] == "ok" for check in checks)
    text = f"{good} of {len(checks)} within budget"
    return Figure(7, what, text, wanted, bool(checks) and good == len(checks), good)


def files(document: Document) -> Figure:
    """Figure 8: the released protocol from file to file."""
    what = "JPEG in, PNG out: images/s against the same without files"
    wanted = "≥ 80 %"
    try:
        case = find(document, OP, PROTOCOL)
        plain, whole = (1e3 * case["items"] / median(case, name) for name in (FUSED, FILES))
    except Unmeasured as reason:
        return absent(8, what, wanted, reason)
    share = whole / plain
    text = f"{share:.0%} ({whole:.0f} a second against {plain:.0f})"
    return Figure(8, what, text, wanted, share >= 0.8, share)


def line(figure: Figure) -> str:
    """As printed."""
    mark = "ok " if figure.reached else "NOT"
    return f"{mark} ({figure.number}) {figure.what}: {figure.measured} (to reach: {figure.wanted})"
