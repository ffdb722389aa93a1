"""What links carry, as senders are told: from the contact plan where it knows a pair, as declared where it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint, MeshClock
from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import slices_pb2
from services.egress.links import LinkRates
from services.slices.links import RATES_MAX, Links
from services.slices.settings import SlicesSettings, link_bandwidths
from tests.slices.support import NODES, WAIT_S, serving

EPOCH_S = 1_700_000_000.0
SPAN_S = 10_000.0
FACTOR = 10.0
CLOCK = MeshClock(EPOCH_S, 1_800_000_000.0, FACTOR)


def contact(
    start_s: float, end_s: float, rate_bps: float = 1e7, *, acquisition_s: float = 0.0, cut: bool = False,
    source: str = "sat-1", target: str = "oslo",
) -> Contact:  # fmt: skip
    return Contact(
        source, target, EPOCH_S + start_s, EPOCH_S + end_s, rate_bps, (LatencyPoint(EPOCH_S + start_s, 0.003),),
        acquisition_s=acquisition_s, truncated_end=cut,
    )  # fmt: skip


def plan_of(*contacts: Contact) -> ContactPlan:
    return ContactPlan(EPOCH_S, EPOCH_S + SPAN_S, contacts)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_what_is_told_is_what_the_plan_says_at_any_time(data: st.DataObject) -> None:
    """Random windows that touch or do not, with and without acquisition: whoever takes the answer finds, at any later
    real time that it speaks of, the rate of the window that the plan itself has then, and none where it has none."""
    contacts, at_s = [], 0.0
    while at_s < 900 and len(contacts) < 12:
        at_s += data.draw(st.sampled_from((0.0, 10.0, 40.0)))
        end_s = at_s + data.draw(st.sampled_from((20.0, 90.0)))
        acquisition_s = data.draw(st.sampled_from((0.0, 5.0, 20.0)))
        contacts.append(contact(at_s, end_s, data.draw(st.sampled_from((1e6, 1e7, 3e8))), acquisition_s=acquisition_s))
        at_s = end_s
    plan = plan_of(*contacts)
    asked_s = EPOCH_S + data.draw(st.integers(-50, 950))
    links = Links(plan, CLOCK, {}, {}).of("sat-1", ["oslo", "sat-2"], asked_s)
    assert [each.to for each in links] == ["oslo"]
    assert len(links[0].rates) <= RATES_MAX
    wall_ns = round(CLOCK.wall_s(asked_s) * 1e9)
    rates = LinkRates.told(slices_pb2.WatchSlicesResponse(links=links), 0, wall_ns)
    last_s = asked_s + 1000.0
    if len(links[0].rates) == RATES_MAX:
        last_s = EPOCH_S + (links[0].rates[-1].since.ToNanoseconds() / 1e9 - CLOCK.origin_wall_s) * FACTOR
    for moment in range(200):
        mesh_s = asked_s + moment * 5.0 + 0.5
        if mesh_s < last_s:
            window = plan.at("sat-1", "oslo", mesh_s)
            carries = window is not None and mesh_s >= window.carries_from_s
            found = rates.rate_bps("oslo", round((mesh_s - asked_s) / FACTOR * 1e9))
            assert found == (window.rate_bps if window is not None and carries else None)


def test_places_declared_links_and_the_end_of_the_plan() -> None:
    """A service stands where it was said to; a link that the plan does not know has the rate that was declared, one
    that it knows does not; a window that outlasts the plan stays open; after the plan, nothing is said of its links."""
    plan = plan_of(contact(0, 100), contact(9000, SPAN_S, 2e7, cut=True))
    places = {"gateway": "oslo", "aggregator": "oslo", "beside": "sat-1"}
    links = Links(plan, CLOCK, places, {("sat-1", "gateway"): 5.0, ("sat-1", "sat-2"): 0.5, ("sat-2", "sat-1"): 7.0})
    found = {each.to: list(each.rates) for each in links.of("sat-1", ["sat-2", "oslo"], EPOCH_S + 50)}
    assert set(found) == {"oslo", "gateway", "aggregator", "sat-2"}
    assert found["gateway"] == found["oslo"]
    assert [rate.gbps for rate in found["oslo"]] == [0.01, 0.0, 0.02]
    assert found["oslo"][1].since.ToNanoseconds() == round(CLOCK.wall_s(EPOCH_S + 100) * 1e9)
    assert [rate.gbps for rate in found["sat-2"]] == [0.5]
    after = {each.to: list(each.rates) for each in links.of("sat-1", ["oslo"], EPOCH_S + SPAN_S)}
    assert {name: [rate.gbps for rate in rates] for name, rates in after.items()} == {"gateway": [5.0], "sat-2": [0.5]}


@pytest.mark.parametrize("entry", ["a=1", ">b=1", "a>=1", "a>b=x", "a>b=-1", "a>b=nan", "a>b"])
def test_settings_that_name_no_link_are_refused(entry: str) -> None:
    """Two names and a rate from 0, or a typed error that shows the entry."""
    with pytest.raises(InvalidInputError):
        link_bandwidths(SlicesSettings(Path("i"), "l", Path("s"), "s", link_bandwidth=(entry,)))


async def test_senders_are_told_of_their_links_and_users_are_not(pki: Path, tmp_path: Path) -> None:
    """A node hears of the links from it, and once more when the mesh's clock is another; a service hears of all slices
    without what was measured; an operator of no links."""
    name = sorted(NODES)[0]
    plan = plan_of(contact(0, SPAN_S, 3e7, cut=True, source=name, target="oslo"))
    (tmp_path / "contacts.json").write_text(plan.dump())
    async with serving(pki, tmp_path / "state", tmp_path / "contacts.json", places={"gateway": "oslo"}) as service:
        node = await service.client(f"executor-{name}")
        watch = node.watch(name)
        first = await asyncio.wait_for(watch.read(), WAIT_S)
        assert not first.links  # the plan has ended by the real time
        service.light.take(service.light.plan, MeshClock(EPOCH_S, service.light.clock.now_s()))
        told = await asyncio.wait_for(watch.read(), WAIT_S)
        assert [(each.to, [rate.gbps for rate in each.rates]) for each in told.links] == [("gateway", [0.03])]
        watch.cancel()
        for who in ("gateway-gateway", "operator-olga"):
            other = (await service.client(who)).watch()
            heard = await asyncio.wait_for(other.read(), WAIT_S)
            assert not heard.links
            assert {each.name for each in heard.nodes} == set(NODES)
            other.cancel()
