"""The job for SLURM on docs/training.md, with stand-ins for its commands: it resumes, and asks for another turn."""

import os
import subprocess

from pages import blocks
from places import ROOT

STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": 'echo "$@" >> asked',
    "equicat": 'echo "$@" >> trained; mkdir -p $CKPT; touch $CKPT/last.ckpt; exit $STATUS',
}


def test_a_job_that_is_told_to_end_queues_itself_and_goes_on(tmp_path):
    (job,) = (b.text for b in blocks(ROOT / "docs" / "training.md", "bash") if b.text.startswith("#!/bin/bash"))
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    statuses = []
    for status in (130, 130, 0):
        here = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "STATUS": str(status)}
        here["CKPT"] = "runs/mine/checkpoints"
        statuses.append(
            subprocess.run(["bash", "-c", job], cwd=tmp_path, env=os.environ | here, check=False).returncode
        )
    assert statuses == [130, 130, 0]
    trained = (tmp_path / "trained").read_text().splitlines()
    assert [line.rpartition("--run.resume ")[2] for line in trained] == ["false", "true", "true"]
    assert (tmp_path / "asked").read_text().splitlines() == ["requeue 17"] * 2
