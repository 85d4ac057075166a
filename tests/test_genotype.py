"""Genotypes and their files."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drnas_jax.errors import UserError
from drnas_jax.genotype import MAX_BYTES, Genotype, from_cells, from_json, load, save, to_json

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

# No deadline: a busy machine does not make the code wrong.
fuzz = settings(deadline=None)

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,63}", fullmatch=True)


@st.composite
def genotypes(draw):
    space = draw(st.sampled_from(["darts", "nasbench201"]) | names)

    def node(i):
        return st.lists(st.tuples(names, st.integers(0, i + 7)), min_size=1, max_size=4)

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
    # Would catch a field that is written but not read, or the other way round.
    values = json.loads(json.dumps(to_json(genotype, provenance)))
    assert from_json(values, "test") == genotype
    assert hash(from_json(values, "test")) == hash(genotype)
    assert values["provenance"] == provenance


@fuzz
@given(json_values)
def test_any_json_is_refused(values):
    # Would catch a value that stops the reader with a traceback.
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
    # Would catch a check that is missing deep inside the cells.
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
    # Would catch a file that stops the reader with a traceback.
    path = tmp_path_factory.mktemp("fuzz") / "genotype.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="genotype.json"):
        load(path)


def set_in(values, path, value):
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (["version"], 2, "version"),
        (["version"], True, "version"),
        (["version"], 1.0, "version"),
        (["comment"], "x", "a field is 'comment'"),
        (["space"], "../etc", "space"),
        (["space"], "darts\n", "space"),
        (["space"], None, "space"),
        (["provenance"], [], "provenance"),
        (["cells"], {}, "cells"),
        (["cells"], {f"c{i}": [[["none", 0]]] for i in range(65)}, "cells"),
        (["cells", "a b"], [], "a cell type"),
        (["cells", "cell"], [], "cells.cell"),
        (["cells", "cell"], [[["none", 0]]] * 65, "cells.cell"),
        (["cells", "cell", 1], "none", "cells.cell[1]"),
        (["cells", "cell", 1], [["none", 0]] * 129, "cells.cell[1]"),
        (["cells", "cell", 1, 0], ["none"], "cells.cell[1][0]"),
        (["cells", "cell", 1, 0, 0], 7, "cells.cell[1][0][0]"),
        (["cells", "cell", 1, 0, 0], "__import__('os')", "cells.cell[1][0][0]"),
        (["cells", "cell", 1, 0, 0], "a" * 65, "cells.cell[1][0][0]"),
        (["cells", "cell", 1, 1, 1], 9, "cells.cell[1][1][1]"),
        (["cells", "cell", 1, 1, 1], -1, "cells.cell[1][1][1]"),
        (["cells", "cell", 1, 1, 1], True, "cells.cell[1][1][1]"),
        (["cells", "cell", 1, 1, 1], 1.0, "cells.cell[1][1][1]"),
    ],
)
def test_a_wrong_field_is_named(path, value, field):
    # Would catch a file that is read as another genotype, or an error that names no field.
    values = json.loads(json.dumps(plain()))
    set_in(values, path, value)
    with pytest.raises(UserError) as caught:
        from_json(values, "here")
    assert str(caught.value).startswith(f"here: {field}")


@pytest.mark.parametrize("field", ["version", "space", "cells"])
def test_a_missing_field_is_named(field):
    # Would catch a KeyError, or a default for what must be there.
    values = plain()
    del values[field]
    with pytest.raises(UserError, match=f"here: {field} is None"):
        from_json(values, "here")


def test_provenance_is_optional():
    # Would catch a reader that refuses a genotype written by hand.
    values = plain()
    del values["provenance"]
    assert from_json(values, "here") == NASBENCH201


def test_large_genotypes_are_read():
    # Would catch limits that were made for DARTS: 64 layers, 64 nodes with 71 sources, 8 inputs.
    layers = {f"layer_{i}": [[["conv_3x3", 7]]] for i in range(63)}
    dense = [[["skip", source] for source in range(8 + node)] for node in range(64)]
    genotype = from_cells("mine", {**layers, "dense": dense}, "here")
    assert (len(genotype.cells), genotype.inputs) == (64, 8)


def test_the_number_of_inputs_follows_from_the_sources():
    # Would catch a picture that draws an input as a node.
    assert NASBENCH201.inputs == 1
    chain = Genotype("chain", (("cell", ((("none", 0),), (("none", 1),), (("none", 2),))),))
    assert chain.inputs == 1
    two = Genotype("mine", (("cell", ((("none", 0),), (("none", 2),))),))
    assert two.inputs == 2


def test_a_cell_is_found_by_its_type():
    # Would catch a KeyError for a genotype of another space.
    assert NASBENCH201.cell("cell")[0] == (("nor_conv_3x3", 0),)
    with pytest.raises(UserError, match="normal"):
        NASBENCH201.cell("normal")


def test_save_and_load(tmp_path):
    # Would catch a changed file format, and a temporary file that stays.
    path = tmp_path / "genotype.json"
    path.write_text("an older file")
    save(path, NASBENCH201, {"seed": 3, "wörkdir": "runs/x"})
    assert load(path) == load(str(path)) == NASBENCH201
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


def test_a_genotype_that_could_not_be_read_is_not_written(tmp_path):
    # Would catch a search whose result only the retraining finds to be wrong.
    path = tmp_path / "genotype.json"
    save(path, NASBENCH201, {})
    before = path.read_bytes()
    with pytest.raises(UserError, match="cells.normal"):
        save(path, Genotype("darts", (("normal", ((("none", 8),),)),)), {})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"1" * 10_000,
        b'{"version": NaN}',
        b'{"version": 1, "version": 1}',
        b"[]",
        b" " * (MAX_BYTES + 1),
        b"__import__('os').abort()",
    ],
)
def test_damaged_files(tmp_path, content):
    # Would catch a file that is executed, read without limit, or stops the reader.
    path = tmp_path / "g.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_file_without_permission(tmp_path):
    # Would catch an error of the operating system that passes as a traceback.
    path = tmp_path / "g.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        load(path)
