"""A whole mesh as processes on one machine: for trying it, for tests, for demonstrations.

Beside the services themselves it starts the link emulator and puts a relay between every two nodes, so that what a
node sees of its peers is late and thin as asked. The services that run once stand where the ground node stands:
their ways to satellites are emulated too.
"""
