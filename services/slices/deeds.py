"""What changes slices: each request is decided on the newest state, and answered once that is on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from orbitmesh.errors import DeadlineError, InvalidInputError
from orbitmesh.v1 import slices_pb2
from services.runtime.caller import time_left_s
from services.slices import admission, book, traffic
from services.slices.access import Caller, own, tenant_for, usable
from services.slices.amounts import parse
from services.slices.changes import Whole
from services.slices.floors import LightSource
from services.slices.keeper import Asked, Keeper
from services.slices.messages import (
    duration_s,
    profile_from,
    reserved_from,
    shares_from,
    slice_message,
    traffic_from,
)
from services.slices.traffic import Traffic
from services.slices.values import Admission, Book, Floors, State

REQUEST_ID_MAX_CHARS = 128
"""The longest request_id."""
LIFETIME_S = 3600.0
"""How long work is admitted for where the caller does not say."""
LIFETIME_MAX_S = 86400.0
"""The longest that it is admitted for at once."""


class Deeds:
    """Carries out what changes the state.

    Args:
        keeper: The state.
        light: How long light takes.
        now_ns: The time, in nanoseconds since 1970.
    """

    def __init__(self, keeper: Keeper, light: LightSource, now_ns: Callable[[], int]) -> None:
        self._keeper = keeper
        self._light = light
        self._now_ns = now_ns

    async def define(
        self, caller: Caller, request: slices_pb2.DefineSliceRequest
    ) -> slices_pb2.DefineSliceResponse:
        """Writes down what a slice is to be."""
        tenant, profile = tenant_for(caller, request.tenant), profile_from(request.profile)

        def decide(whole: Whole, now_ns: int) -> tuple[Whole, bytes]:
            owner = tenant
            if request.etag:
                held = own(caller, whole.book, request.name)
                owner = tenant if request.tenant else held.promise.tenant
            after = book.define(whole.book, request.name, owner, profile, request.etag, now_ns)
            return _answered(whole, after, slices_pb2.DefineSliceResponse(slice=_told(after, whole, request.name)))

        return slices_pb2.DefineSliceResponse.FromString(await self._keeper.change(decide, _asked(caller, request)))

    async def apply(self, caller: Caller, request: slices_pb2.ApplyRequest) -> slices_pb2.ApplyResponse:
        """Makes an allocation hold."""
        wanted = [book.Wanted(each.slice, each.node, reserved_from(each)) for each in request.allocations]
        names = list(dict.fromkeys(each.slice for each in wanted))

        def decide(whole: Whole, now_ns: int) -> tuple[Whole, bytes]:
            places = [own(caller, whole.book, name).promise.profile.place for name in names]
            floors = self._floors(places, whole.book)
            after = book.apply(whole.book, wanted, request.etag, floors, now_ns)
            told = [_told(after, whole, name) for name in names]
            return _answered(whole, after, slices_pb2.ApplyResponse(slices=told, etag=after.etag))

        return slices_pb2.ApplyResponse.FromString(await self._keeper.change(decide, _asked(caller, request)))

    async def resize(self, caller: Caller, request: slices_pb2.ResizeRequest) -> slices_pb2.ResizeResponse:
        """Changes what one slice needs."""
        shares = shares_from(request.shares)
        parse(request.resources)

        def decide(whole: Whole, now_ns: int) -> tuple[Whole, bytes]:
            place = own(caller, whole.book, request.name).promise.profile.place
            floors = self._floors([place], whole.book)
            after = book.resize(
                whole.book, request.name, dict(request.resources), shares, request.etag, floors, now_ns
            )
            return _answered(whole, after, slices_pb2.ResizeResponse(slice=_told(after, whole, request.name)))

        return slices_pb2.ResizeResponse.FromString(await self._keeper.change(decide, _asked(caller, request)))

    async def release(self, caller: Caller, request: slices_pb2.ReleaseRequest) -> slices_pb2.ReleaseResponse:
        """Ends one."""

        def decide(whole: Whole, now_ns: int) -> tuple[Whole, bytes]:
            own(caller, whole.book, request.name)
            after = book.release(whole.book, request.name, request.etag, request.drain, now_ns)
            answer = slices_pb2.ReleaseResponse()
            if request.name in after.slices:
                answer.slice.CopyFrom(_told(after, whole, request.name))
            return _answered(whole, after, answer)

        return slices_pb2.ReleaseResponse.FromString(await self._keeper.change(decide, _asked(caller, request)))

    async def admit(self, caller: Caller, request: slices_pb2.AdmitRequest) -> slices_pb2.AdmitResponse:
        """Reserves room for work."""
        asked = _asked(caller, request)
        if time_left_s(1.0) <= 0:
            # Its caller has given up, and may have withdrawn it already: it would hold its room for nobody.
            raise DeadlineError("the time for this admission was spent before it was looked at; ask again")
        amounts, lifetime_ns = parse(request.resources), _lifetime_ns(request)

        def decide(whole: Whole, now_ns: int) -> tuple[Whole, bytes]:
            before = self._admitted(whole.book, asked)
            if before is not None:
                return whole, _admitted_answer(before)
            usable(caller, whole.book, request.slice, request.tenant)
            until_ns = now_ns + lifetime_ns
            after, made = admission.admit(
                whole.book, request.slice, amounts, request.nodes, asked.key, asked.digest, until_ns, now_ns,
                request.through,
            )  # fmt: skip
            return replace(whole, book=after), _admitted_answer(made)

        return slices_pb2.AdmitResponse.FromString(await self._keeper.change(decide))

    def _admitted(self, now: Book, asked: Asked) -> Admission | None:
        """What this request was given before, also where that has ended."""
        name = now.where.get(asked.key)
        before = now.slices[name].admissions.get(asked.key) if name is not None else self._keeper.ended(asked.key)
        if before is not None and before.digest != asked.digest:
            raise InvalidInputError(
                "this request_id was used for other work; choose a new one for each piece", reason="ALREADY_EXISTS"
            )
        return before

    async def renew(self, caller: Caller, request: slices_pb2.RenewRequest) -> slices_pb2.RenewResponse:
        """Keeps work for longer."""
        key, lifetime_ns = _key(caller, request.request_id), _lifetime_ns(request)

        def decide(whole: Whole, now_ns: int) -> tuple[Whole, bytes]:
            after, held = admission.renew(whole.book, key, now_ns + lifetime_ns, now_ns)
            answer = slices_pb2.RenewResponse()
            answer.until.FromNanoseconds(held.until_ns)
            return (whole if after is whole.book else replace(whole, book=after)), answer.SerializeToString()

        return slices_pb2.RenewResponse.FromString(await self._keeper.change(decide))

    async def withdraw(self, caller: Caller, request: slices_pb2.WithdrawRequest) -> slices_pb2.WithdrawResponse:
        """Gives work back."""
        key = _key(caller, request.request_id)

        def decide(whole: Whole, _: int) -> tuple[Whole, bytes]:
            after = admission.withdraw(whole.book, key)
            return (whole if after is whole.book else replace(whole, book=after)), b""

        await self._keeper.change(decide)
        return slices_pb2.WithdrawResponse()

    async def report(
        self, caller: Caller, request: slices_pb2.ReportTrafficRequest
    ) -> slices_pb2.ReportTrafficResponse:
        """Adds up what a node has measured."""
        if len(request.traffic) > book.SLICES_MAX:
            raise InvalidInputError(
                f"a report tells of {len(request.traffic)} slices; there are at most {book.SLICES_MAX}",
                reason="LIMIT_EXCEEDED",
            )
        measured: dict[str, Traffic] = {name: traffic_from(each) for name, each in request.traffic.items()}

        def decide(whole: Whole, _: int) -> tuple[Whole, bytes]:
            active = {
                name
                for name in measured
                if (held := whole.book.slices.get(name)) is not None and held.promise.state is not State.DEFINED
            }
            totals = traffic.add(
                whole.totals, caller.title, request.process, request.number, measured, active
            )
            return (whole if totals is whole.totals else replace(whole, totals=totals)), b""

        await self._keeper.change(decide)
        return slices_pb2.ReportTrafficResponse()

    def _floors(self, places: Iterable[str], now: Book) -> Floors:
        return self._light.light.floors({place for place in places if place}, now.nodes)


def _answered(before: Whole, after: Book, answer: Any) -> tuple[Whole, bytes]:
    return replace(before, book=after), answer.SerializeToString()


def _told(after: Book, before: Whole, name: str) -> slices_pb2.Slice:
    return slice_message(after, after.get(name), before.totals.slices.get(name))


def _admitted_answer(made: Admission) -> bytes:
    answer = slices_pb2.AdmitResponse(nodes=made.nodes)
    answer.until.FromNanoseconds(made.until_ns)
    return answer.SerializeToString()


def _lifetime_ns(request: slices_pb2.AdmitRequest | slices_pb2.RenewRequest) -> int:
    lifetime_s = duration_s(request.lifetime) if request.HasField("lifetime") else LIFETIME_S
    if not 0 < lifetime_s <= LIFETIME_MAX_S:
        raise InvalidInputError(
            f"lifetime is {lifetime_s:g} s; expected more than 0 and at most {LIFETIME_MAX_S:g} s"
        )
    return round(lifetime_s * 1e9)


def _key(caller: Caller, request_id: str) -> str:
    if not 1 <= len(request_id) <= REQUEST_ID_MAX_CHARS:
        raise InvalidInputError(
            f"request_id has {len(request_id)} characters; expected 1 to {REQUEST_ID_MAX_CHARS}, chosen anew for each "
            "request"
        )
    return f"{caller.title} {request_id}"


def _asked(caller: Caller, request: Any) -> Asked:
    """The request's name: of its caller alone, so that nobody learns what others asked."""
    said = type(request).__name__.encode() + b" " + request.SerializeToString(deterministic=True)
    return Asked(_key(caller, request.request_id), hashlib.sha256(said).hexdigest()[:32])
