"""The pages on users' components are correct, and their examples are complete files."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import samplers
from small_run import environment

from drnas_jax import components, config, data, load_genotype, tables, writers
from drnas_jax.costs.base import expected_cost
from drnas_jax.distributions import Distribution
from drnas_jax.files import read_history
from drnas_jax.flags import parse
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.spaces import NetworkSpec, random_genotype
from drnas_jax.spaces.base import one_hot
from drnas_jax.tools import plan
from drnas_jax.training.devices import make_mesh

ROOT = Path(__file__).parents[1]
NAMES = ("extending", "extending-rules", "extending-data")
PAGE = "\n".join((ROOT / "docs" / f"{name}.md").read_text() for name in NAMES)
EXAMPLES = [ROOT / "examples" / name for name in ("chain.py", "vit.py", "fixed_total.py")]
# The examples on the pages: the text of each file by the name in its first line.
FILES = {
    name: text
    for text, name in re.findall(r"^```python\n(# (\w+\.py): .*?)^```$", PAGE, re.M | re.S)
}
COMMAND = re.search(r"^```sh\n(python -m drnas_jax\.main .*?)^```$", PAGE, re.M | re.S)[1]
WORDS = [word for word in shlex.split(COMMAND) if word.startswith("--config")]
# The file of each component by the config field that names it.
FIELDS = dict(word.removeprefix("--config.").split("=") for word in WORDS if word[-3:] == ".py")
WRITERS = "metrics.writers"  # the only field of several components, which have no options


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_a_file_for_each_kind_of_component():
    # Would catch a kind that the page forgets, or a wrong field in its table.
    assert set(FIELDS) == {*config.COMPONENTS, WRITERS}
    assert sorted(FIELDS.values()) == sorted(FILES)
    rows = re.findall(r"^\| [^|]+ \| `([\w.]+)` \| `([\w.]+)` \| [^|]+ \|$", PAGE, re.M)
    assert {options: field for field, options in rows} == config.OPTIONS
    assert f"| `{WRITERS}`, several | none |" in PAGE


@pytest.mark.parametrize("field", config.COMPONENTS)
def test_one_file_outside_the_package_is_all_that_a_component_needs(folder, field):
    # Would catch an example that needs a second file, or a component that must be registered.
    name = FIELDS[field]
    (folder / name).write_text(FILES[name])
    group, _, last = field.rpartition(".")
    given = {last: name, config.COMPONENTS[field].options: {}}
    made = config.from_config_dict({group: given} if group else given)
    first = [""] if field in ("data.name", "table.name") else []
    (options,) = (options for options, owner in config.OPTIONS.items() if owner == field)
    group, _, last = options.rpartition(".")
    options = getattr(getattr(made, group) if group else made, last)
    kind = config.COMPONENTS[field].kind
    assert components.create(kind, name, options, *first, field=field) is not None
    assert components.source_of(kind, name).file == str(folder / name)


def test_the_command_of_the_page_can_be_traced_with_all_components_together(folder):
    # Would catch an example that does not fit its protocol; the slow test of the page runs it.
    for name, text in FILES.items():
        (folder / name).write_text(text)
    made, *_ = parse(["main", *WORDS], lambda values: None)
    mesh = make_mesh(jax.devices()[:1])
    experiment = Experiment(made, data.load(made.data), mesh)
    experiment.check()
    assert isinstance(experiment.distribution, Distribution)
    spec = experiment.first_spec()
    state = jax.eval_shape(lambda: experiment.init(spec, 0))
    dispatch = experiment.loader.abstract_dispatch
    jax.eval_shape(experiment.step_program(spec), state, experiment.loader.raw, dispatch)

    genotype = random_genotype(experiment.space, 0)
    network = NetworkSpec(genotype, 8, 1, 10, (8, 8, 1))
    cost = components.create("cost", made.cost.name, made.cost.options, field="cost.name")
    mix = one_hot(dict(spec.cells), genotype)
    expected = expected_cost(cost.table(experiment.space, spec, network), dict(spec.cells), mix)
    assert float(expected) == cost.exact(experiment.space, network)
    assert tables.open_table(made).query(genotype)["digits"] > 80
    made_writers = writers.Writers(writers.RunInfo(made, folder, folder, ".", 1, print))
    made_writers.scalars({"train_loss": 0.5, "train_accuracy": 0.9}, 7)
    made_writers.close()
    assert (folder / "losses.csv").read_text() == "7,0.5\n"


def test_documented_names_exist():
    # Would catch a name that was renamed or removed while the page still promises it.
    for name in documented():
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_examples_import_only_documented_names(file):
    # Would catch a plugin that depends on what may change without notice.
    assert imported(file.read_text()) <= documented()


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_the_page_import_only_documented_names(name):
    assert imported(FILES[name]) <= documented()


def documented():
    """Returns the full names that the page lists as those that a plugin may import."""
    listed = PAGE.partition("\n## Which names may I import?\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`(drnas_jax\.[\w.]+)`", listed))


def imported(text):
    """Returns the full names that a file imports from the package."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("drnas_jax")}


@pytest.mark.slow
def test_two_processes_search_a_users_space(tmp_path):
    # Would catch a module that only process 0 imports, or processes that compile other programs.
    fields = {
        "space": "examples/chain.py",
        "search.operations": "(4,2)",
        "search.epochs": "(1,1)",
        "search.channels": 4,
        **samplers.FIELDS,
    }
    done = subprocess.run(
        [
            *("launch/local.sh", "--processes=2", "--devices=1", f"--python={sys.executable}"),
            *("--", "--config=configs/digits.py:smoke", "--phases=search", f"--workdir={tmp_path}"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert load_genotype(tmp_path / "search" / "genotype.json").space == "chain"
    assert len(read_history(tmp_path / "search" / "history.jsonl")) == 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_search_in_a_users_space_is_planned_for_tpus(capsys):
    # Would catch a plan that knows only bundled spaces, or variables that they all have.
    fields = {
        "space": ROOT / "examples" / "vit.py",
        "space_options.blocks": 1,
        "search.operations": "(4,2)",
        "search.partial_channels": "(1,1)",
        "search.optimizer": "adamw",
    }
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    argv = ["plan", "--config=configs/digits.py:smoke", "--topology=v5e:2x2", *words]
    assert plan.main(argv) == 0, capsys.readouterr().err
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[-2:]] == ["1", "2"]
