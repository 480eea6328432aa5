"""Decoders that somebody else exported: read, checked, and run by ONNX Runtime."""
