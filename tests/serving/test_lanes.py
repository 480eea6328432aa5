"""Lanes over `fashion` and a small language model: which engine a job goes to, and what changes none of its tokens."""

import asyncio
import re
import shutil
import threading
from collections import Counter

import numpy as np
import pytest

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import Place, open_model
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving import DeadlineExceeded, EngineFailed, EngineStopped, Overloaded
from coupled_sampling.serving.engine import Engine, Health
from coupled_sampling.serving.jobs import GrammarSource, Job
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from coupled_sampling.serving.ways import job_settings
from standins.serving import text_bundle

pytestmark = pytest.mark.filterwarnings("ignore::coupled_sampling.errors.SharedNoise")  # guided jobs of one seed
SHOE = (257,)


def fashion():
    return open_bundle("fashion")


@pytest.fixture(scope="module")
def pictures():
    with Lanes(fashion, LaneSettings(rows=2)) as lanes:
        yield lanes


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = text_bundle(tmp_path_factory.mktemp("text"))
    with Lanes(lambda: open_bundle(folder), LaneSettings(rows=2)) as lanes:
        yield lanes


async def read(lanes, job):
    made, probabilities = [], []
    async with await lanes.submit(job) as pieces:
        async for piece in pieces:
            made += piece.tokens
            probabilities += piece.logprobs or ()
    return made, probabilities, piece


def run(lanes, *jobs):
    async def together():
        return await asyncio.gather(*(read(lanes, job) for job in jobs))

    return asyncio.run(together())


def alone(bundle, prompt, seed, **given):
    settings = bundle.settings(**given)
    with open_model(bundle, Place(threads=1), **settings.model) as model:
        return (
            generate(
                model,
                [prompt],
                length=settings.length_after(len(prompt)),
                seed=seed,
                sampling=settings.samplings([prompt]),
                stop=settings.stop,
                **settings.decoder,
            )
            .tokens[0]
            .tolist()
        )


def test_whatever_the_lane_a_match_methods_tokens_are_ars(pictures):
    ways = [{}, {"method": "ar"}, {"window": 8}, {"method": "speculative-match", "window": 4}]
    made = [run(pictures, Job(SHOE, 3, settings=way))[0][0] for way in ways]
    assert made == [alone(pictures.bundle, SHOE, 3, method="ar")] * len(ways)


def test_jobs_of_one_lane_share_it_whatever_their_temperatures(texts):
    given = [{"length": 12, "temperature": t, "top_p": p} for t in (0.5, 1.0, 1.5) for p in (1.0, 0.8)]
    jobs = [Job((5, 6, 7), seed, settings=settings) for seed, settings in enumerate(given)]
    wanted = [
        alone(texts.bundle, (5, 6, 7), seed, method="scd-match", **settings) for seed, settings in enumerate(given)
    ]
    assert [made for made, _, _ in run(texts, *jobs)] == wanted
    assert set(asyncio.run(texts.statistics())) == {"scd-match"}


def test_a_job_of_another_lane_is_told_its_log_probabilities_and_has_the_same_tokens(pictures):
    (plain, none, _), (told, probabilities, _) = run(pictures, Job(SHOE, 4), Job(SHOE, 4, logprobs=True))
    assert told == plain
    assert none == []
    assert len(probabilities) == 196
    assert all(p <= 0 for p in probabilities)


def test_a_guided_job_has_its_own_scale(pictures):
    scales = (2.0, 4.0)
    jobs = [Job(SHOE, 4, settings={"guidance": scale}) for scale in scales]
    wanted = [alone(pictures.bundle, SHOE, 4, method="scd-match", guidance=scale) for scale in scales]
    assert [made for made, _, _ in run(pictures, *jobs)] == wanted
    assert wanted[0] != wanted[1]


def test_a_guided_job_has_its_own_interval(pictures):
    asked = [{"guidance": 4.0, "guidance_interval": text} for text in (":", ":60", "60:")]
    wanted = [alone(pictures.bundle, SHOE, 4, method="scd-match", **settings) for settings in asked]
    assert [made for made, _, _ in run(pictures, *(Job(SHOE, 4, settings=settings) for settings in asked))] == wanted
    assert wanted[0][:60] == wanted[1][:60] != wanted[2][:60]
    assert wanted[0] != wanted[1]


def test_a_job_without_guidance_has_no_interval_of_the_servers(pictures):
    server = {"guidance": 4.0, "guidance_interval": "10:60"}
    plain = job_settings(pictures.bundle, server, Job(SHOE, 4, settings={"guidance": 1.0}))
    assert (plain.guided, plain.guidance_interval) == (False, None)
    assert job_settings(pictures.bundle, server, Job(SHOE, 4, settings={"guidance": 2})).guidance_interval == "10:60"
    with pytest.raises(InvalidArgument, match="but guidance is 1: none"):
        job_settings(pictures.bundle, server, Job(SHOE, 4, settings={"guidance": 1, "guidance_interval": "3:"}))


def test_a_resumed_job_ends_with_the_same_tokens(pictures):
    whole, _, last = run(pictures, Job(SHOE, 5))[0]
    assert sum(last.committed_per_pass) == 196
    for done in (1, 50, 195):
        rest, _, _ = run(pictures, Job(SHOE, 5).resumed(whole[:done]))[0]
        assert whole[:done] + rest == whole


def test_stop_strings_penalties_biases_and_grammars_are_the_jobs_own(texts):
    tokenizer = texts.tokenizer
    length = {"length": 30}
    biased, _, _ = run(texts, Job((5, 6), 1, settings=length, bias={40: 100.0}))[0]
    assert set(biased) == {40}
    forbidden, _, _ = run(
        texts, Job((5, 6), 1, settings=length, bias={40: 100.0}, frequency_penalty=2.0, presence_penalty=99.0)
    )[0]
    assert forbidden[0] == 40
    assert set(forbidden) != {40}
    spelled, _, last = run(texts, Job((5, 6), 1, settings=length, grammar=GrammarSource("regex", "[ab]{3}c")))[0]
    assert last.reason == "stop"
    assert tokenizer.decode(spelled)[3:] == "c"
    word = tokenizer.decode([40])
    stopped, _, last = run(texts, Job((5, 6), 1, settings=length, bias={40: 100.0}, stop=(word * 3,)))[0]
    assert (stopped, last.reason) == ([40] * 3, "stop")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"settings": {"method": "magic"}}, "method"),
        ({"settings": {"window": 1000}}, "window"),
        ({"settings": {"length": 7}}, "length"),
        ({"stop": ("x",)}, "no tokenizer"),
        ({"prompt": (9999,)}, "prompt token 0"),
        ({"settings": {"branches": 4, "method": "ar"}}, "branches"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(pictures, wrong, words):
    with pytest.raises(InvalidArgument, match=words):
        run(pictures, Job(**{"prompt": SHOE, "seed": 1, **wrong}))


def test_an_idle_lane_makes_room_and_a_busy_one_does_not():
    async def crowded(lanes):
        held = await lanes.submit(Job(SHOE, 1, settings={"temperature": 1.0}))
        with pytest.raises(Overloaded, match="busy"):
            await lanes.submit(Job(SHOE, 1, settings={"method": "ar"}))
        async with held:
            pass
        until = asyncio.get_running_loop().time() + 10
        while sum(one.running for one in (await lanes.statistics()).values()):
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.002)
        return await read(lanes, Job(SHOE, 1, settings={"method": "ar", "temperature": 0.0}))

    with Lanes(fashion, LaneSettings(rows=1, lanes=1)) as lanes:
        made, _, _ = asyncio.run(crowded(lanes))
        counted = asyncio.run(lanes.statistics())
        assert asyncio.run(lanes.health()) == Health(True, True), "the usual lane made room, so the model seems closed"
    assert not asyncio.run(lanes.health()).ready
    assert len(made) == 196
    assert counted["ar"].finished == {"length": 1}
    assert counted["scd-match"].finished == {"removed": 1}


def test_a_model_whose_usual_lane_made_room_is_well_and_takes_jobs():
    """Else whoever asks for another method would have the server started again."""
    with Lanes(fashion, LaneSettings(rows=1, lanes=1)) as lanes:
        usual = run(lanes, Job(SHOE, 1))[0][0]
        assert run(lanes, Job(SHOE, 1, settings={"method": "ar"}))[0][0] == usual
        assert asyncio.run(lanes.health()) == Health(True, True)
        assert run(lanes, Job(SHOE, 1))[0][0] == usual
    assert not asyncio.run(lanes.health()).alive


def test_what_a_lane_has_done_is_counted_while_it_closes(monkeypatch):
    """A counter that falls is one that began anew, to whoever scrapes: all of it would be counted twice."""
    closing, close = threading.Event(), Engine.close

    def slowly(engine, **how):
        assert closing.wait(20)
        close(engine, **how)

    monkeypatch.setattr(Engine, "close", slowly)
    with Lanes(fashion, LaneSettings(rows=1, lanes=1)) as lanes:
        run(lanes, Job(SHOE, 1))
        run(lanes, Job(SHOE, 1, settings={"method": "ar"}))
        assert asyncio.run(lanes.statistics())["scd-match"].tokens == 196
        closing.set()
    assert {method: done.tokens for method, done in asyncio.run(lanes.statistics()).items()} == {
        "scd-match": 196,
        "ar": 196,
    }


def test_a_lane_that_is_stuck_in_a_step_is_not_opened_once_more(monkeypatch):
    opened = []
    with Lanes(lambda: opened.append(1) or fashion(), LaneSettings(rows=1)) as lanes:
        run(lanes, Job(SHOE, 1))
        monkeypatch.setattr(Engine, "health", Health(False, False, "it has been in one step for 61 s"))
        run(lanes, Job(SHOE, 1))
    assert len(opened) == 2  # to look at it, and to run it


class _Opened:
    """Opens `fashion`, and for a second lane only when it may."""

    def __init__(self):
        self.may, self.count = threading.Event(), 0

    def __call__(self):
        self.count += 1
        assert self.count <= 2 or self.may.wait(20)
        return fashion()


def test_a_deadline_counts_while_a_model_opens():
    opened = _Opened()
    with Lanes(opened, LaneSettings(rows=1)) as lanes:
        with pytest.raises(DeadlineExceeded):
            run(lanes, Job(SHOE, 1, settings={"method": "ar"}, deadline=0.1))
        opened.may.set()
        run(
            lanes, Job(SHOE, 1, settings={"method": "ar"})
        )  # what is late takes no row, nor keeps the lane from being idle
        assert not lanes._coming


def test_jobs_whose_model_opens_keep_no_others_waiting_and_are_not_more_than_may_wait():
    opened = _Opened()

    async def crowd(lanes):
        many = [asyncio.ensure_future(read(lanes, Job(SHOE, k, settings={"method": "ar"}))) for k in range(42)]
        done = await asyncio.wait_for(read(lanes, Job(SHOE, 1)), 10)
        for one in many:
            one.cancel()
        opened.may.set()
        return done, await asyncio.gather(*many, return_exceptions=True)

    with Lanes(opened, LaneSettings(rows=1, most_waiting=39)) as lanes:
        done, made = asyncio.run(crowd(lanes))
    assert len(done[0]) == 196
    assert Counter(map(type, made)) == {asyncio.CancelledError: 40, Overloaded: 2}
    assert not lanes._coming


def test_a_model_that_was_replaced_is_not_mixed_with_the_one_that_is_served(tmp_path):
    first, second = (text_bundle(_made(tmp_path / name)) for name in ("first", "second"))
    with Lanes(lambda: open_bundle(first), LaneSettings(rows=1)) as lanes:
        before = run(lanes, Job((5,), 1, settings={"length": 6}))[0][0]
        shutil.rmtree(first)
        manifest = second / "manifest.json"
        manifest.write_text(re.sub(r'"name": "\w+"', '"name": "other"', manifest.read_text(), count=1))
        shutil.copytree(second, first)
        assert run(lanes, Job((5,), 1, settings={"length": 6}))[0][0] == before
        with pytest.raises(EngineFailed, match="replaced"):
            run(lanes, Job((5,), 1, settings={"length": 6, "method": "ar"}))


def _made(folder):
    folder.mkdir()
    return folder


def test_closed_lanes_take_nothing():
    lanes = Lanes(fashion, LaneSettings(rows=1))
    lanes.wait_until_ready()
    assert asyncio.run(lanes.health()).ready
    lanes.close()
    with pytest.raises(EngineStopped):
        run(lanes, Job(SHOE, 1))
    assert not asyncio.run(lanes.health()).ready


def test_under_load_in_two_lanes_every_job_has_its_own_tokens(texts):
    random = np.random.default_rng(3)
    jobs = [
        Job((int(random.integers(5, 300)),), seed, settings={"length": int(random.integers(1, 24)), "temperature": 0.9})
        for seed in range(24)
    ]
    jobs = [
        job if seed % 2 else Job(job.prompt, seed, settings=job.settings, presence_penalty=0.5)
        for seed, job in enumerate(jobs)
    ]
    one_by_one = [run(texts, job)[0][0] for job in jobs]
    assert [made for made, _, _ in run(texts, *jobs)] == one_by_one


def test_more_ways_than_lanes_at_once_are_done_or_refused_and_never_lost(texts):
    ways = ["scd-match", "ar", "speculative-match"]
    jobs = [Job((5, 6), seed, settings={"length": 8, "method": ways[seed % 3]}) for seed in range(18)]

    async def together():
        return await asyncio.gather(*(read(texts, job) for job in jobs), return_exceptions=True)

    made = asyncio.run(together())
    done = {seed: one[0] for seed, one in enumerate(made) if isinstance(one, tuple)}
    assert all(isinstance(one, Overloaded) for seed, one in enumerate(made) if seed not in done)
    assert len(done) >= 6
    assert done == {seed: alone(texts.bundle, (5, 6), seed, method="ar", length=8) for seed in done}
