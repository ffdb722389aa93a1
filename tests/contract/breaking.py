"""What of a contract may not change: compares two descriptor sets by buf's FILE rules, under buf's names.

Adding is allowed. Everything that a client generated from the old protos would notice, on the wire, in JSON
or in the generated code's names, is a break.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from tests.contract.descriptors import messages_of, own_files


@dataclass(frozen=True, order=True)
class Break:
    """One promise of the old contract that the new one does not keep."""

    subject: str
    """What it is about: a file, or a full name."""
    rule: str
    """The rule, as buf names it."""
    message: str
    """What changed, and from what."""

    def __str__(self) -> str:
        """As one line."""
        return f"{self.subject}: {self.rule}: {self.message}"


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[Break]:
    """What of `old` does not hold in `new` any more.

    Args:
        old: The contract that clients were built for.
        new: The contract that services would offer.

    Returns:
        The breaks, sorted; empty where every old client goes on working.
    """
    now = {file.name: file for file in own_files(new)}
    found: list[Break] = []
    for before in own_files(old):
        after = now.get(before.name)
        if after is None:
            found.append(Break(before.name, "FILE_NO_DELETE", "the file is gone"))
            continue
        found += _files(before, after)
    return sorted(found)


def _files(old: FileDescriptorProto, new: FileDescriptorProto) -> Iterator[Break]:
    if old.package != new.package:
        yield Break(old.name, "FILE_SAME_PACKAGE", f"package {old.package} became {new.package}")
        return
    if old.syntax != new.syntax:
        yield Break(old.name, "FILE_SAME_SYNTAX", f"syntax {old.syntax} became {new.syntax}")
    new_messages = {each.name: each.message for each in messages_of(new)}
    for each in messages_of(old):
        message = new_messages.get(each.name)
        if message is None:
            yield Break(each.name, "MESSAGE_NO_DELETE", f"the message is gone from {old.name}")
        else:
            yield from _messages(each.name, each.message, message)
    new_enums = dict(_enums(new))
    for name, enum in _enums(old):
        if name not in new_enums:
            yield Break(name, "ENUM_NO_DELETE", f"the enum is gone from {old.name}")
        else:
            yield from _enum(name, enum, new_enums[name])
    new_services = {service.name: service for service in new.service}
    for service in old.service:
        name = f"{old.package}.{service.name}"
        if service.name not in new_services:
            yield Break(name, "SERVICE_NO_DELETE", f"the service is gone from {old.name}")
        else:
            yield from _service(name, service, new_services[service.name])


def _messages(name: str, old: DescriptorProto, new: DescriptorProto) -> Iterator[Break]:
    new_fields = {field.number: field for field in new.field}
    for field in old.field:
        subject = f"{name}.{field.name}"
        other = new_fields.get(field.number)
        if other is None:
            yield Break(subject, "FIELD_NO_DELETE", f"number {field.number} is gone")
        else:
            yield from _field(subject, (old, field), (new, other))
    new_oneofs = {oneof.name for oneof in new.oneof_decl}
    # A oneof that `optional` made goes with its field, and the field's own rules speak of it.
    made = {field.oneof_index for field in old.field if field.proto3_optional}
    for index, oneof in enumerate(old.oneof_decl):
        if index not in made and oneof.name not in new_oneofs:
            yield Break(f"{name}.{oneof.name}", "ONEOF_NO_DELETE", "the oneof is gone")
    yield from _reserved(name, "RESERVED_MESSAGE_NO_DELETE", old, new)


def _field(
    subject: str,
    old_in: tuple[DescriptorProto, FieldDescriptorProto],
    new_in: tuple[DescriptorProto, FieldDescriptorProto],
) -> Iterator[Break]:
    (old_message, old), (new_message, new) = old_in, new_in
    for rule, what, before, after in (
        ("FIELD_SAME_NAME", "name", old.name, new.name),
        ("FIELD_SAME_JSON_NAME", "JSON name", old.json_name, new.json_name),
        ("FIELD_SAME_TYPE", "type", _type(old_message, old), _type(new_message, new)),
        ("FIELD_SAME_CARDINALITY", "cardinality", _cardinality(old_message, old),
         _cardinality(new_message, new)),
        ("FIELD_SAME_ONEOF", "oneof", _oneof(old_message, old), _oneof(new_message, new)),
        ("FIELD_SAME_DEFAULT", "default", old.default_value, new.default_value),
    ):  # fmt: skip
        if before != after:
            yield Break(subject, rule, f"{what} {before or 'none'} became {after or 'none'}")


def _enum(name: str, old: EnumDescriptorProto, new: EnumDescriptorProto) -> Iterator[Break]:
    names: dict[int, set[str]] = {}
    for value in new.value:
        names.setdefault(value.number, set()).add(value.name)
    for value in old.value:
        subject = f"{name}.{value.name}"
        if value.number not in names:
            yield Break(subject, "ENUM_VALUE_NO_DELETE", f"number {value.number} is gone")
        elif value.name not in names[value.number]:
            now = " and ".join(sorted(names[value.number]))
            yield Break(subject, "ENUM_VALUE_SAME_NAME", f"number {value.number} is now {now}")
    yield from _reserved(name, "RESERVED_ENUM_NO_DELETE", old, new)


def _service(name: str, old: ServiceDescriptorProto, new: ServiceDescriptorProto) -> Iterator[Break]:
    methods = {method.name: method for method in new.method}
    for method in old.method:
        subject = f"{name}.{method.name}"
        other = methods.get(method.name)
        if other is None:
            yield Break(subject, "RPC_NO_DELETE", "the RPC is gone")
            continue
        for rule, what, before, after in (
            ("RPC_SAME_REQUEST_TYPE", "request", method.input_type, other.input_type),
            ("RPC_SAME_RESPONSE_TYPE", "response", method.output_type, other.output_type),
            ("RPC_SAME_CLIENT_STREAMING", "client stream", method.client_streaming, other.client_streaming),
            ("RPC_SAME_SERVER_STREAMING", "server stream", method.server_streaming, other.server_streaming),
            ("RPC_SAME_IDEMPOTENCY_LEVEL", "idempotency level", method.options.idempotency_level,
             other.options.idempotency_level),
        ):  # fmt: skip
            if before != after:
                yield Break(subject, rule, f"{what} {before} became {after}")


def _reserved(
    name: str,
    rule: str,
    old: DescriptorProto | EnumDescriptorProto,
    new: DescriptorProto | EnumDescriptorProto,
) -> Iterator[Break]:
    kept = {(each.start, each.end) for each in new.reserved_range}
    for each in old.reserved_range:
        if not any(start <= each.start and each.end <= end for start, end in kept):
            yield Break(name, rule, f"the reserved numbers from {each.start} are free again")
    for word in sorted(set(old.reserved_name) - set(new.reserved_name)):
        yield Break(name, rule, f"the reserved name {word} is free again")


def _enums(file: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for enum in file.enum_type:
        yield f"{file.package}.{enum.name}", enum
    for each in messages_of(file):
        for enum in each.message.enum_type:
            yield f"{each.name}.{enum.name}", enum


def _map_entry(message: DescriptorProto, field: FieldDescriptorProto) -> DescriptorProto | None:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            return nested
    return None


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    entry = _map_entry(message, field)
    if entry is not None:
        return f"map<{', '.join(_type(entry, part) for part in entry.field)}>"
    return field.type_name or FieldDescriptorProto.Type.Name(field.type)


def _cardinality(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    if _map_entry(message, field) is not None:
        return "map"
    if field.label == FieldDescriptorProto.LABEL_OPTIONAL:
        # Members of a oneof and messages tell "absent" from "zero", as `optional` does; other fields cannot.
        told = field.HasField("oneof_index") or field.type == FieldDescriptorProto.TYPE_MESSAGE
        return "optional with presence" if told else "optional without presence"
    return FieldDescriptorProto.Label.Name(field.label)


def _oneof(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    if not field.HasField("oneof_index") or field.proto3_optional:
        return ""
    return message.oneof_decl[field.oneof_index].name
