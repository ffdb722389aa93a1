"""Several answers at once with asyncio, one of them left early; then where the time of another went.

    python examples/stream_and_explain.py
    python examples/stream_and_explain.py gateway.example:7443 ~/.orbitmesh/me
"""

from __future__ import annotations

import asyncio
import sys

from _mesh import deployed, mesh_of

from orbitmesh import AsyncMesh

PROMPTS = ("The with statement is used to", "A dictionary maps", "Exceptions are raised when")


async def stream(mesh: AsyncMesh, name: str, prompt: str, most: int | None) -> str:
    """One answer, token by token; it is left, and stopped on every node, after `most` of them, where that is given."""
    text = ""
    async with await mesh.generate(name, prompt, max_new_tokens=32, timeout=120) as generation:
        async for token in generation:
            text += token.text
            if len(generation.tokens) == most:
                break
    print(f"  {prompt!r} -> {text!r} ({generation.finish_reason})")
    return generation.trace_id


async def together(address: str, identity: str, name: str) -> None:
    """All of them share the pipeline."""
    async with AsyncMesh.connect(address, identity=identity) as mesh:
        traces = await asyncio.gather(
            *(stream(mesh, name, prompt, 8 if index == 0 else None) for index, prompt in enumerate(PROMPTS))
        )
        breakdown = await mesh.explain(traces[-1])
        print(breakdown)
        print(f"{breakdown.attributed:.0%} of the time has a name")


def main(arguments: list[str]) -> None:
    """The whole of it."""
    with mesh_of(arguments) as mesh, deployed(mesh, "example") as name:
        address, identity = arguments if arguments else (mesh.local.gateway, str(mesh.local.identity))
        asyncio.run(together(address, identity, name))


if __name__ == "__main__":
    main(sys.argv[1:])
