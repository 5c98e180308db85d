"""Export to other engines: soft tokens as input embeddings, or the model for one instruction as an ONNX graph."""

from promptembedder.export.onnx_file import export_onnx
from promptembedder.export.soft_tokens import (
    ExportedFolder,
    check_exportable,
    export_soft_tokens,
    select_instructions,
)

__all__ = ["ExportedFolder", "check_exportable", "export_onnx", "export_soft_tokens", "select_instructions"]
