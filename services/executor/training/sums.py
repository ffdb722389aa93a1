"""Messages of secure sums at a node: what they ask is done by `SumNode`, and stored before the answer leaves.

KEY      -> the run key, signed
ROSTER   -> nothing but that it was taken
OFFER    -> secrets for the rounds to come, with a box for each other node
OFFERS   -> the digests of all offers that are held; the body is offer, box, offer, box ..., each behind its length
UNMASK   -> this node's shares
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from orbitmesh.errors import InvalidInputError, MeshError, SealError
from orbitmesh.trust import Identity
from orbitmesh.v1 import training_pb2
from services.executor.training.secrets import RunSecrets
from services.runtime.logs import EventLog
from services.securesum import RosterMessage, Signed, SumNode, UnmaskRequest
from services.securesum.fields import join_fields, split_fields

KEPT_ROUNDS = 1
"""Rounds before the last one of which a node keeps what it holds: an aggregator that was started anew may ask again."""
KEY = training_pb2.SUMS_KIND_KEY
ROSTER = training_pb2.SUMS_KIND_ROSTER
OFFER = training_pb2.SUMS_KIND_OFFER
OFFERS = training_pb2.SUMS_KIND_OFFERS
UNMASK = training_pb2.SUMS_KIND_UNMASK


class SumsDesk:
    """Answers messages of secure sums. Blocks.

    Args:
        secrets: The run's; with secure sums.
        spec: The run as it was joined.
        identity: Who this node is now.
        log: Where to say what was left out.
    """

    def __init__(
        self, secrets: RunSecrets | None, spec: training_pb2.TrainingSpec, identity: Identity, log: EventLog
    ) -> None:
        if secrets is None or secrets.sums is None:
            raise InvalidInputError(
                "this run has no secure sums: the aggregator sees each contribution", reason="FAILED_PRECONDITION"
            )
        self._secrets = secrets
        self._sums: SumNode = secrets.sums
        self._threshold = spec.secure_sums.threshold
        self._identity = identity
        self._log = log
        self.unmasked: UnmaskRequest | None = None
        """The sum that this node has helped to unmask."""
        self.fault: MeshError | None = None
        """What was wrong with a part of a message that is answered all the same."""

    def answer(self, kind: training_pb2.SumsKind, round_index: int, body: bytes) -> bytes:
        """Does what a message asks, and gives the body of the answer; what follows from it is durable.

        Raises:
            MeshError: What it asks is refused, and nothing was changed.
        """
        now = datetime.now(UTC)
        with self._secrets.changing():
            match kind:
                case training_pb2.SUMS_KIND_KEY:
                    return self._sums.key(self._identity, now).to_bytes()
                case training_pb2.SUMS_KIND_ROSTER:
                    self._join(RosterMessage.from_bytes(body), now)
                    return b""
                case training_pb2.SUMS_KIND_OFFER:
                    return self._sums.offer(self._identity, round_index, secrets.token_bytes, now).to_bytes()
                case training_pb2.SUMS_KIND_OFFERS:
                    self._take_offers(body, now)
                    return join_fields(*sorted(self._sums.held_offers()))
                case training_pb2.SUMS_KIND_UNMASK:
                    return self._unmask(UnmaskRequest.from_bytes(body))
        raise InvalidInputError(f"a message of secure sums of kind {kind} came, which this version does not know")

    def _join(self, message: RosterMessage, now: datetime) -> None:
        if message.threshold < self._threshold:
            raise InvalidInputError(
                f"the roster unmasks with {message.threshold} nodes, and the run was joined with a threshold of "
                f"{self._threshold}: this node holds to that",
                reason="FAILED_PRECONDITION",
            )
        self._sums.join(message, self._identity.ca, now)

    def _take_offers(self, body: bytes, now: datetime) -> None:
        fields = split_fields(body, "the offers of other nodes")
        if len(fields) % 2:
            raise InvalidInputError("the offers of other nodes came without a box for the last; send them again")
        for offer, box in zip(fields[::2], fields[1::2], strict=True):
            try:
                self._take_offer(Signed.from_bytes(offer), box or None, now)
            except MeshError as error:
                # One that is wrong must not keep the others out.
                self._log.warning("offer_refused", reason=error.reason, detail=error.message)
                self.fault = self.fault or error

    def _take_offer(self, signed: Signed, box: bytes | None, now: datetime) -> None:
        try:
            self._sums.take_offer(signed, box, self._identity.ca, now)
        except SealError as error:
            # Its round can be masked all the same; this node's share of it is left to others.
            self._log.warning("box_not_opened", reason=error.reason, detail=error.message)
            self._sums.take_offer(signed, None, self._identity.ca, now)

    def _unmask(self, request: UnmaskRequest) -> bytes:
        promised = self._secrets.promised(request.plan.round_index)
        if len(request.survivors) < promised:
            raise InvalidInputError(
                f"{len(request.survivors)} nodes survived round {request.plan.round_index}, and this node added noise "
                f"for {promised}: the sum would hold less than was promised",
                reason="TOO_FEW_SURVIVORS",
                metadata={"count": len(request.survivors), "threshold": promised},
            )
        answer = self._sums.unmask(request)
        self._secrets.retire(request.plan.round_index - KEPT_ROUNDS)
        self.unmasked = request
        return answer.to_bytes()
