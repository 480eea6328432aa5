"""Bulk: many prompts, once, to a folder; what was done stays done, whatever ends the run.

- `rows`: a line of the prompts' file, read and checked; `prompts`: the file, checked whole and then read a second time, lazily;
- `making`: a prompt's tokens, text and picture; `local`: many of them in this process; `ray_data`: on many machines;
- `folder`: where results go, and whose it is; `record`: the parquet files in it.

A sequence's noise is keyed by its id and seed. So its tokens depend neither on the order of the prompts, nor on what shares a batch
with it, nor on the number of machines, nor on how often the run was killed.
"""
