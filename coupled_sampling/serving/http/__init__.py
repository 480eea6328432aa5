"""The application that speaks OpenAI's API, over models wherever they run; needs the extra [serve].

- `application`: `make_app`, everything together;
- `service`: models by name, and `Run`: the pieces of several jobs as one stream, measured;
- `replies`: a response as a whole or as server-sent events, which ends when its client goes;
- `errors`: every error in OpenAI's shape;
- `fields`, `text_fields`: what requests may say;
- `completions`, `chat`, `images`: what is generated; `texts`: tokens as texts; `painting`, `files`: tokens as pictures and clips;
- `listing`: models and health; `metrics`: numbers for Prometheus; `page`: the page at ``/``;
- `guards`: keys, sizes of bodies, draining; `running`: the server, from its socket to its last request.
"""

from coupled_sampling.serving.http.application import make_app
from coupled_sampling.serving.http.service import HttpSettings, Service

__all__ = ["HttpSettings", "Service", "make_app"]
