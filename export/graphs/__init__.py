"""What writes ONNX: window graphs, decisions, step graphs, and the description of a decoder they are written from."""
