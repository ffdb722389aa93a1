"""`orbitmesh up` under a contact plan: times as people write them, and mistakes that are named before anything runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from orbitmesh.cli.main import main
from orbitmesh.cli.up import mesh_time

PLAN = {
    "format": "orbitmesh.contact-plan/1",
    "start_s": 1000.0,
    "end_s": 2000.0,
    "contacts": [
        {
            "source": source, "target": target, "start_s": 1000.0, "end_s": 1500.0, "rate_bps": 1e8,
            "latency": [[1000.0, 0.003]],
        }
        for source, target in (("leo-1", "oslo"), ("oslo", "leo-1"))
    ],
}  # fmt: skip


def test_a_time_is_iso_or_seconds_and_utc_where_no_zone_is_given() -> None:
    """What is neither is refused with an example."""
    assert mesh_time("1772366400") == 1772366400.0
    assert mesh_time("2026-03-01T12:00:00Z") == mesh_time("2026-03-01T12:00:00") == 1772366400.0
    assert mesh_time("2026-03-01T13:00:00+01:00") == 1772366400.0
    with pytest.raises(argparse.ArgumentTypeError, match="2026-03-01T12:00:00Z"):
        mesh_time("tomorrow")


@pytest.mark.parametrize(
    ("options", "reason", "words"),
    [
        (["--contacts", "overlapping.json"], "CONTACT_PLAN_INVALID", "overlaps"),
        (["--contacts", "none.json"], "CONTACT_PLAN_INVALID", "cannot be read"),
        (["--contacts", "plan.json"], "INVALID_INPUT", "knows none of this mesh's nodes"),
        (["--contacts", "plan.json", "--node", "leo-1", "--node", "oslo", "--contacts-start", "5"], "INVALID_INPUT",
         "start within it"),
        (["--contacts", "plan.json", "--time-factor", "-1"], "INVALID_INPUT", "time_factor"),
        (["--time-factor", "60"], "INVALID_INPUT", "contacts="),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_followed_is_a_typed_error(
    options: list[str],
    reason: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The reason is for machines, the message names what is wrong; no mesh is left running."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    Path("plan.json").write_text(json.dumps(PLAN))
    twice = {**PLAN, "contacts": [PLAN["contacts"][0], PLAN["contacts"][0]]}  # type: ignore[index]
    Path("overlapping.json").write_text(json.dumps(twice))
    assert main(["up", *options, "--json"]) != 0
    said = capsys.readouterr()
    assert reason in said.out + said.err
    assert words in said.out + said.err
    assert not list(tmp_path.glob("state/**/mesh.json"))
