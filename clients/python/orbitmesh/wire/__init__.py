"""The wire: tensors, codecs, frames, seals, and the sessions that carry them over links that break.

From the bytes up:

- `tensors`: element types and shapes, and the memory of a tensor as one run of bytes.
- `planes`, `casts`, `codecs`, `catalog`: how a tensor's bytes become fewer; `policy` chooses by the link's rate.
- `frames`: messages and headers as bytes, as protobuf has them.
- `seal`: keys per session, direction and transfer, and AES-256-GCM per frame.
- `ledger`, `inbox`: what the sending and the receiving end of a direction know of their frames.
- `memory`: where transfers are put together.
- `coding`: frames coded in threads.
- `records`: what users of a session see, and the connection that it needs.
- `pacing`: how large the frames of a large transfer are, by what the link carries.
- `sending`, `receiving`: the two halves of a session.
- `writing`, `carrying`: how its messages move on one connection.
- `liveness`: whether the other end is still there.
- `session`: the session itself.
- `handshake`, `dialler`, `acceptor`: how its ends find each other, and again after a cut.
- `streams`: sessions over gRPC; `dial` and `SessionAcceptor` are what services use.
"""
