"""Checks of the contract in `protos/`: its style, its stability, its stubs, and that services keep it."""
