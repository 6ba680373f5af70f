"""A label of an ASE ``Atoms`` is read where it stands, checked if it is wanted, and left alone if not."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from equicat.data.structure import Structure
from equicat.errors import InputError

STRESS = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]])


def atoms(info: dict | None = None, arrays: dict | None = None, **results: object) -> Atoms:
    """Two copper atoms; ``results`` bypass ASE's own checks, as those of a calculator do."""
    found = Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]], cell=[8, 8, 12], pbc=True, info=info or {})
    found.arrays |= arrays or {}
    if results:
        found.calc = SinglePointCalculator(found)
        found.calc.results = dict(results)
    return found


class TestEnergy:
    @pytest.mark.parametrize(
        "value", [-3.0, -3, np.float32(-3), np.int64(-3), np.array(-3.0), np.array([-3.0]), np.array([[-3]]), [-3.0]]
    )
    def test_one_number_in_whatever_box(self, value):
        for key in (None, "e"):
            found = atoms(info={"e": value}) if key else atoms(energy=value)
            energy = Structure.from_ase(found, key).energy
            assert type(energy) is float
            assert energy == -3.0
        assert Structure.from_ase(atoms(info={"relaxed_energy": value})).relaxed_energy == -3.0

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (np.array([-3, 0]), r"\[-3, 0\]"),
            (np.array([]), r"\[\]"),
            (True, "True"),
            (np.bool_(False), "False"),
            ("none", "'none'"),
            ("-1.0D+02", r"'-1.0D\+02', expected a number; write exponents with E"),
            (1 + 2j, r"\(1\+2j\)"),
            ({"value": -3}, "{'value': -3}"),
        ],
    )
    def test_anything_else_is_named_with_file_and_frame(self, value, shown):
        for name, found in (
            ("energy", atoms(energy=value)),
            ("e", atoms(info={"e": value})),
            ("relaxed_energy", atoms(info={"relaxed_energy": value})),
        ):
            with pytest.raises(InputError, match=rf"^a.traj, frame 2: {name} is {shown}"):
                Structure.from_ase(found, "e" if name == "e" else None, "a.traj, frame 2")

    @pytest.mark.parametrize("value", [np.array([-3, 0]), True, "none", np.nan])
    def test_nobody_looks_at_one_that_is_not_wanted(self, value):
        found = Structure.from_ase(atoms(info={"relaxed_energy": value}, energy=value), labels=("forces",))
        assert found.energy is None
        assert found.relaxed_energy is None
        assert found.info == {}


class TestForces:
    FORCES = np.arange(6.0).reshape(2, 3)

    def test_under_another_name(self):
        for found in (atoms(arrays={"dft_forces": self.FORCES}), atoms(dft_forces=self.FORCES)):
            structure = Structure.from_ase(found, forces_key="dft_forces")
            np.testing.assert_array_equal(structure.forces, self.FORCES)
        with pytest.raises(InputError, match=r"a, frame 0: no forces key 'f'; found .* columns of atoms dft_forces"):
            Structure.from_ase(atoms(arrays={"dft_forces": self.FORCES}), source="a, frame 0", forces_key="f")

    def test_columns_that_may_hold_them_are_known(self):
        found = atoms(arrays={"REF_forces": self.FORCES, "tags": np.zeros(2, int)}, magmoms=np.zeros(2), energy=1.0)
        assert Structure.from_ase(found).columns == ("REF_forces", "magmoms")

    @pytest.mark.parametrize("value", [np.array([["a"] * 3] * 2), np.ones((2, 3), bool), [[1.0], [1.0, 2.0]]])
    def test_what_is_no_number_is_named(self, value):
        with pytest.raises(InputError, match=r"a, frame 0: forces holds .*, expected numbers"):
            Structure.from_ase(atoms(forces=value), source="a, frame 0")

    def test_what_no_method_gives_is_named(self):
        """Limits are 1e7 eV an atom and 1e5 eV/Å; a total energy of all electrons stays below."""
        forces = np.array([[0.0, 0, 0], [0, -2e5, 0]])
        with pytest.raises(InputError, match=r"a, frame 0: forces is 2.0e\+05 eV/Å at atom 1, more than 100000 eV/Å"):
            Structure.from_ase(atoms(forces=forces), source="a, frame 0")
        assert Structure.from_ase(atoms(forces=forces), labels=("energy",)).forces is None
        for found in (atoms(energy=1e30), atoms(energy=-2.1e7), atoms(info={"relaxed_energy": 1e30})):
            with pytest.raises(
                InputError, match=r"energy is .* eV, more than 1e\+07 eV an atom, which no method gives"
            ):
                Structure.from_ase(found, source="a, frame 0")
        assert Structure.from_ase(atoms(energy=-1.6e6, forces=0.4 * forces)).energy == -1.6e6

    @pytest.mark.parametrize("name", ["forces", "relaxed_positions"])
    def test_nan_is_named_with_its_atom(self, name):
        value = np.array([[0.0, 0, 0], [0, np.nan, 0]])
        with pytest.raises(InputError, match=rf"a, frame 0: {name} is not finite \(NaN or infinity\) at atom 1"):
            Structure.from_ase(atoms(arrays={name: value}), source="a, frame 0")
        assert getattr(Structure.from_ase(atoms(arrays={name: value}), labels=("energy",)), name) is None

    def test_another_shape_is_no_matter_where_they_are_not_wanted(self):
        found = atoms(arrays={"forces": np.zeros((2, 2)), "relaxed_positions": np.zeros((2, 9))})
        assert Structure.from_ase(found, labels=()).forces is None


class TestStress:
    VOLUME = 8 * 8 * 12

    @pytest.mark.parametrize(
        "value",
        [STRESS, STRESS.ravel(), STRESS.tolist(), full_3x3_to_voigt_6_stress(STRESS), STRESS + 1e-6 * np.eye(3)],
    )
    def test_nine_numbers_or_six_in_the_order_of_ase(self, value):
        for found in (atoms(stress=value), atoms(info={"stress": value})):
            np.testing.assert_allclose(Structure.from_ase(found).stress, STRESS, atol=2e-6)

    def test_a_virial_is_minus_volume_times_stress(self):
        found = Structure.from_ase(atoms(info={"virial": -self.VOLUME * STRESS})).stress
        np.testing.assert_allclose(found, STRESS)
        both = atoms(info={"virial": STRESS}, stress=STRESS)
        np.testing.assert_allclose(Structure.from_ase(both).stress, STRESS)

    @pytest.mark.parametrize(
        "value",
        [None, "None", 1.2, True, np.zeros(5), np.full(6, np.nan), np.arange(9.0), np.array(["a"] * 9), [[1], [1, 2]]],
    )
    def test_anything_else_is_left(self, value):
        for found in (atoms(stress=value, energy=-3.0), atoms(info={"stress": value, "virial": value}, energy=-3.0)):
            structure = Structure.from_ase(found)
            assert structure.stress is None
            assert structure.energy == -3.0

    def test_without_a_cell_there_is_none(self):
        found = atoms(stress=STRESS)
        found.cell, found.pbc = None, False
        assert Structure.from_ase(found).stress is None

    def test_round_trip(self):
        structure = Structure.from_ase(atoms(stress=STRESS))
        np.testing.assert_allclose(structure.to_ase().calc.results["stress"], full_3x3_to_voigt_6_stress(STRESS))


class TestIds:
    @pytest.mark.parametrize(
        ("info", "fid"),
        [
            ({"fid": 3}, 3),
            ({"fid": "3"}, 3),
            ({"fid": np.array([3])}, 3),
            ({"fid": 3.0, "frame": 7}, 3),
            ({"frame": 7}, 7),
            ({"frame": 7.0}, 7),
            ({"frame": "initial"}, None),
            ({"frame": 3.7}, None),
            ({"frame": True}, None),
            ({"frame": 1e300}, None),
            ({}, None),
        ],
    )
    def test_frame_counts_only_as_a_whole_number(self, info, fid):
        structure = Structure.from_ase(atoms(info=info))
        assert structure.fid == fid
        assert structure.info == {key: value for key, value in info.items() if key != "fid"}

    @pytest.mark.parametrize("value", ["a1", 3.7, True, np.array([1, 2]), np.nan, 2**70])
    def test_a_fid_that_is_none_is_named(self, value):
        with pytest.raises(
            InputError, match=r"a, frame 0: fid is .*, expected a whole number: it is .* rename the key"
        ):
            Structure.from_ase(atoms(info={"fid": value}), source="a, frame 0")

    def test_sid(self):
        assert Structure.from_ase(atoms(info={"sid": np.array([12])})).sid == "12"
        with pytest.raises(InputError, match=r"sid is .*, expected one text or number"):
            Structure.from_ase(atoms(info={"sid": np.array([1, 2])}))

    def test_tags_are_whole_numbers(self):
        assert Structure.from_ase(atoms(arrays={"tags": np.array([0.0, 2.0])})).tags.tolist() == [0, 2]
        for value in (np.array([0.5, 1.0]), np.array(["a", "b"])):
            with pytest.raises(InputError, match=r"a, frame 0: tags holds .*, expected"):
                Structure.from_ase(atoms(arrays={"tags": value}), source="a, frame 0")


class TestSizes:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_positions_that_are_none(self, value):
        found = atoms()
        found.positions[1, 2] = value
        with pytest.raises(
            InputError, match=r"a, frame 0: positions is not finite \(NaN or infinity\) at atom 1; drop"
        ):
            Structure.from_ase(found, source="a, frame 0")

    def test_positions_beyond_what_a_double_resolves(self):
        found = atoms()
        found.positions[1, 2] = 3e12
        with pytest.raises(InputError, match=r"a, frame 0: positions is 3.0e\+12 Å, too far to compute with at atom 1"):
            Structure.from_ase(found, source="a, frame 0")

    @pytest.mark.parametrize("value", [np.nan, 1e300])
    def test_cells(self, value):
        with pytest.raises(InputError, match="cell is"):
            Structure(np.array([1]), np.zeros((1, 3)), np.diag([value, 8, 8]), np.ones(3, bool))

    @pytest.mark.parametrize(
        "cell",
        [
            np.zeros((3, 3)),
            np.diag([8.0, 8, 0]),
            np.array([[8.0, 0, 0], [16, 0, 0], [0, 0, 8]]),
            np.array([[1e6, 0, 0], [1e6, 1e-17, 0], [0, 0, 1.0]]),
        ],
    )
    def test_cells_without_volume(self, cell):
        with pytest.raises(InputError, match="span no volume"):
            Structure(np.array([1]), np.zeros((1, 3)), cell, np.ones(3, bool))

    def test_a_huge_skewed_cell_keeps_its_volume(self):
        """A determinant of 1e12 × 1e12 numbers would lose the unit of volume that is left."""
        Structure(
            np.array([1]), np.zeros((1, 3)), np.array([[1e6, 0, 0], [1e6, 1e-3, 0], [0, 0, 1.0]]), np.ones(3, bool)
        )
