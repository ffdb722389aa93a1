"""`orbitmesh pki`: what people and scripts see."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from orbitmesh.cli.pki import register
from orbitmesh.errors import InvalidInputError
from orbitmesh.trust import load_identity


def run(*words: object) -> int:
    parser = argparse.ArgumentParser(prog="orbitmesh")
    register(parser.add_subparsers(required=True))
    args = parser.parse_args(["pki", *map(str, words)])
    return int(args.func(args))


def output(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_init_issue_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The three commands make a mesh and identities that load, tell the same facts, and print no key."""
    assert run("init", tmp_path / "ca", "--mesh", "leo-1", "--json") == 0
    mesh = output(capsys)
    assert (
        run("issue", tmp_path / "ca", "executor/sat-1", "--out", tmp_path / "s", "--hours", 2, "--json") == 0
    )
    (issued,) = output(capsys)
    assert run("show", tmp_path / "s", "--json") == 0
    shown = output(capsys)
    assert shown | {"issued": True} == issued
    assert (shown["identity"], shown["mesh"], shown["valid"]) == ("executor/sat-1", "leo-1", True)
    assert shown["ca_fingerprint"] == mesh["ca_fingerprint"] == load_identity(tmp_path / "s").ca_fingerprint
    assert run("show", tmp_path / "ca", "--json") == 0
    assert output(capsys)["ca_fingerprint"] == mesh["ca_fingerprint"]
    for directory in ("s", "ca"):
        assert run("show", tmp_path / directory) == 0
        text = capsys.readouterr().out
        assert "leo-1" in text and "PRIVATE" not in text


def test_running_it_again_keeps_what_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --keep a second run changes nothing while over half of the life is left; without it, it renews."""
    for made in (True, False):
        assert run("init", tmp_path / "ca", "--keep", "--json") == 0
        assert output(capsys)["made"] is made
    names = ("scheduler/main", "executor/sat-1")
    seen = []
    for more, issued in (((), True), (("--keep",), False), ((), True)):
        assert run("issue", tmp_path / "ca", *names, "--under", tmp_path / "ids", "--json", *more) == 0
        results = output(capsys)
        assert [each["issued"] for each in results] == [issued, issued]
        seen.append(results[0]["tls_fingerprint"])
    assert seen[0] == seen[1] != seen[2]
    assert load_identity(tmp_path / "ids" / "executor" / "sat-1").title == "executor/sat-1"


def test_wrong_words_say_what_was_expected(tmp_path: Path) -> None:
    """Names, roles and lifetimes that make no sense are refused with the expected form."""
    run("init", tmp_path / "ca")
    for words, expected in (
        (("sat-1", "--out", "x"), "ROLE/NAME"),
        (("admin/a", "--out", "x"), "the roles are"),
        (("client/a", "client/b", "--out", "x"), "--under"),
        (("client/a", "--out", "x", "--days", "0"), "above zero"),
        (("client/a", "--out", "x", "--days", "1e300"), "length of time"),
    ):
        with pytest.raises(InvalidInputError, match=expected):
            run("issue", tmp_path / "ca", *words)
    with pytest.raises(InvalidInputError, match="never overwritten"):
        run("init", tmp_path / "ca")


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """`orbitmesh pki --help` shows how to start."""
    with pytest.raises(SystemExit):
        run("--help")
    assert "orbitmesh pki init ca" in capsys.readouterr().out
