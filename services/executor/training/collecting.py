"""What the head of a group keeps of the others' masked contributions, and the sum that it makes of them.

A contribution grows in a file span by span; when all of it is there and has the digest that was announced, it gets its
facts and its name, and is durable. What a crash leaves of it is good for as many spans as are whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from orbitmesh.durable import put_in_place
from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2
from services.executor.training.contribution import ContributionFile, ContributionWriter, Facts, opened
from services.executor.training.files import RunFiles
from services.securesum import PartialSum, RoundPlan
from services.securesum.packing import packed_bytes, unpack
from services.updates.faults import malformed

PART = ".part"
"""What the name of a contribution ends in that is on its way."""
_READ_BYTES = 1 << 20


class Collection:
    """The contributions of others to one round. Blocks; one user at a time.

    Args:
        files: The run's.
        plan: The round.
    """

    def __init__(self, files: RunFiles, plan: RoundPlan) -> None:
        self.plan = plan
        self._files = files
        self._sizes = [packed_bytes(words, plan.bits) for words in plan.spans]
        self._offsets = [0, *accumulate(self._sizes)]
        self._announced: dict[str, training_pb2.ContributionInfo] = {}

    def announce(self, node: str, info: training_pb2.ContributionInfo) -> int:
        """Another node's contribution is about to come; gives how many spans of it are here, all of them only where it
        is durable.

        Raises:
            IntegrityError: `UPDATE_MALFORMED`, it has not the spans of the round.
            InvalidInputError: It is a sum itself, or another than the one that is here (`CONTRIBUTION_REPLAYED`).
        """
        if info.spans != len(self._sizes):
            raise malformed(f"{node} announces {info.spans} spans of its masked words, expected {len(self._sizes)}")
        if info.summed or not info.examples:
            raise InvalidInputError(f"{node} brings a sum, or what was made from no examples; expected its own part")
        there = self.get(node)
        if there is not None:
            if bytes.fromhex(there.facts.sha256) != info.sha256:
                raise InvalidInputError(
                    f"{node} has brought another contribution to round {self.plan.round_index} before",
                    reason="CONTRIBUTION_REPLAYED",
                )
            return len(self._sizes)
        self._announced[node] = info
        if self._held(node) == len(self._sizes):
            self._finish(node)
            return len(self._sizes)
        return self._held(node)

    def add(self, node: str, index: int, data: memoryview) -> bool:
        """Takes the next span; one that is here already is left out.

        Returns:
            Whether the contribution is durable with it.

        Raises:
            InvalidInputError: Nothing was announced (`FAILED_PRECONDITION`), a span before it is missing, it is of
                another size, or all of it is something else than was announced (`DIGEST_MISMATCH`).
        """
        if node not in self._announced:
            raise InvalidInputError(
                f"a span of {node} came without an announcement, or behind its last", reason="FAILED_PRECONDITION"
            )
        held = self._held(node)
        if index < held:
            return False
        if index > held:
            raise InvalidInputError(f"span {index} of {node} is not next; send from span {held} on")
        unpack(data, self.plan.spans[index], self.plan.bits)
        descriptor = os.open(self._part(node), os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(self._offsets[index])
            file.seek(self._offsets[index])
            file.write(data)
        if index + 1 < len(self._sizes):
            return False
        self._finish(node)
        return True

    def get(self, node: str) -> ContributionFile | None:
        """A contribution, whole and checked; None where there is none. A damaged one is removed."""
        return opened(self._files.collected(self.plan.round_index, node))

    def there(self, nodes: Iterable[str]) -> list[str]:
        """Which nodes' contributions are here in full."""
        return [node for node in nodes if self._files.collected(self.plan.round_index, node).exists()]

    def add_up(self, own: ContributionFile, nodes: Sequence[str]) -> ContributionFile | None:
        """This node's contribution with those of others, as one; None where one of them turns out not to be here, or
        not to be of this round: it is removed.

        Args:
            own: This node's.
            nodes: The others.
        """
        made = self._made(own, nodes)
        if made is not None:
            return made
        parts: list[ContributionFile] = []
        for node in nodes:
            part = self.get(node)
            if part is not None and part.facts.sums_context != own.facts.sums_context:
                # Masks of two different rounds do not cancel: the sum would be noise.
                part.path.unlink(missing_ok=True)
                part = None
            if part is None:
                return None
            parts.append(part)
        writer = ContributionWriter(self._files.summed(self.plan.round_index))
        try:
            for span in range(own.spans):
                total = PartialSum(self.plan, span)
                for file in (own, *parts):
                    total.add(file.span(span))
                writer.add(total.packed())
            summed = [_facts_of(node, part) for node, part in zip(nodes, parts, strict=True)]
            writer.finish(replace(own.facts, summed=summed))
            writer.publish()
        finally:
            writer.abandon()
        return ContributionFile(self._files.summed(self.plan.round_index))

    def _made(self, own: ContributionFile, nodes: Sequence[str]) -> ContributionFile | None:
        """The sum, where it was made already."""
        made = opened(self._files.summed(self.plan.round_index))
        if made is None:
            return None
        same = [each["node"] for each in made.facts.summed] == list(nodes)
        return made if same and made.facts.sums_context == own.facts.sums_context else None

    def _finish(self, node: str) -> None:
        info, path = self._announced.pop(node), self._part(node)
        digest, left = hashlib.sha256(), self._offsets[-1]
        with path.open("r+b") as file:
            while left and (data := file.read(min(left, _READ_BYTES))):
                digest.update(data)
                left -= len(data)
            if digest.digest() == info.sha256:
                file.truncate(self._offsets[-1])
                file.seek(self._offsets[-1])
                file.write(self._facts(info).tail())
                file.flush()
                os.fsync(file.fileno())
        if digest.digest() != info.sha256:
            path.unlink()
            raise InvalidInputError(
                f"the contribution of {node} came with another SHA-256 than it was announced with: send it anew",
                reason="DIGEST_MISMATCH",
            )
        put_in_place(path, self._files.collected(self.plan.round_index, node))

    def _facts(self, info: training_pb2.ContributionInfo) -> Facts:
        return Facts(
            self.plan.round_index,
            "",
            "",
            info.examples,
            steps=info.steps,
            train_s=info.train_s,
            sums_context=info.sums_context.hex(),
            release=info.release,
            sizes=self._sizes,
            sha256=info.sha256.hex(),
        )

    def _held(self, node: str) -> int:
        """How many whole spans are here of a contribution that is on its way."""
        path = self._part(node)
        size = path.stat().st_size if path.exists() else 0
        return sum(offset <= size for offset in self._offsets[1:])

    def _part(self, node: str) -> Path:
        path = self._files.collected(self.plan.round_index, node)
        return path.with_name(path.name + PART)


def _facts_of(node: str, part: ContributionFile) -> dict[str, Any]:
    facts = part.facts
    return {
        "node": node,
        "examples": facts.examples,
        "steps": facts.steps,
        "train_s": facts.train_s,
        "release": facts.release,
    }
