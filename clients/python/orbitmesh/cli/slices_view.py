"""Slices for people: tables, and what a slice's figures are as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from orbitmesh.cli.output import Output, plain
from orbitmesh.slice_results import (
    RESOURCES,
    Slice,
    SliceAllocation,
    SliceNode,
    SliceOutcome,
    SliceShare,
    SliceTemplate,
)
from orbitmesh.trace.render import format_seconds

PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
"""Which parts of the waits are shown, by what they are called."""

_STYLES = {"active": "green", "defined": "dim", "releasing": "yellow"}
_UNITS = {"CPU": "CPU", "GPU": "GPU", "MemoryGB": "GB", "BandwidthGbps": "Gbit/s"}


def document(each: Slice) -> dict[str, Any]:
    """A slice as JSON knows it, with what follows from its figures."""
    return {
        **plain(each),
        "served": each.served,
        "wait_s": {name: plain(each.traffic.wait_s(part)) for name, part in PERCENTILES.items()},
        "violations_allowed": each.violations_allowed,
        "error_budget_left": plain(each.error_budget_left),
    }


def templates_table(templates: Iterable[SliceTemplate]) -> Table:
    """One row for each template."""
    table = _table("template", "latency", "within", "needs", "at least served", "guaranteed", "what for")
    for template in templates:
        profile = template.profile
        table.add_row(
            escape(template.name),
            latency(profile.latency_ms),
            f"{profile.within_latency_permille / 10:g}%",
            amounts(profile.resources),
            part(profile.least_served),
            shares(profile.shares),
            escape(template.about),
        )
    return table


def slices_table(slices: Iterable[Slice]) -> Table:
    """One row for each slice."""
    table = _table("slice", "tenant", "state", "template", "latency", "needs", "served", "on", "work")
    for each in slices:
        table.add_row(
            each.name,
            escape(each.tenant),
            _styled(each.state),
            escape(each.profile.template) or "-",
            latency(each.profile.latency_ms),
            amounts(each.profile.resources),
            part(each.served) if each.allocations else "-",
            ", ".join(allocation.node for allocation in each.allocations) or "-",
            f"{each.admitted} of {each.profile.max_number_of_ues or 1000}",
        )
    return table


def nodes_table(nodes: Iterable[SliceNode]) -> Table:
    """One row for each node: what is reserved of what it has."""
    table = _table("node", *(_UNITS[name] for name in RESOURCES))
    for node in nodes:
        table.add_row(
            f"[red]{node.name}, absent[/]" if node.absent else node.name,
            *(f"{node.reserved.get(name, 0.0):.4g} of {node.capacity.get(name, 0.0):.4g}" for name in RESOURCES),
        )
    return table


def allocations_table(allocations: Sequence[SliceAllocation]) -> Table:
    """One row for what each slice has on each node."""
    whole = all(each.traffic == 1.0 for each in allocations)
    table = _table("slice", "node", "served", *([] if whole else ["of its traffic"]), "reserved")
    for each in allocations:
        of = [] if whole else [part(each.traffic)]
        table.add_row(each.slice, each.node, part(each.served), *of, amounts(each.resources))
    return table


def say_slice(output: Output, each: Slice) -> None:
    """What a slice is, and how it is, line by line."""
    profile = each.profile
    snssai = f", S-NSSAI {profile.sst}{'-' + profile.sd if profile.sd else ''}" if profile.sst else ""
    output.say(f"{each.name}: {each.state}, of {each.tenant or 'nobody'}, {profile.template or 'no template'}{snssai}")
    within = f", kept by {profile.within_latency_permille / 10:g}%" if profile.within_latency_permille else ""
    where = f" from {profile.place}" if profile.place else ""
    output.say(f"promised: latency {latency(profile.latency_ms)}{where}{within}; {amounts(profile.resources)}")
    if profile.shares:
        output.say(f"shares of each resource of a node: {shares(profile.shares, whole=True)}")
    output.say(f"work admitted: {each.admitted} of {profile.max_number_of_ues or 1000}; etag {each.etag}")
    if each.allocations:
        output.view(allocations_table(each.allocations))
    else:
        output.say("nothing is reserved for it; do so with: orbitmesh slices optimize --apply", style="dim")


def say_outcome(output: Output, outcome: SliceOutcome) -> None:
    """What was computed, and how good that is."""
    output.view(allocations_table(outcome.allocations))
    reached, bound = outcome.objective, outcome.bound
    what = {
        "balanced": f"the least served slice gets {part(reached)} of its traffic, and no allocation gives more than "
        f"{part(bound)}",
        "latency_sensitive": f"the weighted latency is {reached:.4g} ms, and no allocation has less than "
        f"{bound:.4g} ms",
        "throughput_max": f"the weighted sum of what is served is {reached:.4g}, and no allocation has more than "
        f"{bound:.4g}",
    }.get(outcome.goal, f"objective {reached:.4g}, bound {bound:.4g}")
    output.say(f"{outcome.goal}: {what} (gap {outcome.gap:.2%}, found in {format_seconds(outcome.took_s)})")


def amounts(resources: Mapping[str, float]) -> str:
    """Amounts in one line; those that are 0 are left out."""
    return ", ".join(f"{value:.4g} {_UNITS.get(name, name)}" for name, value in resources.items() if value) or "nothing"


def shares(values: Mapping[str, SliceShare], *, whole: bool = False) -> str:
    """Shares in one line: what is guaranteed, and with `whole` what is dedicated and the ceiling."""
    if not whole:
        guaranteed = {name: share.min for name, share in values.items() if share.min}
        if len(guaranteed) == len(RESOURCES) and len(set(guaranteed.values())) == 1:
            return f"{part(next(iter(guaranteed.values())))} of each"
        return ", ".join(f"{part(least)} {_UNITS.get(name, name)}" for name, least in guaranteed.items()) or "-"
    said = {
        name: f"dedicated {part(share.dedicated)}, min {part(share.min)}, "
        f"max {part(1.0 if share.max is None else share.max)}"
        for name, share in values.items()
    }
    if len(said) == len(RESOURCES) and len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{name} {text}" for name, text in said.items())


def latency(milliseconds: float) -> str:
    """A latency that is promised; `-` where there is none."""
    return format_seconds(milliseconds / 1e3) if milliseconds else "-"


def part(value: float) -> str:
    """A part of something, in percent."""
    return f"{value * 100:.3g}%"


def wait(seconds: float | None) -> str:
    """A wait of which only the bucket is known."""
    if seconds is None:
        return "-"
    return "> 1000 s" if math.isinf(seconds) else format_seconds(seconds)


def budget(left: float | None) -> str:
    """What is left of an error budget, in the colour that it deserves."""
    if left is None:
        return "-"
    text = "overspent" if math.isinf(left) else f"{left:.0%}"
    return f"[{'red' if left <= 0 else 'yellow' if left < 0.25 else 'green'}]{text}[/]"


def _styled(state: str) -> str:
    style = _STYLES.get(state, "red")
    return f"[{style}]{state}[/]"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
