"""Trust: who is who in a mesh, and how that is proven.

`names` says which identities may exist, `pki` makes them, `identity` reads them, `certificates` checks those
of others, `sealing_keys` wraps transfer keys to them and `signing` signs for them.
"""

from orbitmesh.trust.certificates import Peer, Usage, fingerprint, verify_leaf
from orbitmesh.trust.identity import Identity, IdentitySource, load_identity
from orbitmesh.trust.names import Role, dns_name, parse_identity_name, parse_spiffe, role_dns_name, spiffe_id
from orbitmesh.trust.pki import init_mesh, issue
from orbitmesh.trust.sealing_keys import unwrap_key, wrap_key
from orbitmesh.trust.signing import sign_bytes, verify_signature

__all__ = [
    "Identity",
    "IdentitySource",
    "Peer",
    "Role",
    "Usage",
    "dns_name",
    "fingerprint",
    "init_mesh",
    "issue",
    "load_identity",
    "parse_identity_name",
    "parse_spiffe",
    "role_dns_name",
    "sign_bytes",
    "spiffe_id",
    "unwrap_key",
    "verify_leaf",
    "verify_signature",
    "wrap_key",
]
