"""Extended XYZ: what other programs write is read, and what is written reads back."""

import dataclasses

import ase.io
import numpy as np
import pytest
from ase import Atoms

from equicat.data.readers import read, write
from equicat.data.structure import Structure
from equicat.errors import InputError, Remark

STRESS = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]])


def frame(entries: str = "", *, symbol: str = "Cu", x: str = "2.5", columns: str = "", values: str = "") -> str:
    properties = f"species:S:1:pos:R:3:forces:R:3{columns}"
    rows = f"Cu 0 0 0 0 0 1{values}\n{symbol} {x} 0 0 0 0 -1{values}\n"
    return f'2\nLattice="8 0 0 0 8 0 0 0 12" Properties={properties} energy=-3.0 {entries}\n{rows}'


def only(folder, text: str, **options: object) -> Structure:
    (folder / "a.extxyz").write_text(text, encoding="utf-8")
    (structure,) = read(folder / "a.extxyz", **options)
    return structure


class TestWhatOthersWrite:
    @pytest.mark.parametrize(
        "entries",
        [
            "stress=None",
            'stress="None"',
            "stress",
            "stress=1.2",
            'stress="1 2 3"',
            'virial="1 2 3 4 5 6 7"',
            "virial=None",
            'stress="nan nan nan nan nan nan nan nan nan"',
            'dipole="unknown"',
            "dipole=None magmom=None",
            'comment="stress=3 and virial too"',
            'stress="1 2 3 4 5 6 7 8 9"',
        ],
    )
    def test_a_tensor_that_nobody_needs(self, tmp_path, entries):
        structure = only(tmp_path, frame(entries))
        assert structure.energy == -3.0
        assert structure.forces[1, 2] == -1
        assert structure.stress is None

    @pytest.mark.parametrize(
        "entries",
        [
            'stress="1.0 0.1 0.2 0.1 2.0 0.3 0.2 0.3 3.0"',
            'stress="1.0 2.0 3.0 0.3 0.2 0.1"',
            "stress={1.0 2.0 3.0 0.3 0.2 0.1} virial=None",
            'virial="-768 -76.8 -153.6 -76.8 -1536 -230.4 -153.6 -230.4 -2304"',
            'virial="-768 -1536 -2304 -230.4 -153.6 -76.8"',
        ],
    )
    def test_a_stress_or_virial_of_nine_or_six_numbers(self, tmp_path, entries):
        np.testing.assert_allclose(only(tmp_path, frame(entries)).stress, STRESS)

    def test_names_and_texts_with_these_words_stay(self, tmp_path):
        structure = only(tmp_path, frame('my_stress=1.5 stress_unit=GPa note="no stress, no virial" virial="1 2"'))
        assert structure.info == {"my_stress": 1.5, "stress_unit": "GPa", "note": "no stress, no virial"}
        columns = only(tmp_path, frame(columns=":stresses:R:1:virials:R:1", values=" 1 2")).columns
        assert columns == ("stresses", "virials")

    def test_a_byte_order_mark(self, tmp_path):
        (tmp_path / "a.xyz").write_text("\ufeff" + frame() + "\ufeff" + frame(), encoding="utf-8")
        assert [s.energy for s in read(tmp_path / "a.xyz")] == [-3.0, -3.0]

    def test_an_energy_that_is_no_number(self, tmp_path):
        for value, shown in (("T", "True"), ("-3,0", r"\[-3, 0\]"), ('"-3.0 -3.1"', r"\[-3.0, -3.1\]")):
            text = frame().replace("energy=-3.0", f"energy={value}")
            with pytest.raises(InputError, match=rf"a.extxyz, frame 0: energy is {shown}, expected a number"):
                only(tmp_path, text)
            assert only(tmp_path, text, labels=("forces",)).energy is None


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"symbol": "D"}, "'D' is no chemical symbol; write H"),
        ({"symbol": "Cu1"}, "'Cu1' is no chemical symbol; write Cu$"),
        ({"symbol": "Q"}, "'Q' is no chemical symbol$"),
        ({"x": "1.0D-01"}, "write exponents with E, not D$"),
        ({"x": "abc"}, "repair this frame, or cut it out$"),
    ],
)
def test_advice_on_a_bad_line(tmp_path, changes, advice):
    with pytest.raises(InputError, match=rf"a.extxyz, frame 0: cannot be read as extxyz .*; {advice}"):
        only(tmp_path, frame(**changes))


def test_advice_on_a_broken_end(tmp_path):
    with pytest.raises(InputError, match=r"1 of 2 atoms before the end of the file\); is the file complete\?"):
        only(tmp_path, "".join(frame().splitlines(keepends=True)[:-1]))


RESERVED = ("stress", "virial", "Properties", "Lattice", "pbc", "magmom", "dipole", "free_energy", "energy", "uid")


class TestRoundTrip:
    STRUCTURE = Structure(np.array([29, 8]), np.array([[0.0, 0, 0], [2, 0, 0]]), 9 * np.eye(3), np.ones(3, bool))

    @pytest.mark.parametrize("value", [1.2, 3, True, "none", "T"])
    @pytest.mark.parametrize("key", [*RESERVED, "relaxed_energy", "sid", "fid", "a\nb", "a=b", ""])
    def test_entries_that_the_format_would_misread_get_another_name(self, tmp_path, key, value):
        structure = dataclasses.replace(self.STRUCTURE, info={key: value, "other": 1}, energy=-1.0)
        with pytest.warns(Remark, match=r"a.extxyz: entry .* is written as 'info_"):
            write(tmp_path / "a.extxyz", [structure])
        (back,) = read(tmp_path / "a.extxyz")
        (name,) = set(back.info) - {"other"}
        assert name.startswith("info_")
        assert back.info[name] == value
        assert type(back.info[name]) is type(value)
        assert (back.energy, back.stress, back.relaxed_energy, back.sid, back.fid) == (-1.0, None, None, "", None)
        np.testing.assert_array_equal(back.cell, structure.cell)
        assert back.pbc.all()
        assert ase.io.read(tmp_path / "a.extxyz").get_potential_energy() == -1.0

    @pytest.mark.parametrize("key", ["a b", "{a}", "frame", "Größe", "forces", "stress_unit", "e_ads", "flag"])
    def test_other_names_stay(self, tmp_path, key, recwarn):
        write(tmp_path / "a.extxyz", [dataclasses.replace(self.STRUCTURE, info={key: 2.5})])
        (back,) = read(tmp_path / "a.extxyz")
        assert back.info == {key: 2.5}
        assert not recwarn

    @pytest.mark.parametrize("value", [None, np.arange(3), [1, 2], {"a": 1}, 1 + 2j])
    def test_what_is_neither_text_nor_number_is_left_out(self, tmp_path, value):
        with pytest.warns(Remark, match="entry 'x' is left out, it is neither text nor number"):
            write(tmp_path / "a.extxyz", [dataclasses.replace(self.STRUCTURE, info={"x": value, "y": 1})])
        assert next(read(tmp_path / "a.extxyz")).info == {"y": 1}

    def test_new_names_do_not_collide(self, tmp_path):
        info = {"stress": 1, "info_stress": 2, "a=b": 3, "a{b": 4}
        with pytest.warns(Remark, match="info_stress_"):
            write(tmp_path / "a.extxyz", [dataclasses.replace(self.STRUCTURE, info=info)])
        assert sorted(next(read(tmp_path / "a.extxyz")).info.values()) == [1, 2, 3, 4]

    def test_one_warning_a_file(self, tmp_path, recwarn):
        write(tmp_path / "a.extxyz", [dataclasses.replace(self.STRUCTURE, info={"pbc": k}) for k in range(3)])
        assert len(recwarn) == 1

    def test_stress_and_initial_positions(self, tmp_path):
        initial = self.STRUCTURE.positions + 0.125
        structure = dataclasses.replace(self.STRUCTURE, stress=STRESS, energy=1.0, initial_positions=initial)
        write(tmp_path / "a.extxyz", [structure])
        (back,) = read(tmp_path / "a.extxyz")
        np.testing.assert_allclose(back.stress, STRESS)
        np.testing.assert_array_equal(back.initial_positions, initial)

    def test_initial_positions_that_are_none_stop_nothing(self, tmp_path):
        atoms = Atoms("Cu2", [[0, 0, 0], [2, 0, 0]])
        for k, value in enumerate((np.array(["a", "b"]), np.full((2, 3), np.nan), np.zeros(2))):
            atoms.arrays["initial_positions"] = value
            ase.io.write(tmp_path / f"{k}.extxyz", atoms)
            assert next(read(tmp_path / f"{k}.extxyz")).initial_positions is None
