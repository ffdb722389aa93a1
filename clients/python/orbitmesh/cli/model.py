"""`orbitmesh model pack|show|verify|sign`: packs on this machine."""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.table import Table

from orbitmesh import _packs
from orbitmesh.cli.common import Subparsers, add_command
from orbitmesh.cli.output import OK, Output, size
from orbitmesh.cli.state import read_state
from orbitmesh.errors import InvalidInputError, PackError
from orbitmesh.pack.manifest import (
    SIGNATURE_NAME,
    SUPPORTED_DTYPES,
    Manifest,
    load_manifest,
    read_manifest_bytes,
    verify_files,
)
from orbitmesh.results import Progress
from orbitmesh.trust import Identity, Role, load_identity, sign_bytes, verify_signature

SIGNERS = (Role.CLIENT, Role.OPERATOR)
"""The roles whose signature under a pack counts."""


def register(subparsers: Subparsers) -> None:
    """Adds the subcommands."""
    parser = subparsers.add_parser("model", help="make, show, verify and sign packs")
    commands = parser.add_subparsers(dest="model_command", metavar="COMMAND", required=True)
    pack = add_command(
        commands,
        "pack",
        run_pack,
        summary="make a pack from a model directory or a hub id, and sign it",
        examples="""orbitmesh model pack models/pydoc ./pydoc.pack
        orbitmesh model pack Qwen/Qwen3-0.6B ./qwen.pack --dtype bfloat16 --identity ~/.orbitmesh/me""",
    )
    pack.add_argument("source", help="a model directory in Hugging Face layout, or a hub id")
    pack.add_argument("dest", help="the directory to make")
    pack.add_argument("--name", help="what to call the model; left out: the last part of the source")
    pack.add_argument("--dtype", choices=SUPPORTED_DTYPES, default="float32", help="of the weights (float32)")
    show = add_command(
        commands,
        "show",
        run_show,
        summary="show what a pack holds",
        examples="orbitmesh model show ./pydoc.pack\norbitmesh model show ./pydoc.pack --json",
    )
    verify = add_command(
        commands,
        "verify",
        run_verify,
        summary="check every byte of a pack, and its signature where an identity is known",
        examples="orbitmesh model verify ./pydoc.pack --identity ~/.orbitmesh/me",
    )
    sign = add_command(
        commands,
        "sign",
        run_sign,
        summary="sign a pack's manifest, in place of the signature it may have",
        examples="orbitmesh model sign ./pydoc.pack --identity ~/.orbitmesh/me",
    )
    for command in (show, verify, sign):
        command.add_argument("pack", help="the directory of the pack")
    for command in (pack, verify, sign):
        command.add_argument(
            "--identity",
            metavar="DIR",
            help="an identity; left out: that of the mesh that `orbitmesh up` started",
        )


def run_pack(arguments: argparse.Namespace) -> int:
    """Makes a pack and signs it."""
    output = Output(arguments.json)
    dest = Path(arguments.dest)
    identity = _identity(arguments)
    with output.progress() as on_progress:
        asyncio.run(
            _packs.build(arguments.source, dest, on_progress, name=arguments.name, dtype=arguments.dtype)
        )
    if identity is not None:
        _sign(dest, identity)
    manifest = load_manifest(dest)
    output.document({"event": "packed", "pack": dest, "signed": identity is not None, **_facts(manifest)})
    output.say(f"{dest}: {manifest.layer_count} layers, {size(manifest.total_bytes)}, {manifest.dtype}")
    if identity is None:
        output.say("not signed, for want of an identity: `deploy` signs it, or `orbitmesh model sign`")
    return OK


def run_show(arguments: argparse.Namespace) -> int:
    """Shows what a pack holds."""
    output = Output(arguments.json)
    pack = Path(arguments.pack)
    manifest = load_manifest(pack)
    signed = (pack / SIGNATURE_NAME).is_file()
    output.document({"pack": pack, "signed": signed, **_facts(manifest), "files": manifest.files})
    output.say(
        f"{manifest.name}: {manifest.architecture}, {manifest.layer_count} layers of width "
        f"{manifest.hidden_size}, "
        f"{manifest.vocab_size} tokens, context {manifest.context_tokens}, {manifest.dtype}, "
        f"{'signed' if signed else 'not signed'}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("file", "size", "sha256"):
        table.add_column(column)
    for file in manifest.files:
        table.add_row(file.name, size(file.size_bytes), file.sha256)
    output.view(table)
    return OK


def run_verify(arguments: argparse.Namespace) -> int:
    """Checks every byte of a pack, and its signature."""
    output = Output(arguments.json)
    pack = Path(arguments.pack)
    identity = _identity(arguments)
    data = read_manifest_bytes(pack)
    manifest = Manifest.parse(data)
    signer = None
    if identity is not None:
        signer = verify_signature(data, _signature(pack), identity.ca, SIGNERS).title
    with output.progress() as tell:
        verify_files(
            manifest, pack, progress=lambda name, done, total: tell(Progress("verifying", name, done, total))
        )
    output.document({"event": "verified", "pack": pack, "signer": signer, "bytes": manifest.total_bytes})
    output.say(f"{pack}: every byte of {len(manifest.files)} files is as the manifest says")
    output.say(
        f"signed by {signer}" if signer else "the signature was not checked: no identity to check it with"
    )
    return OK


def run_sign(arguments: argparse.Namespace) -> int:
    """Signs a pack."""
    output = Output(arguments.json)
    pack = Path(arguments.pack)
    identity = _identity(arguments)
    if identity is None:
        raise InvalidInputError(
            "there is no identity to sign with; give --identity DIR (`orbitmesh pki issue`)"
        )
    load_manifest(pack)
    _sign(pack, identity)
    output.document({"signed": pack, "signer": identity.title})
    output.say(f"{pack} is signed by {identity.title}")
    return OK


def _identity(arguments: argparse.Namespace) -> Identity | None:
    if arguments.identity is not None:
        return load_identity(Path(arguments.identity).expanduser())
    state = read_state()
    return None if state is None or not Path(state.identity).is_dir() else load_identity(Path(state.identity))


def _sign(pack: Path, identity: Identity) -> None:
    # Beside and then renamed: a signature that is half written would make the pack look damaged.
    partial = pack / (SIGNATURE_NAME + ".partial")
    partial.write_bytes(sign_bytes(identity, read_manifest_bytes(pack), now=datetime.now(UTC)))
    partial.replace(pack / SIGNATURE_NAME)


def _signature(pack: Path) -> bytes:
    try:
        with (pack / SIGNATURE_NAME).open("rb") as file:
            return file.read(_packs.SIGNATURE_BYTES)
    except FileNotFoundError:
        raise PackError(
            f"{pack} is not signed; sign it with `orbitmesh model sign {pack} --identity DIR`",
            reason="PACK_UNSIGNED",
        ) from None


def _facts(manifest: Manifest) -> dict[str, object]:
    return {
        "name": manifest.name,
        "architecture": manifest.architecture,
        "dtype": manifest.dtype,
        "layers": manifest.layer_count,
        "hidden_size": manifest.hidden_size,
        "vocab_size": manifest.vocab_size,
        "context_tokens": manifest.context_tokens,
        "size_bytes": manifest.total_bytes,
    }
