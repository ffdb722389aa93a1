"""The secrets of the rounds to come: made ahead for many rounds, and shared among all nodes of the run.

For every round a node draws two secrets: the private key from which the masks with its peers follow, and the secret of
the mask that is its own. Of each round the nodes give away their shares of ONE of the two, so what is revealed is worth
nothing in any other round. An **offer** is the signed public side of it, and a **box** holds one peer's shares, sealed
with a key that follows from both run keys and from the offer.

Everything in an offer and its boxes follows from one seed of 32 bytes, so that a node that was killed before it could
send them makes the same ones again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orbitmesh.errors import InvalidInputError, SealError
from services.securesum.fields import digest, join_fields, number, read_number, read_text, split_fields
from services.securesum.keys import OFFER_PURPOSE, Signed, check_signer, unproven
from services.securesum.masks import KEY_BYTES
from services.securesum.roster import Roster
from services.securesum.shamir import SHARE_BYTES, split

BATCH_ROUNDS = 64
"""Rounds that an offer is for, where nothing else is asked."""
BATCH_ROUNDS_MAX = 1_024
"""The most rounds that an offer may be for."""
ROUNDS_MAX = 1 << 48
"""No round has this index."""
SHARES_BYTES = 2 * SHARE_BYTES
"""What a peer holds per round: a share of the private key, then one of the self secret."""

_COMMITMENT = b"orbitmesh/v1/secure-sum/commitment"


@dataclass(frozen=True, slots=True)
class Offer:
    """The public side of a node's secrets for some rounds in a row."""

    roster_digest: bytes
    """The roster that it is for, 32 bytes."""
    node: str
    """Whose it is."""
    first_round: int
    """The first round."""
    round_keys: tuple[bytes, ...]
    """The X25519 public key for each round, 32 bytes each."""
    commitments: tuple[bytes, ...]
    """SHA-256 of the self secret of each round, 32 bytes each: proves that it was put together rightly."""
    salt: bytes
    """32 random bytes: no two offers are equal."""

    @property
    def end_round(self) -> int:
        """The first round behind it."""
        return self.first_round + len(self.round_keys)

    def round_key(self, round_index: int) -> bytes:
        """The public key for a round that the offer is for."""
        return self.round_keys[round_index - self.first_round]

    def commitment(self, round_index: int) -> bytes:
        """The commitment for a round that the offer is for."""
        return self.commitments[round_index - self.first_round]

    def to_bytes(self) -> bytes:
        """What is signed."""
        keys, commitments = b"".join(self.round_keys), b"".join(self.commitments)
        return join_fields(
            self.roster_digest, self.node.encode(), number(self.first_round), keys, commitments, self.salt
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Offer:
        """What `to_bytes` made; raises InvalidInputError where it is not."""
        what = "an offer"
        roster, node, first, keys, commitments, salt = split_fields(data, what, 6)
        rounds, rest = divmod(len(keys), KEY_BYTES)
        first_round = read_number(first, what)
        sizes = rest == 0 and len(keys) == len(commitments) and len(roster) == len(salt) == KEY_BYTES
        if not sizes or not 1 <= rounds <= BATCH_ROUNDS_MAX or first_round + rounds > ROUNDS_MAX:
            raise InvalidInputError(
                f"an offer of {len(keys)} bytes of keys and {len(commitments)} of commitments from round "
                f"{first_round} on; expected {KEY_BYTES} of each for 1 to {BATCH_ROUNDS_MAX} rounds"
            )
        return cls(roster, read_text(node, what), first_round, _cut(keys), _cut(commitments), salt)


@dataclass(frozen=True, slots=True)
class OfferMessage:
    """How an offer leaves its node: signed, with a box for every other node."""

    signed: Signed
    """The offer."""
    boxes: dict[str, bytes]
    """From a node's name to what only it can open."""

    def to_bytes(self) -> bytes:
        """One byte string."""
        boxes = [part for name in sorted(self.boxes) for part in (name.encode(), self.boxes[name])]
        return join_fields(self.signed.to_bytes(), *boxes)

    @classmethod
    def from_bytes(cls, data: bytes) -> OfferMessage:
        """What `to_bytes` made; raises InvalidInputError where it is not."""
        fields = split_fields(data, "an offer with boxes")
        if len(fields) % 2 != 1:
            raise InvalidInputError("an offer with a box of nobody; send it again")
        names = [read_text(name, "an offer with boxes") for name in fields[1::2]]
        return cls(Signed.from_bytes(fields[0]), dict(zip(names, fields[2::2], strict=True)))


@dataclass(frozen=True, slots=True)
class RoundSecrets:
    """A node's own secrets of one round."""

    mask_private: bytes = field(repr=False)
    """X25519, 32 bytes: the masks with its peers follow from it."""
    self_secret: bytes = field(repr=False)
    """32 bytes: the mask of its own follows from it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """All that follows from a seed."""

    offer: Offer
    """The public side."""
    boxes: dict[str, bytes]
    """From each other node's name to its sealed shares."""
    own_shares: dict[int, bytes] = field(repr=False)
    """From a round to the node's shares of its own secrets."""
    secrets: dict[int, RoundSecrets] = field(repr=False)
    """From a round to its secrets."""


def make_batch(
    roster: Roster, node: str, run_private: X25519PrivateKey, first_round: int, rounds: int, seed: bytes
) -> Batch:
    """A node's secrets for some rounds, and everybody's shares of them.

    Args:
        roster: The nodes and how many of them are needed.
        node: Whose secrets.
        run_private: Its run key.
        first_round: The first round.
        rounds: How many.
        seed: 32 random bytes, used for this roster and these rounds only.
    """
    if not 1 <= rounds <= BATCH_ROUNDS_MAX or not 0 <= first_round <= ROUNDS_MAX - rounds:
        raise InvalidInputError(
            f"an offer for {rounds} rounds from {first_round} on was asked for; expected 1 to {BATCH_ROUNDS_MAX} rounds"
        )
    stream = _SeedStream(seed)
    salt = stream(KEY_BYTES)
    raw = np.frombuffer(stream(2 * rounds * KEY_BYTES), np.uint8).reshape(2 * rounds, KEY_BYTES)
    shares = split(raw, len(roster.members), roster.threshold, stream)
    # Holder by holder: round after round, the key's share and then the self secret's.
    per_holder = [np.ascontiguousarray(held, "<u2").tobytes() for held in shares]
    pairs = [RoundSecrets(raw[2 * k].tobytes(), raw[2 * k + 1].tobytes()) for k in range(rounds)]
    keys = tuple(mask_public(pair.mask_private) for pair in pairs)
    offer = Offer(roster.digest, node, first_round, keys, tuple(commitment(pair.self_secret) for pair in pairs), salt)
    offer_digest = digest_of(offer.to_bytes())
    boxes = {}
    for member, held in zip(roster.members, per_holder, strict=True):
        if member.name != node:
            key = _box_key(run_private, member.public, member.name, offer_digest, node, member.name)
            boxes[member.name] = AESGCM(key).encrypt(_NONCE, held, None)
    own = _by_round(per_holder[roster.places[node]], offer)
    return Batch(offer, boxes, own, {first_round + k: pair for k, pair in enumerate(pairs)})


def open_box(
    roster: Roster, node: str, run_private: X25519PrivateKey, offer: Offer, offer_digest: bytes, box: bytes
) -> dict[int, bytes]:
    """A node's shares of a peer's secrets, by round.

    Raises:
        SealError: The box is of another offer, for another node, or was altered.
    """
    sender = roster.member(offer.node)
    key = _box_key(run_private, sender.public, sender.name, offer_digest, sender.name, node)
    try:
        held = AESGCM(key).decrypt(_NONCE, box, None)
    except InvalidTag:
        held = b""
    if len(held) != len(offer.round_keys) * SHARES_BYTES:
        raise SealError(f"the box of {offer.node} for {node} does not open: it is of another offer or was altered")
    return _by_round(held, offer)


def proven_offer(signed: Signed, roster: Roster, ca: x509.Certificate, now: datetime) -> Offer:
    """The offer, once its signature has been checked.

    Raises:
        IdentityError: `MASK_KEY_UNPROVEN`, it is not signed by its node, or is for another roster.
        InvalidInputError: It is no offer, or of no node of the roster.
    """
    offer = Offer.from_bytes(signed.body)
    roster.member(offer.node)
    check_signer(signed, offer.node, OFFER_PURPOSE, ca, now)
    if offer.roster_digest != roster.digest:
        raise unproven(offer.node, "its offer is for another roster")
    return offer


def digest_of(body: bytes) -> bytes:
    """32 bytes that name an offer."""
    return digest(b"offer", body)


def mask_public(mask_private: bytes) -> bytes:
    """The public key of a round's private key."""
    return X25519PrivateKey.from_private_bytes(mask_private).public_key().public_bytes_raw()


def commitment(self_secret: bytes) -> bytes:
    """What an offer says about a self secret; tells nothing of 256 random bits."""
    return hashlib.sha256(_COMMITMENT + self_secret).digest()


# Each box has a key of its own, which follows from the salt of its offer.
_NONCE = bytes(12)


class _SeedStream:
    """Random bytes that follow from a seed."""

    def __init__(self, seed: bytes) -> None:
        self._encryptor = Cipher(algorithms.ChaCha20(seed, bytes(16)), None).encryptor()

    def __call__(self, size: int) -> bytes:
        return self._encryptor.update(bytes(size))


def _box_key(
    own: X25519PrivateKey, public: bytes, peer: str, offer_digest: bytes, sender: str, receiver: str
) -> bytes:
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise unproven(peer, "its run key is none that keeps a secret") from None
    info = join_fields(b"orbitmesh/v1/secure-sum/box", sender.encode(), receiver.encode())
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=offer_digest, info=info).derive(shared)


def _by_round(held: bytes, offer: Offer) -> dict[int, bytes]:
    count = len(offer.round_keys)
    return {offer.first_round + k: held[k * SHARES_BYTES : (k + 1) * SHARES_BYTES] for k in range(count)}


def _cut(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES))
