"""The application that speaks OpenAI's API, over models wherever they run; needs the extra [serve].

- `application`: `make_app`, everything together;
- `service`: models by name, and `Run`: the pieces of several jobs as one stream, measured;
- `replies`: a response as a whole or as server-sent events, which ends when its client goes;
- `errors`: every error in OpenAI's shape;
- `completions`, `chat`, `images`: what is generated; `painting`: tokens as files of pictures;
- `listing`: models, health and metrics; `page`: the page at ``/``.
"""

from coupled_sampling.serving.http.application import make_app
from coupled_sampling.serving.http.service import HttpSettings, Service

__all__ = ["HttpSettings", "Service", "make_app"]
