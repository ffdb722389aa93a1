"""The slices service: who is promised which part of the mesh's CPU, GPU, memory and bandwidth."""
