"""Files on disk: configurations, manifests and results. Tensors are in `storage.tensors`, which imports torch."""

from promptembedder.storage.atomic import atomic_directory, check_writable, lock_directory
from promptembedder.storage.manifest import (
    FORMAT,
    MANIFEST_NAME,
    Manifest,
    hash_files,
    read_manifest,
    resolve_file,
    write_manifest,
)
from promptembedder.storage.provenance import describe_machine, file_sha256, versions, write_csv, write_json, write_text
from promptembedder.storage.settings import from_mapping, parse_yaml, read_yaml, to_mapping

__all__ = [
    "FORMAT",
    "MANIFEST_NAME",
    "Manifest",
    "atomic_directory",
    "check_writable",
    "describe_machine",
    "file_sha256",
    "from_mapping",
    "hash_files",
    "lock_directory",
    "parse_yaml",
    "read_manifest",
    "read_yaml",
    "resolve_file",
    "to_mapping",
    "versions",
    "write_csv",
    "write_json",
    "write_manifest",
    "write_text",
]
