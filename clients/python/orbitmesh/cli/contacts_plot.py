"""The picture of a contact plan: a timeline of windows above, ground tracks and sites below. Needs matplotlib."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from orbitmesh.contacts import Contact, ContactPlan
from orbitmesh.errors import InvalidInputError

LANES_MAX = 80
"""Most links that the timeline shows; those with the ground come first."""

WINDOWS_PER_LANE = 2_000
"""Most windows that one lane of the timeline shows."""

DAY_S = 86_400.0
"""matplotlib counts dates in days since 1970, in UTC; seconds of a day."""

COLOURS = {"radio": "#2f6fab", "laser": "#c0392b", "wired": "#7f8c8d"}


def draw(
    path: Path,
    plan: ContactPlan,
    nodes: dict[str, dict[str, Any]],
    tracks: dict[str, list[list[float]]],
    title: str,
) -> None:
    """Write the picture as PNG.

    Args:
        path: Where to.
        plan: The windows.
        nodes: By name, with `kind` and, of sites, `latitude_deg` and `longitude_deg`.
        tracks: By satellite, points of (longitude, latitude) in degrees, in order of time.
        title: What stands above it.

    Raises:
        InvalidInputError: The file cannot be written, or is to be of another kind than PNG.
    """
    if path.suffix.lower() != ".png":
        raise InvalidInputError(f"--plot writes PNG; give a name that ends in .png instead of {path.name!r}")
    lanes = _lanes(plan)
    timeline_in = min(12.0, 1.5 + 0.16 * len(lanes))
    figure = Figure(figsize=(12, timeline_in + 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=(timeline_in, 6.5))
    figure.suptitle(f"{title}: {_utc(plan.start_s):%Y-%m-%d %H:%M} to {_utc(plan.end_s):%Y-%m-%d %H:%M} UTC")
    _draw_timeline(above, plan, lanes)
    _draw_map(below, nodes, tracks)
    try:
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}; give another path") from None


def _lanes(plan: ContactPlan) -> list[tuple[str, tuple[Contact, ...]]]:
    links = sorted({(min(pair), max(pair)) for pair in plan.pairs})
    found = [(f"{a} - {b}", plan.between(a, b) or plan.between(b, a)) for a, b in links]
    # Of the ground first; then links that come and go, which tell more than those that are always there.
    order = {kind: index for index, kind in enumerate(COLOURS)}
    return sorted(found, key=lambda lane: (order[lane[1][0].kind], -len(lane[1]), lane[0]))[:LANES_MAX]


def _draw_timeline(axes: Any, plan: ContactPlan, lanes: list[tuple[str, tuple[Contact, ...]]]) -> None:
    for row, (_, windows) in enumerate(lanes):
        spans = [
            (each.start_s / DAY_S, each.duration_s / DAY_S)
            for each in windows[:WINDOWS_PER_LANE]
        ]
        axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=[COLOURS[each.kind] for each in windows[: len(spans)]])
    axes.set_yticks(range(len(lanes)), [name for name, _ in lanes], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlim(plan.start_s / DAY_S, plan.end_s / DAY_S)
    axes.xaxis_date()
    axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))  # type: ignore[no-untyped-call]
    axes.grid(axis="x", alpha=0.3)
    rest = len({frozenset(pair) for pair in plan.pairs}) - len(lanes)
    key = ", ".join(f"{kind} {colour}" for kind, colour in (("radio", "blue"), ("laser", "red"), ("wired", "grey")))
    axes.set_title(f"windows ({key})" + (f", {rest} more links not shown" if rest > 0 else ""), fontsize=9)


def _draw_map(axes: Any, nodes: dict[str, dict[str, Any]], tracks: dict[str, list[list[float]]]) -> None:
    for points in tracks.values():
        longitudes: list[float] = []
        latitudes: list[float] = []
        for longitude, latitude in points:
            if longitudes and abs(longitude - longitudes[-1]) > 180:
                # Over the date line: a gap, not a stroke across the map.
                longitudes.append(float("nan"))
                latitudes.append(float("nan"))
            longitudes.append(longitude)
            latitudes.append(latitude)
        if points:
            (line,) = axes.plot(longitudes, latitudes, linewidth=0.6, alpha=0.7)
            axes.plot(longitudes[0], latitudes[0], marker="o", markersize=2.5, color=line.get_color())
    for name, node in nodes.items():
        if "latitude_deg" in node:
            marker = "^" if node["kind"] == "ground" else "s"
            axes.plot(node["longitude_deg"], node["latitude_deg"], marker=marker, color="black", markersize=6)
            place = (node["longitude_deg"], node["latitude_deg"])
            axes.annotate(name, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlim(-180, 180)
    axes.set_ylim(-90, 90)
    axes.set_xticks(range(-180, 181, 60))
    axes.set_yticks(range(-90, 91, 30))
    axes.set_xlabel("longitude, degrees east")
    axes.set_ylabel("latitude, degrees north")
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    axes.set_title("ground tracks from the start (dots), up to 100 minutes", fontsize=9)


def _utc(mesh_s: float) -> datetime:
    return datetime.fromtimestamp(mesh_s, UTC)
