"""Whole generations in virtual time: stages, gateway and client are killed, cut off, handed over and put to sleep, and
the client still gets every token once, in order, as if nothing had happened.

The transitions and the journal are the services' own; `generation_stages` and `generation_gateway` drive them
over what `generation_world` holds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.generation_gateway import CLIENT, Client, Gateway, Log, Scheduler
from tests.simulation.generation_stages import Stage
from tests.simulation.generation_world import GATEWAY, Story, Wires, truth
from tests.simulation.network import Faults
from tests.simulation.world import World, run_seeds

PROMPT = 20
NEW = 64
FAULTS_S = 12.0
"""How long things go wrong, in virtual seconds."""
BOUND_S = 60.0
"""How long a generation may take behind its last fault, in virtual seconds."""
GOOD_CALLS = Faults(delay_s=(0.001, 0.01))
BAD_CALLS = Faults(delay_s=(0.001, 0.05), drop=0.05, duplicate=0.1, reorder=0.1, reorder_s=3.0)
ROOMY, TIGHT = 1 << 20, 3_000


class Play:
    """One generation and all that takes part in it."""

    def __init__(
        self,
        seed: int,
        stages: int = 3,
        *,
        calls: Faults = GOOD_CALLS,
        room_bytes: int = ROOMY,
        prompt: int = PROMPT,
        new: int = NEW,
        delay_s: tuple[float, float] = (0.001, 0.01),
        compute_s: float = 0.005,
        spares: bool = True,
    ) -> None:
        self.world = World(seed)
        self.wires = Wires(self.world, delay_s, calls)
        right = truth(stages, prompt, new)
        self.story = Story(self.world, self.wires, right, stages, prompt + new, room_bytes, compute_s)
        nodes = [f"s{index}" for index in range(stages)]
        others = [f"t{index}" for index in range(stages)]
        self.scheduler = Scheduler(self.story, nodes, others, slow_s=0.3)
        self.scheduler.spares_left = spares
        self.index = {name: int(name[1:]) for name in (*nodes, *others)}
        self.stages: dict[str, Stage] = {}
        for name in self.index:
            self.start(name)
        self.log = Log()
        self.gateway = Gateway(self.story, self.log, self.scheduler)
        self.client = Client(self.story)

    @property
    def names(self) -> list[str]:
        """The executors."""
        return list(self.index)

    def start(self, name: str) -> None:
        """An executor's process starts."""
        if not self.wires.sessions.alive(name):
            self.stages[name] = Stage(self.story, name, self.index[name])
            self.stages[name].watch(other for other in self.index if other != name)

    def kill(self, name: str, back_s: float | None, *, disk: bool = True) -> None:
        """kill -9 of an executor; it is back after a while, where it is at all, with its disk or without."""
        if not self.wires.sessions.alive(name):
            return
        self.wires.kill(name)
        if not disk:
            self.story.disks.pop(name, None)
        if back_s is not None:
            self.world.after(back_s, self.start, name)

    def kill_gateway(self, back_s: float) -> None:
        """kill -9 of the gateway."""
        if self.wires.sessions.alive(GATEWAY):
            self.wires.kill(GATEWAY)
            self.world.after(back_s, self._start_gateway)

    def _start_gateway(self) -> None:
        moved, gathered = self.gateway.moved, self.gateway.gathered
        self.gateway = Gateway(self.story, self.log, self.scheduler)
        self.gateway.moved += moved
        self.gateway.gathered += gathered

    def heal_calls(self) -> None:
        """No call is lost from now on."""
        for name in self.names:
            self.wires.calls.set_faults(GATEWAY, name, GOOD_CALLS)
            self.wires.calls.set_faults(name, GATEWAY, GOOD_CALLS)

    def finish(self, faults_s: float = 0.0) -> None:
        """Runs until the client has its last token, in bounded time behind the last fault."""
        self.world.until(lambda: self.client.ended, faults_s + BOUND_S, "the end of the generation")
        right = self.story.truth
        assert tuple(self.client.got) == right.tokens[right.prompt :]

    @property
    def again(self) -> dict[tuple[str, int], int]:
        """Positions that a node computed more than once."""
        return {place: count for place, count in self.story.computed.items() if count > 1}


# --- nothing goes wrong


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("prompt", [1, 8, 20])
def test_a_generation_that_nothing_disturbs_computes_every_position_once(stages: int, prompt: int) -> None:
    """Every stage computes each position once, in one run."""
    play = Play(0, stages, prompt=prompt)
    play.finish()
    assert play.gateway.gathered == 1 and not play.again
    assert len(play.story.computed) == stages * (prompt + NEW - 1)


# --- every token index


@pytest.mark.parametrize("back", ["empty", "spare", "slow"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_is_killed_at_every_token_index(stage: int, back: str) -> None:
    """kill -9 of each stage right behind each of its steps: the same tokens, whether it comes back with nothing or
    another node takes its place."""
    for index in range(PROMPT - 1, PROMPT + NEW - 1):
        play = Play(index, spares=back == "spare")
        killed = False

        def strike(name: str, at: int, end: int, play: Play = play, index: int = index) -> None:
            nonlocal killed
            if at == stage and end == index + 1 and not killed:
                killed = True
                back_s = {"empty": 0.2, "slow": 2.5, "spare": None}[back]
                play.world.after(0.0, play.kill, name, back_s)

        play.story.on_computed = strike
        play.finish()
        assert killed and play.gateway.gathered <= 5
        # Nothing came twice or where something else was due: everybody was told from where to go on.
        assert play.story.gaps == play.story.doubles == play.gateway.skipped == 0
        # The others keep what they have: only the row before an unknown token may be computed again.
        survivors = {place for place in play.again if play.index[place[0]] != stage}
        assert len(survivors) <= 2, f"killed at {index}: computed again: {play.again}"


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_is_killed_before_each_of_its_steps(stage: int) -> None:
    """The same where the kill comes between a step's arrival and its end."""
    for index in range(NEW):
        play = Play(index)
        killed = False

        def strike(name: str, at: int, position: int, play: Play = play, index: int = index) -> None:
            nonlocal killed
            if at == stage and position == PROMPT + index and not killed:
                killed = True
                play.world.after(play.story.compute_s / 2, play.kill, name, 0.5)

        play.story.on_taken = strike
        play.finish()
        assert killed == (index < NEW - 1)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_gateway_is_killed_at_every_token_index(stages: int) -> None:
    """The client asks another life of the gateway with what it has: it gets the rest; no stage computes anything
    again."""
    for index in range(1, NEW):
        play = Play(index, stages)
        play.world.until(lambda play=play, index=index: len(play.client.got) == index, BOUND_S)  # type: ignore[misc]
        play.kill_gateway(0.1)
        play.finish()
        assert not play.again


# --- planned moves


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_is_handed_over_without_a_stop(stage: int, cache: bool) -> None:
    """The successor is fed and the stream switches at a token: one run, no position computed twice by any node."""
    moved = 0
    for index in range(1, NEW - 16):
        play = Play(index)
        play.world.until(lambda play=play, index=index: len(play.client.got) == index, BOUND_S)  # type: ignore[misc]
        play.gateway.begin_move(stage, cache=cache)
        play.finish()
        assert play.gateway.gathered == 1 and not play.again
        assert play.story.gaps == play.story.doubles == 0
        moved += play.gateway.moved
    assert moved == NEW - 17


# --- faults by seed


def trouble(play: Play, until_s: float, kinds: list[Callable[[], None]], mean_s: float) -> None:
    """Something goes wrong again and again, until a moment; calls are lost until then, too."""
    random = play.world.random
    play.world.at(until_s, play.heal_calls)
    at = random.expovariate(1 / mean_s)
    while at < until_s:
        kind = random.choice(kinds)
        play.world.at(at, lambda kind=kind: None if play.client.ended else kind())  # type: ignore[misc]
        at += random.expovariate(1 / mean_s)


def faults(play: Play) -> dict[str, Callable[[], None]]:
    """What can go wrong."""
    random = play.world.random
    everyone = [*play.names, GATEWAY]

    def kill_one() -> None:
        back_s = random.choice((0.05, 0.5, 1.5, 5.0))
        play.kill(random.choice(play.scheduler.places), back_s, disk=random.random() < 0.5)

    def kill_many() -> None:
        for name in random.sample(play.names, random.randint(2, len(play.names))):
            play.kill(name, random.choice((0.1, 1.0, 4.0)), disk=random.random() < 0.5)

    def cut() -> None:
        one, two = random.sample(everyone, 2)
        play.wires.partition(one, two, random.choice((0.2, 1.2, 4.0)), one_way=random.random() < 0.3)

    def cut_pipeline() -> None:
        places = play.scheduler.places
        index = random.randrange(len(places))
        other = places[index - 1] if len(places) > 1 else GATEWAY
        play.wires.partition(places[index], other, random.choice((0.2, 1.2, 4.0)))

    def cut_client() -> None:
        play.wires.partition(CLIENT, GATEWAY, random.choice((0.5, 3.0)))

    def stall() -> None:
        name, for_s = random.choice(everyone), random.choice((0.2, 2.0))
        if play.wires.sessions.alive(name):
            play.wires.sessions.pause(name, for_s)
            play.wires.calls.pause(name, for_s)

    def move() -> None:
        if play.wires.sessions.alive(GATEWAY) and len(play.scheduler.places) > 1:
            play.gateway.begin_move(random.randrange(len(play.scheduler.places)), cache=random.random() < 0.5)

    return {
        "kill_one": kill_one,
        "kill_many": kill_many,
        "kill_gateway": lambda: play.kill_gateway(random.choice((0.05, 1.0, 3.0))),
        "cut": cut,
        "cut_pipeline": cut_pipeline,
        "cut_client": cut_client,
        "stall": stall,
        "move": move,
    }


def mixed(seed: int) -> None:
    """Anything, of any kind, in a pipeline of any length."""
    random = World(seed).random
    stages = random.choice((1, 2, 3, 3, 4))
    play = Play(
        seed,
        stages,
        calls=random.choice((GOOD_CALLS, BAD_CALLS)),
        room_bytes=random.choice((ROOMY, ROOMY, TIGHT)),
        prompt=random.choice((1, 8, 20)),
        delay_s=random.choice(((0.001, 0.01), (0.001, 0.06))),
        compute_s=random.choice((0.002, 0.02, 0.06)),
        spares=random.random() < 0.6,
    )
    kinds = faults(play)
    chosen = random.sample(sorted(kinds), random.randint(2, len(kinds)))
    trouble(play, FAULTS_S, [kinds[kind] for kind in chosen], random.choice((0.1, 0.4, 1.5)))
    play.finish(FAULTS_S)


def test_a_generation_survives_whatever_goes_wrong() -> None:
    """Kills, cuts, stalls, moves and lost calls at once: the client's tokens are those of an undisturbed run."""
    run_seeds(mixed)


def moving(seed: int) -> None:
    """Planned moves, and something goes wrong while they are under way."""
    random = World(seed).random
    stages = random.choice((2, 3, 4))
    play = Play(
        seed,
        stages,
        calls=random.choice((GOOD_CALLS, BAD_CALLS)),
        room_bytes=random.choice((ROOMY, ROOMY, TIGHT)),
        compute_s=random.choice((0.005, 0.02)),
    )
    kinds = faults(play)
    kinds.pop("move")

    def hurt(index: int) -> None:
        names = [f"s{index}", f"t{index}", f"s{index - 1}" if index else GATEWAY, f"s{(index + 1) % stages}", GATEWAY]
        name = random.choice(names)
        what = random.choice(("kill", "cut", "other", "none"))
        if what == "kill" and name == GATEWAY:
            play.kill_gateway(random.choice((0.05, 1.5)))
        elif what == "kill":
            play.kill(name, random.choice((0.05, 1.5)), disk=random.random() < 0.5)
        elif what == "cut":
            play.wires.partition(*random.sample(sorted(set(names)), 2), random.choice((0.1, 1.5)))
        elif what == "other":
            kinds[random.choice(sorted(kinds))]()

    def move() -> None:
        index = random.randrange(stages)
        if play.wires.sessions.alive(GATEWAY):
            play.gateway.begin_move(index, cache=random.random() < 0.5)
        play.world.after(random.expovariate(1 / 0.1), hurt, index)

    for _ in range(3):
        play.world.at(random.uniform(0.1, 5.0), move)
    play.world.at(FAULTS_S, play.heal_calls)
    play.finish(FAULTS_S)


def test_a_planned_move_survives_what_goes_wrong_meanwhile() -> None:
    """Successor, predecessor, neighbours and gateway are killed or cut off while a stage is handed over."""
    run_seeds(moving)


def gentle(seed: int) -> None:
    """Nothing is killed that holds what no disk holds."""
    random = World(seed).random
    play = Play(
        seed,
        random.choice((1, 2, 3, 4)),
        calls=random.choice((GOOD_CALLS, BAD_CALLS)),
        delay_s=random.choice(((0.001, 0.01), (0.001, 0.06))),
        spares=False,
    )
    kinds = faults(play)
    chosen = [kinds[kind] for kind in ("cut", "cut_pipeline", "cut_client", "stall", "kill_gateway")]
    trouble(play, FAULTS_S / 2, chosen, random.choice((0.1, 0.3, 1.0)))
    play.finish(FAULTS_S / 2)
    assert not play.again, f"computed again: {play.again}"
    assert not play.story.doubles and not play.gateway.skipped


def test_no_position_is_computed_again_where_nothing_was_lost_but_links() -> None:
    """Sessions break, calls are lost, the gateway is killed: every position is computed once by every stage."""
    run_seeds(gentle, 200)


def asleep(seed: int) -> None:
    """Windows with a path and long times without one; executors start anew meanwhile."""
    play = Play(seed, spares=False, new=200, prompt=PROMPT)
    random = play.world.random
    anew = 0
    for _ in range(200):
        if play.client.ended:
            break
        play.world.run(play.world.now_s + 1.5)
        outage_s = 85.0
        one, two = random.choice((("s0", "s1"), ("s1", "s2"), (GATEWAY, "s0")))
        play.wires.partition(one, two, outage_s)
        struck = random.sample(("s0", "s1", "s2"), random.randint(0, 3))
        for name in struck:
            play.world.after(random.uniform(15.0, 70.0), play.kill, name, random.uniform(0.1, 8.0))
        # The answer may end in this window: then there is nothing left to be read from disk.
        held = not play.client.ended
        play.world.run(play.world.now_s + outage_s)
        anew += len(struck) if held and not play.client.ended else 0
    play.finish()
    assert play.story.restored >= anew
    assert not play.again, f"computed again: {play.again}"


def test_a_generation_sleeps_through_outages_and_computes_nothing_again() -> None:
    """Without a path it waits; an executor that starts anew meanwhile reads its state from disk."""
    run_seeds(asleep, 40)
