"""Secure sums: the aggregator learns the sum of many nodes' updates and no single one of them.

Who does what: `SumNode` is a node, `SumCollector` the set-up at the aggregator, `RoundSum` one round there. Messages
are frozen values with `to_bytes` and `from_bytes`; nothing here has a clock, a file or a connection. What is promised
against whom, and why, is in docs/secure-sums.md.
"""

from services.securesum.collector import Relayed, SumCollector
from services.securesum.keys import Member, Signed
from services.securesum.node import Masker, SumNode
from services.securesum.packing import to_signed, to_words, word_bits
from services.securesum.partial import PartialSum
from services.securesum.roster import Roster, RosterMessage, colluders_tolerated, default_threshold
from services.securesum.rounds import RoundPlan, UnmaskAnswer, UnmaskRequest, spans_of
from services.securesum.sharing import Offer, OfferMessage
from services.securesum.summing import RoundSum

__all__ = [
    "Masker",
    "Member",
    "Offer",
    "OfferMessage",
    "PartialSum",
    "Relayed",
    "Roster",
    "RosterMessage",
    "RoundPlan",
    "RoundSum",
    "Signed",
    "SumCollector",
    "SumNode",
    "UnmaskAnswer",
    "UnmaskRequest",
    "colluders_tolerated",
    "default_threshold",
    "spans_of",
    "to_signed",
    "to_words",
    "word_bits",
]
