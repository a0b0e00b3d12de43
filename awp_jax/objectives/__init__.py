"""Training objectives: what the input adversary ascends, what the weights ascend and descend."""

from awp_jax.objectives._objectives import ADVERSARIAL as ADVERSARIAL
from awp_jax.objectives._objectives import CLEAN as CLEAN
from awp_jax.objectives._objectives import NAMES as NAMES
from awp_jax.objectives._objectives import ROTATIONS as ROTATIONS
from awp_jax.objectives._objectives import Objective as Objective
from awp_jax.objectives._objectives import at as at
from awp_jax.objectives._objectives import boosted_cross_entropy as boosted_cross_entropy
from awp_jax.objectives._objectives import check_soft_labels as check_soft_labels
from awp_jax.objectives._objectives import create as create
from awp_jax.objectives._objectives import mart as mart
from awp_jax.objectives._objectives import natural as natural
from awp_jax.objectives._objectives import self_supervised as self_supervised
from awp_jax.objectives._objectives import smoothed as smoothed
from awp_jax.objectives._objectives import trades as trades
