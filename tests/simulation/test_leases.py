"""The scheduler's leases over a network that loses, repeats, delays and reorders heartbeats, in virtual time."""

from __future__ import annotations

from collections import Counter

from orbitmesh.v1 import scheduler_pb2
from services.scheduler.registry import Registry
from tests.simulation.network import Endpoint, Faults, Network
from tests.simulation.seeds import run_seeds
from tests.simulation.world import World

SEEDS = 300
LEASE_S = 5.0
INTERVAL_S = 1.0
DELAY_MAX_S = 1.5
"""The latest that a message comes, in seconds; more than an interval, so that streams overtake each other."""
CHECK_S = 0.1
SPAN_S = 60.0


class Node:
    """An executor's membership: it opens a stream of heartbeats, and another one when it starts anew."""

    def __init__(self, story: Story, name: str) -> None:
        self.story = story
        self.name = name
        self.endpoint: Endpoint
        self.stream = 0
        self.sequence = 0
        self.attempt = 0
        self.silent_beats = 0
        self.begin()

    def begin(self) -> None:
        """A new process."""
        if self.story.network.alive(self.name):
            return
        self.endpoint = self.story.network.add(self.name, self.receive)
        self.sequence = 0
        self.open()
        self.endpoint.every(INTERVAL_S, self.beat)

    def open(self) -> None:
        """The stream broke, or there is none yet: what was sent on the old one may still arrive."""
        self.stream = 0
        self.attempt += 1
        self.endpoint.send("scheduler", ("open", self.attempt, 0, 0))

    def receive(self, source: str, answer: tuple[int, int]) -> None:
        attempt, stream = answer
        if attempt == self.attempt:
            self.stream = max(self.stream, stream)

    def beat(self) -> None:
        if not self.stream:
            self.silent_beats += 1
            if self.silent_beats % 4 == 0:
                self.open()
            return
        self.sequence += 1
        self.story.truth += 1
        self.endpoint.send("scheduler", ("beat", self.stream, self.sequence, self.story.truth))

    def stop(self) -> None:
        """Ends in order; the end of its stream may be late."""
        if self.endpoint.alive:
            self.endpoint.send("scheduler", ("end", self.stream, 0, 0))
            self.story.network.kill(self.name)


class Story:
    """One seed's run."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        chance = self.world.random
        harm = chance.choice((0.0, 0.05, 0.2))
        faults = Faults((0.001, DELAY_MAX_S), drop=harm, duplicate=harm, reorder=0.0)
        self.network = Network(self.world, faults)
        self.registry = Registry(LEASE_S)
        self.truth = 0
        self.fresh_s: dict[str, float] = {}
        self.ended: set[str] = set()
        self.newest: dict[str, int] = {}
        self.silent_from_s: dict[str, float] = {}
        self.losses = self.returns = self.late = 0
        self.was_member: dict[str, bool] = {}
        self.network.add("scheduler", self.receive)
        self.nodes = {name: Node(self, name) for name in ("sat-1", "sat-2", "sat-3")}
        self.steady = "sat-3"

    def receive(self, name: str, message: tuple[str, int, int, int]) -> None:
        """The scheduler's servicer: one number per stream, given when it opens."""
        kind, stream, sequence, truth = message
        now_s = self.world.now_s
        if kind == "open":
            self.network.send("scheduler", name, (stream, self.registry.open_stream()))
        elif kind == "end":
            record = self.registry.get(name)
            if record is not None and record.stream == stream:
                self.ended.add(name)
            self.registry.leave(name, stream)
        else:
            measures = scheduler_pb2.HeartbeatRequest(address="x:1", sequence=sequence, load=truth)
            record = self.registry.heartbeat(name, measures, now_s, 0, stream)
            if truth > self.newest.get(name, 0):
                self.newest[name] = truth
                self.fresh_s[name] = now_s
                self.ended.discard(name)
            else:
                self.late += 1
            assert record.measures.load == self.newest[name], "an older heartbeat's measures replaced newer ones"

    def check(self) -> None:
        """What holds at any moment."""
        now_s = self.world.now_s
        for name in self.nodes:
            record = self.registry.get(name)
            if record is None:
                continue
            member = self.registry.is_member(record, now_s)
            renewed = name in self.fresh_s and now_s - self.fresh_s[name] <= LEASE_S - 1e-6
            if name not in self.ended:
                assert member or not renewed, f"{name} is lost although its lease was renewed in time"
            if self.network.alive(name) and not self.network.way(name, "scheduler").closed:
                self.silent_from_s.pop(name, None)
            else:
                self.silent_from_s.setdefault(name, now_s)
            silent_s = now_s - self.silent_from_s.get(name, now_s)
            if silent_s > DELAY_MAX_S + LEASE_S + INTERVAL_S:
                assert not member, f"{name} is a member {silent_s:.1f} s after it fell silent"
                peers = self.registry.peers_of(self.steady, now_s)
                assert name not in {peer.name for peer in peers}
            self.losses += self.was_member.get(name, False) and not member
            self.returns += member and not self.was_member.get(name, True)
            self.was_member[name] = member

    def trouble(self) -> None:
        """One misfortune of one of the first two nodes, then the next."""
        world, network = self.world, self.network
        if world.now_s > SPAN_S:
            return
        node = self.nodes[world.random.choice(("sat-1", "sat-2"))]
        lasts_s = world.random.choice((0.0, 0.5, 3.0, 10.0, 15.0))
        what = world.random.choice(("kill", "stop", "break", "partition", "one way", "pause"))
        if what in ("kill", "stop"):
            node.stop() if what == "stop" else network.kill(node.name)
            world.after(lasts_s, node.begin)
        elif what == "break":
            node.open()
        elif what == "pause":
            network.pause(node.name, lasts_s)
        else:
            network.partition(node.name, "scheduler", lasts_s, one_way=what == "one way")
        world.after(world.random.uniform(0.2, 6.0) + (lasts_s if world.chance(0.7) else 0.0), self.trouble)

    def run(self) -> None:
        """A minute of it, and then a quiet while after which everybody is back."""
        world = self.world
        at_s = 0.0
        while at_s < SPAN_S + 35.0:
            world.at(at_s, self.check)
            at_s += CHECK_S
        world.after(2.0, self.trouble)
        world.run(SPAN_S)
        world.run(SPAN_S + 15.0)
        for node in self.nodes.values():
            self.network.heal(node.name, "scheduler")
            self.network.set_faults(node.name, "scheduler", Faults((0.001, DELAY_MAX_S)))
            self.network.set_faults("scheduler", node.name, Faults((0.001, DELAY_MAX_S)))
            node.begin()
        world.run(SPAN_S + 15.0 + 2 * DELAY_MAX_S + 9 * INTERVAL_S + LEASE_S)
        up = [record.name for record in self.registry.up(world.now_s)]
        assert up == sorted(self.nodes), "a node that came back is no member"


def test_leases_say_who_is_there() -> None:
    """Renewed in time a node is never lost; silent it is lost within the lease and an interval; back it is a member
    again; and what comes late from an older stream or process changes neither its measures nor its membership."""
    met = Counter[str]()

    def scenario(seed: int) -> None:
        story = Story(seed)
        story.run()
        met.update(losses=story.losses, returns=story.returns, late=story.late)

    if run_seeds(scenario, SEEDS) >= SEEDS:
        assert met["losses"] > SEEDS
        assert met["returns"] > SEEDS
        assert met["late"] > SEEDS


def test_the_late_end_of_a_replaced_stream_does_not_end_the_lease() -> None:
    """A node that was started again stays a member when the end of its former process's stream is seen afterwards."""
    registry = Registry(LEASE_S)
    before, after = registry.open_stream(), registry.open_stream()
    registry.heartbeat("sat-1", scheduler_pb2.HeartbeatRequest(sequence=57, load=1.0), 10.0, 0, before)
    registry.heartbeat("sat-1", scheduler_pb2.HeartbeatRequest(sequence=1, load=2.0), 11.0, 0, after)
    registry.leave("sat-1", before)
    registry.heartbeat("sat-1", scheduler_pb2.HeartbeatRequest(sequence=58, load=1.0), 11.5, 0, before)
    record = registry.get("sat-1")
    assert record is not None
    assert registry.is_member(record, 12.0)
    assert record.measures.load == 2.0
    registry.leave("sat-1", after)
    assert not registry.is_member(record, 12.0)
