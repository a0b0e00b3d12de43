"""The one schema of experiment configs: values, checks and what each key means.

A config holds plain values only (numbers, text, tuples), so that it can be written to
``config.json`` and overridden from the command line. Radii are text, ``"8/255"``, because fractions
are how the field states them. Every key is declared once, with its default, its check
and what it means: in ``_inputs.py``, ``_method.py`` and ``_groups.py``.
"""

from awp_jax.extras import needed_by

with needed_by("awp_jax.config"):
    from awp_jax.config._dict import UnknownKeyError, WrongTypeError
    from awp_jax.config._groups import GROUPS
    from awp_jax.config._keys import Group, Key
    from awp_jax.config._kinds import SWITCH, Kind
    from awp_jax.config._schema import default, from_dict, keys, override, validate
    from awp_jax.config._yaml import from_yaml, to_yaml

__all__ = [
    "GROUPS",
    "Group",
    "Key",
    "Kind",
    "SWITCH",
    "UnknownKeyError",
    "WrongTypeError",
    "default",
    "from_dict",
    "from_yaml",
    "keys",
    "override",
    "to_yaml",
    "validate",
]
