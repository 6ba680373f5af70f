"""VASP's files: which atoms are held comes from a file of the same calculation; a file that breaks off is said to."""

import gzip
import lzma
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from emt_relaxations import relax, system, write_outcar, write_vasprun

from equicat.data.labels import USUAL_KEYS
from equicat.data.readers import read, read_each
from equicat.data.structure import Structure
from equicat.data.vasp import progress_of
from equicat.errors import InputError
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.make import import_dataset
from equicat.sources.dft.trajectories import find_files


@pytest.fixture(scope="session")
def frames() -> list[Atoms]:
    return relax(system("Cu", "O"))[:6]


@pytest.fixture
def outcar(frames, tmp_path) -> Path:
    """An OUTCAR with its POSCAR, in which four atoms are fixed."""
    (tmp_path / "calculation").mkdir()
    write_outcar(tmp_path / "calculation" / "OUTCAR", frames)
    return tmp_path / "calculation" / "OUTCAR"


def n_fixed(outcar: Path) -> int:
    (number,) = {int(s.fixed.sum()) for s in read(outcar)}
    return number


def larger(frame: Atoms) -> Atoms:
    return frame.repeat((2, 1, 1))


def smaller(frame: Atoms) -> Atoms:
    atoms = frame[:9]
    atoms.set_constraint(FixAtoms([0, 1]))
    return atoms


def other_elements(frame: Atoms) -> Atoms:
    atoms = frame.copy()
    atoms.symbols[:] = ["Pd"] * 12 + ["O"]
    return atoms


class TestFilesBesideAnOutcar:
    @pytest.mark.parametrize("other", [larger, smaller, other_elements])
    def test_a_contcar_of_another_calculation_is_passed_over(self, frames, outcar, other):
        ase.io.write(outcar.with_name("CONTCAR"), other(frames[0]), format="vasp")
        assert n_fixed(outcar) == 4
        assert all(isinstance(s, Structure) for s in read_each(outcar, USUAL_KEYS))

    @pytest.mark.parametrize("text", ["", "no structure\n", "Cu\n1.0\n1 0 0\n"])
    def test_an_empty_or_broken_contcar_is_passed_over(self, outcar, text):
        outcar.with_name("CONTCAR").write_text(text)
        assert n_fixed(outcar) == 4

    def test_a_contcar_of_the_calculation_comes_first(self, frames, outcar):
        atoms = frames[-1].copy()
        atoms.set_constraint(FixAtoms([0, 1]))
        ase.io.write(outcar.with_name("CONTCAR"), atoms, format="vasp")
        assert n_fixed(outcar) == 2

    def test_compressed(self, outcar):
        poscar = outcar.with_name("POSCAR")
        outcar.with_name("POSCAR.gz").write_bytes(gzip.compress(poscar.read_bytes()))
        poscar.unlink()
        outcar.with_name("OUTCAR.xz").write_bytes(lzma.compress(outcar.read_bytes()))
        assert n_fixed(outcar) == n_fixed(outcar.with_name("OUTCAR.xz")) == 4

    def test_none_is_no_constraint(self, outcar):
        outcar.with_name("POSCAR").unlink()
        assert n_fixed(outcar) == 0

    def test_nothing_that_belongs_to_it(self, frames, outcar, tmp_path):
        """The relaxation is unreadable, with both numbers of atoms; the others are imported."""
        outcar.with_name("POSCAR").unlink()
        ase.io.write(outcar.with_name("CONTCAR"), larger(frames[0]), format="vasp")
        with pytest.raises(InputError, match=r"OUTCAR: has 13 atoms .*CONTCAR has 26 atoms.* put the POSCAR of this"):
            list(read(outcar))
        (tmp_path / "good").mkdir()
        write_outcar(tmp_path / "good" / "OUTCAR", frames)
        report = import_dataset(tmp_path / "data", ImportConfig(files=(str(tmp_path / "[cg]*"),)))
        assert {r.sid: (r.n_s2ef, dict(r.dropped)) for r in report.records} == {
            "calculation": (0, {"unreadable": 1}),
            "good": (6, {}),
        }


class TestFilesThatBreakOff:
    def test_counted_without_parsing(self, frames, outcar):
        xml = outcar.with_name("vasprun.xml")
        write_vasprun(xml, frames)
        assert (progress_of(outcar).n_frames, progress_of(outcar).breaks_off) == (6, False)
        assert (progress_of(xml).n_frames, progress_of(xml).breaks_off) == (6, False)
        text = xml.read_text()
        for share, n in ((0.0, 0), (0.6, 3), (1 - 5e-5, 6)):
            xml.write_text(text[: int(share * len(text))])
            assert (progress_of(xml).n_frames, progress_of(xml).breaks_off) == (n, True)
        whole = gzip.compress(text.encode())
        (outcar.with_name("vasprun.xml.gz")).write_bytes(whole)
        assert progress_of(outcar.with_name("vasprun.xml.gz")).n_frames == 6
        (outcar.with_name("vasprun.xml.gz")).write_bytes(whole[: len(whole) // 2])
        assert progress_of(outcar.with_name("vasprun.xml.gz")).breaks_off

    def test_a_vasprun_that_breaks_off_says_so_after_its_last_frame(self, frames, tmp_path):
        write_vasprun(tmp_path / "vasprun.xml", frames)
        text = (tmp_path / "vasprun.xml").read_text()
        (tmp_path / "vasprun.xml").write_text(text[: int(0.6 * len(text))])
        *good, last = read_each(tmp_path / "vasprun.xml", USUAL_KEYS)
        assert len(good) == 3
        assert "frame 3: cannot be read as vasp-xml (EOFError: the file breaks off, as it does when a job is" in str(
            last
        )
        middle = int(0.6 * len(text))
        (tmp_path / "vasprun.xml").write_text(text[:middle] + "<&" + text[middle:])
        *good, last = read_each(tmp_path / "vasprun.xml", USUAL_KEYS)
        assert len(good) == 3
        assert "the file is damaged here; it has 6 frames" in str(last)
        (tmp_path / "vasprun.xml").write_text(text)
        assert len(list(read_each(tmp_path / "vasprun.xml", USUAL_KEYS))) == 6


class TestOutcarAndVasprunOfOneCalculation:
    @pytest.fixture
    def xml(self, frames, outcar) -> Path:
        write_vasprun(outcar.with_name("vasprun.xml"), frames)
        return outcar.with_name("vasprun.xml")

    def chosen(self, outcar: Path) -> tuple[list[str], list[str]]:
        found = find_files([str(outcar.parent)])
        return [file.name for file in found.files], found.notes

    def test_the_vasprun_of_equals(self, outcar, xml):
        assert self.chosen(outcar) == (["vasprun.xml"], [])

    @pytest.mark.parametrize(("share", "n"), [(0.0, 0), (0.6, 3), (1 - 5e-5, 6)])
    def test_the_outcar_where_the_vasprun_breaks_off(self, outcar, xml, share, n):
        xml.write_text(xml.read_text()[: int(share * xml.stat().st_size)])
        files, (note,) = self.chosen(outcar)
        assert files == ["OUTCAR"]
        assert f"vasprun.xml has {n} frames and breaks off, OUTCAR has 6; OUTCAR is read" in note

    def test_the_one_with_more_frames(self, frames, outcar, xml):
        write_vasprun(xml, frames[:2])
        assert self.chosen(outcar)[0] == ["OUTCAR"]
        write_vasprun(xml, frames)
        write_outcar(outcar, frames[:2])
        files, (note,) = self.chosen(outcar)
        assert files == ["vasprun.xml"]
        assert "vasprun.xml has 6 frames, OUTCAR has 2; vasprun.xml is read" in note

    def test_the_system_counts_for_all_tasks(self, frames, outcar, xml, tmp_path):
        xml.write_text("")
        report = import_dataset(tmp_path / "data", ImportConfig(files=(str(outcar.parent),)))
        assert report.counts()["frames_s2ef"] == 6
        assert "vasprun.xml has 0 frames and breaks off" in report.as_text(max_lines=1)

    def test_other_parts_of_a_restarted_calculation_are_not_hidden(self, frames, outcar, xml):
        outcar.rename(outcar.with_name("OUTCAR.1"))
        assert sorted(self.chosen(outcar)[0]) == ["OUTCAR.1", "vasprun.xml"]
        write_vasprun(outcar.with_name("vasprun.1.xml"), frames)
        assert sorted(self.chosen(outcar)[0]) == ["vasprun.1.xml", "vasprun.xml"]


def test_toten_can_be_read(frames, tmp_path):
    write_outcar(tmp_path / "OUTCAR", frames)
    text = (tmp_path / "OUTCAR").read_text().replace("TOTEN  = ", "TOTEN  = 1")
    (tmp_path / "OUTCAR").write_text(text)
    energies = [frame.calc.results["energy"] for frame in frames]
    assert [s.energy for s in read(tmp_path / "OUTCAR")] == pytest.approx(energies)
    toten = [s.energy for s in read(tmp_path / "OUTCAR", "free_energy")]
    assert not np.isclose(toten, energies).any()
