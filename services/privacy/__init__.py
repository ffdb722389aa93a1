"""Differential privacy for training: what was released, what it cost, and the noise that pays for it.

`events` are the values that describe a release, `accountant` turns them into epsilon, `ledger` keeps a run's list of
them; `noise` draws from a keystream, `clipping` bounds what one node adds, `record_level` what one example adds.
Only `record_level` imports torch. No service of its own: aggregators, executors and clients of them share it.
"""
