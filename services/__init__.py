"""The services of the mesh, one folder each; they meet at the protos and never import one another."""
