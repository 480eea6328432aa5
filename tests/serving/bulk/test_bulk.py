"""Bulk runs in one process: each sequence is what it is alone, no pass waits for a block, and a run that ended goes on."""

import errno
import functools
import itertools
import json
import threading

import pytest

from coupled_sampling import Decoder, open_bundle
from coupled_sampling.backends import PixelDecoder, Place, open_model
from coupled_sampling.errors import InvalidArgument, OutputError
from coupled_sampling.serving.bulk import local, making
from coupled_sampling.serving.bulk.folder import opened_folder, picture_path
from coupled_sampling.serving.bulk.rows import sequence_of
from coupled_sampling.serving.bulk.running import BulkSettings, run_bulk
from coupled_sampling.serving.errors import EngineFailed
from coupled_sampling.serving.fingerprints import fingerprint
from coupled_sampling.serving.jobs import Job
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from standins.codebook_clips import clip_of, write_clip_bundle
from standins.serving import text_bundle

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra [bulk]")
parquet = pytest.importorskip("pyarrow.parquet")
image = pytest.importorskip("PIL.Image", reason="needs the extra [bulk]")

FASHION = functools.partial(open_bundle, "fashion")
MATCH = {"method": "scd-match"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return functools.partial(open_bundle, text_bundle(tmp_path_factory.mktemp("text")))


def write_lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def rows_in(out):
    """All of the record, by id; an id that is there twice is an error."""
    rows = parquet.read_table(out / "record").to_pylist()
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "an id is in the record twice"
    return found


def shoes(count):
    return [{"id": f"r{i}", "prompt": ("shoe", "bag", "dress")[i % 3]} for i in range(count)]


def words(count):
    return [{"id": f"r{i}", "prompt": "hello", "max_tokens": 3 + i % 5} for i in range(count)]


def run(tmp_path, lines, opened=FASHION, out="out", seed=0, samples=1, part_rows=1000, **lanes):
    path = write_lines(tmp_path / "prompts.jsonl", lines)
    settings = BulkSettings(seed=seed, samples=samples, part_rows=part_rows)
    return run_bulk(
        str(path),
        tmp_path / out,
        opened,
        LaneSettings(**{"rows": 2, "place": Place(threads=1), "defaults": MATCH, **lanes}),
        settings,
    )


def alone(bundle, job, **given):
    """Tokens of a job, decoded by itself; with a model of one row."""
    settings = bundle.settings(**{**MATCH, **given})
    request = job.request(settings, bundle, bundle.tokenizer())
    step = "host" if job.processed or job.logprobs or settings.sampling.warps else "auto"
    with open_model(bundle, Place(threads=1), method=settings.method, step=step) as model:
        decoder = Decoder(model, **settings.decoder)
        decoder.add(request)
        tokens = []
        while decoder.active or decoder.waiting:
            tokens += [int(token) for commit in decoder.step() for token in commit.tokens]
    return tokens


def test_pictures_and_their_record_are_those_of_each_prompt_alone(tmp_path):
    tally = run(
        tmp_path, [*shoes(2), {"id": "Two words/", "prompt": [257], "seed": 5, "sequence": 3}], part_rows=2, seed=9
    )
    bundle, found = FASHION(), rows_in(tmp_path / "out")
    assert (tally.total, tally.made, tally.before, tally.errors) == (3, 3, 0, 0)
    assert set(found) == {"r0", "r1", "Two words/"}
    pixels = PixelDecoder.open(bundle, threads=1)
    for name, row in found.items():
        key = (5, 3) if name == "Two words/" else (9, sequence_of(name))
        assert (row["seed"], row["sequence"]) == key
        assert row["tokens"] == alone(bundle, Job(tuple(row["prompt"]), *key))
        assert (row["finish_reason"], row["error"], row["text"], row["logprobs"]) == ("length", None, None, None)
        assert (row["method"], row["window"], row["model"]) == ("scd-match", 16, "fashion")
        assert row["fingerprint"] == fingerprint(bundle)
        assert row["tokens_per_pass"] == len(row["tokens"]) / row["passes"] > 2
        with image.open(tmp_path / "out" / row["picture"]) as picture:
            drawn = pixels(pyarrow.array(row["tokens"]).to_numpy()[None])
            assert (picture.size, picture.tobytes()) == ((28, 28), drawn.tobytes())
    assert len(list((tmp_path / "out" / "record").iterdir())) == 2


def test_clips_are_files_that_keep_every_frame(tmp_path):
    opened = functools.partial(open_bundle, write_clip_bundle(tmp_path / "clips"))
    lines = [{"id": "Run 1", "prompt": "run"}, {"id": "fall", "prompt": "fall", "samples": 2}]
    assert run(tmp_path, lines, opened).errors == 0
    found = rows_in(tmp_path / "out")
    assert set(found) == {"Run 1", "fall/0", "fall/1"}
    for name, row in found.items():
        assert row["picture"] == picture_path(name, ".webp")
        with image.open(tmp_path / "out" / row["picture"]) as clip:
            frames, expected = [], [frame.tobytes() for frame in clip_of(row["tokens"])[..., 0]]
            for i in range(clip.n_frames):
                clip.seek(i)
                frames += [clip.convert("L").tobytes()]
            # A frame like the one before it is shown longer.
            assert frames == [key for key, _ in itertools.groupby(expected)]
    assert len(list((tmp_path / "out").rglob("*.webp"))) == 3


def test_texts_end_where_they_are_told_to_and_settings_are_each_lines_own(tmp_path, text):
    rows = [
        {"id": "plain", "prompt": "hello", "max_tokens": 20},
        {"id": "cold", "prompt": "hello", "max_tokens": 12, "settings": {"temperature": 0.3, "top_p": 0.9}},
        {"id": "biased", "prompt": "hello", "max_tokens": 8, "logit_bias": {"70": 100}, "logprobs": True},
        {"id": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    ]
    run(tmp_path, rows, text)
    found, bundle = rows_in(tmp_path / "out"), text()
    tokenizer = bundle.tokenizer()
    prompt = tuple(tokenizer.encode("hello"))
    for row in rows[:3]:
        job = Job(
            prompt,
            0,
            sequence_of(row["id"]),
            bias={70: 100.0} if row["id"] == "biased" else {},
            logprobs="logprobs" in row,
        )
        made = found[row["id"]]
        assert made["tokens"] == alone(bundle, job, length=row["max_tokens"], **row.get("settings", {}))
        assert made["picture"] is None
    assert found["biased"]["tokens"] == [70] * 8
    assert len(found["biased"]["logprobs"]) == 8
    assert found["plain"]["text"] == tokenizer.decode([*prompt, *found["plain"]["tokens"]])[len("hello") :]
    written = bundle.chat_template().render(rows[3]["messages"])
    assert found["chat"]["prompt"] == tokenizer.encode(written, special_tokens=False)
    # A stop string that the same sequence is known to have.
    said = found["plain"]["text"]
    stop = next(letter for letter in said[2:] if letter.isascii() and letter.isprintable())
    run(tmp_path, [{**rows[0], "stop": stop}], text, out="stopped")
    stopped = rows_in(tmp_path / "stopped")["plain"]
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == said[: said.index(stop)]


def test_samples_of_a_prompt_are_sequences_of_their_own(tmp_path):
    run(tmp_path, [{"id": "a", "prompt": "shoe"}, {"id": "b", "prompt": "bag", "samples": 1}], samples=2)
    found = rows_in(tmp_path / "out")
    assert set(found) == {"a/0", "a/1", "b"}
    assert found["a/0"]["tokens"] != found["a/1"]["tokens"]
    assert {row["picture"] for row in found.values()} == {picture_path(name) for name in found}


def test_neither_order_nor_rows_nor_interruptions_change_a_token(tmp_path):
    rows = shoes(4)
    run(tmp_path, rows, out="once", rows=3)
    run(tmp_path, rows[:2], part_rows=1, rows=1)
    tally = run(tmp_path, rows[::-1], rows=2)
    assert (tally.before, tally.made) == (2, 2)
    assert run(tmp_path, rows).made == 0
    once, broken = rows_in(tmp_path / "once"), rows_in(tmp_path / "out")
    assert {name: row["tokens"] for name, row in once.items()} == {name: row["tokens"] for name, row in broken.items()}
    for row in once.values():
        assert (tmp_path / "once" / row["picture"]).read_bytes() == (tmp_path / "out" / row["picture"]).read_bytes()


def test_no_pass_waits_for_a_block(tmp_path, monkeypatch, text):
    """Lengths differ tenfold; a decoder that has all of them takes as many steps, and one with barriers far more."""
    lengths = [5 * (1 + (7 * i) % 10) for i in range(40)]
    rows = [{"id": f"r{i}", "prompt": "hello", "max_tokens": length} for i, length in enumerate(lengths)]
    seen = []

    class Watched(Lanes):
        def close(self, **settings):
            super().close(**settings)
            seen.append(self._lanes)

    monkeypatch.setattr("coupled_sampling.serving.bulk.running.Lanes", Watched)
    run(tmp_path, rows, text, rows=4, defaults={"method": "ar"})
    (engine,) = seen[0].values()
    found = rows_in(tmp_path / "out")
    bundle = text()
    settings = bundle.settings(method="ar")
    with open_model(bundle, rows=4, **settings.model) as model:
        decoder = Decoder(model, **settings.decoder, reuse_prefixes=True)
        for row in rows:
            job = Job(tuple(found[row["id"]]["prompt"]), 0, sequence_of(row["id"]), {"length": row["max_tokens"]})
            decoder.add(job.request(bundle.settings(method="ar", length=row["max_tokens"]), bundle, None))
        steps = 0
        while decoder.active or decoder.waiting:
            decoder.step()
            steps += 1
    passes = {name: row["passes"] for name, row in found.items()}
    barrier = sum(max(passes[f"r{i}"] for i in range(k, k + 4)) for k in range(0, 40, 4))
    # The first steps begin before all rows are filled, a step or two for each.
    assert engine.statistics.steps <= steps + 8
    assert barrier > 1.4 * steps


def test_prompts_are_read_as_there_is_room(tmp_path, monkeypatch, text):
    ahead = []

    class Counted(making.Maker):
        async def make(self, asked):
            made = await super().make(asked)
            ahead.append(int(asked.id[1:]) - len(ahead))
            return made

    monkeypatch.setattr("coupled_sampling.serving.bulk.running.Maker", Counted)
    run(tmp_path, words(40), text, rows=1)
    assert max(ahead) < 2 * local.PER_ROW


def test_a_sequence_that_fails_is_recorded_and_stops_no_other(tmp_path, monkeypatch, text):
    begun, main = Job.request, threading.main_thread()  # which checks the lines; what decodes them meets something new

    def fails(self, *arguments):
        if self.sequence == sequence_of("r1") and threading.current_thread() is not main:
            raise InvalidArgument("r1 is wrong")
        return begun(self, *arguments)

    monkeypatch.setattr(Job, "request", fails)
    tally = run(tmp_path, words(3), text)
    found = rows_in(tmp_path / "out")
    assert tally.errors == 1
    assert (found["r1"]["finish_reason"], found["r1"]["error"], found["r1"]["picture"]) == (
        "error",
        "r1 is wrong",
        None,
    )
    assert (found["r1"]["tokens"], found["r1"]["tokens_per_pass"]) == ([], None)
    assert found["r2"]["error"] is None
    again = run(tmp_path, words(3), text)
    assert (again.made, again.errors) == (0, 1)


def test_a_model_that_fails_ends_the_run_and_keeps_what_was_made(tmp_path, monkeypatch, text):
    count = itertools.count()

    class Fails(making.Maker):
        async def make(self, asked):
            if next(count) == 9:
                raise EngineFailed("the GPU is gone")
            return await super().make(asked)

    monkeypatch.setattr("coupled_sampling.serving.bulk.running.Maker", Fails)
    with pytest.raises(EngineFailed, match="the GPU is gone"):
        run(tmp_path, words(12), text, rows=1)
    kept = rows_in(tmp_path / "out")
    assert 0 < len(kept) < 12
    monkeypatch.undo()
    assert run(tmp_path, words(12), text).made == 12 - len(kept)


def test_a_full_disk_ends_the_run_in_one_error_and_it_goes_on_later(tmp_path, monkeypatch, text):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "write_table", full)
        with pytest.raises(OutputError, match=r"part-00000000.parquet: .*No space left"):
            run(tmp_path, words(6), text, part_rows=2)
    assert list((tmp_path / "out" / "record").iterdir()) == []
    assert run(tmp_path, words(6), text, part_rows=2).made == 6
    assert len(rows_in(tmp_path / "out")) == 6


def test_another_run_another_model_and_another_folder_are_refused(tmp_path, text):
    run(tmp_path, shoes(1))
    for settings, words in (
        ({"seed": 1}, "seed was 0 and is 1 now"),
        ({"samples": 2}, "samples was 1 and is 2 now"),
        ({"defaults": {**MATCH, "temperature": 0.5}}, "temperature was 1.0 and is 0.5 now"),
        ({"defaults": {"method": "ar"}}, "method was 'scd-match' and is 'ar' now"),
    ):
        with pytest.raises(OutputError, match=f"cannot go on in .*: {words}"):
            run(tmp_path, shoes(1), **settings)
    with pytest.raises(OutputError, match="model was 'fashion' and is "):
        run(tmp_path, [{"prompt": "hello"}], text)
    with pytest.raises(InvalidArgument, match="the sequence 'r0' was made with another prompt"):
        run(tmp_path, [{"id": "r0", "prompt": "bag"}])
    with opened_folder(tmp_path / "busy", {}), pytest.raises(OutputError, match="another run writes there now"):
        run(tmp_path, shoes(1), out="busy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"it has 'thesis.txt' in it and no bulk.json"):
        run(tmp_path, shoes(1), out="full")
    with pytest.raises(OutputError, match="it is no folder"):
        run(tmp_path, shoes(1), out="full/thesis.txt")
    with pytest.raises(OutputError, match="does not exist; create it first"):
        run(tmp_path, shoes(1), out="no/where")
    assert len(rows_in(tmp_path / "out")) == 1
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_a_wrong_line_makes_nothing_not_even_the_folder(tmp_path):
    with pytest.raises(InvalidArgument, match="line 3: "):
        run(tmp_path, [*shoes(2), {"prompt": "shoo"}])
    assert not (tmp_path / "out").exists()


def test_a_damaged_part_is_named_and_its_sequences_are_made_again_without_it(tmp_path, text):
    run(tmp_path, words(4), text, part_rows=2)
    part = tmp_path / "out" / "record" / "part-00000001.parquet"
    before, ids = rows_in(tmp_path / "out"), set(parquet.read_table(part)["id"].to_pylist())
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(OutputError, match=r"record/part-00000001.parquet cannot be read .*; remove it"):
        run(tmp_path, words(4), text)
    part.unlink()
    assert run(tmp_path, words(4), text).made == len(ids) == 2
    after = rows_in(tmp_path / "out")
    assert {name: row["tokens"] for name, row in after.items()} == {name: row["tokens"] for name, row in before.items()}


def test_ids_are_safe_names_of_files():
    hostile = ["../../etc/passwd", "a/b", ".hidden", "A", "a", "\x00", "ä" * 400, "con.png", "a\nb", "x" * 500, "~", ""]
    names = [picture_path(name) for name in hostile]
    assert len({name.lower() for name in names}) == len(hostile)
    for name in names:
        first, shard, file = name.split("/")
        assert (first, len(shard)) == ("pictures", 2)
        assert file.isascii()
        assert not file.startswith(".")
        assert len(file) < 120
        assert set(file) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~%")
