"""Real code in virtual time over a network that fails by seed; `world` for pure state machines, `loop` for asyncio."""
