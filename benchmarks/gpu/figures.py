"""The figures that the kernels must reach on a GPU, judged from the document of a run alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.gpu.attention import FIGURE_GRIDS, attention_name
from benchmarks.gpu.case import AUTO, FILES, PLAIN
from benchmarks.gpu.inputs import FUSED
from benchmarks.gpu.pipeline import FEW, LARGE, MANY, OP, PROTOCOL
from benchmarks.gpu.planes import FIGURE_PAMR
from benchmarks.reporting import Document, Figure

LONG_TOKENS = 4097
"""Tokens from which on the attention is set against its reference."""


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
        first_use(document),
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


def fastest(case: Document, names: Sequence[str]) -> tuple[str, float]:
    """The fastest of some variants and its median milliseconds; Unmeasured where none has a time."""
    times = {
        name: float(case["variants"][name]["median_ms"])
        for name in names
        if "median_ms" in case["variants"].get(name, {})
    }
    if not times:
        measured(case, names[0])
    return min(times.items(), key=lambda each: each[1])


def plain_attention(document: Document) -> list[Figure]:
    """Figure 1: every term at the price of plain attention, by whichever kernels of PyTorch's are fastest."""

    def ratio(name: str) -> tuple[str, bool, float]:
        case = find(document, "residual_attention", name)
        (ours, fused), (theirs, plain) = fastest(case, (FUSED, AUTO)), fastest(case, PLAIN)
        value = fused / plain
        text = f"{value:.2f} × ({ours} {fused:.3f} ms against {theirs} {plain:.3f} ms)"
        return text, value <= 1.15, value

    names = [attention_name(batch, 1 + grid[0] * grid[1]) for batch, grid in FIGURE_GRIDS]
    return [
        judge(
            1,
            f"residual_attention, {name}, against the fastest plain SDPA calls",
            "≤ 1.15 ×",
            partial(ratio, name),
        )
        for name in names
    ]


def reference_attention(document: Document) -> list[Figure]:
    """Figure 2: against the reference at the largest length that it fits."""
    cases = [
        case
        for case in document["cases"]
        if case["op"] == "residual_attention"
        and case["shape"]["tokens"] >= LONG_TOKENS
        and "median_ms" in case["variants"].get("reference", {})
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
        if "copy_gbps" not in document["ceilings"]:
            raise Unmeasured("the copy's bandwidth is not known")
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
        return f"{images:.0f} images a second", images >= 500, images

    return [
        judge(4, f"{what}, against the reference", "≥ 25 × faster", speed),
        judge(4, what, "≥ 500 images a second", rate),
    ]


def vocabulary(document: Document) -> Figure:
    """Figure 5: many names."""

    def ratio() -> tuple[str, bool, float]:
        many, few = (median(find(document, OP, name), FUSED) for name in (MANY, FEW))
        text = f"{many / few:.2f} × ({many:.1f} ms against {few:.1f} ms)"
        return text, many / few <= 2, many / few

    return judge(5, "whole pipeline, 847 names against 20", "≤ 2 × the time", ratio)


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
    """Figure 7: every op far enough within its budget, in every dtype and way, that no seed is unlucky."""

    def worst() -> tuple[str, bool, float]:
        checks = document["checks"]
        wrong = [check for check in checks if check["status"] == "failed"]
        if wrong or not checks:
            names = ", ".join(f"{each['op']} {each['dtype']} {each['way']}" for each in wrong)
            raise Unmeasured(f"not within budget: {names}" if wrong else "no checks")
        shares = {
            f"{each['op']} {each['dtype']} {each['way']}": each["error"] / each["allowed"]
            for each in checks
            if each["allowed"]
        }
        name = max(shares, key=lambda each: shares[each])
        return f"{shares[name]:.2f} ({name})", shares[name] <= 0.8, shares[name]

    return judge(7, "worst error against float64, as a share of its budget", "≤ 0.8", worst)


def files(document: Document) -> Figure:
    """Figure 8: the released protocol from file to file."""

    def share() -> tuple[str, bool, float]:
        case = find(document, OP, PROTOCOL)
        plain, whole = (1e3 * case["items"] / median(case, name) for name in (FUSED, FILES))
        value = whole / plain
        return f"{value:.0%} ({whole:.0f} a second against {plain:.0f})", value >= 0.8, value

    what = "JPEG in, PNG out: images/s against the same without files"
    return judge(8, what, "≥ 80 %", share)


def first_use(document: Document) -> Figure:
    """Figure 9: the comparison at the first use of an op after an installation, compilation included."""

    def slowest() -> tuple[str, bool, float]:
        found = document["first_use"]
        refused = [f"{op}: {each['reason']}" for op, each in found.items() if each["reason"]]
        if refused or not found:
            raise Unmeasured("; ".join(refused) or "nothing was compared")
        op = max(found, key=lambda each: float(found[each]["seconds"]))
        seconds, total = found[op]["seconds"], sum(each["seconds"] for each in found.values())
        return f"{seconds:.1f} s ({op}; all ops {total:.1f} s)", seconds < 2, seconds

    return judge(
        9, "first use of an op, compilation included, at its slowest", "under 2 s", slowest
    )
