"""Bulk runs by Ray, on a Ray of this machine with two CPUs; `make test-ray` installs it."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.backends import Place
from coupled_sampling.errors import BundleError
from coupled_sampling.serving.bulk.ray_data import RaySettings, made_by_ray
from coupled_sampling.serving.bulk.rows import RowReader
from coupled_sampling.serving.bulk.running import BulkSettings, run_bulk
from coupled_sampling.serving.fingerprints import fingerprint
from coupled_sampling.serving.lanes import LaneSettings
from standins import ROOT
from standins.serving import text_bundle
from standins.telling import open_and_tell, open_here_only, open_slowly

ray = pytest.importorskip("ray", reason="make test-ray installs it")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra [bulk]")

PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
LANES = LaneSettings(rows=2, place=Place(threads=1))


@pytest.fixture(scope="module")
def small_cluster():
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_BACKEND_LOG_LEVEL="fatal")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": PATHS}},
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_bundle(tmp_path_factory.mktemp("text"))


def rows_in(out):
    rows = parquet.read_table(out / "record").to_pylist()
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "an id is in the record twice"
    return {name: {**row, "passes": None, "tokens_per_pass": None} for name, row in found.items()}


def write_lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def run(prompts, out, opened, ray_settings=None):
    return run_bulk(str(prompts), out, opened, LANES, BulkSettings(part_rows=5, ray=ray_settings))


def test_two_actors_make_what_one_process_makes(small_cluster, tmp_path):
    opened = functools.partial(open_bundle, "fashion")
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"id": f"r{i}", "prompt": "shoe"} for i in range(12)])
    run(prompts, tmp_path / "here", opened)
    tally = run(prompts, tmp_path / "there", opened, RaySettings(2))
    assert (tally.made, tally.errors) == (12, 0)
    here, there = rows_in(tmp_path / "here"), rows_in(tmp_path / "there")
    assert here == there
    for row in here.values():
        assert (tmp_path / "here" / row["picture"]).read_bytes() == (tmp_path / "there" / row["picture"]).read_bytes()
    assert run(prompts, tmp_path / "there", opened, RaySettings(2)).made == 0


def test_no_prompt_waits_for_a_slower_one(small_cluster, text):
    """The first prompt of all is the longest: others, 20 times shorter and read after it, pass it in the same actor."""
    bundle = open_bundle(text)
    lengths = [240, *[10] * 15]

    def asked():
        reader = RowReader(open_bundle(text), open_bundle(text).tokenizer(), seed=0, samples=1, check=lambda job: None)
        for number, length in enumerate(lengths):
            yield from reader.read(number, json.dumps({"prompt": "hello", "max_tokens": length}))

    slow = LaneSettings(rows=2, place=Place(threads=1), defaults={"method": "ar"})
    opened = functools.partial(open_slowly, text)
    made = list(made_by_ray(opened, fingerprint(bundle), slow, RaySettings(1), asked))
    # How many pass it depends on how fast Ray hands them over; in blocks, or in order, none would.
    assert [len(one.tokens) for one in made].index(240) >= 2
    assert sorted(int(one.asked.id) for one in made) == list(range(16))


def test_an_actor_that_is_killed_costs_nothing_but_time(small_cluster, tmp_path, text):
    told = tmp_path / "told"
    told.mkdir()
    rows = [{"id": f"r{i}", "prompt": "hello", "max_tokens": 200} for i in range(60)]
    prompts = write_lines(tmp_path / "prompts.jsonl", rows)
    opened = functools.partial(open_and_tell, str(told), text)
    killed = []

    def report(tally):
        if tally.made >= 3 and not killed:
            actors = [int(path.name) for path in told.iterdir() if _is_actor(int(path.name))]
            os.kill(actors[0], signal.SIGKILL)
            killed.append(actors[0])

    settings = BulkSettings(part_rows=5, ray=RaySettings(2))
    slow = LaneSettings(rows=2, place=Place(threads=1), defaults={"method": "ar"})
    tally = run_bulk(str(prompts), tmp_path / "there", opened, slow, settings, report=report)
    assert killed
    assert (tally.made, tally.errors) == (60, 0)
    run_bulk(str(prompts), tmp_path / "here", opened, slow, BulkSettings())
    assert rows_in(tmp_path / "here") == rows_in(tmp_path / "there")


def _is_actor(process):
    """Whether a process that told us of itself is an actor, and not the task that reads prompts, nor this one."""
    try:
        return b"MapWorker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_driver_that_is_killed_goes_on_with_or_without_ray(small_cluster, tmp_path, text):
    rows = [{"id": f"r{i}", "prompt": "hello", "max_tokens": 150} for i in range(60)]
    prompts, out = write_lines(tmp_path / "prompts.jsonl", rows), tmp_path / "out"
    options = ["--part-rows", "5", "--batch-size", "2", "--threads", "1", "--ray", "--address", small_cluster]
    words = [sys.executable, "-m", "coupled_sampling", "bulk", str(prompts), str(out), str(text), *options]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": PATHS})
    until = time.monotonic() + 150
    while process.poll() is None and not list(out.glob("record/part-*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.wait(60)
    opened = functools.partial(open_bundle, text)
    tally = run(prompts, out, opened)
    assert 0 < tally.before < 60
    assert tally.before + tally.made == 60
    run(prompts, tmp_path / "whole", opened)
    assert rows_in(out) == rows_in(tmp_path / "whole")


def test_an_error_of_an_actor_is_told_as_it_is(small_cluster, tmp_path, text):
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "hello", "max_tokens": 3}])
    with pytest.raises(BundleError, match="no bundle in this process"):
        run(prompts, tmp_path / "out", functools.partial(open_here_only, os.getpid(), text), RaySettings(1))
