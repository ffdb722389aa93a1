"""The federated aggregator: runs of training over the mesh, durable round by round."""
