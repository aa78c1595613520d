"""Test the script of docs/cluster.md that runs the stages of a command as arrays of jobs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from helpers.paths import ROOT
from helpers.samples import blobs
from starfc.data.synthetic import sample

STARFC = f"""#!/bin/sh
exec {sys.executable} -c 'import sys; sys.argv[0] = "starfc"; from starfc.commands import main; main()' "$@"
"""

SBATCH = """#!/bin/sh
# sbatch --wait --array=0-LAST --wrap COMMAND: start the tasks in the background, and wait for them
last=${2#--array=0-} command=$4 tasks=
for index in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$index sh -c "$command" & tasks="$tasks $!"
done
for task in $tasks; do wait "$task"; done
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["packaged", "published"])
def test_arrays_of_jobs(tmp_path, model):
    rows = blobs()[0] if model == "packaged" else sample(180, seed=4, dim=256)[0]
    np.save(tmp_path / "x.npy", rows.astype(np.float32))
    (tmp_path / "bin").mkdir()
    for name, text in (("starfc", STARFC), ("sbatch", SBATCH)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    found = re.findall(
        r"^```sh\n(#!/bin/sh\n.*?)^```$", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "arrays.sh").write_text(*found)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    arguments = [tmp_path / "x.npy", "--threads", "1", "-q"]
    arguments += [] if model == "packaged" else ["--model", ROOT / "pretrained_model" / "glyph"]
    given = {"check": True, "env": {**os.environ, "PATH": path}}
    more = ["-o", tmp_path / "there", "--shard-rows", "128"]
    subprocess.run(["sh", tmp_path / "arrays.sh", tmp_path / "store", *arguments, *more], **given)
    subprocess.run(["starfc", "cluster", *arguments, "-o", tmp_path / "here"], **given)
    for name in ("labels.npy", "clusters.parquet", "edges/scores.npy"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert not (tmp_path / "store" / "waiting.json").exists()
