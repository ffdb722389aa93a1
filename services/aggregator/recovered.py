"""What of a round is on disk when a process begins: contributions that are whole count, each node's once."""

from __future__ import annotations

from dataclasses import replace

from orbitmesh.errors import InvalidInputError, SealError
from services.aggregator.rounds import Arrived, Round, Stored, advance
from services.aggregator.spool import Spool
from services.runtime.logs import EventLog


def recovered(state: Round, spool: Spool, log: EventLog) -> Round:
    """The round with every contribution that is durable. Blocks.

    Sums that were made on the way go first, larger ones before smaller ones: where one of the nodes in it has come by
    itself, too, the sum holds that and the others', who may have let go of theirs.

    Args:
        state: The round as it is written down.
        spool: Its contributions.
        log: Where to say what is not taken.
    """
    found = {node: stored for node in state.waiting if (stored := _durable(state, node, spool, log)) is not None}
    for node in sorted(found, key=lambda each: -len(found[each].others)):
        if node not in state.waiting:
            continue
        try:
            state = advance(state, Arrived(node, state.index, replace(found[node], begun=state.index)))
        except InvalidInputError as error:
            if not found[node].others:
                raise
            # One of those in it is in another sum, which was found first: only one of both counts.
            log.warning("sum_not_taken", node=node, reason=error.reason, detail=error.message)
            spool.drop(state.index, node)
    return state


def _durable(state: Round, node: str, spool: Spool, log: EventLog) -> Stored | None:
    try:
        return spool.stored(state.index, node)
    except SealError as error:
        log.warning("contribution_dropped", node=node, round=state.index, detail=error.message)
        spool.drop(state.index, node)
        return None
