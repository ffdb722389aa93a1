"""What leaves a node, slice by slice: a scheduler without a clock (`scheduler`), one on an event loop (`port`), and its
rules from what the slices' service says (`rules`). No service: executor, aggregator and gateway share it."""

from services.egress.node import NodeEgress
from services.egress.port import EgressPort
from services.egress.scheduler import Port, Ticket
from services.egress.spec import DEFAULT_SLICE, PortSpec, SliceRule
from services.egress.traffic import Traffic

__all__ = ["DEFAULT_SLICE", "EgressPort", "NodeEgress", "Port", "PortSpec", "SliceRule", "Ticket", "Traffic"]
