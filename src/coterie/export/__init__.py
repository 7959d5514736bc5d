"""A trained classifier in forms that need none of our code: ONNX, torch.export, a folder for the Hub."""

from coterie.export.hub import push_to_hub, write_hub_folder
from coterie.export.onnx import export_onnx
from coterie.export.program import export_program

__all__ = ["export_onnx", "export_program", "push_to_hub", "write_hub_folder"]
