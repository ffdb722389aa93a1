"""Every rule of the protos' style finds what it is for and nothing else; the contract keeps them all."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.contract.descriptors import PROTOS, ROOT, CompileError, compile_protos, own_files
from tests.contract.proto_rules import lint

BUF = ROOT / "node_modules" / ".bin" / "buf"
BUF_CONFIG = "version: v2\nlint:\n  use:\n    - STANDARD\n    - COMMENTS\n"
BUF_TIMEOUT_S = 60.0
"""How long one run of buf may take, in seconds."""

GOOD = """syntax = "proto3";
package demo.v1;
import "google/protobuf/timestamp.proto";
// A kind.
enum FlyingKind {
  // Not said.
  FLYING_KIND_UNSPECIFIED = 0;
  // Up.
  FLYING_KIND_UP = 1;
}
// Asks.
service FlyService {
  // Goes.
  rpc FlyFar(FlyFarRequest) returns (FlyFarResponse);
}
// The question.
message FlyFarRequest {
  // Which.
  FlyingKind kind = 1;
  // One of them.
  oneof when {
    // By time.
    google.protobuf.Timestamp start_time = 2;
    // By number.
    uint32 step_2 = 3;
  }
  // By name.
  map<string, FlyingKind> by_name = 4;
  // Perhaps.
  optional uint32 maybe = 5;
  // Nested.
  message Inner {
    // Its own kind.
    enum Shade {
      // Not said.
      SHADE_UNSPECIFIED = 0;
    }
    // The shade.
    Shade shade = 1;
  }
  // The inner one.
  Inner inner = 6;
}
// The answer.
message FlyFarResponse {}
"""


@dataclass(frozen=True)
class Bad:
    """One way to spoil the good proto."""

    rules: tuple[str, ...]
    """The rules that must speak."""
    changes: tuple[tuple[str, str], ...] = ()
    """What is replaced by what in the good proto."""
    more: dict[str, str] = field(default_factory=dict)
    """Further files, by path."""
    path: str = "demo/v1/fly.proto"
    """Where the spoilt proto stands."""

    def write(self, root: Path) -> None:
        text = GOOD
        for old, new in self.changes:
            assert old in text, f"the good proto does not hold {old!r}"
            text = text.replace(old, new)
        for path, content in {self.path: text, **self.more}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)


def bad(rules: str, *changes: tuple[str, str], **more: str) -> Bad:
    files = {key.replace("__", "/") + ".proto": text for key, text in more.items()}
    return Bad(tuple(rules.split()), changes, files)


AS_PROTO2 = (
    ("  FlyingKind kind = 1;", "  optional FlyingKind kind = 1;"),
    ("    Shade shade", "    optional Shade shade"),
    ("  Inner inner", "  optional Inner inner"),
)
"""What the older syntax wants said."""

BAD = [
    bad(""),
    bad("COMMENT_ENUM", ("// A kind.\n", "")),
    bad("COMMENT_ENUM", ("    // Its own kind.\n", "")),
    bad("COMMENT_ENUM_VALUE", ("  // Up.\n", "")),
    bad("COMMENT_ENUM_VALUE", ("  // Up.\n", "  //\n")),
    bad("COMMENT_ENUM_VALUE", ("      // Not said.\n", "")),
    bad("COMMENT_SERVICE", ("// Asks.\n", "")),
    bad("COMMENT_RPC", ("  // Goes.\n", "")),
    bad("COMMENT_MESSAGE", ("// The question.\n", "")),
    bad("COMMENT_MESSAGE", ("  // Nested.\n", "")),
    bad("COMMENT_MESSAGE", ("// The answer.\n", "// The answer.\n\n")),
    bad("COMMENT_FIELD", ("  // Which.\n  FlyingKind kind = 1;\n", "  FlyingKind kind = 1; // Which.\n")),
    bad("COMMENT_FIELD", ("  // By name.\n", "")),
    bad("COMMENT_FIELD", ("    // By number.\n", "")),
    bad("COMMENT_FIELD", ("    // The shade.\n", "")),
    bad("COMMENT_ONEOF", ("  // One of them.\n", "")),
    bad("ENUM_NO_ALLOW_ALIAS",
        ("  // Up.\n", "  option allow_alias = true;\n  // High.\n  FLYING_KIND_HIGH = 1;\n  // Up.\n")),
    bad("ENUM_PASCAL_CASE", ("FlyingKind", "flyingKind")),
    bad("ENUM_PASCAL_CASE", ("FlyingKind", "Flying_Kind")),
    bad("ENUM_VALUE_UPPER_SNAKE_CASE", ("FLYING_KIND_UP ", "FLYING_KIND_Up ")),
    bad("ENUM_VALUE_PREFIX", ("FLYING_KIND_UP ", "UP ")),
    bad("ENUM_VALUE_PREFIX", ("SHADE_UNSPECIFIED", "HUE_UNSPECIFIED")),
    bad("ENUM_ZERO_VALUE_SUFFIX", ("FLYING_KIND_UNSPECIFIED", "FLYING_KIND_NONE")),
    bad("FIELD_LOWER_SNAKE_CASE", ("FlyingKind kind = 1", "FlyingKind theKind = 1")),
    bad("FIELD_LOWER_SNAKE_CASE", ("FlyingKind kind = 1", "FlyingKind Kind = 1")),
    bad("MESSAGE_PASCAL_CASE", ("Inner", "inner_one"), ("inner_one inner", "inner_one inside")),
    bad("ONEOF_LOWER_SNAKE_CASE", ("oneof when", "oneof atWhen")),
    bad("RPC_PASCAL_CASE", ("rpc FlyFar(", "rpc flyFar(")),
    bad("SERVICE_PASCAL_CASE", ("service FlyService", "service flyService")),
    bad("SERVICE_SUFFIX", ("service FlyService", "service Flyer")),
    bad("RPC_REQUEST_STANDARD_NAME", ("FlyFarRequest", "FlyQuestion")),
    bad("RPC_RESPONSE_STANDARD_NAME", ("FlyFarResponse", "FlyAnswer")),
    bad("", ("FlyFarResponse", "FlyServiceFlyFarResponse")),
    bad(
        "RPC_REQUEST_RESPONSE_UNIQUE RPC_RESPONSE_STANDARD_NAME",
        ("returns (FlyFarResponse)", "returns (FlyFarRequest)"),
    ),
    bad(
        "RPC_REQUEST_RESPONSE_UNIQUE RPC_REQUEST_STANDARD_NAME RPC_RESPONSE_STANDARD_NAME",
        ("  // Goes.\n", "  // Also.\n  rpc Hop(FlyFarRequest) returns (FlyFarResponse);\n  // Goes.\n"),
    ),
    bad("IMPORT_USED", ("google.protobuf.Timestamp start_time", "uint64 start_time")),
    bad("IMPORT_NO_PUBLIC", ('import "google', 'import public "google')),
    bad("PACKAGE_DEFINED", ("package demo.v1;\n", "")),
    bad("PACKAGE_DIRECTORY_MATCH", ("package demo.v1", "package other.v1")),
    bad("PACKAGE_DIRECTORY_MATCH PACKAGE_VERSION_SUFFIX", ("package demo.v1", "package demo.first")),
    bad("PACKAGE_DIRECTORY_MATCH PACKAGE_VERSION_SUFFIX", ("package demo.v1", "package demo.v0")),
    bad("PACKAGE_DIRECTORY_MATCH", ("package demo.v1", "package demo.v1beta2")),
    bad("PACKAGE_DIRECTORY_MATCH PACKAGE_LOWER_SNAKE_CASE", ("package demo.v1", "package Demo.v1")),
    bad("SYNTAX_SPECIFIED", ('syntax = "proto3";\n', ""), *AS_PROTO2),
    bad("FIELD_NOT_REQUIRED",
        ("proto3", "proto2"), ("optional uint32 maybe", "required uint32 maybe"), *AS_PROTO2),
    bad("DIRECTORY_SAME_PACKAGE PACKAGE_DIRECTORY_MATCH",
        demo__v1__odd='syntax = "proto3";\npackage odd.v1;\n'),
    bad("PACKAGE_DIRECTORY_MATCH PACKAGE_SAME_DIRECTORY",
        odd__v1__odd='syntax = "proto3";\npackage demo.v1;\n'),
    bad("PACKAGE_SAME_GO_PACKAGE",
        demo__v1__odd='syntax = "proto3";\npackage demo.v1;\noption go_package = "x";\n'),
    bad("PACKAGE_NO_IMPORT_CYCLE",
        ("import", 'import "a/v1/a.proto";\nimport'), ("uint32 step_2", "a.v1.A step_2"),
        a__v1__a='syntax = "proto3";\npackage a.v1;\nimport "demo/v1/base.proto";\n'
                 '// A.\nmessage A {\n  // B.\n  demo.v1.Base base = 1;\n}\n',
        demo__v1__base='syntax = "proto3";\npackage demo.v1;\n// B.\nmessage Base {}\n'),
    Bad(("FILE_LOWER_SNAKE_CASE",), path="demo/v1/Fly.proto"),
    Bad(("FILE_LOWER_SNAKE_CASE",), path="demo/v1/fly-far.proto"),
]  # fmt: skip


def title(each: Bad) -> str:
    return "-".join(each.rules) or "nothing"


@pytest.mark.parametrize("case", BAD, ids=title)
def test_each_rule_speaks_about_what_it_is_for_and_no_other_does(case: Bad, tmp_path: Path) -> None:
    """A proto spoilt in one way is found by exactly the rules for that way, each naming a file and line."""
    case.write(tmp_path)
    found = lint(compile_protos(tmp_path))
    assert {each.rule for each in found} == set(case.rules)
    assert all((tmp_path / each.file).is_file() for each in found)
    assert all(each.line <= len((tmp_path / each.file).read_text().splitlines()) for each in found)


@pytest.mark.buf
@pytest.mark.parametrize("case", BAD, ids=title)
def test_buf_says_the_same(case: Bad, tmp_path: Path) -> None:
    """buf itself, asked about the same spoilt proto, names the same rules."""
    case.write(tmp_path)
    (tmp_path / "buf.yaml").write_text(BUF_CONFIG)
    done = subprocess.run(
        [BUF, "lint", "--error-format", "json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=BUF_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert {json.loads(line)["type"] for line in done.stdout.splitlines()} == set(case.rules), done.stderr


def test_the_contract_keeps_every_rule() -> None:
    """Every word of the contract has a comment and a name as the rules want it."""
    files = compile_protos()
    assert [file.name for file in own_files(files)], f"no protos below {PROTOS}"
    assert [str(each) for each in lint(files)] == []


def test_what_protoc_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    """A proto that does not compile is an error with protoc's own message, not an empty list of findings."""
    Bad((), (("uint32 step_2", "NoSuchType step_2"),)).write(tmp_path)
    with pytest.raises(CompileError, match="NoSuchType"):
        compile_protos(tmp_path)
