"""Cells in the formats of other projects."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, to_json
from drnas_jax.spaces import load_genotype
from drnas_jax.spaces.darts.published import PUBLISHED

DARTS = PUBLISHED["darts_v2"]
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")

# Written out as each project prints it, so not made by code that could share a slip with ours.
OFFICIAL = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)
SEVERAL_LINES = """
DARTS_V2 = Genotype(  # second order
    normal=[
        ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),  # node 2
        ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 1), ('skip_connect', 0),
        ('skip_connect', 0), ('dil_conv_3x3', 2),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ('max_pool_3x3', 0), ('max_pool_3x3', 1),
        ('skip_connect', 2), ('max_pool_3x3', 1),
        ('max_pool_3x3', 0), ('skip_connect', 2),
        ('skip_connect', 2), ('max_pool_3x3', 1),
    ],
    reduce_concat=[2, 3, 4, 5],
)  # Genotype(normal=[], ...) is empty
"""
NESTED = """Genotype(
    normal=[[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)], [('sep_conv_3x3', 0), ('sep_conv_3x3', 1)],
            [('sep_conv_3x3', 1), ('skip_connect', 0)], [('skip_connect', 0), ('dil_conv_3x3', 2)]],
    normal_concat=list(range(2, 6)),
    reduce=[[('max_pool_3x3', 0), ('max_pool_3x3', 1)], [('skip_connect', 2), ('max_pool_3x3', 1)],
            [('max_pool_3x3', 0), ('skip_connect', 2)], [('skip_connect', 2), ('max_pool_3x3', 1)]],
    reduce_concat=range(2, 6))"""
NNI = """{
  "normal/op_2_0": "sep_conv_3x3", "normal/input_2_0": 0,
  "normal/op_2_1": "sep_conv_3x3", "normal/input_2_1": 1,
  "normal/op_3_0": "sep_conv_3x3", "normal/input_3_0": 0,
  "normal/op_3_1": "sep_conv_3x3", "normal/input_3_1": 1,
  "normal/op_4_0": "sep_conv_3x3", "normal/input_4_0": 1,
  "normal/op_4_1": "skip_connect", "normal/input_4_1": 0,
  "normal/op_5_0": "skip_connect", "normal/input_5_0": 0,
  "normal/op_5_1": "dil_conv_3x3", "normal/input_5_1": 2,
  "reduce/op_2_0": "max_pool_3x3", "reduce/input_2_0": 0,
  "reduce/op_2_1": "max_pool_3x3", "reduce/input_2_1": 1,
  "reduce/op_3_0": "skip_connect", "reduce/input_3_0": 2,
  "reduce/op_3_1": "max_pool_3x3", "reduce/input_3_1": 1,
  "reduce/op_4_0": "max_pool_3x3", "reduce/input_4_0": 0,
  "reduce/op_4_1": "skip_connect", "reduce/input_4_1": 2,
  "reduce/op_5_0": "skip_connect", "reduce/input_5_0": 2,
  "reduce/op_5_1": "max_pool_3x3", "reduce/input_5_1": 1}"""
NNI_1 = """{
  "normal_n2_p0": "sepconv3x3", "normal_n2_p1": "sepconv3x3",
  "normal_n2_switch": ["normal_n2_p0", "normal_n2_p1"],
  "normal_n3_p0": "sepconv3x3", "normal_n3_p1": "sepconv3x3", "normal_n3_p2": [],
  "normal_n3_switch": ["normal_n3_p0", "normal_n3_p1"],
  "normal_n4_p0": "skipconnect", "normal_n4_p1": "sepconv3x3", "normal_n4_p2": [],
  "normal_n4_p3": [], "normal_n4_switch": ["normal_n4_p0", "normal_n4_p1"],
  "normal_n5_p0": "skipconnect", "normal_n5_p1": [], "normal_n5_p2": "dilconv3x3",
  "normal_n5_p3": [], "normal_n5_p4": [], "normal_n5_switch": ["normal_n5_p0", "normal_n5_p2"],
  "reduce_n2_p0": 0, "reduce_n2_p1": 0, "reduce_n2_switch": [0, 1],
  "reduce_n3_p0": [], "reduce_n3_p1": 0, "reduce_n3_p2": 2, "reduce_n3_switch": [1, 2],
  "reduce_n4_p0": "maxpool", "reduce_n4_p1": [], "reduce_n4_p2": "skipconnect",
  "reduce_n4_p3": [], "reduce_n4_switch": [true, false, true, false],
  "reduce_n5_p0": [], "reduce_n5_p1": [true, false, false, false, false, false, false],
  "reduce_n5_p2": "skipconnect", "reduce_n5_p3": [], "reduce_n5_p4": [],
  "reduce_n5_switch": ["reduce_n5_p1", "reduce_n5_p2"]}"""
NODES_OF_EDGES = (
    (("avg_pool_3x3", 0),),
    (("nor_conv_1x1", 0), ("skip_connect", 1)),
    (("nor_conv_3x3", 0), ("none", 1), ("skip_connect", 2)),
)
NASBENCH201 = Genotype("nasbench201", (("cell", NODES_OF_EDGES),))
CODE_NAMES = ("identity", "mbconv_3x3_e3", "mbconv_5x5_e6", *["identity"] * 5)
MACRO = Genotype("macro", (("layers", tuple(((n, i),) for i, n in enumerate(CODE_NAMES))),))
ARCH = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_3x3~0|none~1|skip_connect~2|"
NNI_EDGES = (
    '{"0_1": "avg_pool_3x3", "0_2": "conv_1x1", "1_2": "skip_connect", "0_3": "conv_3x3", '
    '"1_3": "none", "2_3": "skip_connect"}'
)


def ordered(genotype):
    """Returns the cells with the pairs of each node in order: they are added up."""
    return {name: [sorted(node) for node in cell] for name, cell in genotype.cells}


def values(**changes):
    """Returns the fields of the official text as values."""
    plain = {}
    for cell_type, cell in DARTS.cells:
        plain[cell_type] = [list(pair) for node in cell for pair in node]
        plain[f"{cell_type}_concat"] = [2, 3, 4, 5]
    return plain | changes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OFFICIAL, DARTS),
        (OFFICIAL.replace("Genotype", "DARTSGenotype"), DARTS),  # confopt
        (f"\n2019-05-01 10:14:12 PM genotype = {OFFICIAL}\n", DARTS),  # a line of a log
        (f"import genotypes\nprint(1)\nbest = genotypes.{OFFICIAL}  # run 3", DARTS),
        (SEVERAL_LINES, DARTS),
        (NESTED, DARTS),
        (OFFICIAL.replace("normal=", "").replace("reduce=", "")
         .replace("normal_concat=", "").replace("reduce_concat=", ""), DARTS),
        (json.dumps(values()), DARTS),
        (json.dumps([values()[name] for name in FIELDS]), DARTS),  # json.dumps of the tuple
        (NNI, DARTS),
        (f"[{NNI}]", DARTS),  # the best ones, of which there is one
        (NNI.replace('": 0', '": [0]').replace("{", '{"width": 36, "num_cells": 20,', 1), DARTS),
        (NNI.replace("/op", "__op"), DARTS),
        (NNI_1, DARTS),
        (ARCH, NASBENCH201),
        (f" {ARCH} \r\n", NASBENCH201),
        (f'"{ARCH}"\n', NASBENCH201),
        (f"# seed 3\n{ARCH}  # 94.37 %\n", NASBENCH201),
        (f"Structure(4 nodes with {ARCH})", NASBENCH201),
        (ARCH.replace("+", " +\n "), NASBENCH201),  # as a document breaks the line
        (f'"{OFFICIAL}"', DARTS),
        (NNI_EDGES, NASBENCH201),
        (NNI_EDGES.replace('"0_', '"cell/0_').replace('"1_', '"cell/1_')
         .replace('"2_', '"cell/2_'), NASBENCH201),
        (json.dumps(to_json(NASBENCH201)), NASBENCH201),
        ("01200000", MACRO),
        ("# seed 3\n'01200000'\r\n", MACRO),
    ],
)  # fmt: skip
def test_a_cell_is_read_as_text_and_from_a_file(tmp_path, text, expected):
    # Would catch pairs that reach another node, and a format that only a file may have.
    for given_ in (text, f"\ufeff{text}"):
        (tmp_path / "cell.txt").write_text(given_, encoding="utf-8")
        read = load_genotype(tmp_path / "cell.txt")
        assert (read.space, ordered(read)) == (expected.space, ordered(expected))
    assert load_genotype(text) == read
    (tmp_path / "cell.txt").write_text(text, encoding="utf-16")  # what PowerShell writes
    assert load_genotype(tmp_path / "cell.txt") == read


UNKNOWN = "sep_conv_7x7"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OFFICIAL.replace("dil_conv_3x3", UNKNOWN), [f"'{UNKNOWN}'", "normal", "dil_conv_3x3"]),
        (OFFICIAL.replace("dil_conv_3x3", "none"), ["'none'", "space darts"]),
        (ARCH.replace("avg_pool_3x3", UNKNOWN), [f"'{UNKNOWN}'", "avg_pool_3x3"]),
        (NNI.replace("dil_conv_3x3", UNKNOWN), [f"'{UNKNOWN}'", "dil_conv_3x3"]),
        (NNI_1.replace("dilconv3x3", "none"), ["normal_n5_p2", "'none'", "dilconv3x3"]),
        (NNI_1.replace('"reduce_n2_p0": 0', '"reduce_n2_p0": 7'), ["reduce_n2_p0", "7"]),
        (NNI_EDGES.replace("conv_1x1", UNKNOWN), [f"'{UNKNOWN}'"]),
        (f"{OFFICIAL}\n{OFFICIAL}", ["2 cells", "leave one"]),
        (f"A = {OFFICIAL}\nB = {OFFICIAL}", ["2 cells", "leave one"]),
        (f"[{NNI}, {NNI}]", ["list of 2", "leave one"]),
        (f"{ARCH}\n{ARCH}", ["not a cell", "Genotype(normal=", "|op~0|"]),
        (NNI_EDGES.replace('"0_', '"a/0_'), ["several cells", "leave one"]),
        (OFFICIAL.replace("range(2, 6), reduce", "[4, 5], reduce"), ["normal_concat", "[4, 5]"]),
        (OFFICIAL.replace("range(2, 6), reduce", "range(2, 5), reduce"), ["normal_concat"]),
        (OFFICIAL.replace("reduce=", "reduced="), ["'reduced'", "reduce_concat"]),
        (OFFICIAL.replace("normal=", "*x, normal="), ["normal"]),
        ("Genotype(normal=[('sep_conv_3x3', 0)])", ["1 pairs", "2 for each node"]),
        (f"Genotype(normal={values()['normal']})", ["no 'reduce'"]),
        ("Genotype(normal=__import__('os').abort())", ["normal is not a list", "(Call)"]),
        ("Genotype(normal=range(2, 10**9), reduce=[])", ["normal"]),
        ("Genotype(normal=[('sep_conv_3x3', 0)", ["no Python text", "leave only the cell"]),
        ("Genotype(" + "-" * 5000 + "1)", ["Genotype"]),
        ("Genotype(" * 150, ["Python text"]),
        ("Genotype(" + "1," * 100_000, ["100000 characters"]),
        ("class Genotype(NamedTuple): ...", ["0 cells"]),
        (json.dumps(values(normal=[["sep_conv_3x3", 2]] * 8)),
         ["node 2", "normal", "the input 2", "0 to 1"]),
        (json.dumps(values(normal=3)), ["normal is 3"]),
        (json.dumps(values(seed=3)), ["a field is 'seed'"]),
        (NNI.replace('"normal/input_5_1": 2,', ""), ["normal/input_5_1 is missing"]),
        (NNI.replace("normal/op_2", "normal/op_9").replace("normal/input_2", "normal/input_9"),
         ["normal has gaps"]),
        (NNI.replace('input_2_0": 0', 'input_2_0": [0, 1]', 1), ["cells.normal[0][0]"]),
        (NNI.replace('"normal/op_2_0"', '"normal/opp_2_0"'), ["'normal/opp_2_0'"]),
        (NNI_1.replace('"reduce_n2_switch": [0, 1],', ""), ["reduce_n2_switch is None"]),
        (NNI_1.replace('"reduce_n2_switch": [0, 1]', '"reduce_n2_switch": [0, 2]'), ["[0, 2]"]),
        (NNI_EDGES.replace("2_3", "9_3"), ["the edges", "(9, 3)"]),
        ('{"x": 1}', ["not a cell", "Genotype(normal="]),
        ('{"0_1": "none", "0_1": "none"}', ["a key occurs twice"]),
        ("[1, 2, 3]", ["list of 3"]),
        ("{", ["not a genotype.json"]),
        ("|none~0", ["not a cell", "|op~0|"]),
        ("'" * 3000 + "|", ["not a cell"]),
        (ARCH.replace("~2", "~7"), ["not a cell", "|op~0|"]),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:30],
)  # fmt: skip
def test_what_is_wrong_or_ambiguous_is_refused_in_one_line(tmp_path, text, words):
    # Would catch a cell that is guessed, code that is run, or a traceback of a parser.
    (tmp_path / "cell.txt").write_text(text)
    for given_ in (text, tmp_path / "cell.txt"):
        with pytest.raises(UserError) as caught:
            load_genotype(given_)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 700
        assert all(word in message for word in words), message


@settings(max_examples=40)
@given(st.sampled_from([OFFICIAL, NNI, NNI_1, NNI_EDGES, ARCH]), st.data())
def test_a_changed_text_is_read_or_refused(text, data):
    # Would catch an error of a parser that is not one line for the user.
    start = data.draw(st.integers(0, len(text)))
    inserted = data.draw(st.text(max_size=3) | st.sampled_from(["[", "(", "1" * 5000, "~", "_9"]))
    changed = text[:start] + inserted + text[start + data.draw(st.integers(0, 3)) :]
    try:
        load_genotype(changed)
    except UserError as error:
        assert "\n" not in str(error)
