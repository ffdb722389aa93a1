"""Every bound of the mesh, named with its unit.

A module that needs a bound of its own keeps it at its top; what two modules share stands here.
"""

from __future__ import annotations

FRAME_BODY_BYTES = 1 << 20
"""The most raw bytes in one frame: where Python's gRPC streams fastest."""

MESSAGE_BYTES = 4 << 20
"""The largest gRPC message that any service accepts."""

SESSION_CREDIT_BYTES = 8 << 20
"""How many bytes of bodies one direction of a session may have under way: the most that a cut can cost again."""

SESSION_IDLE_S = 120.0
"""How long the accepting side keeps a session whose connection was cut."""

SESSIONS_PER_PEER = 64
"""How many sessions one peer may hold on one service."""

TRANSFER_BYTES = 1 << 30
"""The largest transfer that is put together in memory."""

CONTEXT_TOKENS = 1 << 17
"""The longest context that is served."""

GENERATIONS_PER_NODE = 256
"""How many generations may be open on one node."""

JOURNAL_BYTES = 512 << 20
"""What one node keeps of hidden states that it sent on, for nodes that may take over, in bytes; past it the journal of
the generation that needs more is dropped, and a take-over computes it again."""

PREFILL_CHUNK_TOKENS = 256
"""Rows of a prompt that go through the pipeline at once: longer prompts are cut so that stages overlap."""

CONTROL_DEADLINE_S = 20.0
"""The deadline of a control call where the caller names none."""

LEASE_S = 5.0
"""For how long a node is a member after a heartbeat."""

HEARTBEAT_INTERVAL_S = 1.0
"""How often a node speaks to the scheduler."""

TRACES_KEPT = 1024
"""How many breakdowns the gateway remembers."""
