"""One small cluster of Ray on this machine for all tests of this folder: two replicas of a picture model, one of a text model."""

import contextlib
import shutil
import socket
import tempfile
from types import SimpleNamespace

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from standins.ray_cluster import arguments
from standins.serving import text_bundle


def pytest_collection_modifyitems(items):
    try:
        from ray import serve  # noqa: F401
    except ImportError:
        for item in items:
            if "/serving/ray/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs the extra [ray]: make test-ray installs it"))


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    return text_bundle(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def cluster():
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # a short path, as sockets lie in it
    try:
        ray.init(
            num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False, _temp_dir=folder
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield SimpleNamespace(serve=serve, address=f"http://127.0.0.1:{port}")
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def deployed(cluster, words):
    """The application, what makes sources of its models, and the same models in this process."""
    from coupled_sampling.serving.deployment import RaySource, app_builder
    from coupled_sampling.serving.fingerprints import fingerprint

    cluster.serve.run(app_builder(arguments(words)), name="tests")
    folders = {"fashion": "fashion", "words": words}

    def source(name):
        return RaySource(
            cluster.serve.get_deployment_handle(name, "tests"), name, fingerprint(open_bundle(folders[name]))
        )

    with contextlib.ExitStack() as stack:
        here = {
            name: stack.enter_context(
                Lanes(lambda folder=folder: open_bundle(folder), LaneSettings(rows=4, most_waiting=4096))
            )
            for name, folder in folders.items()
        }
        yield SimpleNamespace(serve=cluster.serve, source=source, here=here, address=cluster.address)
