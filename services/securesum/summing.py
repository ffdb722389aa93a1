"""The aggregator's side of one round: masked words are added as they arrive; what is left of masks goes at the end.

There is one accumulator, modulo 2^b; a contribution is never held. Of a node that vanished in the middle of sending,
what was added is taken away again, from the same bytes.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from orbitmesh.errors import IntegrityError, InvalidInputError
from services.securesum.fields import to_text
from services.securesum.masks import Mask, apply_masks, pair_mask, self_mask
from services.securesum.packing import Words, lane, to_signed, unpack
from services.securesum.roster import Roster
from services.securesum.rounds import RoundPlan, UnmaskAnswer, UnmaskRequest, check_enough, round_context
from services.securesum.shamir import LIMBS, join, wrong_shares
from services.securesum.sharing import commitment, mask_public

Groups = dict[tuple[str, ...], list[str]]


@dataclass(frozen=True, slots=True)
class Party:
    """What is public of a node in one round."""

    round_key: bytes
    """Its X25519 key of the round, 32 bytes."""
    commitment: bytes
    """SHA-256 of its self secret of the round."""
    offer_digest: bytes
    """The offer that both are from."""


@dataclass
class _Progress:
    """How far a node's contribution has come."""

    spans: int = 0
    """Spans that are in the accumulator."""
    chain: bytes = b""
    """A hash over their bytes."""
    summed: tuple[str, ...] = ()
    """Further nodes whose words are in them: it is a sum made on the way."""


class RoundSum:
    """One round's sum.

    Args:
        roster: The nodes of the run.
        plan: What is summed.
        parties: The public side of every node in the cohort.
    """

    def __init__(self, roster: Roster, plan: RoundPlan, parties: dict[str, Party]) -> None:
        plan.check(roster)
        self.roster = roster
        self.plan = plan
        self.context = round_context(plan, {name: party.offer_digest for name, party in parties.items()})
        self.request: UnmaskRequest | None = None
        self._parties = parties
        self._sums: list[Words] = [np.zeros(size, lane(plan.bits)) for size in plan.spans]
        self._progress: dict[str, _Progress] = {}
        self._answers: dict[str, UnmaskAnswer] = {}

    def take_span(
        self, node: str, context: bytes, span: int, packed: bytes | memoryview, summed: tuple[str, ...] = ()
    ) -> bool:
        """Adds one span of a node's contribution; spans come in order.

        Args:
            node: Whose.
            context: What names the round, as the node's `Masker` says it.
            span: The index of the span.
            packed: What `Masker.mask` made, or `PartialSum.packed`.
            summed: Further nodes whose contributions were added on the way: they survive or vanish with this one.

        Returns:
            Whether the contribution is whole with it.

        Raises:
            InvalidInputError: The node is not in the cohort (`NOT_IN_COHORT`), the contribution is for another round
                or the sum is closed (`STALE_ROUND`), the span was added before or is in another node's sum
                (`CONTRIBUTION_REPLAYED`), an earlier one is missing, or it is of another size.
        """
        self._check_names(node, summed)
        if context != self.context or self.request is not None:
            raise InvalidInputError(
                f"the contribution of {node} is not for the sum of round {self.plan.round_index}, or that is closed",
                reason="STALE_ROUND",
            )
        progress = self._progress.get(node, _Progress())
        if span < progress.spans:
            raise InvalidInputError(
                f"span {span} of {node} is in the sum already; send from span {progress.spans} on",
                reason="CONTRIBUTION_REPLAYED",
                metadata={"next_span": progress.spans},
            )
        if span > progress.spans or span >= len(self._sums):
            raise InvalidInputError(f"span {span} of {node} is not next; send from span {progress.spans} on")
        self._sums[span] += unpack(packed, self.plan.spans[span], self.plan.bits)
        self._progress[node] = _Progress(span + 1, _chained(progress.chain, packed), summed)
        return span + 1 == len(self._sums)

    def spans_of(self, node: str) -> int:
        """How many spans of a node's contribution are in the sum."""
        return self._progress.get(node, _Progress()).spans

    def withdraw(self, node: str, read: Callable[[], Iterable[bytes]]) -> None:
        """Takes an unfinished contribution out again.

        Args:
            node: Whose.
            read: Gives the same spans that were added, in order. It is asked twice: to check them, then to take them
                away; so none of them has to be held.

        Raises:
            InvalidInputError: They are not the same (the accumulator is then as it was), or the sum is closed.
        """
        progress = self._progress.get(node, _Progress())
        if self.request is not None:
            raise InvalidInputError(
                f"the sum of round {self.plan.round_index} is closed; nothing is taken out of it", reason="STALE_ROUND"
            )
        chain = b""
        for packed in islice(read(), progress.spans + 1):
            chain = _chained(chain, packed)
        if chain != progress.chain:
            raise InvalidInputError(
                f"these are not the spans of {node} that are in the sum; give the {progress.spans} that were added",
                reason="DIGEST_MISMATCH",
            )
        for span, packed in enumerate(read()):
            self._sums[span] -= unpack(packed, self.plan.spans[span], self.plan.bits)
        self._progress.pop(node, None)

    @property
    def whole(self) -> tuple[str, ...]:
        """The nodes whose contributions are in the sum in full."""
        done = {node: one.summed for node, one in self._progress.items() if one.spans == len(self._sums)}
        return tuple(sorted(name for node, summed in done.items() for name in (node, *summed)))

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The nodes of whose contributions a part is in the sum."""
        return tuple(name for name in self.plan.cohort if 0 < self.spans_of(name) < len(self._sums))

    def close(self) -> UnmaskRequest:
        """Closes the sum: the survivors are those whose contributions are whole.

        Raises:
            InvalidInputError: There are fewer than the threshold (`TOO_FEW_SURVIVORS`), or an unfinished contribution
                has to be finished or withdrawn first (`FAILED_PRECONDITION`). The sum stays open.
        """
        if self.request is None:
            if self.unfinished:
                raise InvalidInputError(
                    f"the contributions of {', '.join(self.unfinished)} are unfinished; withdraw them first",
                    reason="FAILED_PRECONDITION",
                )
            check_enough(len(self.whole), self.roster.threshold, "survivors")
            self.request = UnmaskRequest(self.plan, self.whole)
        return self.request

    def take_answer(self, answer: UnmaskAnswer) -> bool:
        """Takes a node's shares; the same ones again change nothing.

        Returns:
            Whether there are enough shares of every secret.

        Raises:
            InvalidInputError: The answer is for another sum (`STALE_ROUND`), of a node that is not in the roster or
                about one that is not in the cohort (`NOT_IN_COHORT`), or differs from an earlier one of the same node
                (`CONTRIBUTION_REPLAYED`).
        """
        request = self._closed()
        self.roster.member(answer.node)
        if answer.context != request.answer_context(self.context):
            raise InvalidInputError(
                f"the answer of {answer.node} is not for these survivors of round {self.plan.round_index}",
                reason="STALE_ROUND",
            )
        if not set(answer.shares) <= set(self._parties):
            raise InvalidInputError(
                f"the answer of {answer.node} is about nodes outside the cohort", reason="NOT_IN_COHORT"
            )
        if self._answers.get(answer.node, answer) != answer:
            raise InvalidInputError(
                f"{answer.node} has answered otherwise before; the first answer counts", reason="CONTRIBUTION_REPLAYED"
            )
        self._answers[answer.node] = answer
        return self.ready

    @property
    def ready(self) -> bool:
        """Whether there are enough shares of every secret."""
        return all(len(self._holders(name)) >= self.roster.threshold for name in self.plan.cohort)

    def sums(self) -> Iterator[NDArray[np.int64]]:
        """The plain sum over the survivors, span by span, as signed integers.

        Raises:
            InvalidInputError: `TOO_FEW_SURVIVORS`, too few nodes have answered.
            IntegrityError: `SHARES_WRONG`, shares give another secret than the one its owner committed to, and leaving
                out some of the answers does not help.
        """
        masks = self._remaining_masks()
        return self._unmasked(masks)

    def to_state(self) -> dict[str, Any]:
        """All of it, as what JSON can hold, the accumulator included: d words. Nothing in it is secret here."""
        return {
            "plan": to_text(self.plan.to_bytes()),
            "parties": {
                name: [to_text(party.round_key), to_text(party.commitment), to_text(party.offer_digest)]
                for name, party in self._parties.items()
            },
            "progress": {
                name: [one.spans, to_text(one.chain), list(one.summed)] for name, one in self._progress.items()
            },
            "closed": self.request is not None,
            "answers": [to_text(answer.to_bytes()) for answer in self._answers.values()],
            "sums": [to_text(_little(total).tobytes()) for total in self._sums],
        }

    @classmethod
    def from_state(cls, roster: Roster, state: dict[str, Any]) -> RoundSum:
        """The sum as `to_state` saw it."""
        plan = RoundPlan.from_bytes(b64decode(state["plan"]))
        parties = {name: Party(*map(b64decode, fields)) for name, fields in state["parties"].items()}
        round_sum = cls(roster, plan, parties)
        round_sum._progress = {
            name: _Progress(spans, b64decode(chain), tuple(summed))
            for name, (spans, chain, summed) in state["progress"].items()
        }
        dtype = lane(plan.bits)
        round_sum._sums = [
            np.frombuffer(b64decode(text), dtype.newbyteorder("<")).astype(dtype) for text in state["sums"]
        ]
        if state["closed"]:
            round_sum.request = UnmaskRequest(plan, round_sum.whole)
        answers = [UnmaskAnswer.from_bytes(b64decode(text)) for text in state["answers"]]
        round_sum._answers = {answer.node: answer for answer in answers}
        return round_sum

    def _check_names(self, node: str, summed: tuple[str, ...]) -> None:
        for name in (node, *summed):
            if name not in self._parties:
                raise InvalidInputError(
                    f"{name} is not in the cohort of round {self.plan.round_index}", reason="NOT_IN_COHORT"
                )
        known = self._progress.get(node)
        others = {name for other, one in self._progress.items() if other != node for name in (other, *one.summed)}
        if others & {node, *summed} or len({node, *summed}) <= len(summed) or (known and known.summed != summed):
            raise InvalidInputError(
                f"a contribution in what {node} sends ({', '.join((node, *summed))}) is in the sum by another way; "
                "each node's counts once",
                reason="CONTRIBUTION_REPLAYED",
            )

    def _closed(self) -> UnmaskRequest:
        if self.request is None:
            raise InvalidInputError(
                f"the sum of round {self.plan.round_index} is open; close it first", reason="FAILED_PRECONDITION"
            )
        return self.request

    def _holders(self, name: str) -> tuple[str, ...]:
        return tuple(sorted(holder for holder, answer in self._answers.items() if name in answer.shares))

    def _unmasked(self, masks: list[Mask]) -> Iterator[NDArray[np.int64]]:
        for span, total in enumerate(self._sums):
            words = total.copy()
            apply_masks(words, masks, span)
            yield to_signed(words, self.plan.bits)

    def _remaining_masks(self) -> list[Mask]:
        """What undoes the masks that are left in the sum: those of every survivor's own, and those that survivors
        share with a node that vanished."""
        request = self._closed()
        secrets = self._secrets()
        masks = [self_mask(secrets[name], name, self.context).turned() for name in request.survivors]
        for gone in set(self.plan.cohort) - set(request.survivors):
            private = X25519PrivateKey.from_private_bytes(secrets[gone])
            # As the one that is gone would have applied it: just the opposite of what the survivor did.
            masks += [
                pair_mask(private, gone, self._parties[name].round_key, name, self.context)
                for name in request.survivors
            ]
        return masks

    def _secrets(self) -> dict[str, bytes]:
        threshold = self.roster.threshold
        groups: Groups = defaultdict(list)
        for name in self.plan.cohort:
            holders = self._holders(name)
            check_enough(len(holders), threshold, f"answers with a share for {name}")
            groups[holders].append(name)
        secrets: dict[str, bytes] = {}
        for holders, names in groups.items():
            # One wrong answer is left out by all windows but `threshold` of them.
            for start in range(len(holders) if len(holders) > threshold else 1):
                missing = [name for name in names if name not in secrets]
                if missing:
                    window = [holders[(start + k) % len(holders)] for k in range(threshold)]
                    secrets.update(self._joined(window, missing))
        wrong = [name for name in self.plan.cohort if name not in secrets]
        if wrong:
            raise wrong_shares(f"what they give for {', '.join(wrong)} is not what was committed to")
        return secrets

    def _joined(self, holders: list[str], names: list[str]) -> dict[str, bytes]:
        """The secrets that these holders' shares give, where they are the right ones."""
        rows = [b"".join(self._answers[holder].shares[name] for name in names) for holder in holders]
        shares = np.frombuffer(b"".join(rows), "<u2").reshape(len(holders), len(names), LIMBS).astype(np.uint16)
        points = [self.roster.places[holder] + 1 for holder in holders]
        try:
            joined = [row.tobytes() for row in join(points, shares)]
        except IntegrityError:
            if len(names) == 1:
                return {}
            return {found: secret for name in names for found, secret in self._joined(holders, [name]).items()}
        return {name: secret for name, secret in zip(names, joined, strict=True) if self._is_right(name, secret)}

    def _is_right(self, name: str, secret: bytes) -> bool:
        party = self._parties[name]
        if name in self._closed().survivors:
            return commitment(secret) == party.commitment
        return mask_public(secret) == party.round_key


def _chained(chain: bytes, packed: bytes | memoryview) -> bytes:
    return hashlib.sha256(chain + hashlib.sha256(packed).digest()).digest()


def _little(words: NDArray[Any]) -> NDArray[Any]:
    return words.astype(words.dtype.newbyteorder("<"), copy=False)
