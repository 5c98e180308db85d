"""What lies on disk: settings, manifests, results; tensors are in `storage.tensors`, which needs torch."""

from promptembedder.storage.atomic import whole_folder
from promptembedder.storage.atomic import owned_folder
from promptembedder.storage.manifest import FORMAT, MANIFEST_NAME, Manifest, checked_file, read_manifest, seal_folder, write_manifest
from promptembedder.storage.provenance import file_sha256, machine_facts, versions
from promptembedder.storage.provenance import write_csv, write_json, write_text
from promptembedder.storage.settings import from_mapping, to_mapping
from promptembedder.storage.settings import read_yaml, yaml_value

__all__ = [
    "FORMAT",
    "MANIFEST_NAME",
    "Manifest",
    "checked_file",
    "file_sha256",
    "from_mapping",
    "machine_facts",
    "owned_folder",
    "read_manifest",
    "read_yaml",
    "seal_folder",
    "to_mapping",
    "versions",
    "whole_folder",
    "write_csv",
    "write_json",
    "write_manifest",
    "write_text",
    "yaml_value",
]
