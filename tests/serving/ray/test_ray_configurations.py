"""What configuration files ask for: replicas that models share, and the files of the guide."""

import asyncio
import re

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.jobs import Job
from coupled_sampling.serving.resuming import Resuming
from standins import ROOT

BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)


async def tokens_of(source, job):
    async with await source.submit(job) as pieces:
        return [token async for piece in pieces for token in piece.tokens]


def test_models_that_share_a_replica_take_turns_and_have_their_own_tokens(deployed, words):
    from coupled_sampling.serving.deployment import RaySource, app_builder
    from coupled_sampling.serving.fingerprints import fingerprint

    folders = {"fashion": "fashion", "words": words}
    tiny = {"ray_actor_options": {"num_cpus": 0.1}, "graceful_shutdown_wait_loop_s": 0.1}
    args = {
        "models": ["fashion", {"model": str(words), "name": "words"}],
        "multiplexed": True,
        "max_models_per_replica": 1,
        "rows": 2,
        "threads": 1,
        "deployment": tiny,
        "ingress": tiny,
    }
    deployed.serve.run(app_builder(args), name="shared", route_prefix="/shared")
    handle = deployed.serve.get_deployment_handle("models", "shared")
    sources = {
        name: RaySource(handle, name, fingerprint(open_bundle(folder)), shared=True) for name, folder in folders.items()
    }
    jobs = [("fashion", Job((257 + seed,), seed=seed)) for seed in range(3)]
    jobs += [("words", Job((70, 71), seed=seed, settings={"length": 60})) for seed in range(3)]

    async def turns():
        ready = [(await source.health()).ready for source in sources.values()]
        mixed = [job for pair in zip(jobs[:3], jobs[3:], strict=True) for job in pair]
        made = [await tokens_of(Resuming(sources[name]), job) for name, job in mixed[:4]]  # each waits for its model
        made += await asyncio.gather(*(tokens_of(Resuming(sources[name]), job) for name, job in mixed[4:]))
        alone = [await tokens_of(deployed.here[name], job) for name, job in mixed]
        with pytest.raises(InvalidArgument, match="9999"):
            await tokens_of(sources["words"], Job((9999,), seed=1))
        (report,) = await sources["words"].reports()
        sums = [sum((await source.statistics())["scd-match"].finished.values()) for source in sources.values()]
        still_open = [name for name, model in report["models"].items() if model["health"] is not None]
        return ready, made, alone, still_open, sums

    try:
        ready, made, alone, still_open, sums = asyncio.run(asyncio.wait_for(turns(), 240))
    finally:
        deployed.serve.delete("shared")
    assert ready == [True, True]
    assert made == alone
    assert still_open == ["words"]
    assert sums == [3, 3]


def test_the_files_of_the_guide_are_configurations_of_ray(cluster):
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from coupled_sampling.serving.deployment import app_builder

    whole, *parts = (yaml.safe_load(text) for text in BLOCK.findall((ROOT / "docs" / "many-machines.md").read_text()))
    (application,) = ServeDeploySchema.model_validate(whole).applications
    module, _, name = application.import_path.partition(":")
    assert (module, name) == (app_builder.__module__, app_builder.__name__)
    app_builder(application.args)
    options, replicas = parts
    app_builder({"models": ["fashion"], **options})
    ServeDeploySchema.model_validate({"applications": [{**whole["applications"][0], **replicas}]})
