"""The figures that the kernels must reach on a GPU, judged from the document of a run alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.gpu.attention import FIGURE_TOKENS
from benchmarks.gpu.inputs import FUSED
from benchmarks.gpu.pipeline import FEW, FILES, LARGE, MANY, OP, PROTOCOL
from benchmarks.gpu.planes import FIGURE_PAMR
from benchmarks.reporting import Document, Figure


class Unmeasured(Exception):
    """A figure lacks a measurement; the message says which and why."""


def figures(document: Document) -> list[Figure]:
    """Every figure; one that lacks a measurement is not reached, and says what is missing."""
    return [
        *plain_attention(document),
        *reference_attention(document),
        *refinement(document),
        *protocol(document),
        vocabulary(document),
        *large_image(document),
        accuracy(document),
        files(document),
    ]


def judge(
    number: int, what: str, wanted: str, measurement: Callable[[], tuple[str, bool, float]]
) -> Figure:
    """A figure from what `measurement` returns: text, whether it is reached, and the value."""
    try:
        text, reached, value = measurement()
    except Unmeasured as reason:
        return Figure(what, f"not measured: {reason}", wanted, False, number)
    return Figure(what, text, wanted, reached, number, value)


def find(document: Document, op: str, name: str) -> Document:
    """A case by its op and name; Unmeasured where there is none."""
    for case in document["cases"]:
        if (case["op"], case["name"]) == (op, name):
            result: Document = case
            return result
    raise Unmeasured(f"no case {name!r} of {op}")


def measured(case: Document, variant: str) -> Document:
    """The outcome of a variant; Unmeasured where it has no time."""
    outcome: Document = case["variants"].get(variant, {"status": "absent", "reason": ""})
    if "median_ms" not in outcome:
        reason = f"{case['name']}: {variant} {outcome['status']} {outcome['reason']}"
        raise Unmeasured(reason.rstrip())
    return outcome


def median(case: Document, variant: str) -> float:
    """Median milliseconds of a variant."""
    return float(measured(case, variant)["median_ms"])


def long_attention(document: Document) -> list[Document]:
    """Cases of residual_attention from 4,097 tokens on."""
    return [
        case
        for case in document["cases"]
        if case["op"] == "residual_attention" and case["shape"]["tokens"] >= FIGURE_TOKENS
    ]


def plain_attention(document: Document) -> list[Figure]:
    """Figure 1: every term at the price of plain attention."""
    wanted = "≤ 1.15 ×"

    def ratio(case: Document) -> tuple[str, bool, float]:
        fused, plain = median(case, FUSED), median(case, "sdpa")
        text = f"{fused / plain:.2f} × ({fused:.2f} ms against {plain:.2f} ms)"
        return text, fused / plain <= 1.15, fused / plain

    cases = long_attention(document)
    if not cases:
        what = "residual_attention at L ≥ 4,097"
        return [Figure(what, "not measured: no such case", wanted, False, 1)]
    return [
        judge(
            1,
            f"residual_attention, {case['name']}, against plain SDPA calls",
            wanted,
            partial(ratio, case),
        )
        for case in cases
    ]


def reference_attention(document: Document) -> list[Figure]:
    """Figure 2: against the reference at the largest length that it fits."""
    cases = [
        case for case in long_attention(document) if "median_ms" in case["variants"]["reference"]
    ]
    case = max(cases, key=lambda each: each["shape"]["tokens"], default=None)
    what = "residual_attention against the reference" + (f", {case['name']}" if case else "")

    def outcomes() -> tuple[Document, Document]:
        if case is None:
            raise Unmeasured("the reference ran at no length")
        return measured(case, FUSED), measured(case, "reference")

    def speed() -> tuple[str, bool, float]:
        fused, reference = (each["median_ms"] for each in outcomes())
        faster = reference / fused
        text = f"{faster:.1f} × ({reference:.1f} ms against {fused:.2f} ms)"
        return text, faster >= 10, faster

    def memory() -> tuple[str, bool, float]:
        fused, reference = (each["peak_bytes"] for each in outcomes())
        less = reference / max(1, fused)
        text = f"1/{less:.0f} ({fused / 1e9:.2f} GB against {reference / 1e9:.1f} GB)"
        return text, less >= 20, less

    return [
        judge(2, what, "≥ 10 × faster", speed),
        judge(2, what, "≤ 1/20 of its memory", memory),
    ]


def refinement(document: Document) -> list[Figure]:
    """Figure 3: PAMR against the reference, and against the copy's bandwidth."""
    what = f"pamr, {FIGURE_PAMR}"

    def speed() -> tuple[str, bool, float]:
        case = find(document, "pamr", FIGURE_PAMR)
        fused, reference = median(case, FUSED), median(case, "reference")
        faster = reference / fused
        text = f"{faster:.1f} × ({reference:.1f} ms against {fused:.2f} ms)"
        return text, faster >= 20, faster

    def bandwidth() -> tuple[str, bool, float]:
        case = find(document, "pamr", FIGURE_PAMR)
        rate = 1e-6 * case["bytes"] / median(case, FUSED)
        share = rate / document["ceilings"]["copy_gbps"]
        return f"{share:.0%} ({rate:,.0f} GB/s by the fewest bytes)", share >= 0.6, share

    return [
        judge(3, f"{what}, against the reference", "≥ 20 × faster", speed),
        judge(3, what, "≥ 60 % of the copy's bandwidth", bandwidth),
    ]


def protocol(document: Document) -> list[Figure]:
    """Figure 4: the released protocol end to end."""
    what = f"whole pipeline, {PROTOCOL}"

    def image_ms(variant: str) -> float:
        case = find(document, OP, PROTOCOL)
        return median(case, variant) / float(case["items"])

    def speed() -> tuple[str, bool, float]:
        fused, reference = image_ms(FUSED), image_ms("reference")
        faster = reference / fused
        text = f"{faster:.1f} × ({reference:.0f} ms against {fused:.2f} ms an image)"
        return text, faster >= 25, faster

    def rate() -> tuple[str, bool, float]:
        images = 1e3 / image_ms(FUSED)
        return f"{images:.0f} images a second", images >= 100, images

    return [
        judge(4, f"{what}, against the reference", "≥ 25 × faster", speed),
        judge(4, what, "≥ 100 images a second", rate),
    ]


def vocabulary(document: Document) -> Figure:
    """Figure 5: many names."""

    def ratio() -> tuple[str, bool, float]:
        many, few = (median(find(document, OP, name), FUSED) for name in (MANY, FEW))
        text = f"{many / few:.2f} × ({many:.1f} ms against {few:.1f} ms)"
        return text, many / few <= 4, many / few

    return judge(5, "whole pipeline, 847 names against 20", "≤ 4 × the time", ratio)


def large_image(document: Document) -> list[Figure]:
    """Figure 6: a large image as one window."""
    what = f"whole pipeline, {LARGE}"

    def outcome() -> Document:
        return measured(find(document, OP, LARGE), FUSED)

    def seconds() -> tuple[str, bool, float]:
        value = outcome()["median_ms"] / 1e3
        return f"{value:.2f} s", value < 1, value

    def memory() -> tuple[str, bool, float]:
        value = outcome()["peak_bytes"] / 1e9
        return f"{value:.1f} GB", value < 16, value

    return [judge(6, what, "under 1 s", seconds), judge(6, what, "under 16 GB", memory)]


def accuracy(document: Document) -> Figure:
    """Figure 7: every op within its budget in every dtype."""
    what, wanted = "errors against float64, every op and dtype", "all within budget"
    checks = document["checks"]
    good = sum(check["status"] == "ok" for check in checks)
    text = f"{good} of {len(checks)} within budget"
    return Figure(what, text, wanted, bool(checks) and good == len(checks), 7, good)


def files(document: Document) -> Figure:
    """Figure 8: the released protocol from file to file."""

    def share() -> tuple[str, bool, float]:
        case = find(document, OP, PROTOCOL)
        plain, whole = (1e3 * case["items"] / median(case, name) for name in (FUSED, FILES))
        value = whole / plain
        return f"{value:.0%} ({whole:.0f} a second against {plain:.0f})", value >= 0.8, value

    what = "JPEG in, PNG out: images/s against the same without files"
    return judge(8, what, "≥ 80 %", share)
