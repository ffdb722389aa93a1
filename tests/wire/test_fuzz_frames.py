"""Fifty thousand changed frames of a real recording: none is taken, and what was sent still comes, to the bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.wire.inbox import Inbox
from orbitmesh.wire.seal import TAG_BYTES, AesGcmCipher
from tests.fuzz.frames import AcceptedError, Tally, fuzz
from tests.fuzz.recording import Recording, make_recording

FRAMES = 50_000
RUNS = 16


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    return [make_recording(tmp_path_factory.mktemp("recording"), seed) for seed in range(2)]


def test_no_changed_frame_is_taken(recordings: list[Recording]) -> None:
    """Flipped, cut, spliced, replayed, reordered, renumbered, of elsewhere: refused by name, nothing changed by it."""
    tally = Tally()
    per_frame = -(-FRAMES // RUNS // len(recordings[0].frames)) + 2

    @settings(max_examples=RUNS)
    @given(st.integers(0, 2**64 - 1))
    def run(seed: int) -> None:
        fuzz(recordings[0], (recordings[1],), seed, per_frame, tally)

    run()
    assert tally.frames >= FRAMES, tally
    # That the changes reach every check, and not only the first.
    assert set(tally.refused) >= {
        "SEAL_BROKEN", "FRAME_MALFORMED", "FRAME_REPLAYED", "FRAME_OUT_OF_ORDER", "LIMIT_EXCEEDED",
    }  # fmt: skip


@pytest.mark.parametrize("broken", ["seal", "order"])
def test_a_receiver_that_forgets_a_check_is_found(
    recordings: list[Recording], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same frames against a receiver that skips the seal of bodies, or that does not look at numbers."""
    if broken == "order":
        monkeypatch.setattr(Inbox, "_check_place", lambda self, data: None)
    else:

        def open_into(cipher: AesGcmCipher, index: int, last: bool, header: bytes, body: memoryview, out: memoryview):
            out[:] = body[:-TAG_BYTES]

        monkeypatch.setattr(AesGcmCipher, "open_into", open_into)
    with pytest.raises(AcceptedError):
        for seed in range(20):
            fuzz(recordings[0], (recordings[1],), seed, 20, Tally())
