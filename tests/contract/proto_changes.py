"""Every kind of break that the contract could suffer, as changes done to descriptor sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
)

from tests.contract.descriptors import messages_of, own_files

NEW_NUMBER = 900
"""A field number that the contract leaves free."""
SITES = 50
"""The most places at which one change is tried: each costs a copy and a comparison of the whole contract."""

Site = Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """One way to change a contract."""

    rule: str
    """The rule that must speak of it; others may as well."""
    sites: Callable[[FileDescriptorSet], Iterator[Site]]
    """The places of a descriptor set where it can be done, each as the deed."""


def _messages(files: FileDescriptorSet) -> Iterator[DescriptorProto]:
    for file in own_files(files):
        for each in messages_of(file):
            yield each.message


def _fields(files: FileDescriptorSet) -> Iterator[tuple[DescriptorProto, FieldDescriptorProto]]:
    for message in _messages(files):
        for field in message.field:
            yield message, field


def _enums(files: FileDescriptorSet) -> Iterator[EnumDescriptorProto]:
    for file in own_files(files):
        yield from file.enum_type
    for message in _messages(files):
        yield from message.enum_type


def _methods(files: FileDescriptorSet) -> Iterator[MethodDescriptorProto]:
    for file in own_files(files):
        for service in file.service:
            yield from service.method


def _holders(files: FileDescriptorSet) -> Iterator[FileDescriptorProto | DescriptorProto]:
    yield from own_files(files)
    yield from _messages(files)


def _oneof_members(message: DescriptorProto, index: int) -> list[FieldDescriptorProto]:
    return [
        field
        for field in message.field
        if field.HasField("oneof_index") and field.oneof_index == index and not field.proto3_optional
    ]


def _move(message: DescriptorProto, source: FileDescriptorProto, target: FileDescriptorProto) -> None:
    target.message_type.append(message)
    source.message_type.remove(message)


def _make_plain(field: FieldDescriptorProto) -> None:
    field.ClearField("proto3_optional")
    field.ClearField("oneof_index")


def remove_file(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(files.file.remove, file) for file in own_files(files))


def move_package(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(setattr, file, "package", "demo.v2") for file in own_files(files))


def remove_message(files: FileDescriptorSet) -> Iterator[Site]:
    for file in own_files(files):
        for message in file.message_type:
            yield partial(file.message_type.remove, message)
    for parent in _messages(files):
        for message in parent.nested_type:
            if not message.options.map_entry:
                yield partial(parent.nested_type.remove, message)


def rename_message(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(setattr, message, "name", message.name + "X") for message in _messages(files))


def move_message(files: FileDescriptorSet) -> Iterator[Site]:
    own = own_files(files)
    for file, other in zip(own, own[1:] + own[:1], strict=True):
        for message in file.message_type:
            if file is not other:
                yield partial(_move, message, file, other)


def remove_enum(files: FileDescriptorSet) -> Iterator[Site]:
    for holder in _holders(files):
        for enum in holder.enum_type:
            yield partial(holder.enum_type.remove, enum)


def remove_enum_value(files: FileDescriptorSet) -> Iterator[Site]:
    for enum in _enums(files):
        for value in enum.value:
            yield partial(enum.value.remove, value)


def renumber_enum_value(files: FileDescriptorSet) -> Iterator[Site]:
    for enum in _enums(files):
        for value in enum.value:
            yield partial(setattr, value, "number", NEW_NUMBER)


def rename_enum_value(files: FileDescriptorSet) -> Iterator[Site]:
    for enum in _enums(files):
        for value in enum.value:
            yield partial(setattr, value, "name", value.name + "_X")


def remove_service(files: FileDescriptorSet) -> Iterator[Site]:
    for file in own_files(files):
        for service in file.service:
            yield partial(file.service.remove, service)


def remove_rpc(files: FileDescriptorSet) -> Iterator[Site]:
    for file in own_files(files):
        for service in file.service:
            for method in service.method:
                yield partial(service.method.remove, method)


def rename_rpc(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(setattr, method, "name", method.name + "X") for method in _methods(files))


def change_request(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(setattr, method, "input_type", method.output_type) for method in _methods(files))


def change_response(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(setattr, method, "output_type", method.input_type) for method in _methods(files))


def flip_client_streaming(files: FileDescriptorSet) -> Iterator[Site]:
    for method in _methods(files):
        yield partial(setattr, method, "client_streaming", not method.client_streaming)


def flip_server_streaming(files: FileDescriptorSet) -> Iterator[Site]:
    for method in _methods(files):
        yield partial(setattr, method, "server_streaming", not method.server_streaming)


def change_idempotency(files: FileDescriptorSet) -> Iterator[Site]:
    for method in _methods(files):
        yield partial(setattr, method.options, "idempotency_level", MethodOptions.NO_SIDE_EFFECTS)


def remove_field(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(message.field.remove, field) for message, field in _fields(files))


def renumber_field(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(setattr, field, "number", NEW_NUMBER) for _, field in _fields(files))


def rename_field(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(setattr, field, "name", field.name + "_x") for _, field in _fields(files))


def rename_in_json(files: FileDescriptorSet) -> Iterator[Site]:
    return (partial(setattr, field, "json_name", field.json_name + "X") for _, field in _fields(files))


def retype_field(files: FileDescriptorSet) -> Iterator[Site]:
    def deed(field: FieldDescriptorProto) -> None:
        sint64 = FieldDescriptorProto.TYPE_SINT64
        field.type = FieldDescriptorProto.TYPE_FIXED32 if field.type == sint64 else sint64
        field.ClearField("type_name")

    return (partial(deed, field) for _, field in _fields(files))


def retype_values_of_map(files: FileDescriptorSet) -> Iterator[Site]:
    def deed(field: FieldDescriptorProto) -> None:
        field.type = FieldDescriptorProto.TYPE_FIXED64
        field.ClearField("type_name")

    for message in _messages(files):
        for entry in message.nested_type:
            if entry.options.map_entry:
                yield partial(deed, entry.field[1])


def change_cardinality(files: FileDescriptorSet) -> Iterator[Site]:
    def deed(field: FieldDescriptorProto) -> None:
        repeated = FieldDescriptorProto.LABEL_REPEATED
        field.label = FieldDescriptorProto.LABEL_OPTIONAL if field.label == repeated else repeated
        field.ClearField("proto3_optional")
        field.ClearField("oneof_index")

    return (
        partial(deed, field) for message, field in _fields(files)
        if not _is_map(message, field) and (field.proto3_optional or not field.HasField("oneof_index"))
    )  # fmt: skip


def _is_map(message: DescriptorProto, field: FieldDescriptorProto) -> bool:
    names = {entry.name for entry in message.nested_type if entry.options.map_entry}
    return field.type_name.rpartition(".")[2] in names


def make_field_plain(files: FileDescriptorSet) -> Iterator[Site]:
    for _, field in _fields(files):
        if field.proto3_optional:
            yield partial(_make_plain, field)


def leave_oneof(files: FileDescriptorSet) -> Iterator[Site]:
    for message in _messages(files):
        for index, _ in enumerate(message.oneof_decl):
            members = _oneof_members(message, index)
            for field in members[1:]:
                yield partial(field.ClearField, "oneof_index")


def join_oneof(files: FileDescriptorSet) -> Iterator[Site]:
    for message in _messages(files):
        if message.oneof_decl and _oneof_members(message, 0):
            for field in message.field:
                if not field.HasField("oneof_index") and field.label != FieldDescriptorProto.LABEL_REPEATED:
                    yield partial(setattr, field, "oneof_index", 0)


def rename_oneof(files: FileDescriptorSet) -> Iterator[Site]:
    for message in _messages(files):
        for index, oneof in enumerate(message.oneof_decl):
            if _oneof_members(message, index):
                yield partial(setattr, oneof, "name", oneof.name + "_x")


def free_reserved_in_messages(files: FileDescriptorSet) -> Iterator[Site]:
    for message in _messages(files):
        for reserved in message.reserved_range:
            yield partial(message.reserved_range.remove, reserved)
            if reserved.end - reserved.start > 1:
                yield partial(setattr, reserved, "end", reserved.end - 1)
        for name in message.reserved_name:
            yield partial(message.reserved_name.remove, name)


def free_reserved_in_enums(files: FileDescriptorSet) -> Iterator[Site]:
    for enum in _enums(files):
        for reserved in enum.reserved_range:
            yield partial(enum.reserved_range.remove, reserved)
            if reserved.end > reserved.start:
                yield partial(setattr, reserved, "end", reserved.end - 1)
        for name in enum.reserved_name:
            yield partial(enum.reserved_name.remove, name)


def kind(rule: str, sites: Callable[[FileDescriptorSet], Iterator[Site]]) -> tuple[str, Kind]:
    return sites.__name__, Kind(rule, sites)


KINDS = dict(
    [
        kind("FILE_NO_DELETE", remove_file),
        kind("FILE_SAME_PACKAGE", move_package),
        kind("MESSAGE_NO_DELETE", remove_message),
        kind("MESSAGE_NO_DELETE", rename_message),
        kind("MESSAGE_NO_DELETE", move_message),
        kind("ENUM_NO_DELETE", remove_enum),
        kind("ENUM_VALUE_NO_DELETE", remove_enum_value),
        kind("ENUM_VALUE_NO_DELETE", renumber_enum_value),
        kind("ENUM_VALUE_SAME_NAME", rename_enum_value),
        kind("SERVICE_NO_DELETE", remove_service),
        kind("RPC_NO_DELETE", remove_rpc),
        kind("RPC_NO_DELETE", rename_rpc),
        kind("RPC_SAME_REQUEST_TYPE", change_request),
        kind("RPC_SAME_RESPONSE_TYPE", change_response),
        kind("RPC_SAME_CLIENT_STREAMING", flip_client_streaming),
        kind("RPC_SAME_SERVER_STREAMING", flip_server_streaming),
        kind("RPC_SAME_IDEMPOTENCY_LEVEL", change_idempotency),
        kind("FIELD_NO_DELETE", remove_field),
        kind("FIELD_NO_DELETE", renumber_field),
        kind("FIELD_SAME_NAME", rename_field),
        kind("FIELD_SAME_JSON_NAME", rename_in_json),
        kind("FIELD_SAME_TYPE", retype_field),
        kind("FIELD_SAME_TYPE", retype_values_of_map),
        kind("FIELD_SAME_CARDINALITY", change_cardinality),
        kind("FIELD_SAME_CARDINALITY", make_field_plain),
        kind("FIELD_SAME_ONEOF", leave_oneof),
        kind("FIELD_SAME_ONEOF", join_oneof),
        kind("ONEOF_NO_DELETE", rename_oneof),
        kind("RESERVED_MESSAGE_NO_DELETE", free_reserved_in_messages),
        kind("RESERVED_ENUM_NO_DELETE", free_reserved_in_enums),
    ]
)
"""Every kind of break, by the name of the change."""


def changed(files: FileDescriptorSet, what: Kind) -> Iterator[FileDescriptorSet]:
    """Copies of `files`, each changed at one site; where there are many sites, at some spread over all."""
    count = sum(1 for _ in what.sites(files))
    for number in range(0, count, 1 + count // SITES):
        copy = FileDescriptorSet()
        copy.CopyFrom(files)
        list(what.sites(copy))[number]()
        yield copy
