"""The stages of a simulated generation: the real `progress` and `RowJournal`, driven as the executor drives them."""

from __future__ import annotations

import functools
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orbitmesh.errors import InvalidInputError
from services.executor import progress as transitions
from services.executor.progress import Phase, Progress, Verdict
from services.journal.rows import JournalRoom, RowJournal
from tests.simulation.generation_world import CHUNK, DETECTION_S, GATEWAY, Held, Story, forward, sampled

ROW_BYTES = 8
IDLE_S = 2.0
"""A generation that did not get on for so long is written to disk, in seconds."""


class RefusedError(Exception):
    """A call was refused; says why."""


class Stage:
    """One stage on one node, in one life of its process."""

    def __init__(self, story: Story, name: str, index: int) -> None:
        self.story = story
        self.name = name
        self.index = index
        self.first, self.last = index == 0, index == story.stages - 1
        self.held: Held | None = None
        self.room = JournalRoom(story.room_bytes)
        self._jobs: deque[tuple[Callable[[], Any], Callable[[Any], object], float]] = deque()
        self._busy = False
        self._flushed: dict[tuple[str, int], Callable[[], None]] = {}
        self._session = story.wires.sessions.add(name, self._on_data)
        self._calls = story.wires.calls.add(name, self._on_call)
        self._restore()
        self._session.every(1.0, self._save_idle)

    def watch(self, others: Iterable[str]) -> None:
        """Notices when a session with one of them is lost."""
        for other in others:
            self.story.wires.sessions.watch(
                self.name, other, functools.partial(self._peer_lost, other), detection_s=DETECTION_S
            )

    # Calls.

    def _on_call(self, source: str, message: Any) -> None:
        number, method, arguments = message

        def answer(outcome: Any) -> None:
            self._calls.send(source, (number, outcome))

        try:
            if method == "stop":
                self._stop(answer, *arguments)
            elif method == "move":
                self._move(answer, *arguments)
            else:
                answer(("ok", getattr(self, f"call_{method}")(*arguments)))
        except RefusedError as error:
            answer(("refused", str(error), None))
        except InvalidInputError as error:
            answer(("refused", error.reason, error.metadata.get("current_epoch")))

    def call_open(self, epoch: int, nodes: tuple[str, ...], standby: bool, cache_from: str) -> None:
        """Begins the generation, or begins it anew under a later epoch."""
        if self.held is not None and self.held.progress.epoch >= epoch:
            return
        if nodes[self.index] != self.name:
            raise RefusedError("INVALID")
        self._close()
        phase = Phase.STANDBY if standby else Phase.RUNNING if epoch == 1 else Phase.STOPPED
        prompt = self.story.truth.prompt
        self.held = Held(
            progress=Progress(epoch, phase, sample_from=prompt),
            route=nodes,
            journal=RowJournal(ROW_BYTES, self.room),
            fence=epoch,
            tokens_from=0 if self.first else prompt,
            cache_from=cache_from,
            changed_s=self.story.world.now_s,
        )

    def call_close(self) -> None:
        """Ends it here."""
        self._close()

    def _close(self) -> None:
        if self.held is not None:
            self.held.closed = True
            self.held.journal.close()
            assert self.room.used_bytes == 0, "room of a closed journal was not given back"
            self.story.disks.pop(self.name, None)
            self.held = None

    def _find(self) -> Held:
        if self.held is None:
            raise RefusedError("NOT_FOUND")
        return self.held

    def _stop(self, answer: Callable[[Any], None], epoch: int, known: int, nodes: tuple[str, ...]) -> None:
        held = self._find()
        again = held.progress.epoch == epoch
        held.progress = transitions.stop(held.progress, epoch)
        held.fence = max(held.fence, epoch)
        if not again:
            held.run += 1
            held.route, held.next_route, held.feed_to = nodes, None, None
            held.waiting.clear()

        def ended(_: Any) -> None:
            if held.progress.epoch != epoch:
                answer(("refused", "STALE_EPOCH", held.progress.epoch))
                return
            length = held.progress.length
            assert length == len(held.cache)
            tokens = held.tokens[known - held.tokens_from :] if known >= held.tokens_from else []
            answer(("ok", (length, min(held.journal.start, length), tuple(tokens), self._ended(known + len(tokens)))))

        self._submit(lambda: None, ended, 0.0)

    def call_go_on(self, epoch: int, length: int, push_from: int, sample_from: int) -> None:
        """Runs on from `length`."""
        held = self._find()
        if held.progress.epoch == epoch and held.progress.phase is Phase.RUNNING:
            return
        assert epoch != held.progress.epoch or length <= held.progress.length, "told to go on from what it never had"
        held.progress = transitions.go_on(held.progress, epoch, length, push_from, sample_from)
        del held.cache[length:]
        held.journal.truncate(length)
        if self.last and not self.first:
            held.cut_tokens(sample_from)
            if held.tokens_from + len(held.tokens) != sample_from:
                held.tokens, held.tokens_from = [], sample_from
        if self.first:
            held.cut_tokens(length)
        if not self.last:
            self._replay(held, held.route[self.index + 1], push_from, length, feed=False)
        waiting, held.waiting = held.waiting, []
        for work in waiting:
            work()

    def call_switch(self, epoch: int, at: int, sample_from: int, nodes: tuple[str, ...]) -> None:
        """Plans to go another way."""
        held = self._find()
        held.progress = transitions.plan_switch(held.progress, epoch, at, sample_from)
        if held.progress.switch is not None:
            held.fence = max(held.fence, held.progress.epoch)
            held.next_route = nodes
            if self.last and held.progress.phase is Phase.STANDBY:
                held.tokens, held.tokens_from = [], sample_from

    def _move(self, answer: Callable[[Any], None], epoch: int, target: str) -> None:
        """Sends its cache to who takes over; answers when all of it is there."""
        held = self._find()
        if epoch != held.progress.epoch:
            raise transitions.stale(epoch, held.progress.epoch)
        stop = held.progress.length
        for low in range(0, stop, CHUNK):
            rows = tuple(held.cache[low : min(stop, low + CHUNK)])
            self._send(target, ("cache", epoch, low, rows), None)
        self._flushed[target, stop] = lambda: answer(("ok", stop))
        self._send(target, ("flush", epoch, stop, ()), None)

    def call_feed(self, epoch: int, target: str, start: int) -> int:
        """Feeds who takes over with the journal and all that follows."""
        held = self._find()
        if epoch != held.progress.epoch:
            raise transitions.stale(epoch, held.progress.epoch)
        if start < held.journal.start:
            raise RefusedError("FAILED_PRECONDITION")
        stop = held.journal.stop
        self._replay(held, target, start, stop, feed=True)
        held.feed_to = target
        return stop

    def _replay(self, held: Held, node: str, start: int, stop: int, *, feed: bool) -> None:
        if start < stop:
            for position, data in held.journal.read(start, stop, CHUNK):
                self._send_rows(held, node, position, unpack(data), feed=feed)

    # Data.

    def _on_data(self, source: str, message: Any) -> None:
        held = self.held
        kind, epoch, position, rows, *rest = message
        if kind == "flush":
            self._send(source, ("flushed", epoch, position, ()), None)
        elif kind == "flushed":
            self._flushed.pop((source, position), lambda: None)()
        if held is None or kind in ("flush", "flushed"):
            return
        if kind == "cache":
            progress = held.progress
            if held.cache_from != source or progress.phase is not Phase.STANDBY or epoch != progress.epoch:
                return
            if position == progress.length:
                held.cache[position:] = rows
                held.progress = progress.filled(position + len(rows))
                held.journal.skip(position + len(rows))
            return
        if kind == "token":
            senders = {held.route_at(at)[-1] for at in (position - 1, position)} if self.first else set()
            feed = False
        else:
            (feed,) = rest
            senders = {GATEWAY} if self.first else {held.route_at(position)[self.index - 1]}
        if source in senders:
            self._begin(held, epoch, position, tuple(rows), feed)

    def _begin(self, held: Held, epoch: int, position: int, rows: tuple[int, ...], feed: bool) -> None:
        held.progress, verdict = transitions.take(held.progress, epoch, position, len(rows), feed=feed)
        held.settle_route()
        if verdict is Verdict.TAKE:
            assert epoch == held.progress.epoch >= held.fence, f"{self.name} took a row of epoch {epoch}"
            held.fence = epoch
            self._compute(held, rows, position)
        elif verdict is Verdict.HOLD:
            held.waiting.append(lambda: self._begin(held, epoch, position, rows, feed))
        elif verdict is Verdict.DROP:
            self.story.doubles += epoch == held.progress.epoch
        elif verdict is Verdict.GAP:
            self.story.gaps += 1
            self._report(held, max(epoch, held.progress.epoch))

    def _compute(self, held: Held, rows: tuple[int, ...], position: int) -> None:
        if self.story.on_taken is not None:
            self.story.on_taken(self.name, self.index, position)
        run, end = held.run, position + len(rows)
        if self.first:
            held.note_tokens(position, rows)
        choose = self.last and transitions.samples(held.progress, end)

        def work() -> Any:
            if held.closed or held.run != run:
                return None
            return functools.partial(self._forward, held, position, rows)

        def done(step: Any) -> None:
            if step is None or held.closed:
                return
            made = step()
            self._computed(held, position, rows, made, sampled(made[-1]) if choose else None)

        self._submit(work, done, self.story.compute_s * (1 + len(rows) / 8))

    def _forward(self, held: Held, position: int, rows: tuple[int, ...]) -> list[int]:
        right = self.story.truth.caches[self.index]
        assert len(held.cache) == position, f"{self.name} computes {position} on a cache of {len(held.cache)}"
        made = forward(self.index, held.cache, rows)
        assert tuple(held.cache) == right[: len(held.cache)], f"{self.name} has a wrong cache at {position}"
        self.story.steps += 1
        for at in range(position, position + len(rows)):
            key = self.name, at
            self.story.computed[key] = self.story.computed.get(key, 0) + 1
        return made

    def _computed(self, held: Held, position: int, rows: tuple[int, ...], made: list[int], token: int | None) -> None:
        end = position + len(rows)
        held.progress, outcome = transitions.computed(held.progress, position, len(rows))
        held.changed_s = self.story.world.now_s
        if self.last:
            held.journal.skip(end)
            if outcome.sample and token is not None:
                self._chosen(held, token, end)
        else:
            held.journal.append(position, pack(made))
            self.story.dropped_journals += held.journal.start == end
            assert held.journal.stop == end == len(held.cache)
            if held.feed_to is not None and held.progress.epoch_at(position) == held.progress.epoch:
                self._send_rows(held, held.feed_to, position, tuple(made), feed=True)
            if outcome.push_from is not None:
                start = outcome.push_from
                rest = tuple(made[start - position :])
                self._send_rows(held, held.route_at(start)[self.index + 1], start, rest, feed=False)
        if self.story.on_computed is not None:
            self.story.on_computed(self.name, self.index, end)

    def _chosen(self, held: Held, token: int, position: int) -> None:
        held.note_tokens(position, [token])
        if held.progress.phase is not Phase.RUNNING:
            return
        epoch, ended = held.progress.epoch_at(position), self._ended(position + 1)
        if not ended and not self.first:
            target = held.route_at(position)[0]
            self._send(target, ("token", epoch, position, (token,)), functools.partial(self._report, held))
        self._send(GATEWAY, ("token", epoch, position, token, ended), None)
        if self.first and not ended:
            self._begin(held, epoch, position, (token,), False)

    def _ended(self, known: int) -> bool:
        return known >= self.story.stop

    def _send_rows(self, held: Held, node: str, position: int, rows: tuple[int, ...], *, feed: bool) -> None:
        epoch = held.progress.epoch_at(position)
        self._send(node, ("step", epoch, position, rows, feed), None if feed else lambda: self._report(held))

    def _send(self, target: str, message: Any, failed: Callable[[], object] | None) -> None:
        if self._session.alive:
            self.story.wires.send(self.name, target, message, failed)

    def _report(self, held: Held, epoch: int | None = None) -> None:
        if not held.closed and self._session.alive:
            self._send(GATEWAY, ("trouble", epoch or held.progress.epoch, self.name), None)

    def _peer_lost(self, peer: str) -> None:
        held = self.held
        if held is None or held.progress.phase is not Phase.RUNNING:
            return
        if held.route[(self.index + 1) % len(held.route)] == peer:
            self._report(held)

    # The engine: one job after the other.

    def _submit(self, job: Callable[[], Any], done: Callable[[Any], object], takes_s: float) -> None:
        self._jobs.append((job, done, takes_s))
        if not self._busy:
            self._next_job()

    def _next_job(self) -> None:
        self._busy = bool(self._jobs)
        if self._jobs:
            job, done, takes_s = self._jobs.popleft()
            self._session.after(0.0 if (begun := job()) is None else takes_s, self._job_done, begun, done)

    def _job_done(self, begun: Any, done: Callable[[Any], object]) -> None:
        done(begun)
        self._next_job()

    # The disk.

    def _save_idle(self) -> None:
        held = self.held
        if held is None or self.story.world.now_s - held.changed_s < IDLE_S:
            return
        mark = held.progress, len(held.tokens)
        if held.saved == mark:
            return
        start, stop = held.journal.start, min(held.journal.stop, held.progress.length)
        rows = tuple(held.journal.read(start, stop, 1024)) if start < stop else ()
        cache = tuple(held.cache[: held.progress.length])
        tokens = tuple(held.tokens)
        self.story.disks[self.name] = held.progress, held.route, (start, rows), cache, tokens, held.tokens_from
        held.saved = mark

    def _restore(self) -> None:
        found = self.story.disks.get(self.name)
        if found is None:
            return
        self.story.restored += 1
        progress, route, (start, rows), cache, tokens, tokens_from = found
        journal = RowJournal(ROW_BYTES, self.room)
        journal.skip(start)
        for position, data in rows:
            journal.append(position, data)
        length = progress.length
        self.held = Held(
            progress=Progress(progress.epoch, Phase.STOPPED, length, length, progress.push_from, progress.sample_from),
            route=route,
            journal=journal,
            fence=progress.epoch,
            tokens_from=tokens_from,
            cache=list(cache),
            tokens=list(tokens),
            changed_s=self.story.world.now_s,
        )
        self.held.saved = self.held.progress, len(tokens)


def pack(rows: Sequence[int]) -> bytes:
    """Rows as the journal's bytes."""
    return struct.pack(f"<{len(rows)}Q", *rows)


def unpack(data: bytes) -> tuple[int, ...]:
    """The rows again."""
    return struct.unpack(f"<{len(data) // ROW_BYTES}Q", data)
