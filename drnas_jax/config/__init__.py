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
    content_files,
    differences,
    is_read,
    leaves,
)
from drnas_jax.config.conversion import (
    build,
    defaults,
    freeze,
    from_config_dict,
    near_fields,
    plain,
    to_config_dict,
    to_dict,
    unknown_field,
    written_out,
)
from drnas_jax.config.elements import chosen_elements, elements
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
    ArchConfig,
    ComputeConfig,
    Config,
    CostConfig,
    DataConfig,
    ExportConfig,
    MetricsConfig,
    RetrainConfig,
    TableConfig,
)
from drnas_jax.config.schema import (
    COMPONENTS,
    FREE,
    GROUPS,
    OPTIONS,
    PHASE_FIELDS,
    component_names,
    schema,
)
from drnas_jax.config.search import SearchConfig, Stage
from drnas_jax.config.variants import parse_variant

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
    "ExportConfig",
    "MetricsConfig",
    "RetrainConfig",
    "SearchConfig",
    "Stage",
    "TableConfig",
    "at_least",
    "at_most",
    "build",
    "choices",
    "chosen_elements",
    "component_names",
    "content_files",
    "defaults",
    "differences",
    "elements",
    "field",
    "freeze",
    "from_config_dict",
    "is_read",
    "leaves",
    "less_than",
    "more_than",
    "near_fields",
    "parse_variant",
    "plain",
    "schema",
    "to_config_dict",
    "to_dict",
    "unknown_field",
    "written_out",
]
