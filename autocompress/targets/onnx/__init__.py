"""ONNX files: one export, edited for every plan, with weights packed into bits."""
