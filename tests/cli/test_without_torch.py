"""Wrong usage that names alone give away is reported before torch is loaded: that takes seconds."""

from __future__ import annotations

import json

from helpers import REPOSITORY, fresh_python

# {data}: a sound dataset; {study}: a data tree; {run}: a run with weights
USAGE = {
    "complete --bogus": 2,
    "complete --ori nowhere": 1,
    "complete --ori {data} --layout dicom": 2,
    "complete --ori {data} --modalities nowhere.toml": 2,
    "complete --ori {data} --target adc": 2,
    "complete --ori {data} --slices 9:3": 2,
    "complete --ori {data} --planes two": 2,
    "complete --ori {data} --intensities loud": 2,
    "complete --ori {data} --cpl {data}/out": 2,
    "complete --ori {data} --num-parts 2 --part-id 3": 2,
    "complete --ori {study} -w nothing": 2,
    "complete --ori {data} -d tpu": 2,
    "train --data nowhere": 1,
    "train --method nonsense": 2,
    "train --data {data} --preset huge": 2,
    "train --data {data} --set steps": 2,
    "train --data {data} --steps 3 --minutes 3": 2,
    "train --data {data} --config nowhere.toml": 2,
    "train --data {data} -d tpu": 2,
    "train --resume nowhere": 2,
    "score --ori nowhere": 1,
    "score --ori {study} --split nonsense": 2,
    "segment --ori nowhere": 1,
    "segment --ori {study} --input t7": 2,
    "segment --ori {study} --preset huge": 2,
    "segment --ori {study} -o {study}/x": 2,
    "evaluate nowhere --ori {study}": 1,
    "evaluate --weights nowhere --input t7 --ori {study}": 2,
    "export nonsense Dataset001_x": 2,
    "export nnunet Dataset001_x --ori nowhere": 1,
    "prepare-splits nowhere": 1,
    "info nowhere": 1,
    "weights show nothing": 2,
    "nonsense": 2,
}  # fmt: skip

# One interpreter for all: torch, once loaded, would stay, so that each line says whether it is.
SCRIPT = """
import contextlib, io, json, os, sys
sys.path.insert(0, {repository!r})
os.chdir({folder!r})
from attcl_cli.cli.app import main
said = {{}}
for line in {lines!r}:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(line.split())
        except SystemExit as end:
            code = end.code
    said[line] = [code, "torch" in sys.modules]
print(json.dumps(said))
"""


def test_wrong_usage_is_known_before_torch_is_loaded(study, tmp_path):
    places = {"data": str(study.truth), "study": str(study.root / "data")}
    lines = [line.format(**places) for line in USAGE]
    script = SCRIPT.format(repository=str(REPOSITORY), folder=str(tmp_path), lines=lines)
    said = json.loads(fresh_python("-c", script))
    assert {line: code for line, (code, _) in said.items()} == dict(
        zip(lines, USAGE.values(), strict=True)
    )
    assert [line for line, (_, loaded) in said.items() if loaded][:1] == []
