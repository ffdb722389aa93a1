"""The three templates that slices are defined from, and how a profile takes what it does not say from one.

The types are those of 3GPP TS 23.501 table 5.15.2.2-1: eMBB (1), URLLC (2), MIoT (3). The amounts are ours, sized for
an edge node of 16 cores, 2 GPUs, 64 GB and 40 Gbit/s: it serves `urllc` and one of the others in full, not all three.
The latency of `urllc` is 20 ms, because light from the ground over a satellite at 550 km to the ground and the same
way back takes 7.3 ms at the zenith and 15 ms at an elevation of 25 degrees. A bound of 1 ms holds on a node beside
the user.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orbitmesh.errors import InvalidInputError
from services.slices.resources import Resources, Share, check_names

WITHIN_PERMILLE = 999.0
MAX_UES = 1000
_SD = re.compile(r"[0-9A-Fa-f]{6}")


@dataclass(frozen=True)
class Profile:
    """What a slice is to be. Fields at 0 or empty are not said: `merged` fills them in.

    Args:
        template: Name of a template; empty for none.
        sst: Slice/service type, 0 to 255.
        sd: Slice differentiator: six hexadecimal digits, or empty.
        resources: What full traffic needs, by the names of `resources.NAMES`; one that is named as 0 is 0.
        shares: Parts of a node's capacity, by the same names.
        latency_ms: There and back at most; 0 in a merged profile means that it has no bound.
        within_latency_permille: Of 1000 transfers, so many keep the latency.
        least_served: The part of its traffic that has to be served, 0 to 1.
        weight: How it weighs beside others.
        place: Where its traffic comes from; empty where that does not matter.
        nodes: Only these nodes; empty means all.
        nodes_max: On how many nodes it may be spread.
        max_number_of_ues: How many pieces of work may be admitted at once.

    Raises:
        InvalidInputError: a value outside what is said above, or an unknown resource.
    """

    template: str = ""
    sst: int = 0
    sd: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, Share] = field(default_factory=dict)
    latency_ms: float = 0.0
    within_latency_permille: float = 0.0
    least_served: float = 0.0
    weight: float = 0.0
    place: str = ""
    nodes: tuple[str, ...] = ()
    nodes_max: int = 0
    max_number_of_ues: int = 0

    def __post_init__(self) -> None:
        Resources.of(self.resources)
        check_names(self.shares, "shares")
        if not 0 <= self.sst <= 255:
            raise InvalidInputError(f"SST is {self.sst}; expected 1 to 255, or 0 for that of the template")
        if self.sd and not _SD.fullmatch(self.sd):
            raise InvalidInputError(f"SD is {self.sd!r:.40}; expected six hexadecimal digits, or nothing")
        for name, value, most in (
            ("latency_ms", self.latency_ms, 1e9),
            ("within_latency_permille", self.within_latency_permille, 1000.0),
            ("least_served", self.least_served, 1.0),
            ("weight", self.weight, 1e6),
            ("nodes_max", self.nodes_max, 1e6),
            ("max_number_of_ues", self.max_number_of_ues, 2**32 - 1),
        ):
            if not (0 <= value <= most and math.isfinite(value)):
                raise InvalidInputError(f"{name} is {value!r}; expected 0 to {most:g}")

    @property
    def need(self) -> Resources:
        """What full traffic needs."""
        return Resources.of(self.resources)


@dataclass(frozen=True)
class Template:
    """A template."""

    name: str
    """What profiles call it."""
    profile: Profile
    """What it sets."""
    about: str
    """What it is for."""


def _shares(dedicated: float, minimum: float, maximum: float) -> dict[str, Share]:
    share = Share(dedicated, minimum, maximum)
    return {"CPU": share, "GPU": share, "MemoryGB": share, "BandwidthGbps": share}


TEMPLATES: Mapping[str, Template] = {
    "urllc": Template(
        "urllc",
        Profile(
            template="urllc",
            sst=2,
            resources={"CPU": 4, "GPU": 0.5, "MemoryGB": 8, "BandwidthGbps": 2},
            shares=_shares(0.05, 0.1, 0.5),
            latency_ms=20,
            within_latency_permille=999,
            least_served=1.0,
            weight=1,
            nodes_max=1,
            max_number_of_ues=100,
        ),
        "short messages that must not wait: control, alarms, tokens of an interactive model",
    ),
    "embb": Template(
        "embb",
        Profile(
            template="embb",
            sst=1,
            resources={"CPU": 10, "GPU": 1.5, "MemoryGB": 32, "BandwidthGbps": 35},
            shares=_shares(0, 0.05, 0.9),
            latency_ms=100,
            within_latency_permille=990,
            least_served=0.25,
            weight=1,
            nodes_max=4,
            max_number_of_ues=1000,
        ),
        "bulk: tensors, weights, imagery, training rounds",
    ),
    "mmtc": Template(
        "mmtc",
        Profile(
            template="mmtc",
            sst=3,
            resources={"CPU": 8, "GPU": 0.25, "MemoryGB": 16, "BandwidthGbps": 2},
            shares=_shares(0, 0.02, 0.5),
            latency_ms=1000,
            within_latency_permille=950,
            least_served=0.25,
            weight=1,
            nodes_max=4,
            max_number_of_ues=100_000,
        ),
        "many small senders that can wait: sensors, telemetry",
    ),
}
"""By name. Amounts are those of full traffic."""


def merged(profile: Profile) -> Profile:
    """The profile with all that it does not say from its template, and with the defaults of the contract.

    Resources and shares are merged name by name; a resource that the profile names as 0 stays 0.

    Raises:
        InvalidInputError: no such template, or no resource at all is needed.
    """
    base = Profile(sst=1)
    if profile.template:
        if profile.template not in TEMPLATES:
            raise InvalidInputError(
                f"there is no template {profile.template!r:.80}; expected one of {', '.join(TEMPLATES)}"
            )
        base = TEMPLATES[profile.template].profile
    found = replace(
        profile,
        sst=profile.sst or base.sst,
        sd=(profile.sd or base.sd).lower(),
        resources={**base.resources, **profile.resources},
        shares={**base.shares, **profile.shares},
        latency_ms=profile.latency_ms or base.latency_ms,
        within_latency_permille=profile.within_latency_permille or base.within_latency_permille or WITHIN_PERMILLE,
        least_served=profile.least_served or base.least_served,
        weight=profile.weight or base.weight or 1.0,
        nodes=profile.nodes or base.nodes,
        nodes_max=profile.nodes_max or base.nodes_max or 1,
        max_number_of_ues=profile.max_number_of_ues or base.max_number_of_ues or MAX_UES,
    )
    if not any(found.need.values()):
        raise InvalidInputError(
            "the profile needs nothing: name a template (urllc, embb, mmtc) or give resources, for instance CPU 4"
        )
    return found
