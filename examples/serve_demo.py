"""A server and OpenAI's own client: start one, draw a picture, stop it.

    make serve-demo
    python examples/serve_demo.py --prompt bag --seed 3 --out bag.png

The client is the package ``openai``, unchanged; all that it has to know is the address.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai


@contextlib.contextmanager
def server(model: str) -> Iterator[str]:
    """The address of a server on a free port, which is told to stop at the end."""
    command = [sys.executable, "-m", "coupled_sampling", "serve", model, "--port", "0", "--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()  # "serving fashion at http://127.0.0.1:PORT", once it takes requests
        if not said:
            raise SystemExit("the server did not start; it says above why")
        print(said, end="")
        yield said.split()[-1]
    finally:
        process.terminate()
        process.stdout.close()
        code = process.wait(60)
    print(f"stopped with exit code {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion")
    parser.add_argument("--prompt", default="shoe")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("served.png"))
    asked = parser.parse_args()
    with server(asked.model) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        began = time.perf_counter()
        made = client.images.generate(
            model=asked.model, prompt=asked.prompt, extra_body={"seed": asked.seed, "acceptance": True}
        )
        seconds = time.perf_counter() - began
        picture = made.data[0]
        asked.out.write_bytes(base64.b64decode(picture.b64_json))
        told = picture.model_extra["acceptance"]
        print(f"{told['tokens']} tokens in {told['passes']} passes, {seconds:.2f} s; wrote {asked.out}")


if __name__ == "__main__":
    main()
