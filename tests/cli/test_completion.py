"""`equicat completion`: the script that it prints completes commands, options and values in a real bash."""

import shutil
import subprocess

import pytest

from equicat.cli.main import main

TRY = """
source {script}
COMP_WORDS=(equicat {words}); COMP_CWORD={n}
_shtab_equicat
echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "equicat.bash"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["rel"], ["relax"]),
        (["study", "loc"], ["locality"]),
        (["relax", "--fm"], ["--fmax"]),
        (["train", "--model.l_m"], ["--model.l_max"]),
        (["predict", "--forces_of", '""'], ["free", "all"]),
    ],
)
def test_bash_completes(script, words, found):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    program = TRY.format(script=script, words=" ".join(words), n=len(words))
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == found


def test_another_shell_is_refused(capsys):
    assert main(["completion", "fish"]) == 2
    assert capsys.readouterr().err == "equicat: shell is fish; it must be one of bash, zsh, tcsh\n"
