"""What follows from a search's config, data and devices follows from the ones that it has now."""

import dataclasses
import itertools
import types

import jax
import numpy as np
import optax
import pytest

from drnas_jax.errors import UserError
from drnas_jax.phases.search.experiment import Experiment, state_at
from drnas_jax.training.devices import make_mesh

ONE_STAGE = dict(
    search__epochs=(1,),
    search__warmup_epochs=(0,),
    search__operations=(5,),
    search__partial_channels=(4,),
)
NAMES = ("loader", "optimisers", "preprocessing", "schedule", "space", "split", "steps")


@pytest.fixture
def experiment(tiny):
    """A search on one device whose derived values have all been read."""
    made = tiny()
    assert all(getattr(made, name) is getattr(made, name) for name in NAMES)  # and are kept
    return made


def test_other_devices_change_all_that_follows_from_them(experiment):
    # Would catch a loader, or a supernet, that is still for the devices of before.
    assert experiment.loader.abstract_dispatch.batches[0].sharding.mesh.size == 1
    four = dataclasses.replace(experiment, mesh=make_mesh(jax.devices()[:4]))
    assert four.loader.abstract_dispatch.batches[0].sharding.mesh.size == 4
    assert four.loader.abstract_raw.images.sharding.mesh.size == 4
    device = types.SimpleNamespace(platform="tpu")
    there = dataclasses.replace(experiment, mesh=types.SimpleNamespace(devices=np.array([device])))
    assert there.backend() != experiment.backend()
    assert there.backend("cpu") == experiment.backend()


def test_another_config_changes_all_that_follows_from_it(experiment):
    # Would catch batches, or a schedule of the learning rate, of the config of before.
    config = experiment.config
    halved = dataclasses.replace(config.search, batch_size=8, train_fraction=0.25)
    other = dataclasses.replace(
        experiment, config=dataclasses.replace(config, search=halved, seed=config.seed + 1)
    )
    assert (experiment.steps, other.steps) == (2, 2)
    assert other.loader.abstract_dispatch.batches[0].shape == (1, 8)
    assert [len(part) for part in other.split] == [16, 48]
    assert other.schedule.seed == experiment.schedule.seed + 1
    assert all(getattr(other, name) is not getattr(experiment, name) for name in NAMES[:4])


def test_other_images_change_all_that_follows_from_them(experiment):
    # Would catch the mean and deviation, or the split, of the images of before.
    dark = dataclasses.replace(
        experiment.dataset,
        images=experiment.dataset.images[:48] // 2,
        labels=experiment.dataset.labels[:48],
    )
    other = dataclasses.replace(experiment, dataset=dark)
    assert sum(map(len, other.split)) == other.loader.count == 48
    means = [np.array(made.preprocessing.mean) for made in (other, experiment)]
    assert np.all(means[0] < 0.6 * means[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(search__batch_size=15), "search.batch_size = 15.*2 devices"),
        (dict(search__batch_size=64), "32 images, fewer than one batch of 64"),
        (dict(arch__name="softmax", arch__regulariser="kl"), "needs a distribution with"),
        (dict(space="darts", search__operations=(5, 3)), "search.operations starts with 5"),
    ],
)
def test_a_search_that_cannot_begin_is_refused(tiny, changes, words):
    # Would catch a mistake that is found only after the first epoch, or in a compiler.
    experiment = tiny(2, **changes)
    with pytest.raises(UserError, match=words):
        experiment.check()


def by_primitive(tree, label="sgd"):
    """Labels arrays by the names above them, for trees of dictionaries only."""
    if not hasattr(tree, "items"):
        return label
    return {k: by_primitive(v, "adam" if "conv" in k else label) for k, v in tree.items()}


ADAM_AND_SGD = {"adam": optax.adam(0.1), "sgd": optax.sgd(0.1, momentum=0.9)}
FOLLOWING = {
    "multi_transform": optax.multi_transform(ADAM_AND_SGD, by_primitive),
    "nested": optax.inject_hyperparams(optax.adamw)(
        0.1, mask=lambda tree: jax.tree.map(lambda leaf: np.ndim(leaf) > 1, tree)
    ),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_states_of_users_optimisers_follow_to_the_next_stage(tiny, monkeypatch, name):
    # Would catch momenta that keep the shapes of pruned operations.
    experiment = tiny(search__operations=(5, 2))
    monkeypatch.setattr(Experiment, "optimisers", (FOLLOWING[name], optax.adam(0.1)))
    spec = experiment.first_spec()
    state = jax.eval_shape(lambda: experiment.init(spec, 0))
    numbers = itertools.count(1)
    state = jax.tree.map(lambda leaf: np.full(leaf.shape, next(numbers), leaf.dtype), state)
    new, after = experiment.advance(spec, state, 1)
    like = jax.eval_shape(lambda: experiment.init(new, 0)).weight_opt
    assert jax.tree.structure(after.weight_opt) == jax.tree.structure(like)
    for leaf, expected in zip(*map(jax.tree.leaves, (after.weight_opt, like)), strict=True):
        assert leaf.shape == expected.shape
    # The kept arrays have kept their numbers.
    before = {float(leaf.flat[0]) for leaf in jax.tree.leaves(state.weight_opt)}
    assert {float(np.ravel(leaf)[0]) for leaf in jax.tree.leaves(after.weight_opt)} <= before


@pytest.mark.parametrize(
    "optimiser",
    [optax.flatten(optax.adam(0.1)), optax.adafactor(0.1, min_dim_size_to_factor=2)],
    ids=["flatten", "adafactor"],
)
def test_an_optimiser_whose_state_cannot_follow_is_refused_before_the_search(
    tiny, monkeypatch, optimiser
):
    # Would catch an error at the end of the first stage, after hours.
    monkeypatch.setattr(Experiment, "optimisers", (optimiser, optax.adam(0.1)))
    with pytest.raises(UserError, match="the state of the weights' optimiser cannot be taken to"):
        tiny().check()
    tiny(**ONE_STAGE).check()  # with one stage nothing is pruned


def test_labels_of_a_streamed_data_set_are_read_once(tiny, tmp_path):
    # Would catch a resumed search that decodes all labels again, or takes those of other images.
    reads = []

    def stream(fingerprint):
        def read_labels(share, shares):
            reads.append((share, shares))
            return np.arange(64, dtype=np.int32) % 4

        return types.SimpleNamespace(
            labels=None, count=64, fingerprint=fingerprint, read_labels=read_labels
        )

    config = tiny(search__split_by_class=True).config
    for fingerprint in (1, 1, 2):
        given = (config, stream(fingerprint), make_mesh(jax.devices()[:1]))
        made = Experiment(*given, labels_file=tmp_path / "labels.npy")
        assert [len(part) for part in made.split] == [32, 32]
    assert reads == [(0, 1), (0, 1)]
    plain = dataclasses.replace(made, config=tiny().config)  # no labels are needed
    assert sum(map(len, plain.split)) == 64 and len(reads) == 2


@pytest.mark.parametrize("random_alpha", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_state_at_a_stage_has_the_shapes_of_that_stage(tiny, random_alpha):
    # Would catch a measurement of stage 2 on the supernet of stage 1.
    experiment = tiny()
    spec, state = state_at(experiment, 2, random_alpha)
    lengths = {len(edge.primitives) for edge in spec.cell("cell").edges}
    assert (lengths, spec.partial_channels) == ({3}, 2)
    like = jax.eval_shape(lambda: experiment.init(spec, 0))
    jax.tree.map(lambda array, shape: array.shape == shape.shape or pytest.fail(), state, like)
    assert bool(np.any(jax.tree.leaves(state.params)[0])) != random_alpha
