"""Test the training scripts with an interpreter that only prints what it was asked to run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers.paths import ROOT


@pytest.fixture
def script(tmp_path):
    """Run a script; returns exit code, the command line it ended in, and stderr."""
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '    *train.py*) echo "$@" ;;\n'
        "    *pip*) ;;\n"
        f"    *sys.prefix*) echo {tmp_path} ;;\n"
        f'    *) exec {sys.executable} "$@" ;;\n'
        "esac\n"
    )
    fake.chmod(0o755)

    def run(name, *arguments, **environment):
        done = subprocess.run(
            ["sh", ROOT / "scripts" / name, *arguments],
            env=os.environ | {"STARFC_PYTHON": str(fake)} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.strip(), done.stderr

    return run


MS1M, HIERARCHICAL = "train_gcn_ms1m.sh", "train_gcn_ms1m_hierarchical.sh"


def test_one_process_needs_no_launcher(script):
    code, ran, _ = script(MS1M, "--resume", "auto", NPROC="1")
    assert code == 0
    assert ran == f"{ROOT}/train.py --config {ROOT}/configs/cfg_gcn_ms1m.py --resume auto"


def test_several_processes_are_torchruns(script):
    _, ran, _ = script(MS1M, NPROC="4")
    assert ran.startswith("-m torch.distributed.run --nproc-per-node 4 --standalone")
    assert ran.endswith(f"/train.py --config {ROOT}/configs/cfg_gcn_ms1m.py")
    _, ran, _ = script(MS1M, NPROC="8", NNODES="2", RDZV="host:29500")
    assert "--nproc-per-node 8 --nnodes=2 --rdzv-backend=c10d --rdzv-id=starfc --rdzv-endpoint=host:29500" in ran


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NPROC": "0"}, "NPROC: must be a whole number above 0; found '0'"),
        ({"NPROC": "two"}, "NPROC: must be a whole number above 0; found 'two'"),
        ({"NPROC": "2", "NNODES": "2"}, "RDZV: must be HOST:PORT of one of the 2 machines"),
    ],
)
def test_wrong_numbers_of_processes(script, environment, message):
    code, ran, err = script(MS1M, **environment)
    assert (code, ran) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "expected", "notice"),
    [
        ((), "", ""),
        (("60",), "--cfg-options hierarchical.k_mid=60", ""),
        (("60", "100"), "--cfg-options hierarchical.k_mid=60", "K_NUM3=100 has no effect"),
        (
            ("60", "--cfg-options", "seed=1"),
            "--cfg-options seed=1 --cfg-options hierarchical.k_mid=60",
            "",
        ),
    ],
)
def test_published_arguments_of_hierarchical_training(script, arguments, expected, notice):
    code, ran, err = script(HIERARCHICAL, *arguments, NPROC="1")
    assert code == 0
    assert ran == f"{ROOT}/train.py --config {ROOT}/configs/cfg_gcn_ms1m_hierarchical.py {expected}".strip()
    assert notice in err


def test_help_says_what_k_num3_does(script):
    code, out, _ = script(HIERARCHICAL, "--help")
    assert code == 0
    assert "K_NUM3   no effect" in out
    code, _, err = script(HIERARCHICAL, "sixty")
    assert code == 2
    assert "K_MID: must be a whole number; found 'sixty'" in err


def test_repeated_options_add_up(monkeypatch):
    import argparse

    from starfc.commands.scripts import config_arguments

    parser = argparse.ArgumentParser()
    config_arguments(parser, default="c.py")
    found = parser.parse_args(["--cfg-options", "seed=1", "knn=3", "--cfg-options", "knn=4"])
    assert found.cfg_options == {"seed": 1, "knn": 4}
