"""Bundles run by ONNX Runtime: window graphs as providers, step graphs as steps, pixel graphs as pictures."""
