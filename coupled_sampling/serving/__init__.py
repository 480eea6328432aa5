"""Serving: models behind a queue, for many clients at once.

- `engine`: one thread that owns one decoder; `streams`: what a request's commits are read from; `statistics`: what it has done;
- `jobs`: a request as data, which can cross machines, and its pieces, which cross back;
- `ways`: what jobs have to have in common to share an engine, and what is refused before one is open;
- `lanes`: the engines of one model, one for each way to decode it, opened when they are asked for;
- `served`: a model with its name, its words and its pictures, wherever its engines are;
- `resuming`: jobs that go on elsewhere when the place where they were done dies;
- `deployment`: many machines, by Ray Serve, with `deployment_settings`, `replica`, `crossing` and `meters`; needs the extra [ray];
- `http`: the application that speaks OpenAI's API; needs the extra [serve];
- `bulk`: many prompts, once, to a folder; needs the extra [bulk];
- `triton`: a model repository for NVIDIA Triton Inference Server;
- `keys`: the keys in a file; `fingerprints`: whether two places serve the same model;
- `errors`: what is refused, and when to come back.

A request's tokens are those it has alone: which requests share a batch changes none of them.
"""

from coupled_sampling.serving.engine import Engine, Health
from coupled_sampling.serving.errors import DeadlineExceeded, EngineFailed, EngineStopped, Overloaded, ServingError
from coupled_sampling.serving.jobs import GrammarSource, Job, Piece
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from coupled_sampling.serving.served import ServedModel
from coupled_sampling.serving.statistics import Statistics
from coupled_sampling.serving.streams import CommitStream

__all__ = [
    "CommitStream",
    "DeadlineExceeded",
    "Engine",
    "EngineFailed",
    "EngineStopped",
    "GrammarSource",
    "Health",
    "Job",
    "LaneSettings",
    "Lanes",
    "Overloaded",
    "Piece",
    "ServedModel",
    "ServingError",
    "Statistics",
]
