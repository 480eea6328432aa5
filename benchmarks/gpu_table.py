"""The result of ``first_light_gpu.py`` as one table: what was measured, and beside it what was aimed at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from gpu_frame import reason

FLOOR = {"scd-match": 2.0}
"""Time of a method's kernels over the floor of memory that is aimed at; 1.5 for the others."""
HOST_US = 60.0
SHARE = 0.9
"""Of the tokens per pass that the speed-up is to be, at one sequence."""


class Row(NamedTuple):
    """A line: ``met`` says whether the target is met, None where there is none."""

    what: str
    value: str
    target: str = ""
    met: bool | None = None


def rows(result: dict[str, Any]) -> Iterator[Row]:
    """Of all figures that there are."""
    yield from of_noise(result.get("noise") or [])
    for name, make in MAKERS.items():
        for figure in result.get(name) or ():
            yield from make(figure, result)


def print_table(result: dict[str, Any]) -> None:
    machine = result.get("machine", {})
    packages = ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items())
    print(f"{machine.get('gpu', 'no GPU')} ({machine.get('compute_capability', '?')}), driver "
          f"{machine.get('driver_version', '?')} for CUDA {machine.get('cuda_of_driver', '?')}, load {machine.get('load', 0):.1f} "
          f"on {machine.get('cores', '?')} cores; {packages}")  # fmt: skip
    if result.get("rehearse"):
        print("A rehearsal: no figure of it means anything.")
    if result.get("bandwidth"):
        print(f"copy within the GPU: {result['bandwidth'] / 1e9:.0f} GB/s")
    found = list(rows(result))
    widths = [max([len(row[i]) for row in found], default=0) for i in range(3)]
    print()
    for row in found:
        mark = "" if row.met is None else "  met" if row.met else "  MISSED"
        print(f"{row.what:<{widths[0]}}  {row.value:>{widths[1]}}  {row.target:<{widths[2]}}{mark}".rstrip())
    for problem in result["problems"]:
        print(f"\n{problem['part']} {'was skipped' if 'skipped' in problem else 'failed'}: {reason(problem)}")


def of_noise(found: list[dict[str, Any]]) -> Iterator[Row]:
    if found:
        equal = all(one["uniforms_equal"] and one["words_equal"] for one in found)
        yield Row(
            f"noise of {len(found)} positions: words and uniforms", "equal" if equal else "DIFFERENT", "equal", equal
        )
        apart, most = sum(one["weights_apart"] for one in found), max(one["most_units_apart"] for one in found)
        what = f"  race weights that differ, of {sum(one['weights'] for one in found):,}"
        yield Row(what, f"{apart}, by {most} ulp at most", "by 1 ulp at most", most <= 1)


def of_tokens(found: dict[str, Any], result: dict[str, Any]) -> Iterator[Row]:
    sizes = f"W {found['width']}, V {found['vocab_size']}, {found['steps']} steps"
    what = f"kernels, {found['method']}, {sizes}: decisions that are not HostStep's"
    yield _agreement(what, found)


def of_decisions(found: dict[str, Any], result: dict[str, Any]) -> Iterator[Row]:
    floor = 1e3 * found["floor_bytes"] / (result.get("bandwidth") or float("nan"))
    chosen, width = found["chosen"], 1 if found["method"] == "ar" else result["width"]
    blocks = f"blocks a slot {found['blocks_per_slot']}{' as chosen' if chosen else ''}"
    what = f"kernels, {found['method']}, W {width}, V {result['vocab_size']}, {found['sampling']}, {blocks}"
    over = found["kernels_ms"] / floor
    value = f"{1e3 * found['kernels_ms']:.1f} us, {over:.2f} of floor"
    if found["method"] == "ar" or not chosen or found["sampling"] != "plain":
        yield Row(what, value)
    else:
        most = FLOOR.get(found["method"], 1.5)
        yield Row(what, value, f"<= {most:g} of floor", over <= most)
    host = 1e3 * found["overhead_ms"]
    if chosen:
        yield Row("  a step beyond its kernels, CUDA graphs", f"{host:.0f} us", f"< {HOST_US:.0f} us", host < HOST_US)


def of_models(found: dict[str, Any], result: dict[str, Any]) -> Iterator[Row]:
    most = f", {found['most_bytes'] / 1e9:.1f} GB at most" if found.get("most_bytes") else ""
    yield Row(
        f"model {found['model']}: {found['parameters'] / 1e9:.2f} billion random parameters, {found['dtype']}",
        f"{found['bytes'] / 1e9:.2f} GB{most}",
    )
    for name, make in (("loops", of_loops), ("passes", of_passes)):
        for figure in result[name]:
            if figure["model"] == found["model"]:
                yield from make(figure, result)


def of_loops(found: dict[str, Any], result: dict[str, Any]) -> Iterator[Row]:
    what = (
        f"{found['model']}, scd-match, W {found['window']}, {found['tokens_per_pass']:.2f} tokens per pass set: over ar"
    )
    is_target = found["model"] == "1b" and found["window"] == min(result["windows"])
    met = found["share"] >= SHARE if is_target else None
    target = f">= {SHARE} of tokens per pass" if is_target else ""
    yield Row(what, f"{found['speed_up']:.2f}x, {found['share']:.3f} of tokens", target, met)
    passes = f"{found['pass_ms']:.3f} ms, ar {found['ar_pass_ms']:.3f} ms"
    yield Row(f"  a pass; ar's tokens in the first {found['same_as_ar']} of {found['length']}", passes)


def of_passes(found: dict[str, Any], result: dict[str, Any]) -> Iterator[Row]:
    speed = found["weights_per_second"]
    share = f", {speed / result['bandwidth']:.2f} of copying" if result.get("bandwidth") else ""
    yield Row(
        f"{found['model']}, a pass alone, W {found['width']}: weights read at {speed / 1e9:.0f} GB/s{share}",
        f"{found['pass_ms']:.3f} ms",
    )


def of_pictures(found: dict[str, Any], result: dict[str, Any]) -> Iterator[Row]:
    what = f"embedded model, jitted loop, {found['method']}: pictures that are NumPy's"
    whole = sum(count == found["length"] for count in found["same_tokens"])
    all_are = f"all {len(found['same_tokens'])}, or float ties"
    met = not found["disagreements"]
    yield Row(what, f"{whole} of {len(found['same_tokens'])}", all_are, met)
    yield Row(f"  {found['tokens_per_pass']:.2f} tokens per pass; a pass", f"{found['pass_ms']:.3f} ms")


def of_arrays(found: dict[str, Any], result: dict[str, Any]) -> Iterator[Row]:
    what = f"HostStep on {found['library']} ({found['device']}), {found['method']}: decisions that are not NumPy's"
    yield _agreement(what, found)
    yield Row(f"  {found['tokens_per_pass']:.2f} tokens per pass; a step with the model", f"{found['step_ms']:.2f} ms")


def of_runtimes(found: dict[str, Any], result: dict[str, Any]) -> Iterator[Row]:
    whole, count = sum(n == found["length"] for n in found["same_tokens"]), len(found["same_tokens"])
    yield Row(
        f"{found['backend']} ({found['runs']}), {found['method']}: pictures that are NumPy's", f"{whole} of {count}"
    )
    yield Row("  a step with the model", f"{found['step_ms']:.2f} ms")


def of_decoding(found: dict[str, Any], result: dict[str, Any]) -> Iterator[Row]:
    ar = {row["backend"]: row["tokens_per_second"] for row in result["decoding"] if row["method"] == "ar"}
    over = found["tokens_per_second"] / ar.get(found["backend"], float("nan"))
    what = f"{result['parameters'] / 1e9:.2f} billion, {result['compute']}, by {found['backend']}"
    what += f", {found['method']}, decided by {found['decided_by']}"
    tokens = f"{found['tokens_per_step']:.2f} tokens per step"
    yield Row(f"{what}, W {found['window']}, {tokens}", f"{found['tokens_per_second']:.1f} tokens/s, {over:.2f} of ar")


def _agreement(what: str, found: dict[str, Any]) -> Row:
    met = not found["disagreements"] and found["sites"] > 0
    value = f"{found['disagreements']}, {found['ties']} ties of {found['sites']}"
    return Row(what, value, f"0, {found['expected_ties']:.2g} ties", met)


MAKERS = {
    "tokens": of_tokens,
    "decisions": of_decisions,
    "models": of_models,
    "pictures": of_pictures,
    "arrays": of_arrays,
    "runtimes": of_runtimes,
    "decoding": of_decoding,
}
"""What makes rows of a figure of each list, in the table's order."""
LISTS = ("noise", "loops", "passes", *MAKERS)
