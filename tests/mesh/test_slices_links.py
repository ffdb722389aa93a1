"""Slices of a real mesh on its links: what executors send keeps to them, and the trace says what waited."""

from __future__ import annotations

import pytest

from orbitmesh import Mesh
from orbitmesh.v1 import slices_pb2
from tests.mesh.support import Models, deployed
from tests.mesh.test_slices_compute import CALL_S, Calls, again_until, calls, held

__all__ = ["calls"]


def test_a_slice_at_its_ceiling_on_the_link_says_so_and_says_the_same_words(
    mesh: Mesh, models: Models, calls: Calls
) -> None:
    """A generation in a slice that may send a ten-thousandth of what a node can waits for its turn on every hop, by a
    row that names the ceiling; its tokens are those of the unsplit model; the service is told what was sent; and what
    names no slice does not wait."""
    model = models.get("llama")
    prompt = model.prompt(7)
    expected = model.answer(prompt, 8)
    with deployed(mesh, model, "thin", stages=2):

        def waits_for_its_turn() -> bool:
            ids, breakdown = calls.generate("thin", prompt, 8, "thin")
            assert ids == expected
            rows = [row for row in breakdown.rows if row.what.startswith("waiting: ")]
            assert all(row.wait for row in rows)
            assert sum(row.total_s for row in breakdown.rows) == pytest.approx(breakdown.total_s, rel=0.01)
            return any(row.what == "waiting: slice ceiling 97 kbit/s" for row in rows)

        most = slices_pb2.SliceShare()
        most.max = 0.0001  # of 1 Gbit/s, of which 97 % are given away
        with held(calls, "thin", {"BandwidthGbps": most}):
            again_until(waits_for_its_turn, "a frame waited for its slice's ceiling")

            def is_told() -> bool:
                found = calls.slices.GetSlice(slices_pb2.GetSliceRequest(name="thin"), timeout=CALL_S).slice.traffic
                assert found.sent_bytes <= found.offered_bytes
                return found.frames >= 7 and sum(found.wait_buckets) == found.frames

            again_until(is_told, "executors told what they had sent")
            _, breakdown = calls.generate("thin", prompt, 8, "")
            assert not any(row.what.startswith("waiting: slice") for row in breakdown.rows)
