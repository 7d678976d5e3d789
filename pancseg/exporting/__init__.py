"""Export of a trained network as a MONAI bundle or as ONNX."""
