"""How any service of the mesh starts, whom it lets in, what it tells of errors, and how it stops."""
