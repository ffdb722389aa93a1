"""The wire: tensors, codecs, frames, seals, and the sessions that carry them over links that break."""
