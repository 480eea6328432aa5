"""What a model's fingerprint depends on: all that tokens do, and nothing else."""

from dataclasses import replace

from coupled_sampling import open_bundle
from coupled_sampling.serving.fingerprints import fingerprint


def changed(bundle, **fields):
    return replace(bundle, manifest=replace(bundle.manifest, **fields))


def test_it_changes_with_a_file_and_with_what_is_recommended_and_not_with_prose():
    bundle = open_bundle("fashion")
    manifest, mark = bundle.manifest, fingerprint(bundle)
    name, record = next(iter(manifest.files.items()))
    others = [
        {"files": {**manifest.files, name: replace(record, sha256="0" * 64)}},
        {"defaults": replace(manifest.defaults, temperature=0.5)},
        {"stop_tokens": (260,)},
    ]
    marks = {fingerprint(changed(bundle, **other)) for other in others}
    assert len(marks | {mark}) == 4
    assert fingerprint(changed(bundle, description="another", provenance={})) == mark
    assert fingerprint(changed(bundle, files=dict(reversed(manifest.files.items())))) == mark
