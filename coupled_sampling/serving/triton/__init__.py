"""Triton: a bundle as a model of NVIDIA Triton Inference Server, in its Python backend.

- `repository`: writes a model repository, `write_model`; `configuration` is its ``config.pbtxt``, `settings` what can be set in it;
- `tensors`: what a request may have and what an answer has; `asking`: a request's tensors as a job;
- `backend`: the class that the server runs; `answers`: one request's answer, and all that are under way; `metrics`: numbers at the
  server's own ``/metrics``.

The server needs this library, and what runs the model, in the Python of its Python backend; nothing here needs a web framework.
"""
