"""`orbitmesh pki`: make a mesh's CA, issue identities from it, look at them."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orbitmesh.errors import IdentityError, InvalidInputError
from orbitmesh.trust.certificates import Usage, fingerprint, mesh_name, parse_certificate, stamp
from orbitmesh.trust.files import read_public
from orbitmesh.trust.identity import Identity, load_identity
from orbitmesh.trust.names import Role, parse_identity_name
from orbitmesh.trust.pki import CA_LIFETIME, init_mesh, issue

_EXAMPLES = """examples:
  orbitmesh pki init ca --mesh leo-1
  orbitmesh pki issue ca executor/sat-1 --out sat-1
  orbitmesh pki issue ca scheduler/main gateway/main executor/sat-1 --under identities --keep
  orbitmesh pki issue ca client/me --out ~/.orbitmesh/me --days 7
  orbitmesh pki show ~/.orbitmesh/me

An identity is a directory with ca.pem and three certificates with their keys. Keep ca.key of the mesh's CA
on one machine; give each machine only its own identity. Issue again to renew: running services take it
without a restart."""


def register(subparsers: Any) -> None:
    """Add `pki` to the sub-parsers of the command line; each command sets `func`, which returns an exit
    code."""
    pki = subparsers.add_parser(
        "pki",
        help="make a mesh's certificate authority and the identities of its machines and users",
        description="Who belongs to a mesh: one certificate authority, and the identities that it issues.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = pki.add_subparsers(dest="pki_command", metavar="COMMAND", required=True)
    _register_init(commands)
    _register_issue(commands)
    show = _command(commands, "show", "tell whose identity (or which mesh's CA) a directory holds", run_show)
    show.add_argument("directory", type=Path, metavar="DIR", help="an identity directory or a CA directory")


def _register_init(commands: Any) -> None:
    init = _command(commands, "init", "make the certificate authority of a new mesh", run_init)
    init.add_argument("directory", type=Path, metavar="DIR", help="where ca.pem and ca.key go")
    init.add_argument("--mesh", default="orbitmesh", help="the mesh's name, shown in messages (%(default)s)")
    init.add_argument(
        "--days", type=float, default=CA_LIFETIME.days, help="how long the CA lives (%(default)s)"
    )
    init.add_argument("--keep", action="store_true", help="a CA that is there already is kept, not an error")


def _register_issue(commands: Any) -> None:
    make = _command(commands, "issue", "issue or renew identities", run_issue)
    make.add_argument("ca", type=Path, metavar="CA_DIR", help="what `orbitmesh pki init` made")
    roles = ", ".join(role.value for role in Role)
    make.add_argument("names", nargs="+", metavar="ROLE/NAME", help=f"who; roles: {roles}")
    target = make.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="DIR", help="the identity directory, for one ROLE/NAME")
    target.add_argument("--under", type=Path, metavar="DIR", help="each identity goes to DIR/ROLE/NAME")
    life = make.add_mutually_exclusive_group()
    life.add_argument("--days", type=float, help="life in days (30 for client and operator)")
    life.add_argument("--hours", type=float, help="life in hours (24 for services)")
    make.add_argument(
        "--keep", action="store_true", help="identities of this CA with over half of their life left are kept"
    )


def _command(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(func=run)
    return parser


def run_init(args: argparse.Namespace) -> int:
    """`orbitmesh pki init`. Raises what `init_mesh` raises."""
    made = not (args.keep and (args.directory.expanduser() / "ca.key").exists())
    if made:
        init_mesh(args.directory, mesh=args.mesh, lifetime=_span(days=args.days, hours=None))
    facts = _ca_facts(args.directory) | {"made": made}
    _print(facts, args.json, "made the mesh" if made else "kept the mesh")
    return 0


def run_issue(args: argparse.Namespace) -> int:
    """`orbitmesh pki issue`. Raises what `issue` raises."""
    names = [parse_identity_name(text) for text in args.names]
    if args.out is not None and len(names) != 1:
        raise InvalidInputError("--out takes one ROLE/NAME; use --under DIR for several")
    span = None if args.days is None and args.hours is None else _span(args.days, args.hours)
    results = []
    for role, name in names:
        out = args.out if args.out is not None else args.under / role.value / name
        kept = _still_good(out, args.ca, role, name) if args.keep else None
        identity = kept or issue(args.ca, role, name, out, span)
        facts = _identity_facts(identity) | {"issued": kept is None}
        results.append(facts)
        if not args.json:
            _print(facts, False, "issued" if kept is None else "kept")
    if args.json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """`orbitmesh pki show`: returns 1 where the identity is outside its time."""
    directory = args.directory.expanduser()
    if (directory / "ca.pem").exists() and not (directory / "tls.pem").exists():
        _print(_ca_facts(directory), args.json, "a mesh's CA")
        return 0
    identity = load_identity(directory, allow_expired=True)
    facts = _identity_facts(identity)
    _print(facts, args.json, "an identity")
    return 0 if facts["valid"] else 1


def _still_good(out: Path, ca_dir: Path, role: Role, name: str) -> Identity | None:
    """The identity at `out` where there is no need to issue it anew."""
    try:
        found = load_identity(out)
    except IdentityError:
        return None
    ca = parse_certificate(read_public(ca_dir.expanduser() / "ca.pem", "make the mesh first"), "ca.pem")
    left, whole = found.not_after - datetime.now(UTC), found.not_after - found.not_before
    same = (found.role, found.name, found.ca_fingerprint) == (role, name, fingerprint(ca))
    return found if same and left * 2 > whole else None


def _span(days: float | None, hours: float | None) -> timedelta:
    try:
        return timedelta(days=days or 0, hours=hours or 0)
    except (OverflowError, ValueError):
        raise InvalidInputError("that life is no length of time; give a number of days or hours") from None


def _ca_facts(directory: Path) -> dict[str, object]:
    path = directory.expanduser() / "ca.pem"
    ca = parse_certificate(read_public(path, f"make it: `orbitmesh pki init {directory}`"), str(path))
    return {
        "mesh": mesh_name(ca),
        "ca_fingerprint": fingerprint(ca),
        "not_after": stamp(ca.not_valid_after_utc),
        "directory": str(directory),
    }


def _identity_facts(identity: Identity) -> dict[str, object]:
    now = datetime.now(UTC)
    pems = {
        Usage.TLS: identity.tls_cert_pem,
        Usage.SEAL: identity.seal_cert_pem,
        Usage.SIGN: identity.sign_cert_pem,
    }
    return {
        "identity": identity.title,
        "role": identity.role.value,
        "name": identity.name,
        "spiffe": identity.spiffe,
        "mesh": identity.mesh,
        "ca_fingerprint": identity.ca_fingerprint,
        **{
            f"{usage.value}_fingerprint": fingerprint(parse_certificate(pem, usage.value))
            for usage, pem in pems.items()
        },
        "not_before": stamp(identity.not_before),
        "not_after": stamp(identity.not_after),
        "valid": identity.not_before <= now <= identity.not_after,
        "directory": str(identity.directory),
    }


def _print(facts: dict[str, object], as_json: bool, title: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    width = max(len(key) for key in facts)
    lines = [title, *(f"  {key.replace('_', ' '):<{width}}  {value}" for key, value in facts.items())]
    sys.stdout.write("\n".join(lines) + "\n")
