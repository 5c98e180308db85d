"""A model for other engines: soft tokens as input vectors, or one instruction's whole model as an ONNX graph."""

from promptembedder.export.bundle import ExportedFolder, export_soft_tokens
from promptembedder.export.onnx_file import export_onnx
from promptembedder.export.stock import chosen_instructions, require_stock

__all__ = ["ExportedFolder", "chosen_instructions", "export_onnx", "export_soft_tokens", "require_stock"]
