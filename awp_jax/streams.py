"""Every random stream by its number: what is folded into which key.

Two draws are independent when their keys were made by other numbers. So each number that
``jax.random.fold_in`` gets stands here, grouped by the key it is folded into; the name says the
group. Places are folded as well: of an example in its batch, of a step, restart, draw or layer.
Numbers of training stay as they are, because results were made with them.
"""

# Into the key of a run, ``jax.random.key(config.seed)``. Training folds the number of each step
# into the same key, so a step's key can equal one of these; what is drawn from it then comes from
# numbers further down.
RUN_PARAMETERS = 1  # fresh parameters
RUN_ORDER = 2  # of the training examples, then by epoch
RUN_VALIDATION = 3  # attacks on a few images while training
RUN_EVALUATE = 4  # awp-jax evaluate, and the tables of the papers
RUN_OPTIMIZER = 5  # the noise of Entropy-SGD
RUN_DIAGNOSE = 6  # awp-jax diagnose
RUN_FLATNESS = 7  # awp-jax flatness
RUN_LANDSCAPE = 8  # landscapes of the papers' figures

# Into the key of a step, the run's folded by the number of the step.
STEP_DROPOUT = 1  # of the network, also the noise of a randomised one
STEP_WEIGHTS = 2  # random perturbation of the weights
STEP_MIXUP = 10  # which images are mixed, and how much
STEP_EXTRA = 11  # which extra images fill up the batch

# Into the key of an example in a step, the step's folded by its place in the batch.
EXAMPLE_AUGMENT = 0  # crop, flip, rotation; and the two below
EXAMPLE_ATTACK = 3  # where the training attack starts, then by alternation
EXAMPLE_ALIGNMENT = 4  # the other point of GradAlign

# Into the key by which an example is augmented; crop, flip and rotation draw from it as it is.
AUGMENT_CUTOUT = 0  # where the square is
AUGMENT_AUTOAUGMENT = 1  # which operations
AUGMENT_TRIVIAL = 2  # which operation of TrivialAugment, and how much
AUGMENT_ERASING = 3  # whether and which rectangle is erased

# Into the key of a forward pass.
PASS_KERNEL_NOISE = 0x504E49  # "PNI": parametric noise injection; dropout folds in its layer

# Into the key of an attacked batch's first example. Numbers of steps and restarts start at 0.
BATCH_MODEL = 0x6D6F64  # "mod": the draws of a randomised model, then by step
BATCH_VERDICT = 0x76657264  # "verd": a verdict's draws; a lucky one of the attack counts once

# Into the draws of a randomised model, where no step has these numbers.
MODEL_START = 0x7FFFFFF0  # APGD's first look at its random start
MODEL_TARGETS = 0x7FFFFFF1  # the clean logits that rank APGD's targets

# Into the key of an example under random search, whose steps fold in 1, 2, ...
SEARCH_START = 0  # where it begins

# Into the key that a function of awp_jax.landscape is given.
LANDSCAPE_IMAGES = 0  # attacks on images at given weights: the same ones in every measure
LANDSCAPE_AVERAGE_WEIGHTS = 1  # average-case flatness: weights
LANDSCAPE_AVERAGE_IMAGES = 2  # average-case flatness: attacks there
LANDSCAPE_WORST_WEIGHTS = 3  # worst-case flatness: where weights start
LANDSCAPE_WORST_IMAGES = 4  # worst-case flatness: where images start
LANDSCAPE_HESSIAN = 5  # the first vector of Lanczos' iteration
LANDSCAPE_PERTURBED = 6  # weights of random perturbations
LANDSCAPE_PAC_BAYES = 7  # weights of PAC-Bayes bounds
LANDSCAPE_TRACE = 8  # signs of Hutchinson's estimator, then by draw
LANDSCAPE_DENSITY = 9  # where Lanczos' iteration for the density starts, then by draw

# Into the key of ``awp-jax landscape --seed``.
DRAWN_DIRECTIONS = 0  # then by draw
DRAWN_IMAGES = 1  # attacks at every point
