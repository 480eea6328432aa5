"""The application needs the extra [serve]; without it these tests are not collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("fastapi") and find_spec("prometheus_client") else ["*"]
