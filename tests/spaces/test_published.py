"""Genotypes that papers published, and the look-up of a genotype by name or file."""

import json
from pathlib import Path

import pytest

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, from_json, save, to_json
from drnas_jax.spaces import load_genotype
from drnas_jax.spaces.darts.published import PUBLISHED

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "genotypes.json"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cells(name):
    # Would catch a cell that is not in the DARTS space: two different inputs for each node.
    genotype = load_genotype(name)
    assert from_json(to_json(genotype), name) == genotype
    assert (genotype.space, genotype.inputs) == ("darts", 2)
    assert [cell_type for cell_type, _ in genotype.cells] == ["normal", "reduce"]
    for _, cell in genotype.cells:
        assert [len(node) for node in cell] == [2, 2, 2, 2]
        assert all(len({source for _, source in node}) == 2 for node in cell)


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference files are not beside the project")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    {
        "drnas_cifar10": "DrNAS_cifar10",
        "drnas_imagenet": "DrNAS_imagenet",
        "darts_v1": "DARTS_V1",
        "darts_v2": "DARTS_V2",
        "pc_darts_cifar": "PC_DARTS_cifar",
        "pc_darts_imagenet": "PC_DARTS_image",
    }.items(),
)
def test_published_cells_are_those_of_the_official_code(ours, theirs):
    # Would catch a slip in typing them.
    reference = json.loads(REFERENCE.read_text())[theirs]
    for cell_type in ("normal", "reduce"):
        pairs = [list(pair) for node in PUBLISHED[ours].cell(cell_type) for pair in node]
        assert pairs == reference[cell_type]


def test_a_file_is_read(tmp_path, monkeypatch):
    # Would catch a path in the home directory that is taken literally.
    genotype = Genotype("mine", (("cell", ((("conv", 0),),)),))
    save(tmp_path / "genotype.json", genotype, {})
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "genotype.json", "~/genotype.json"):
        assert load_genotype(path) == genotype


@pytest.mark.parametrize("name", ["drnas", "", ".", "/dev/zero", "\0", "x" * 5000])
def test_an_unknown_name_lists_the_published_ones(name):
    # Would catch a device that is read forever, or an error of the operating system.
    with pytest.raises(UserError, match="darts_v1, .*drnas_cifar10, .*_imagenet"):
        load_genotype(name)
