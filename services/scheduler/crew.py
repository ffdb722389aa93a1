"""From the registry's records to the ring of a deployment and the nodes that could take its places."""

from __future__ import annotations

from collections.abc import Collection

from orbitmesh.pack import Manifest
from orbitmesh.v1 import executor_pb2
from services.scheduler.book import Book, Held
from services.scheduler.costs import PlanModel, PlanNode
from services.scheduler.holdings import Holdings
from services.scheduler.placement import MeasuredTimes, down_links, plan_links, plan_model, plan_node
from services.scheduler.places import Links, Rank, Ring, rank_for_place
from services.scheduler.registry import NodeRecord, Registry, peer_address
from services.scheduler.sky import SkySource
from services.scheduler.windows import Ways

LASTS_S = 60.0
"""For how long the ways of a standby or a spare must last, in real seconds, to come before others."""


class Crew:
    """Who could do what, as of the last heartbeats. Time is monotonic, in seconds, and comes in as an argument."""

    def __init__(self, registry: Registry, holdings: Holdings, book: Book, sky: SkySource) -> None:
        self._registry = registry
        self._holdings = holdings
        self._book = book
        self._sky = sky

    def ring(self, held: Held) -> Ring:
        """The pipeline of a deployment in the planner's terms."""
        deployment, request = held
        stages = deployment.plan.stages
        return Ring(
            plan_model(Manifest.parse(request.manifest), request.kv_tokens),
            tuple(node.name for node in deployment.pipeline),
            (0, *(stage.layer_stop for stage in stages)),
            tuple(stage.memory_bytes for stage in stages),
        )

    def links(self, now_s: float, model: PlanModel) -> Links:
        """The ways between members: as measured, or, where a contact plan speaks, those that last for a while."""
        members = self.members(now_s)
        sky = self._sky.view(members)
        if sky is None:
            return plan_links(members)
        names = [record.name for record in members]
        ways = Ways(sky, names, sky.now_s, model.activation_bytes)
        return ways.links(names, sky.now_s + LASTS_S * sky.stretch)

    def node(self, name: str, held: Held, now_s: float) -> PlanNode | None:
        """A member in the planner's terms, with the memory that it has free; None where it is none."""
        record = self._holdings.member(name, now_s)
        if record is None:
            return None
        model = plan_model(Manifest.parse(held[1].manifest), held[1].kv_tokens)
        planned = plan_node(record, model, self.measured(held[1].manifest))
        return PlanNode(
            name, self._holdings.free_bytes(record, now_s), planned.layer_s, planned.embed_s, planned.head_s
        )

    def standbys_for(self, held: Held, index: int, now_s: float) -> list[Rank]:
        """The nodes that could be the standby of a place, best first."""
        return self._rank(held, index, now_s, (), [standby.node.name for standby in held[0].standbys])

    def spares_for(self, held: Held, index: int, now_s: float, but: Collection[str]) -> list[Rank]:
        """The nodes that could take a place now, best first, suspects last; `but` names those that cannot."""
        ranked = self._rank(held, index, now_s, but, None)
        return sorted(ranked, key=lambda rank: self._holdings.is_suspect(rank.node, now_s))

    def address(self, node: str) -> executor_pb2.PeerAddress | None:
        """Where a node's executor is reached, or None where it is unknown."""
        record = self._registry.get(node)
        return None if record is None else peer_address(record)

    def measured(self, manifest: bytes) -> MeasuredTimes:
        """What nodes measured with this model: a stage's layer time, and where they hold them embedding and head."""
        same = {deployment.name for deployment, request in self._book.all() if request.manifest == manifest}
        times = {}
        for record in self._registry.all():
            for stage in record.measures.stages:
                if stage.deployment in same and stage.layer_ns:
                    times[record.name] = (stage.layer_ns / 1e9, stage.embed_ns / 1e9, stage.head_ns / 1e9)
        # A node that held no head has no time for one: take the slowest that is known, which is at least measured.
        worst_head = max((head for _, _, head in times.values()), default=0.0)
        return {name: (layer, embed, head or worst_head) for name, (layer, embed, head) in times.items()}

    def _rank(
        self, held: Held, index: int, now_s: float, but: Collection[str], standbys: list[str] | None
    ) -> list[Rank]:
        deployment, request = held
        allowed = set(request.nodes)
        candidates, here = [], set()
        for record in self._registry.up(now_s):
            # Nodes that were named for the deployment are its place; none named means all.
            if record.name in but or (allowed and record.name not in allowed):
                continue
            if standbys is not None and self._holdings.is_suspect(record.name, now_s):
                continue
            place = (deployment.name, index, record.name)
            if self._holdings.reported(place) is not None or self._holdings.is_coming(place):
                here.add(record.name)
            node = self.node(record.name, held, now_s)
            if node is not None:
                candidates.append(node)
        members = {record.name for record in self.members(now_s)}
        return rank_for_place(
            self.ring(held),
            index,
            candidates,
            self.links(now_s, self.ring(held).model),
            members=members,
            here=here,
            down=down_links(self.members(now_s)),
            standbys=standbys,
        )

    def members(self, now_s: float) -> list[NodeRecord]:
        """The nodes whose lease holds, by name."""
        return [record for record in self._registry.all() if self._registry.is_member(record, now_s)]
