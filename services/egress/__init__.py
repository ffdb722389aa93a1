"""What leaves a sender, slice by slice: a scheduler without a clock (`scheduler`), one on an event loop (`port`), its
rules from what the slices' service says (`rules`), and the ways out of a sender (`node`). No service: executor,
aggregator and gateway share it."""

from services.egress.lanes import Ticket
from services.egress.node import FarEgress, NodeEgress
from services.egress.port import EgressPort
from services.egress.scheduler import Port
from services.egress.spec import DEFAULT_SLICE, PortSpec, SliceRule
from services.egress.traffic import Traffic

__all__ = [
    "DEFAULT_SLICE",
    "EgressPort",
    "FarEgress",
    "NodeEgress",
    "Port",
    "PortSpec",
    "SliceRule",
    "Ticket",
    "Traffic",
]
