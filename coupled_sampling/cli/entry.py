"""The command line: ``coupled-sampling generate | compare | verify | inspect | export | step-graphs``.

Errors are one line on standard error and exit code 2; an interrupt is exit code 130; ``verify`` exits with 1 when a method
fails. Results go to standard output, the progress bar to standard error.
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

from coupled_sampling.bundles.files import check_writable, write_whole
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.cli.arguments import model_arguments, running_arguments, sampling_arguments
from coupled_sampling.cli.comparison import MethodResult
from coupled_sampling.cli.export import (
    add_export_arguments,
    add_step_graphs_arguments,
    run_export,
    run_step_graphs,
)
from coupled_sampling.cli.job import Job, describe_runs
from coupled_sampling.cli.pictures import draw_comparison, require_pictures, write_grid
from coupled_sampling.cli.verify import (
    add_verify_arguments,
    check_verify_arguments,
    print_verifications,
    run_verification,
)
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.methods import METHODS

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coupled-sampling", description="Lossless parallel decoding of exported models."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    model = model_arguments()
    decoding = [model, sampling_arguments(), running_arguments()]

    generate = commands.add_parser("generate", parents=decoding, help="make pictures or texts")
    _add_generate_arguments(generate)
    generate.set_defaults(run=_generate)

    comparing = commands.add_parser("compare", parents=decoding, help="measure methods side by side")
    comparing.add_argument("--methods", default="ar,sjd,scd-maximal,scd-gumbel,scd-match")
    comparing.add_argument("--count", type=int, default=40)
    comparing.add_argument("--plot", type=Path, help="PNG to write")
    comparing.set_defaults(run=_compare)

    verifying = commands.add_parser("verify", parents=decoding, help="test that methods are lossless")
    add_verify_arguments(verifying)
    verifying.set_defaults(run=_verify)

    exporting = commands.add_parser("export", help="make a bundle from a checkpoint")
    add_export_arguments(exporting)
    exporting.set_defaults(run=run_export)

    stepping = commands.add_parser("step-graphs", parents=[model], help="make a bundle with step graphs of one without")
    add_step_graphs_arguments(stepping)
    stepping.set_defaults(run=run_step_graphs)

    inspect = commands.add_parser("inspect", parents=[model], help="say what a bundle is")
    inspect.add_argument("--json", action="store_true", help="print the manifest as JSON")
    inspect.set_defaults(run=_inspect)
    return parser


def _add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--count", type=int, default=16)
    add("--method", help=f"one of {', '.join(METHODS)}")
    add("--out", type=Path, default=Path("grid.png"), help="PNG to write (default grid.png)")
    add("--trace", type=Path, help="JSON to write: tokens and steps of every sequence")
    add("--beside-ar", action="store_true", help="run AR on the same prompts and print both")


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
    if arguments.trace:
        check_writable(arguments.trace)
    job = Job(arguments)
    manifest = job.bundle.manifest
    if job.tokenizer is None:
        check_writable(arguments.out)
        if arguments.trace and arguments.trace.resolve() == arguments.out.resolve():
            raise InvalidArgument(f"out and trace are both {arguments.out}; name two files")
        require_pictures("PIL.Image")
    if manifest.pixel_graph is None and job.tokenizer is None:
        raise InvalidArgument(f"the bundle {manifest.name} has no token-to-pixel graph, so it makes no pictures")
    if job.tokenizer is None:
        job.open_pixels()  # whatever the back end, pictures come from ONNX Runtime: say so before the work if it is missing
    method = arguments.method or manifest.defaults.method
    with _progress(len(job.prompts) * job.length) as report:
        results = job.compare([method], against_ar=arguments.beside_ar, progress=report)
    result = results[-1]
    if job.tokenizer is None:
        write_grid(job.images(result.generation.tokens), arguments.out)
    if arguments.trace:
        _write_json(arguments.trace, _trace(job, result))
    figures = [{**r.figures(), **job.ran[r.method].record()} for r in results]
    if not arguments.beside_ar:
        for name in ("speedup_nfe", "speedup_seconds", "identical_to_ar"):
            figures[0].pop(name)
    made = job.texts(result.generation.tokens)
    if arguments.json:
        print(json.dumps({**({"texts": made} if made else {"out": str(arguments.out)}), "methods": figures}, indent=2))
        return
    for text in made:
        print(f"{text}\n")
    for row in figures:
        print(
            f"{row['method']}: {row['sequences']} sequences, NFE {row['nfe_mean']:.1f}, "
            f"{row['tokens_per_step']:.2f} tokens per step, {row['seconds']:.2f} s, {job.ran[str(row['method'])]}"
        )
    if not made:
        print(f"wrote {arguments.out}")


def _trace(job: Job, result: MethodResult) -> dict[str, Any]:
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
    job = Job(arguments)
    if arguments.plot and job.bundle.manifest.pixel_graph:
        job.open_pixels()
    methods = [name.strip() for name in arguments.methods.split(",")]
    with _progress(len(job.prompts) * job.length) as report:
        results = job.compare(methods, against_ar=True, progress=report)
    figures = [{**result.figures(), **job.ran[result.method].record()} for result in results]
    if arguments.plot:
        manifest = job.bundle.manifest
        firsts = [result.generation.tokens[0] for result in results]
        images = job.images(firsts) if manifest.pixel_graph else None
        grid = (manifest.grid.rows, manifest.grid.columns) if manifest.grid else None
        draw_comparison(results, arguments.plot, grid=grid, images=images)
    print(json.dumps(figures, indent=2) if arguments.json else f"{_table(figures)}\n{describe_runs(job.ran)}")
    if arguments.plot and not arguments.json:
        print(f"wrote {arguments.plot}")


def _verify(arguments: argparse.Namespace) -> int:
    check_verify_arguments(arguments)
    arguments.count = arguments.samples
    job = Job(arguments)
    if arguments.prompt is not None and "," in arguments.prompt:
        raise InvalidArgument(
            f"prompt is {arguments.prompt!r}, expected one name: verify continues one prompt many times"
        )
    with _progress(arguments.samples * arguments.positions) as report:
        results = run_verification(
            arguments,
            job.open_provider,
            job.make_step,
            job.prompts[0],
            length=job.length,
            window=job.window,
            drafting=job.drafting,
            sampling=job.samplings[0],
            progress=report,
        )
    return print_verifications(results, job.ran, as_json=arguments.json)


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
        "step graphs": ", ".join(
            f"{g.method}{' warped' * g.warped}{' guided' * g.guided}" for g in manifest.step_graphs
        )
        or "none",
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
        return int(parsed.run(parsed) or 0)
    except CoupledSamplingError as error:
        print(f"coupled-sampling: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("coupled-sampling: interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
