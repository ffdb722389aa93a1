"""Packs: a model prepared for the mesh, one file per layer, every byte named in a manifest.

`manifest` reads and checks packs and needs neither torch nor transformers; `builder` makes them and needs
both, so it is imported only by who builds.
"""

from orbitmesh.pack.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    SUPPORTED_ARCHITECTURES,
    Manifest,
    PackFile,
    layer_file,
    load_manifest,
    read_verified,
    verify_files,
)

__all__ = [
    "MANIFEST_NAME",
    "SIGNATURE_NAME",
    "SUPPORTED_ARCHITECTURES",
    "Manifest",
    "PackFile",
    "layer_file",
    "load_manifest",
    "read_verified",
    "verify_files",
]
