"""What lies on disk: settings, tensors, manifests. No model is known here."""

from promptembedder.storage.folder import whole_folder
from promptembedder.storage.manifest import FORMAT, MANIFEST_NAME, Manifest, read_manifest, write_manifest
from promptembedder.storage.settings import from_mapping, to_mapping
from promptembedder.storage.tensors import load_tensors, save_tensors

__all__ = [
    "FORMAT",
    "MANIFEST_NAME",
    "Manifest",
    "from_mapping",
    "load_tensors",
    "read_manifest",
    "save_tensors",
    "to_mapping",
    "whole_folder",
    "write_manifest",
]
