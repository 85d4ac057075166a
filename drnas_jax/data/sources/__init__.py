"""The sources of images: one component a file, a user's module, or any data set of TFDS."""

from drnas_jax import components
from drnas_jax.config import DataConfig
from drnas_jax.data.sources import base
from drnas_jax.data.sources._tfds import open_tfds
from drnas_jax.data.sources.base import Source
from drnas_jax.errors import UserError


def open_source(config: DataConfig) -> Source:
    """Opens the data set that a config names, without decoding its images.

    Args:
      config: Its `name` is that of a module in this package, such as 'digits' (scikit-learn's) or
        'folder' (`dir` holds a sub-folder for each class, or train/ and test/ with these), or that
        of a user's module (a dotted import path, or a file that ends in .py; see `base`). Any other
        name is looked up in TFDS, which has prepared that data set in `dir`.

    Raises:
      UserError: There is no such data set, it is not prepared, or its description is wrong.
    """
    if "://" in config.dir:
        raise UserError(
            f"data.dir is {config.dir!r}, but examples are read in random order from files: mount "
            "the bucket and give the path where it is mounted (docs/scaling.md)"
        )
    bundled = components.names("data")
    if config.name in bundled or components.is_users(config.name):
        source = components.create(
            "data", config.name, config.options, config.dir, field="data.name"
        )
    else:
        source = open_tfds(config.name, config.dir, bundled)
    return base.check_source(source, config.name)
