"""The protos as descriptors: compiled from source with their comments, or read from the baseline."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
BASELINE = PROTOS / "baseline" / "orbitmesh.binpb"
"""The contract as it landed last, without comments, with its imports."""
FOREIGN = ("google/",)
"""Where protos begin that others wrote: needed to read ours, but neither judged nor compared."""
PROTOC_TIMEOUT_S = 60.0
"""How long one run of protoc may take, in seconds."""


class CompileError(Exception):
    """protoc refused the protos; the message is what it said."""


@dataclass(frozen=True)
class MessageIn:
    """A message, and where it stands."""

    file: FileDescriptorProto
    """The file that declares it."""
    name: str
    """Its full name, without a leading dot."""
    path: tuple[int, ...]
    """Its place in the file, as source information names places."""
    message: DescriptorProto
    """The message."""


def sources_below(root: Path) -> list[str]:
    """The protos below a folder, as paths relative to it, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.proto"))


def compile_protos(root: Path = PROTOS) -> FileDescriptorSet:
    """Compile every proto below `root`, with comments and with what they import.

    Raises:
        CompileError: protoc refused them.
    """
    include = str(resources.files("grpc_tools").joinpath("_proto"))
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "set.binpb"
        # A process of its own: what protoc complains about is on the process's stderr.
        done = subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"-I{include}", "--include_imports",
             "--include_source_info", f"--descriptor_set_out={out}", *sources_below(root)],
            capture_output=True, text=True, timeout=PROTOC_TIMEOUT_S, check=False, cwd=os.fspath(root),
        )  # fmt: skip
        if done.returncode != 0:
            raise CompileError(done.stderr)
        return FileDescriptorSet.FromString(out.read_bytes())


def read_set(path: Path) -> FileDescriptorSet:
    """Read a descriptor set from a file."""
    return FileDescriptorSet.FromString(path.read_bytes())


def without_comments(files: FileDescriptorSet) -> FileDescriptorSet:
    """The same descriptors without source information: what a baseline keeps."""
    bare = FileDescriptorSet()
    bare.CopyFrom(files)
    for file in bare.file:
        file.ClearField("source_code_info")
    return bare


def own_files(files: FileDescriptorSet) -> list[FileDescriptorProto]:
    """The files that this project wrote."""
    return [file for file in files.file if not file.name.startswith(FOREIGN)]


def messages_of(file: FileDescriptorProto) -> Iterator[MessageIn]:
    """Every message of a file, the nested ones after their parents; entries of maps are left out."""
    prefix = f"{file.package}." if file.package else ""
    waiting = [
        MessageIn(file, prefix + each.name, (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, number), each)
        for number, each in enumerate(file.message_type)
    ]
    while waiting:
        found = waiting.pop(0)
        if found.message.options.map_entry:
            continue
        yield found
        waiting += [
            MessageIn(
                file,
                f"{found.name}.{each.name}",
                (*found.path, DescriptorProto.NESTED_TYPE_FIELD_NUMBER, number),
                each,
            )
            for number, each in enumerate(found.message.nested_type)
        ]
