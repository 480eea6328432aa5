"""The command line: ``coupled-sampling generate | compare | inspect``.

Errors are one line on standard error and exit code 2; an interrupt is exit code 130. Results go to standard output, the
progress bar to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundle import Bundle, embedded_names, open_bundle
from coupled_sampling.comparison import MethodResult, compare
from coupled_sampling.contracts import LogitsProvider, Sampling
from coupled_sampling.drafting import Drafting, Random, find_drafting
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.files import check_writable, write_whole
from coupled_sampling.guidance import GuidedProvider
from coupled_sampling.methods import METHODS
from coupled_sampling.pictures import draw_comparison, require_pictures, write_grid

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coupled-sampling", description="Lossless parallel decoding of exported models."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "model",
        nargs="?",
        default="fashion",
        help=f"a bundle's folder, or an embedded model: {', '.join(embedded_names())}",
    )
    sampling = argparse.ArgumentParser(add_help=False)
    add = sampling.add_argument
    add("--prompt", help="names from `inspect`, separated by commas; default: all in turn")
    add("--window", type=int, help="most tokens forwarded per step")
    add("--drafting", help="first guesses: random, repeat, copy:LAG, ngram:N")
    add("--temperature", type=float, help="0 is greedy")
    add("--top-k", type=int)
    add("--top-p", type=float)
    add("--min-p", type=float)
    add("--guidance", type=float, help="classifier-free guidance scale; 1 is none")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=1, help="sequences decoded together (default 1)")
    add("--threads", type=int, help="threads within an operator (default: ONNX Runtime's choice)")
    add("--json", action="store_true", help="print figures as JSON")

    generate = commands.add_parser("generate", parents=[model, sampling], help="make pictures")
    generate.add_argument("--count", type=int, default=16)
    generate.add_argument("--method", help=f"one of {', '.join(METHODS)}")
    generate.add_argument("--out", type=Path, default=Path("grid.png"), help="PNG to write (default grid.png)")
    generate.add_argument("--trace", type=Path, help="JSON to write: tokens and steps of every sequence")
    generate.add_argument("--beside-ar", action="store_true", help="run AR on the same prompts and print both")
    generate.set_defaults(run=_generate)

    comparing = commands.add_parser("compare", parents=[model, sampling], help="measure methods side by side")
    comparing.add_argument("--methods", default="ar,sjd,scd-maximal,scd-gumbel,scd-match")
    comparing.add_argument("--count", type=int, default=40)
    comparing.add_argument("--plot", type=Path, help="PNG to write")
    comparing.set_defaults(run=_compare)

    inspect = commands.add_parser("inspect", parents=[model], help="say what a bundle is")
    inspect.add_argument("--json", action="store_true", help="print the manifest as JSON")
    inspect.set_defaults(run=_inspect)
    return parser


class _Job:
    """A bundle with the command line's settings over the bundle's defaults."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.bundle: Bundle = open_bundle(arguments.model)
        manifest = self.bundle.manifest
        if arguments.count < 1:
            raise InvalidArgument(f"count is {arguments.count}, expected at least 1")
        if arguments.batch_size < 1:
            raise InvalidArgument(f"batch-size is {arguments.batch_size}, expected at least 1")
        if not 0 <= arguments.seed < 2**64:
            raise InvalidArgument(f"seed is {arguments.seed}, expected an integer in [0, 2**64)")
        defaults = manifest.defaults
        self.sampling = Sampling(
            temperature=self._given("temperature", defaults.temperature),
            top_k=self._given("top_k", defaults.top_k),
            top_p=self._given("top_p", defaults.top_p),
            min_p=self._given("min_p", defaults.min_p),
        )
        self.window = self._given("window", min(defaults.window, manifest.window_graph.max_window))
        self.guidance = self._given("guidance", defaults.guidance)
        self.drafting = self._drafting(self._given("drafting", defaults.drafting))
        names = list(manifest.prompts) if arguments.prompt is None else arguments.prompt.split(",")
        tokens = [manifest.find_prompt(name.strip()) for name in names]
        self.prompts = [tokens[i % len(tokens)] for i in range(arguments.count)]
        if self.guidance != 1 and manifest.unconditional_prompt is None:
            raise InvalidArgument(
                f"guidance is {self.guidance}, but the bundle {manifest.name} has no unconditional prompt; leave it at 1"
            )

    def _given(self, name: str, default: Any) -> Any:
        value = getattr(self.arguments, name)
        return default if value is None else value

    def _drafting(self, specification: str) -> Drafting:
        """``random`` is over the tokens that the model can generate."""
        found = find_drafting(specification)
        generated = self.bundle.manifest.generated_tokens
        return Random(generated.first, generated.count) if found == Random() else found

    def open_model(self) -> LogitsProvider:
        """A provider of its own, guided if asked for."""
        from coupled_sampling.backends.ort import OrtProvider

        rows = min(self.arguments.batch_size, self.arguments.count)
        unconditional = self.bundle.manifest.unconditional_prompt
        if self.guidance == 1 or unconditional is None:
            return OrtProvider.open(self.bundle, batch_size=rows, threads=self.arguments.threads)
        inner = OrtProvider.open(self.bundle, batch_size=2 * rows, threads=self.arguments.threads)
        return GuidedProvider(inner, self.guidance, unconditional)

    def compare(self, methods: Sequence[str], *, against_ar: bool) -> list[MethodResult]:
        """Run ``methods`` with a progress bar."""
        length = self.bundle.manifest.length
        with _progress(self.arguments.count * length) as report:
            return compare(
                self.open_model,
                self.prompts,
                methods,
                length=length,
                window=self.window,
                drafting=self.drafting,
                seed=self.arguments.seed,
                sampling=self.sampling,
                against_ar=against_ar,
                progress=report,
            )

    def images(self, tokens: Sequence[NDArray[np.int64]]) -> NDArray[np.uint8]:
        """Pictures uint8 (N, H, W, C)."""
        from coupled_sampling.backends.pixels import PixelDecoder

        return PixelDecoder.open(self.bundle)(np.stack(tokens))


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar on standard error for each method in turn."""
    tqdm = require_pictures("tqdm").tqdm
    bars: dict[str, Any] = {}

    def report(method: str, count: int) -> None:
        if method not in bars:
            for bar in bars.values():
                bar.close()
            bars[method] = tqdm(total=total, desc=method, unit="token", file=sys.stderr, disable=None)
        bars[method].update(count)

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()


def _table(figures: Sequence[dict[str, Any]]) -> str:
    """Figures for people."""
    lines = [f"{'method':<18}{'NFE':>14}{'tokens/step':>13}{'seconds':>10}{'tokens/s':>10}{'speed-up NFE':>14}"
             f"{'time':>7}  same tokens as ar"]  # fmt: skip
    for row in figures:
        nfe = f"{row['nfe_mean']:.1f} ± {row['nfe_sem']:.1f}"
        lines.append(
            f"{row['method']:<18}{nfe:>14}{row['tokens_per_step']:>13.2f}{row['seconds']:>10.2f}"
            f"{row['tokens_per_second']:>10.0f}{row['speedup_nfe']:>13.2f}x{row['speedup_seconds']:>6.2f}x  "
            f"{'yes' if row['identical_to_ar'] else 'no'}"
        )
    return "\n".join(lines)


def _generate(arguments: argparse.Namespace) -> None:
    for path in filter(None, (arguments.out, arguments.trace)):
        check_writable(path)
    if arguments.trace and arguments.trace.resolve() == arguments.out.resolve():
        raise InvalidArgument(f"out and trace are both {arguments.out}; name two files")
    require_pictures("PIL.Image")
    job = _Job(arguments)
    if job.bundle.manifest.pixel_graph is None:
        raise InvalidArgument(
            f"the bundle {job.bundle.manifest.name} has no token-to-pixel graph, so it makes no pictures"
        )
    method = arguments.method or job.bundle.manifest.defaults.method
    results = job.compare([method], against_ar=arguments.beside_ar)
    result = results[-1]
    write_grid(job.images(result.generation.tokens), arguments.out)
    if arguments.trace:
        _write_json(arguments.trace, _trace(job, result))
    figures = [r.figures() for r in results]
    if not arguments.beside_ar:
        for name in ("speedup_nfe", "speedup_seconds", "identical_to_ar"):
            figures[0].pop(name)
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), "methods": figures}, indent=2))
        return
    for row in figures:
        print(
            f"{row['method']}: {row['sequences']} sequences, NFE {row['nfe_mean']:.1f}, "
            f"{row['tokens_per_step']:.2f} tokens per step, {row['seconds']:.2f} s"
        )
    print(f"wrote {arguments.out}")


def _trace(job: _Job, result: MethodResult) -> dict[str, Any]:
    sequences = [
        {
            "prompt": list(prompt),
            "tokens": tokens.tolist(),
            "committed_per_step": trace.committed_per_step,
            "step_of_token": trace.step_of_token.tolist(),
            "seconds": trace.seconds,
        }
        for prompt, tokens, trace in zip(job.prompts, *result.generation, strict=True)
    ]
    return {"method": result.method, "seed": job.arguments.seed, "window": job.window, "sequences": sequences}


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, lambda partial: partial.write_text(json.dumps(content)))


def _compare(arguments: argparse.Namespace) -> None:
    if arguments.plot:
        check_writable(arguments.plot)
        require_pictures("matplotlib")
    job = _Job(arguments)
    results = job.compare([name.strip() for name in arguments.methods.split(",")], against_ar=True)
    figures = [result.figures() for result in results]
    if arguments.plot:
        manifest = job.bundle.manifest
        firsts = [result.generation.tokens[0] for result in results]
        images = job.images(firsts) if manifest.pixel_graph else None
        grid = (manifest.grid.rows, manifest.grid.columns) if manifest.grid else None
        draw_comparison(results, arguments.plot, grid=grid, images=images)
    print(json.dumps(figures, indent=2) if arguments.json else _table(figures))
    if arguments.plot and not arguments.json:
        print(f"wrote {arguments.plot}")


def _inspect(arguments: argparse.Namespace) -> None:
    manifest = open_bundle(arguments.model).manifest
    if arguments.json:
        print(json.dumps(asdict(manifest), indent=2, default=dict))
        return
    graph = manifest.window_graph
    lines = {
        "name": manifest.name,
        "description": manifest.description,
        "vocabulary": f"{manifest.vocab_size} tokens, of which {manifest.generated_tokens.count} from "
        f"{manifest.generated_tokens.first} on are generated",
        "positions": f"{graph.max_length} per row; a sequence is {manifest.length} generated tokens",
        "window": f"up to {graph.max_window} tokens per forward pass",
        "graph": f"{graph.file}, opset {graph.opset}, {graph.dtype}, {graph.layers} layers",
        "cache": f"{graph.layers} x 2 x (rows, {graph.kv_heads}, {graph.cache_length}, {graph.head_size})",
        "grid": f"{manifest.grid.rows} x {manifest.grid.columns} tokens" if manifest.grid else "none",
        "pixels": f"{manifest.pixel_graph.height} x {manifest.pixel_graph.width} x {manifest.pixel_graph.channels}"
        if manifest.pixel_graph
        else "none",
        "prompts": ", ".join(manifest.prompts),
        "unconditional": manifest.unconditional_prompt or "none (no guidance)",
        "defaults": ", ".join(f"{k} {v}" for k, v in asdict(manifest.defaults).items()),
        "licence": manifest.licence,
        "provenance": json.dumps(dict(manifest.provenance), default=dict),
    }
    for name, value in lines.items():
        print(f"{name + ':':<15}{value}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except CoupledSamplingError as error:
        print(f"coupled-sampling: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("coupled-sampling: interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
