"""Families of models: each maps the checkpoints of one kind to a description and weights."""
