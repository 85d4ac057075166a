"""The schema of a run's config, in which every field is declared once.

A declaration holds the field's type, its default, its meaning and its checks.

A recipe starts from `defaults()`, an ml_collections ConfigDict, and `from_config_dict` turns that
into a frozen `Config` and checks every value; each error names its field.

A component (a search space, a mixing distribution, ...) may have options of its own. Its module
defines them as a frozen dataclass `Options`, whose fields have defaults and are of the types
`bool`, `int`, `float`, `str` or a tuple of one of these, as in `tuple[int, ...]`:

    from drnas_jax.config import at_least, field

    @dataclasses.dataclass(frozen=True)
    class Options:
        patch: int = field(4, "Side of a patch in pixels.", at_least(1))
        heads: int = 2  # a plain default works too
"""

from drnas_jax.config.comparison import (
    differences,
    leaves,
)
from drnas_jax.config.conversion import (
    build,
    defaults,
    freeze,
    from_config_dict,
    plain,
    to_config_dict,
    to_dict,
    unknown_field,
)
from drnas_jax.config.fields import (
    Check,
    Component,
    at_least,
    at_most,
    choices,
    field,
    less_than,
    more_than,
)
from drnas_jax.config.groups import (
    COMPONENTS,
    FREE,
    GROUPS,
    OPTIONS,
    PHASE_FIELDS,
    ArchConfig,
    ComputeConfig,
    Config,
    CostConfig,
    DataConfig,
    RetrainConfig,
    SearchConfig,
    Stage,
    TableConfig,
    schema,
)

__all__ = [
    "COMPONENTS",
    "FREE",
    "GROUPS",
    "OPTIONS",
    "PHASE_FIELDS",
    "ArchConfig",
    "Check",
    "Component",
    "ComputeConfig",
    "Config",
    "CostConfig",
    "DataConfig",
    "RetrainConfig",
    "SearchConfig",
    "Stage",
    "TableConfig",
    "at_least",
    "at_most",
    "build",
    "choices",
    "defaults",
    "differences",
    "field",
    "freeze",
    "from_config_dict",
    "leaves",
    "less_than",
    "more_than",
    "plain",
    "schema",
    "to_config_dict",
    "to_dict",
    "unknown_field",
]
