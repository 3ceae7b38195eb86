"""Write a trained system as ONNX files: the networks, their cards, 8 bits, parity, the bundle.

Optional: needs the packages of `onnx_models.INSTALL_LINE`, and says so at the first import.
"""

from importlib.util import find_spec

from petface.errors import UserError
from petface.inference.onnx_models import INSTALL_LINE

for _package in ("onnx", "onnxscript", "onnxruntime"):
    if find_spec(_package) is None:
        raise UserError(f"exporting needs {_package}: {INSTALL_LINE}")
