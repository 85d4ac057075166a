"""The recipes in configs/: every variant is a valid config, and says what it needs and gives."""

import ast
import importlib
import itertools
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from drnas_jax import config as lib
from drnas_jax.config import Config, from_config_dict, to_dict
from drnas_jax.configs import nasbench201
from drnas_jax.errors import UserError

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem[0] != "_")
VARIANTS = {
    "cifar10": [
        "cifar100",
        *("cpu", "full"),
        *(f"{size},s{n}" for size in ("cpu", "smoke") for n in range(1, 5)),
    ],
    "digits": ["full"],
    "fashion_mnist": ["cpu", "full"],
    "imagenet": ["full"],
    "nasbench_macro": ["cpu", "full"],
    "nasbench201": [
        ",".join(words)
        for words in itertools.product(nasbench201.SIZES, nasbench201.METHODS)
        if words[0] != "smoke"
    ],
}


def test_there_are_recipes():
    assert {
        "cifar10",
        "digits",
        "fashion_mnist",
        "imagenet",
        "nasbench201",
        "nasbench_macro",
    } <= set(RECIPES)


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, variant) for name in RECIPES for variant in ["", "smoke", *VARIANTS.get(name, [])]],
)
def test_every_recipe_and_variant_is_a_valid_config(name, variant):
    values = importlib.import_module(f"drnas_jax.configs.{name}").get_config(variant)
    assert isinstance(values, ConfigDict) and values.is_locked
    assert isinstance(from_config_dict(values), Config)


@pytest.mark.parametrize("size", nasbench201.SIZES)
@pytest.mark.parametrize("method", nasbench201.METHODS)
def test_a_method_changes_only_what_defines_it(size, method):
    # All methods of a size search the same supernet on the same images for as many epochs.
    found = from_config_dict(nasbench201.get_config(f"{method},{size}"))
    plain = from_config_dict(nasbench201.get_config(f"{size},plain"))
    changed = lib.differences(to_dict(plain), to_dict(found))
    changes = {name for name in changed if "options." not in name}
    assert changes <= {
        "arch.name", "arch.regulariser", "search.selection", "search.partial_channels",
        "search.operations", "search.epochs", "search.warmup_epochs", "search.channels",
        "search.stopping", "search.tuning_epochs", "search.tuning_lr",
        *(("genotype", "seeds", "retrain.train_fraction", "retrain.channels", "retrain.cells",
           "retrain.epochs") if method == "random_search" else ()),
    }  # fmt: skip
    dirichlet = ("plain", "progressive", "kl", "random_search")
    assert ("arch.name" in changes) == (method not in dirichlet)
    assert sum(found.search.warmup_epochs) <= sum(found.search.epochs)
    assert sum(found.search.epochs) >= sum(plain.search.epochs)


@pytest.mark.parametrize("variant", ["darts,snas", "cpu,smoke", "cpu,cpu"])
def test_two_methods_or_sizes_are_refused(variant):
    first, second = variant.split(",")
    with pytest.raises(UserError, match=f"'{variant}' names '{first}' and '{second}': give one of"):
        nasbench201.get_config(variant)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_variant_is_refused_with_the_choices(name):
    # Would catch choices that are not those of the recipe, or that its table does not explain.
    recipe = importlib.import_module(f"drnas_jax.configs.{name}")
    words = {word for variant in VARIANTS[name] for word in variant.split(",")} | {"smoke", "full"}
    for variant, where in (("nothing", ""), ("smoke,nothing", " in 'smoke,nothing'")):
        with pytest.raises(UserError) as caught:
            recipe.get_config(variant)
        start, _, choices = str(caught.value).partition(": choose one of ")
        assert start == f"unknown variant 'nothing'{where}"
        assert set(re.findall(r"\w+", choices)) - {"or", "one", "of", "each"} == words
    for word in words:
        assert re.search(rf"^\| {word}\b|[`:,]{word}`", recipe.__doc__, re.M), word


@pytest.mark.parametrize("name", RECIPES)
def test_the_default_variant_is_full(name):
    # Would catch a recipe that does something else if its default is named.
    recipe = importlib.import_module(f"drnas_jax.configs.{name}")
    assert recipe.get_config("full") == recipe.get_config()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_its_command_its_time_its_result_and_its_variants(name):
    doc = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text())) or ""
    assert f"python -m drnas_jax.main --config=configs/{name}.py --workdir=" in doc
    assert "minutes" in doc and "CPU cores" in doc
    assert "accuracy" in doc or "error" in doc
    words = {word for variant in VARIANTS.get(name, []) for word in variant.split(",")}
    for word in {"smoke", *words}:
        assert word in doc
