"""What lies on disk: settings, tensors, manifests. No model is known here."""

from promptembedder.storage.folder import whole_folder
from promptembedder.storage.manifest import FORMAT, MANIFEST_NAME, Manifest, read_manifest, write_manifest
from promptembedder.storage.provenance import file_sha256, machine_facts, versions
from promptembedder.storage.result_files import write_csv, write_json, write_text
from promptembedder.storage.settings import from_mapping, to_mapping
from promptembedder.storage.tensors import load_tensors, save_tensors

__all__ = [
    "FORMAT",
    "MANIFEST_NAME",
    "Manifest",
    "file_sha256",
    "from_mapping",
    "load_tensors",
    "machine_facts",
    "read_manifest",
    "save_tensors",
    "to_mapping",
    "versions",
    "whole_folder",
    "write_csv",
    "write_json",
    "write_manifest",
    "write_text",
]
