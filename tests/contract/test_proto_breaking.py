"""The contract breaks no client of the one that landed last, and every kind of break would be seen."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from tests.contract.__main__ import check, renew
from tests.contract.breaking import breaks
from tests.contract.descriptors import (
    BASELINE,
    ROOT,
    compile_protos,
    messages_of,
    own_files,
    read_set,
    without_comments,
)
from tests.contract.proto_changes import KINDS, NEW_NUMBER, changed

BUF = ROOT / "node_modules" / ".bin" / "buf"
BUF_TIMEOUT_S = 60.0
"""How long one run of buf may take, in seconds."""

DEMO = """syntax = "proto3";
package demo.v1;
enum Kind {
  reserved 5 to 7;
  reserved "KIND_OLD";
  KIND_UNSPECIFIED = 0;
  KIND_UP = 1;
}
service FlyService {
  rpc Fly(stream FlyRequest) returns (FlyResponse);
  rpc Stop(StopRequest) returns (stream StopResponse);
}
message FlyRequest {
  reserved 8, 20 to 30;
  reserved "old";
  Kind kind = 1;
  oneof when {
    uint64 at_s = 2;
    uint32 step = 3;
  }
  map<string, uint32> by_name = 4;
  optional uint32 maybe = 5;
  repeated uint32 many = 6;
  message Inner {
    enum Shade { SHADE_UNSPECIFIED = 0; }
    Shade shade = 1;
  }
  Inner inner = 7;
}
message FlyResponse {}
message StopRequest {}
message StopResponse {}
message Spare {}
enum Unused { UNUSED_UNSPECIFIED = 0; }
service SpareService {}
"""
"""A contract with one of everything that may break."""
MORE = """syntax = "proto3";
package demo.v1;
message More {
  uint32 count = 1;
}
"""
"""The second file of that contract."""


def write_demo(root: Path, old: str = "", new: str = "") -> None:
    """Write the contract, with one edit of its text or its files' names."""
    files = {"fly.proto": DEMO, "more.proto": MORE}
    assert old in "".join((*files, *files.values())), f"the contract does not hold {old!r}"
    (root / "demo" / "v1").mkdir(parents=True)
    for name, text in files.items():
        edited = (name, text) if not old else (name.replace(old, new), text.replace(old, new))
        (root / "demo" / "v1" / edited[0]).write_text(edited[1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    """A contract of two files with one of everything."""
    root = tmp_path_factory.mktemp("demo")
    write_demo(root)
    return without_comments(compile_protos(root))


@pytest.fixture(scope="module")
def contract() -> FileDescriptorSet:
    """The contract as it stands in `protos/`."""
    return without_comments(compile_protos())


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_break_is_seen_wherever_it_happens(
    name: str, demo: FileDescriptorSet, contract: FileDescriptorSet
) -> None:
    """One change, done at each place of a small contract and of ours, is named each time."""
    what = KINDS[name]
    small = list(changed(demo, what))
    assert small, "the small contract has no place for this change"
    for old, news in ((demo, small), (contract, changed(contract, what))):
        for new in news:
            found = breaks(old, new)
            assert what.rule in {each.rule for each in found}, [str(each) for each in found]


@pytest.mark.parametrize("name", KINDS)
def test_going_back_is_judged_as_well(name: str, demo: FileDescriptorSet) -> None:
    """The two contracts in the other order never raise an error: the checker reads any pair."""
    for new in changed(demo, KINDS[name]):
        assert all(each.subject for each in breaks(new, demo))


def test_adding_breaks_nobody(contract: FileDescriptorSet) -> None:
    """A new file, message, field, enum value, service, RPC or reserved number breaks nothing."""
    new = FileDescriptorSet()
    new.CopyFrom(contract)
    for file in own_files(new):
        for each in list(messages_of(file)):
            each.message.field.add(
                name="added", json_name="added", number=NEW_NUMBER,
                type=FieldDescriptorProto.TYPE_BOOL, label=FieldDescriptorProto.LABEL_OPTIONAL,
            )  # fmt: skip
            each.message.reserved_range.add(start=950, end=960)
            each.message.enum_type.add(name="AddedEnum").value.add(name="ADDED_ENUM_UNSPECIFIED", number=0)
            assert breaks(contract, new) == []
        for enum in file.enum_type:
            enum.value.add(name="ADDED", number=NEW_NUMBER)
            assert breaks(contract, new) == []
        for service in file.service:
            service.method.add(name="Added", input_type=".demo.v1.More", output_type=".demo.v1.More")
            assert breaks(contract, new) == []
        file.message_type.add(name="AddedMessage")
        file.service.add(name="AddedService")
    new.file.add(name="orbitmesh/v1/added.proto", package="orbitmesh.v1", syntax="proto3")
    assert breaks(contract, new) == []
    assert breaks(new, contract) != []


def test_the_contract_breaks_no_client_of_the_one_that_landed(contract: FileDescriptorSet) -> None:
    """What `protos/baseline` promises holds in `protos/`; `make protos-baseline` breaks it on purpose."""
    assert [str(each) for each in breaks(read_set(BASELINE), contract)] == []


def test_the_baseline_holds_what_has_landed(contract: FileDescriptorSet) -> None:
    """What was added to the contract is in the baseline too, so that it cannot be taken away unseen.

    Where this fails, run `make protos`.
    """
    assert [str(each) for each in breaks(contract, read_set(BASELINE))] == []


def test_the_baseline_can_be_loaded_by_anybody() -> None:
    """The baseline carries all it imports: protobuf's own pool builds every file of it, in order."""
    pool = DescriptorPool()
    for file in read_set(BASELINE).file:
        pool.AddSerializedFile(file.SerializeToString())
    assert pool.FindServiceByName("orbitmesh.v1.GatewayService").methods_by_name["Generate"].server_streaming


def test_a_baseline_that_would_break_clients_is_left_unless_asked_for(
    demo: FileDescriptorSet, tmp_path: Path
) -> None:
    """Renewing writes the first baseline and additions, refuses a break and names it, and obeys when told."""
    baseline = tmp_path / "deep" / "demo.binpb"
    assert renew(demo, break_clients=False, baseline=baseline) == []
    first = baseline.read_bytes()
    broken = next(changed(demo, KINDS["remove_field"]))
    assert any("FIELD_NO_DELETE" in line for line in renew(broken, break_clients=False, baseline=baseline))
    assert baseline.read_bytes() == first
    assert any("FIELD_NO_DELETE" in line for line in check(broken, baseline))
    assert renew(broken, break_clients=True, baseline=baseline) != []
    assert read_set(baseline) == broken
    assert renew(demo, break_clients=False, baseline=baseline) == []
    assert baseline.read_bytes() == first


EDITS = [
    ("FILE_NO_DELETE", "more.proto", "less.proto"),
    ("FILE_SAME_PACKAGE", "package demo.v1;", "package demo.v2;"),
    ("MESSAGE_NO_DELETE", "message Spare {}\n", ""),
    ("MESSAGE_NO_DELETE ENUM_NO_DELETE FIELD_SAME_TYPE", "Inner", "Core"),
    ("ENUM_NO_DELETE", "enum Unused { UNUSED_UNSPECIFIED = 0; }\n", ""),
    ("ENUM_VALUE_NO_DELETE", "  KIND_UP = 1;\n", ""),
    ("ENUM_VALUE_NO_DELETE", "KIND_UP = 1", "KIND_UP = 2"),
    ("ENUM_VALUE_SAME_NAME", "KIND_UP", "KIND_HIGH"),
    ("SERVICE_NO_DELETE", "service SpareService {}\n", ""),
    ("RPC_NO_DELETE", "rpc Stop(", "rpc Halt("),
    ("RPC_SAME_REQUEST_TYPE", "Stop(StopRequest)", "Stop(FlyRequest)"),
    ("RPC_SAME_RESPONSE_TYPE", "returns (FlyResponse)", "returns (StopResponse)"),
    ("RPC_SAME_CLIENT_STREAMING", "Fly(stream ", "Fly("),
    ("RPC_SAME_SERVER_STREAMING", "returns (stream ", "returns ("),
    ("RPC_SAME_IDEMPOTENCY_LEVEL", "returns (FlyResponse);",
     "returns (FlyResponse) { option idempotency_level = IDEMPOTENT; }"),
    ("FIELD_NO_DELETE", "  repeated uint32 many = 6;\n", ""),
    ("FIELD_NO_DELETE", "many = 6", "many = 900"),
    ("FIELD_SAME_NAME FIELD_SAME_JSON_NAME", "many = 6", "lots = 6"),
    ("FIELD_SAME_JSON_NAME", "many = 6", 'many = 6 [json_name = "lots"]'),
    ("FIELD_SAME_TYPE", "repeated uint32 many", "repeated fixed32 many"),
    ("FIELD_SAME_TYPE", "Inner inner = 7", "FlyResponse inner = 7"),
    ("FIELD_SAME_TYPE FIELD_SAME_CARDINALITY", "Inner inner = 7", "uint32 inner = 7"),
    ("FIELD_SAME_CARDINALITY", "repeated uint32 many", "uint32 many"),
    ("FIELD_SAME_CARDINALITY", "optional uint32 maybe", "uint32 maybe"),
    ("FIELD_SAME_ONEOF FIELD_SAME_CARDINALITY", "    uint32 step = 3;\n  }\n", "  }\n  uint32 step = 3;\n"),
    ("ONEOF_NO_DELETE FIELD_SAME_ONEOF", "oneof when", "oneof while"),
    ("RESERVED_MESSAGE_NO_DELETE", "20 to 30", "20 to 29"),
    ("RESERVED_MESSAGE_NO_DELETE", '  reserved "old";\n', ""),
    ("RESERVED_ENUM_NO_DELETE", "5 to 7", "6 to 7"),
    ("RESERVED_ENUM_NO_DELETE", '  reserved "KIND_OLD";\n', ""),
    ("", "message Spare {}", "message Spare { uint32 added = 1; }\nmessage Added {}"),
    ("", "uint32 step = 3;", "uint32 step = 3;\n    uint32 stride = 9;"),
    ("", "20 to 30", "20 to 31"),
]  # fmt: skip
"""The rules that must speak of an edit, and the edit: what becomes what in the files or their names."""


@pytest.mark.parametrize(("rules", "old", "new"), EDITS)
def test_an_edit_breaks_by_exactly_these_rules(
    rules: str, old: str, new: str, demo: FileDescriptorSet, tmp_path: Path
) -> None:
    """An edit of the source that protoc still compiles is a break by the rules listed and by no others."""
    write_demo(tmp_path, old, new)
    assert {each.rule for each in breaks(demo, compile_protos(tmp_path))} == set(rules.split())


@pytest.mark.buf
@pytest.mark.parametrize(("rules", "old", "new"), EDITS)
def test_buf_sees_the_same_breaks(
    rules: str, old: str, new: str, demo: FileDescriptorSet, tmp_path: Path
) -> None:
    """buf itself, asked about the same edit, names the same rules."""
    write_demo(tmp_path, old, new)
    (tmp_path / "buf.yaml").write_text("version: v2\nbreaking:\n  use:\n    - FILE\n")
    (tmp_path / "old.binpb").write_bytes(demo.SerializeToString())
    done = subprocess.run(
        [BUF, "breaking", "--against", "old.binpb", "--error-format", "json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=BUF_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert {json.loads(line)["type"] for line in done.stdout.splitlines()} == set(rules.split()), done.stderr
