"""The sources of images: bundled components, users' modules, and the data sets of TFDS."""

from drnas_jax import components
from drnas_jax.config import DataConfig
from drnas_jax.data.sources import base
from drnas_jax.data.sources._cifar import ARCHIVES, open_cifar
from drnas_jax.data.sources._tfds import open_tfds
from drnas_jax.data.sources.base import Source
from drnas_jax.errors import UserError


def open_source(config: DataConfig) -> Source:
    """Opens the data set that a config names, without decoding its images.

    If `config.download` is set, all processes must call this.

    Args:
      config: Its `name` is that of a module in this package, such as 'digits' (scikit-learn's),
        'folder' (`dir` holds a sub-folder for each class, or train/ and test/ with these), 'idx'
        (the files of MNIST and the like) or 'npz' (arrays); or that of a user's module (a dotted
        import path, or a file that ends in .py; see `base`). 'cifar10' and 'cifar100' are read as
        TFDS prepares them or as they are published. Any other name is that of a data set that TFDS
        has prepared in `dir`.

    Raises:
      UserError: There is no such data set, it is not prepared or cannot be downloaded, or its
        description is wrong.
    """
    if "://" in config.dir:
        raise UserError(
            f"data.dir is {config.dir!r}, but examples are read in random order from files: mount "
            "the bucket and give the path where it is mounted (docs/scaling.md)"
        )
    if config.download and config.name not in ARCHIVES:
        raise UserError(
            f"data.download is True, but data.name is {config.name!r}: only "
            f"{' and '.join(ARCHIVES)} can be downloaded, so set data.download to False"
        )
    bundled = components.names("data")
    if config.name in bundled or components.is_users(config.name):
        source = components.create(
            "data", config.name, config.options, config.dir, field="data.name"
        )
    elif config.name in ARCHIVES:
        source = open_cifar(config.name, config.dir, config.download, bundled)
    else:
        source = open_tfds(config.name, config.dir, bundled)
    return base.check_source(source, config.name)
