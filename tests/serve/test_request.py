"""Requests: what the page may ask for, and that no name becomes a path."""

import pytest
from ase.build import bulk, molecule

from equicat import InputError
from equicat.serve.request import Request, open_request


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 5000}, "max_steps is 5000; it must be a whole number of at least 1 and at most 2000"),
        ({"max_steps": "many"}, "max_steps is many; it must be a whole number"),
        ({"fmax": 0}, "fmax is 0; it must be a number of at least 0.005"),
        ({"fmax": float("nan")}, "fmax is nan"),
        ({"n_random": -1}, "n_random is -1"),
        ({"rotations": 360}, "rotations is 360"),
        ({"adsorbates": ["O"] * 100}, "adsorbates has 100 entries; give at most 40"),
        ({"adsorbates": [{"O": 1}]}, "it must be a list of text"),
        ({"slab": 3}, "slab is 3; it must be text"),
        ({"maxsteps": 3}, "unknown key 'maxsteps'.*max_steps"),
        ({"references": "/etc/passwd"}, "unknown key 'references'"),
    ],
)
def test_values_out_of_their_limits_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Request.read({"slab": "Cu(111) 2x2x3", "adsorbates": ["O"], **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slab": ""}, "give a slab: either"),
        ({"slab_file": "abc"}, "give a slab: either"),
        ({"slab_file": "abc", "slab": "", "bulk_file": "abc"}, "give a slab: either"),
        ({"bulk_file": "abc"}, "the uploaded bulk is no longer there"),
        ({"bulk_file": "abc", "slab": ""}, "give a slab: either"),
        ({"smiles": ["C" * 41]}, "SMILES have at most 40 characters here"),
        ({"slab": "", "slab_file": "abc"}, "the uploaded slab is no longer there; upload it again"),
        ({"slab": "", "slab_file": "../key"}, "the uploaded slab is no longer there"),
        ({"slab": "copper"}, "copper: is no name of a slab"),
        ({"slab": "Xx(111) 2x2x3"}, "Xx is no element"),
        ({"slab": "Cu(999) 2x2x3"}, "Miller indices are at most 5"),
        ({"slab": "Cu(111) 50x50x50"}, "more than 400 atoms"),
        ({"slab": "Cu(111) 0x2x3"}, "has no atoms"),
        ({"slab": "Cu" + " " * 200}, "at most 80 characters"),
        ({"slab": "cu.cif(111) 2x2x3"}, "cu.cif is no element; give an element, or upload the bulk"),
        ({"slab": "slab.extxyz"}, "slab.extxyz: is no name of a slab"),
        ({"adsorbates": []}, "choose an adsorbate"),
        ({"adsorbates": ["CO3"]}, "no adsorbate 'CO3'.*did you mean 'CO'"),
        ({"adsorbates": ["co.xyz"]}, "no adsorbate 'co.xyz'"),
        ({"adsorbates": ["smiles:CCO"]}, "no adsorbate 'smiles:CCO'"),
        ({"adsorbates": ["O+co.xyz"]}, "no adsorbate 'co.xyz'"),
        ({"adsorbates": ["+".join("O" * 20)]}, "at most 6 adsorbates on one slab"),
        ({"adsorbate_files": ["../../serve.db"]}, "the uploaded adsorbate is no longer there"),
    ],
)
def test_names_are_names_and_not_files(values, message, serving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bulk("Cu", cubic=True).write("cu.cif")
    bulk("Cu", cubic=True).write("slab.extxyz")
    molecule("CO").write("co.xyz")
    request = Request.read({"slab": "Cu(111) 2x2x3", "adsorbates": ["O"], **values})
    with pytest.raises(InputError, match=message):
        open_request(request, serving.uploads)


def test_names_of_a_request_go_through(serving):
    request = Request.read({"slab": "Pd(1,0,-1) 2x2x3", "adsorbates": ["*CO", "HO + H"]})
    assert open_request(request, serving.uploads) == ("Pd(1,0,-1) 2x2x3", ["CO", "HO+H"])


def test_a_slab_is_cut_of_an_uploaded_bulk(serving, tmp_path):
    alloy = bulk("Cu", cubic=True)
    alloy.symbols[0] = "Pd"
    alloy.write(tmp_path / "Cu3Pd.cif")
    token = serving.uploads.add("bulk", "Cu3Pd.cif", (tmp_path / "Cu3Pd.cif").read_bytes()).token
    values = {"slab": "bulk(1,1,1) 2x2x2", "bulk_file": token, "adsorbates": ["O"], "sites": ["ontop"]}
    checked = serving.model.check(Request.read(values), serving.uploads)
    assert checked.title == "O on Cu3Pd.cif(1,1,1) 2x2x2"
    assert set(checked.slab.to_ase().symbols) == {"Cu", "Pd"}
    assert any(note.startswith("Slab: Cu3Pd.cif(1,1,1) 2x2x2,") and "cut by" in note for note in checked.notes)
    with pytest.raises(InputError, match="120 layers of its 4 atoms are too many"):
        open_request(Request.read({**values, "slab": "bulk(111) 1x1x120"}), serving.uploads)
    molecule("CO", vacuum=4).write(tmp_path / "co.xyz")
    flat = serving.uploads.add("bulk", "co.xyz", (tmp_path / "co.xyz").read_bytes()).token
    with pytest.raises(InputError, match=r"co\.xyz: is periodic along \[False, False, False\], and a bulk is"):
        open_request(Request.read({**values, "bulk_file": flat}), serving.uploads)


def test_smiles_go_through(serving):
    request = Request.read({"slab": "Cu(111) 2x2x3", "smiles": ["CCO", "[OH:1]C"]})
    assert open_request(request, serving.uploads)[1] == ["smiles:CCO", "smiles:[OH:1]C"]


def test_text_of_a_form_becomes_numbers():
    request = Request.read({"slab": "Cu(111) 2x2x3", "adsorbates": "O", "max_steps": "20", "fmax": "0.1"})
    assert (request.adsorbates, request.max_steps, request.fmax) == (("O",), 20, 0.1)
    assert request.config.max_steps == 20
