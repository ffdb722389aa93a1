"""Our own judge of the protos' style: the rules of buf's STANDARD and COMMENTS groups, under buf's names.

It needs nothing but protoc, so it runs on every machine. `PROTOVALIDATE` is left out: we use no such options.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from tests.contract.descriptors import messages_of, own_files

LOWER_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
PASCAL = re.compile(r"[A-Z][A-Za-z0-9]*")
VERSION = re.compile(r"v[1-9]\d*(test.*|(p[1-9]\d*)?(alpha|beta)[1-9]\d*)?")
WORD_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
SAME_OPTIONS = (
    "csharp_namespace",
    "go_package",
    "java_multiple_files",
    "java_package",
    "php_namespace",
    "ruby_package",
    "swift_prefix",
)
"""File options that all files of a package must agree on."""


@dataclass(frozen=True, order=True)
class Finding:
    """Something that a rule does not allow."""

    file: str
    """The proto, relative to the protos' root."""
    line: int
    """Where, counted from 1; 0 where the whole file is meant."""
    rule: str
    """The rule, as buf names it."""
    message: str
    """What is wrong."""

    def __str__(self) -> str:
        """As compilers print it."""
        return f"{self.file}:{self.line}: {self.rule}: {self.message}"


@dataclass(frozen=True)
class Places:
    """Where things stand in a file, and what is written above them."""

    file: FileDescriptorProto
    """The file."""
    lines: dict[tuple[int, ...], int]
    """The line of each thing, counted from 1."""
    comments: dict[tuple[int, ...], str]
    """The comment that stands directly above each thing."""

    def finding(self, path: tuple[int, ...], rule: str, message: str) -> Finding:
        """A finding about the thing at `path`."""
        return Finding(self.file.name, self.lines.get(path, 0), rule, message)


@dataclass(frozen=True)
class EnumIn:
    """An enum, and where it stands."""

    name: str
    """Its name inside its package."""
    path: tuple[int, ...]
    """Its place in the file."""
    enum: EnumDescriptorProto
    """The enum."""


def lint(files: FileDescriptorSet) -> list[Finding]:
    """Judge descriptors that were compiled with source information.

    Args:
        files: The protos, with what they import.

    Returns:
        What is wrong, in the order of files and lines; empty where all is well.
    """
    own = own_files(files)
    defined_in = {name: file.name for file in files.file for name in _type_names(file)}
    found: list[Finding] = []
    for file in own:
        places = _places(file)
        for rule in (_file_rules, _enum_rules, _message_rules, _service_rules):
            found += rule(places)
        found += _import_rules(places, defined_in)
    found += _package_rules(own)
    found += _rpc_types_are_used_once(own)
    return sorted(found)


def snake(name: str) -> str:
    """`HttpCode` and `HTTPCode` as `http_code`."""
    return WORD_BORDER.sub("_", name).lower()


def _places(file: FileDescriptorProto) -> Places:
    lines, comments = {}, {}
    for location in file.source_code_info.location:
        lines[tuple(location.path)] = location.span[0] + 1
        comments[tuple(location.path)] = location.leading_comments.strip()
    return Places(file, lines, comments)


def _file_rules(places: Places) -> Iterator[Finding]:
    file = places.file
    path = PurePosixPath(file.name)
    if not LOWER_SNAKE.fullmatch(path.stem):
        yield places.finding((), "FILE_LOWER_SNAKE_CASE", f"{path.name} is not lower_snake_case.proto")
    if (FileDescriptorProto.SYNTAX_FIELD_NUMBER,) not in places.lines and not file.edition:
        yield places.finding((), "SYNTAX_SPECIFIED", "the file states no syntax")
    where = (FileDescriptorProto.PACKAGE_FIELD_NUMBER,)
    if not file.package:
        yield places.finding((), "PACKAGE_DEFINED", "the file states no package")
        return
    parts = file.package.split(".")
    if path.parent != PurePosixPath(*parts):
        yield places.finding(
            where, "PACKAGE_DIRECTORY_MATCH", f"package {file.package} belongs in {'/'.join(parts)}/"
        )
    if not all(LOWER_SNAKE.fullmatch(part) for part in parts):
        yield places.finding(where, "PACKAGE_LOWER_SNAKE_CASE", f"{file.package} is not lower_snake.case")
    if len(parts) < 2 or not VERSION.fullmatch(parts[-1]):
        yield places.finding(where, "PACKAGE_VERSION_SUFFIX", f"{file.package} does not end in a version")


def _import_rules(places: Places, defined_in: dict[str, str]) -> Iterator[Finding]:
    file = places.file
    used = {defined_in.get(name, "") for name in _used_types(file)}
    for number, name in enumerate(file.dependency):
        where = (FileDescriptorProto.DEPENDENCY_FIELD_NUMBER, number)
        if number in file.public_dependency:
            yield places.finding(where, "IMPORT_NO_PUBLIC", f"{name} is imported publicly")
        elif name not in used:
            yield places.finding(where, "IMPORT_USED", f"{name} is imported and not used")


def _enum_rules(places: Places) -> Iterator[Finding]:
    for each in _enums(places.file):
        yield from _commented(places, each.path, "COMMENT_ENUM", each.name)
        yield from _named(places, each.path, "ENUM_PASCAL_CASE", PASCAL, each.enum.name)
        if each.enum.options.allow_alias:
            yield places.finding(each.path, "ENUM_NO_ALLOW_ALIAS", f"{each.name} allows aliases")
        if each.enum.value[0].number != 0:
            yield places.finding(each.path, "ENUM_FIRST_VALUE_ZERO", f"{each.name} does not begin with 0")
        prefix = f"{snake(each.enum.name).upper()}_"
        for number, value in enumerate(each.enum.value):
            where = (*each.path, EnumDescriptorProto.VALUE_FIELD_NUMBER, number)
            yield from _commented(places, where, "COMMENT_ENUM_VALUE", value.name)
            yield from _named(places, where, "ENUM_VALUE_UPPER_SNAKE_CASE", UPPER_SNAKE, value.name)
            if not value.name.startswith(prefix):
                yield places.finding(where, "ENUM_VALUE_PREFIX", f"{value.name} does not begin with {prefix}")
            if value.number == 0 and not value.name.endswith("_UNSPECIFIED"):
                yield places.finding(
                    where, "ENUM_ZERO_VALUE_SUFFIX", f"{value.name} does not end in _UNSPECIFIED"
                )


def _message_rules(places: Places) -> Iterator[Finding]:
    for each in messages_of(places.file):
        yield from _commented(places, each.path, "COMMENT_MESSAGE", each.name)
        yield from _named(places, each.path, "MESSAGE_PASCAL_CASE", PASCAL, each.message.name)
        for number, field in enumerate(each.message.field):
            where = (*each.path, DescriptorProto.FIELD_FIELD_NUMBER, number)
            yield from _commented(places, where, "COMMENT_FIELD", f"{each.name}.{field.name}")
            yield from _named(places, where, "FIELD_LOWER_SNAKE_CASE", LOWER_SNAKE, field.name)
            if field.label == FieldDescriptorProto.LABEL_REQUIRED:
                yield places.finding(where, "FIELD_NOT_REQUIRED", f"{each.name}.{field.name} is required")
        for number in sorted(_written_oneofs(each.message)):
            oneof = each.message.oneof_decl[number].name
            where = (*each.path, DescriptorProto.ONEOF_DECL_FIELD_NUMBER, number)
            yield from _commented(places, where, "COMMENT_ONEOF", f"{each.name}.{oneof}")
            yield from _named(places, where, "ONEOF_LOWER_SNAKE_CASE", LOWER_SNAKE, oneof)


def _service_rules(places: Places) -> Iterator[Finding]:
    for index, service in enumerate(places.file.service):
        path = (FileDescriptorProto.SERVICE_FIELD_NUMBER, index)
        yield from _commented(places, path, "COMMENT_SERVICE", service.name)
        yield from _named(places, path, "SERVICE_PASCAL_CASE", PASCAL, service.name)
        if not service.name.endswith("Service"):
            yield places.finding(path, "SERVICE_SUFFIX", f"{service.name} does not end in Service")
        for number, method in enumerate(service.method):
            where = (*path, ServiceDescriptorProto.METHOD_FIELD_NUMBER, number)
            yield from _commented(places, where, "COMMENT_RPC", f"{service.name}.{method.name}")
            yield from _named(places, where, "RPC_PASCAL_CASE", PASCAL, method.name)
            for rule, type_name, suffix in (
                ("RPC_REQUEST_STANDARD_NAME", method.input_type, "Request"),
                ("RPC_RESPONSE_STANDARD_NAME", method.output_type, "Response"),
            ):
                stem = method.name[:1].upper() + method.name[1:]
                allowed = (f"{stem}{suffix}", f"{service.name}{stem}{suffix}")
                if type_name.rpartition(".")[2] not in allowed:
                    yield places.finding(
                        where, rule, f"{method.name} has {type_name[1:]} where {' or '.join(allowed)} belongs"
                    )


def _package_rules(files: list[FileDescriptorProto]) -> Iterator[Finding]:
    by_package: dict[str, list[FileDescriptorProto]] = defaultdict(list)
    by_folder: dict[str, list[FileDescriptorProto]] = defaultdict(list)
    for file in files:
        by_package[file.package].append(file)
        by_folder[PurePosixPath(file.name).parent.as_posix()].append(file)
    for folder, members in by_folder.items():
        if len({file.package for file in members}) > 1:
            for file in members:
                yield Finding(file.name, 0, "DIRECTORY_SAME_PACKAGE", f"{folder}/ holds several packages")
    for package, members in by_package.items():
        if package and len({PurePosixPath(file.name).parent for file in members}) > 1:
            for file in members:
                yield Finding(file.name, 0, "PACKAGE_SAME_DIRECTORY", f"{package} is in several folders")
        for option in SAME_OPTIONS:
            if len({getattr(file.options, option) for file in members}) > 1:
                for file in members:
                    yield Finding(
                        file.name, 0, f"PACKAGE_SAME_{option.upper()}", f"{package}: {option} differs"
                    )
    yield from _package_cycles(by_package)


def _package_cycles(by_package: dict[str, list[FileDescriptorProto]]) -> Iterator[Finding]:
    package_of = {file.name: package for package, members in by_package.items() for file in members}
    needs = {
        package: {package_of[name] for file in members for name in file.dependency if name in package_of}
        - {package}
        for package, members in by_package.items()
    }
    for package, members in by_package.items():
        for file in members:
            for name in file.dependency:
                other = package_of.get(name, package)
                if other != package and package in _reachable(needs, other):
                    yield Finding(
                        file.name, 0, "PACKAGE_NO_IMPORT_CYCLE", f"{package} imports itself by {other}"
                    )


def _reachable(needs: dict[str, set[str]], start: str) -> set[str]:
    seen, waiting = set[str](), [start]
    while waiting:
        at = waiting.pop()
        if at not in seen:
            seen.add(at)
            waiting += needs[at]
    return seen


def _rpc_types_are_used_once(files: list[FileDescriptorProto]) -> Iterator[Finding]:
    at = (FileDescriptorProto.SERVICE_FIELD_NUMBER, ServiceDescriptorProto.METHOD_FIELD_NUMBER)
    methods = [
        (file, (at[0], number, at[1], place), method)
        for file in files
        for number, service in enumerate(file.service)
        for place, method in enumerate(service.method)
    ]
    uses = Counter(name for _, _, method in methods for name in (method.input_type, method.output_type))
    for file, where, method in methods:
        for name in sorted({method.input_type, method.output_type}):
            if uses[name] > 1:
                yield _places(file).finding(
                    where, "RPC_REQUEST_RESPONSE_UNIQUE", f"{name[1:]} serves more than one RPC or way"
                )


def _commented(places: Places, path: tuple[int, ...], rule: str, name: str) -> Iterator[Finding]:
    if not places.comments.get(path):
        yield places.finding(path, rule, f"{name} has no comment above it")


def _named(
    places: Places, path: tuple[int, ...], rule: str, shape: re.Pattern[str], name: str
) -> Iterator[Finding]:
    if not shape.fullmatch(name):
        yield places.finding(path, rule, f"{name} does not have the shape of such a name")


def _written_oneofs(message: DescriptorProto) -> set[int]:
    """The oneofs that somebody wrote: `optional` makes one of its own for each field."""
    return {
        field.oneof_index
        for field in message.field
        if field.HasField("oneof_index") and not field.proto3_optional
    }


def _enums(file: FileDescriptorProto) -> Iterator[EnumIn]:
    for number, enum in enumerate(file.enum_type):
        yield EnumIn(enum.name, (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, number), enum)
    for parent in messages_of(file):
        for number, enum in enumerate(parent.message.enum_type):
            path = (*parent.path, DescriptorProto.ENUM_TYPE_FIELD_NUMBER, number)
            yield EnumIn(f"{parent.name}.{enum.name}", path, enum)


def _type_names(file: FileDescriptorProto) -> Iterator[str]:
    prefix = f".{file.package}." if file.package else "."
    for enum in file.enum_type:
        yield prefix + enum.name
    for each in messages_of(file):
        yield f".{each.name}"
        for enum in each.message.enum_type:
            yield f".{each.name}.{enum.name}"


def _used_types(file: FileDescriptorProto) -> Iterator[str]:
    every: list[DescriptorProto] = list(file.message_type)
    while every:
        message = every.pop()
        every += message.nested_type  # entries of maps too: their values may be of imported types
        for field in (*message.field, *message.extension):
            yield field.type_name
            yield field.extendee
    for service in file.service:
        for method in service.method:
            yield method.input_type
            yield method.output_type
