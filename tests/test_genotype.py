"""Genotype files: what is written is read, and nothing else is."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drnas_jax import genotype as lib
from drnas_jax.errors import UserError
from drnas_jax.genotype import PUBLISHED, Genotype, from_json, load_genotype, save, to_json

REFERENCE = Path(__file__).parents[1].parent / "shared" / "reference" / "genotypes.json"

NASBENCH201 = Genotype(
    "nasbench201",
    (
        (
            "cell",
            (
                (("nor_conv_3x3", 0),),
                (("none", 0), ("nor_conv_1x1", 1)),
                (("skip_connect", 0), ("avg_pool_3x3", 1), ("nor_conv_3x3", 2)),
            ),
        ),
    ),
)

# A loaded machine is no fault of the code.
fuzz = settings(deadline=None)

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,63}", fullmatch=True)


@st.composite
def genotypes(draw):
    space = draw(st.sampled_from(["darts", "nasbench201"]) | names)

    def node(i):
        return st.lists(st.tuples(names, st.integers(0, i + 1)), min_size=1, max_size=4)

    cells = [
        (name, tuple(tuple(draw(node(i))) for i in range(draw(st.integers(1, 5)))))
        for name in draw(st.lists(names, min_size=1, max_size=3, unique=True))
    ]
    return Genotype(space, tuple(cells))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def plain(genotype=NASBENCH201):
    return to_json(genotype, {"seed": 3})


@fuzz
@given(genotypes(), st.dictionaries(st.text(), st.integers() | st.text(), max_size=3))
def test_round_trip(genotype, provenance):
    values = json.loads(json.dumps(to_json(genotype, provenance)))
    assert from_json(values, "test") == genotype
    assert hash(from_json(values, "test")) == hash(genotype)
    assert values["provenance"] == provenance


@fuzz
@given(json_values)
def test_any_json_is_refused_or_read(values):
    with pytest.raises(UserError, match="^some file: "):
        from_json(values, "some file")


@fuzz
@given(
    st.fixed_dictionaries(
        {
            "version": st.just(1) | json_values,
            "space": st.just("darts") | json_values,
            "cells": st.dictionaries(names, json_values | st.lists(st.lists(json_values)))
            | json_values,
        },
        optional={"provenance": json_values, "extra": json_values},
    )
)
def test_nearly_a_genotype_is_refused_or_read(values):
    try:
        genotype = from_json(values, "some file")
    except UserError as error:
        assert str(error).startswith("some file: ")
        assert "\n" not in str(error)
        assert len(str(error)) < 500
    else:
        assert from_json(to_json(genotype), "again") == genotype


@fuzz
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "genotype.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="genotype.json"):
        load_genotype(path)


def set_in(values, path, value):
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], 2, "version is 2: expected 1"),
        (["version"], True, "version is True: expected 1"),
        (["version"], 1.0, "version is 1.0: expected 1"),
        (["comment"], "x", "a field is 'comment': expected one of version, space"),
        (["space"], "../etc", "space is '../etc': expected a name"),
        (["space"], "darts\n", r"space is 'darts\\n': expected a name"),
        (["space"], None, "space is None"),
        (["provenance"], [], r"provenance is \[\]: expected an object"),
        (["cells"], {}, "cells is {}: expected an object of 1 to 8"),
        (["cells"], {str(i): [] for i in range(9)}, "expected an object of 1 to 8"),
        (["cells", "a b"], [], "a cell type is 'a b'"),
        (["cells", "cell"], [], r"cells.cell is \[\]: expected a list of 1 to 32"),
        (["cells", "cell"], [[["none", 0]]] * 33, "cells.cell is .*: expected a list of 1 to 32"),
        (["cells", "cell", 1], "none", r"cells.cell\[1\] is 'none': expected a list"),
        (["cells", "cell", 1], [["none", 0]] * 33, r"cells.cell\[1\] is .*a list of 1 to 32"),
        (["cells", "cell", 1, 0], ["none"], r"cells.cell\[1\]\[0\] is .*an operation and its"),
        (["cells", "cell", 1, 0, 0], 7, r"cells.cell\[1\]\[0\]\[0\] is 7: expected a name"),
        (["cells", "cell", 1, 0, 0], "__import__('os')", r"\[1\]\[0\]\[0\] is .*: expected a name"),
        (["cells", "cell", 1, 0, 0], "a" * 65, r"\[1\]\[0\]\[0\] is .*: expected a name"),
        (["cells", "cell", 1, 1, 1], 3, r"cells.cell\[1\]\[1\]\[1\] is 3: .*from 0 to 2"),
        (["cells", "cell", 1, 1, 1], -1, r"\[1\] is -1: expected an integer from 0 to 2"),
        (["cells", "cell", 1, 1, 1], True, r"\[1\] is True: expected an integer"),
        (["cells", "cell", 1, 1, 1], 1.0, r"\[1\] is 1.0: expected an integer"),
    ],
)
def test_faults_name_the_place(path, value, message):
    values = json.loads(json.dumps(plain()))
    set_in(values, path, value)
    with pytest.raises(UserError, match=f"^here: .*{message}"):
        from_json(values, "here")


@pytest.mark.parametrize("field", ["version", "space", "cells"])
def test_a_missing_field_is_named(field):
    values = plain()
    del values[field]
    with pytest.raises(UserError, match=f"here: {field} is None"):
        from_json(values, "here")


def test_provenance_may_be_missing():
    values = plain()
    del values["provenance"]
    assert from_json(values, "here") == NASBENCH201


def test_inputs_are_as_few_as_the_edges_allow():
    assert NASBENCH201.inputs == 1
    assert {genotype.inputs for genotype in PUBLISHED.values()} == {2}
    chain = Genotype("chain", (("cell", ((("none", 0),), (("none", 1),), (("none", 2),))),))
    assert chain.inputs == 1


def test_cell_by_type():
    assert PUBLISHED["darts_v2"].cell("reduce")[3] == (("skip_connect", 2), ("max_pool_3x3", 1))
    with pytest.raises(UserError, match="no cell 'cell': it has normal, reduce"):
        PUBLISHED["darts_v2"].cell("cell")


def test_save_and_load(tmp_path, monkeypatch):
    path = tmp_path / "genotype.json"
    path.write_text("an older file")
    save(path, NASBENCH201, {"seed": 3, "wörkdir": "runs/x"})
    assert load_genotype(path) == NASBENCH201
    assert load_genotype(str(path)) == NASBENCH201
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_genotype("~/genotype.json") == NASBENCH201
    assert json.loads(path.read_text()) == {
        "version": 1,
        "space": "nasbench201",
        "cells": {
            "cell": [
                [["nor_conv_3x3", 0]],
                [["none", 0], ["nor_conv_1x1", 1]],
                [["skip_connect", 0], ["avg_pool_3x3", 1], ["nor_conv_3x3", 2]],
            ]
        },
        "provenance": {"seed": 3, "wörkdir": "runs/x"},
    }
    assert os.listdir(tmp_path) == ["genotype.json"]


def test_what_can_not_be_read_is_not_written(tmp_path):
    path = tmp_path / "genotype.json"
    save(path, NASBENCH201, {})
    before = path.read_bytes()
    with pytest.raises(UserError, match="the genotype to be written: cells.normal"):
        save(path, Genotype("darts", (("normal", ((("none", 2),),)),)), {})
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cells(name):
    genotype = load_genotype(name)
    assert from_json(to_json(genotype), name) == genotype
    assert genotype.space == "darts"
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
def test_published_cells_are_the_published_ones(ours, theirs):
    reference = json.loads(REFERENCE.read_text())[theirs]
    for cell_type in ("normal", "reduce"):
        pairs = [list(pair) for node in PUBLISHED[ours].cell(cell_type) for pair in node]
        assert pairs == reference[cell_type]


def test_unknown_name_lists_the_published():
    with pytest.raises(UserError, match="'drnas'.*one of darts_v1, .*drnas_cifar10, .*_imagenet"):
        load_genotype("drnas")


@pytest.mark.parametrize("name", ["", ".", "/dev/zero", "\0", "x" * 5000])
def test_odd_names(name):
    with pytest.raises(UserError, match="neither a file nor a published cell"):
        load_genotype(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a genotype.json: Expecting value"),
        (b"{", "not a genotype.json"),
        (b"\xff\xfe\x00", "not a genotype.json: .*utf-8"),
        (b"[" * 100_000, "not a genotype.json"),
        (b"1" * 10_000, "not a genotype.json"),
        (b'{"version": NaN}', "NaN is not a JSON number"),
        (b'{"version": 1, "version": 1}', "a key is there twice"),
        (b"[]", r"g.json: the content is \[\]"),
        (b" " * (lib.MAX_BYTES + 1), "larger than 1000000 bytes"),
        (b"__import__('os').abort()", "not a genotype.json"),
    ],
)
def test_corrupt_files(tmp_path, content, message):
    path = tmp_path / "g.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_genotype(path)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "g.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        load_genotype(path)
