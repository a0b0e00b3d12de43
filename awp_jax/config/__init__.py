"""The one schema of experiment configs: values, checks and what each key means.

A config holds plain values only (numbers, text, tuples), so that it can be written to
``config.json`` and overridden from the command line. Radii are text, ``"8/255"``, because fractions
are how the field states them. Every key is declared once, with its default, its check
and what it means: in ``_inputs.py``, ``_method.py`` and ``_groups.py``.
"""

from awp_jax.config._dict import UnknownKeyError as UnknownKeyError
from awp_jax.config._dict import WrongTypeError as WrongTypeError
from awp_jax.config._groups import GROUPS as GROUPS
from awp_jax.config._keys import Group as Group
from awp_jax.config._keys import Key as Key
from awp_jax.config._kinds import SWITCH as SWITCH
from awp_jax.config._kinds import Kind as Kind
from awp_jax.config._schema import default as default
from awp_jax.config._schema import from_dict as from_dict
from awp_jax.config._schema import keys as keys
from awp_jax.config._schema import override as override
from awp_jax.config._schema import validate as validate
from awp_jax.config._yaml import from_yaml as from_yaml
from awp_jax.config._yaml import to_yaml as to_yaml
