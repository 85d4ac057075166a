"""Whatever a file or a flag holds: it is read, or refused with one line that says what is wrong."""

import json

import numpy as np
import pytest
from finished_run import make
from hypothesis import given, settings
from hypothesis import strategies as st

from drnas_jax.config import Config, defaults, from_config_dict, leaves, to_dict
from drnas_jax.errors import UserError
from drnas_jax.files import read_history
from drnas_jax.flags import parse
from drnas_jax.report import page as report
from drnas_jax.spaces import nasbench201 as space
from drnas_jax.tables import nasbench201 as benchmark
from drnas_jax.tools.torch_import import main as import_main

MANY, SOME = settings(max_examples=200, deadline=None), settings(max_examples=60, deadline=None)
CELLS = [f"|{name}~0|+|none~0|none~1|+|none~0|none~1|none~2|" for name in ("none", "skip_connect")]
TABLE = "\n".join(
    ["index,arch_str,cifar10_test_200,cifar10_valid_12", *(f"0,{c},90.5,80" for c in CELLS), ""]
).encode()
LINE = {"epoch": 1, "stage": 1, "valid_accuracy": 0.5, "genotype": {}, "concentration": {}}
HISTORY = (2 * (json.dumps(LINE) + "\n")).encode()


@st.composite
def changed(draw, content):
    """Bytes with some of them overwritten, taken out or put in."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        new = draw(st.binary(max_size=3) | st.sampled_from([b",", b"\n", b'"', b"nan", b"\x00"]))
        content[place : place + draw(st.integers(0, 3))] = new
    return bytes(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@st.composite
def replaced(draw, content):
    """Lines of JSON, one of them with a value somewhere in it replaced or taken out."""
    lines = content.decode().splitlines() if content.startswith(b'{"') else [content.decode()]
    number = draw(st.integers(0, len(lines) - 1))
    node = root = json.loads(lines[number])
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.integers(0, 3)) == 0:
            break
        node = node[key]
    if draw(st.booleans()):
        node[key] = draw(JSON)
    else:
        del node[key]
    lines[number] = json.dumps(root)
    return "\n".join([*lines, ""]).encode()


def one_line(error):
    assert str(error) and "\n" not in str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@MANY
@given(content=changed(TABLE) | st.binary(max_size=200))
def test_a_table(folder, content):
    path = folder / "table.csv"
    path.write_bytes(content)
    try:
        table = benchmark.load(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    for arch in table.rows:
        accuracy = table.query(arch)["cifar10"]["test_200"]
        assert 0 <= accuracy <= 100


@MANY
@given(content=changed(HISTORY) | st.binary(max_size=200))
def test_a_history(folder, content):
    path = folder / "history.jsonl"
    path.write_bytes(content)
    try:
        lines = read_history(path)
    except UserError as error:
        one_line(error)
        return
    assert all(isinstance(line, dict) for line in lines)


@MANY
@given(text=changed(CELLS[0].encode()).map(lambda b: b.decode("latin-1")) | st.text(max_size=80))
def test_an_arch_string(text):
    try:
        genotype = space.parse(text)
    except UserError as error:
        one_line(error)
        return
    assert space.create().describe(genotype) == "".join(text.split())


FLAGS = sorted(name for name, _ in leaves(defaults().to_dict()))


@MANY
@given(
    name=st.sampled_from(FLAGS),
    value=st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12)
    | st.sampled_from(["", "()", "(1,2)", "-1", "1e400", "nan", "None", "[", "__import__('os')"]),
)
def test_a_flag(name, value):
    argv = ["main", "--config=configs/digits.py", f"--config.{name}={value}"]
    try:
        config, _, _ = parse(argv, lambda values: None)
    except UserError as error:
        one_line(error)
        return
    assert isinstance(config, Config)
    assert from_config_dict(to_dict(config)) == config


@pytest.fixture(scope="module")
def weights(folder):
    path = folder / "weights.npz"
    np.savez(path, **{"w:stem.0.weight": np.zeros((4, 3, 3, 3), np.float32)})
    return path.read_bytes()


@SOME
@given(data=st.data())
def test_a_file_of_weights(folder, weights, data):
    path = folder / "changed.npz"
    path.write_bytes(data.draw(changed(weights) | st.binary(max_size=100)))
    assert import_main(["run", str(path), str(folder / "out.npz")]) == 2
    assert not (folder / "out.npz").exists()


@pytest.fixture(scope="module")
def run(folder):
    return make(folder / "run", folder)


@SOME
@given(data=st.data())
def test_a_workdir(run, data):
    # Would catch a field that the report uses unchecked.
    names = ["config.json", "search/history.jsonl", "search/genotype.json", "result.json"]
    struck = run / data.draw(st.sampled_from(names))
    whole = struck.read_bytes()
    with pytest.MonkeyPatch.context() as patch:  # megabytes
        patch.setattr(report, "get_plotlyjs", lambda: "")
        struck.write_bytes(data.draw(changed(whole) | replaced(whole)))
        try:
            page = report.write_report([run])
            assert page.read_text().startswith("<!DOCTYPE html>")
        except UserError as error:
            one_line(error)
        finally:
            struck.write_bytes(whole)


@pytest.mark.parametrize("name", ["config.json", "search/history.jsonl", "result.json"])
def test_a_deep_file(run, name):
    whole = (run / name).read_bytes()
    (run / name).write_bytes(b"[" * 100_000 + b"\n{}\n")
    with pytest.raises(UserError, match=f"^{run / name}.* damaged"):
        report.write_report([run])
    (run / name).write_bytes(whole)
