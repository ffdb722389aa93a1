"""What only Kubernetes needs: the mesh's keys in its secrets, and each pod's own of them."""
