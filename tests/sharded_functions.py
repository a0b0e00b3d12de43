"""Every public function on weights split over ``fsdp`` and images over ``data``, beside one device.

    NPROC=32 python tests/sharded_functions.py [--names=pgd,sam] 'explicit 4x2' 'auto 8x1'

prints a line of JSON for each: its name, the largest difference, and an error or sharding that is
not as it should be. A process of its own: JAX on a CPU has a thread for each of few cores, which
wait for each other when eight devices talk at once; NPROC gives it more.
"""

import contextlib
import json
import os
import sys

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, reshard
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from awp_jax import attacks, evaluation, landscape, weights
from awp_jax.balls import WeightBall

KEY = jax.random.key(0)
ATTACKS = ("pgd", "apgd", "apgd-t", "fab", "fab-t", "square", "spsa", "ddn", "fmn", "autoattack")
SPECS = {"a": {"kernel": P(None, "fsdp"), "bias": P("fsdp")}, "b": {"kernel": P("fsdp", None)}}


def problem():
    rng = np.random.default_rng(0)

    def kernel(*shape):
        return rng.normal(size=shape).astype(np.float32) * 0.3

    params = {"a": {"kernel": kernel(48, 16), "bias": kernel(16)}, "b": {"kernel": kernel(16, 8)}}
    images = rng.uniform(size=(16, 4, 4, 3)).astype(np.float32)
    return params, images, rng.integers(0, 8, 16).astype(np.int32)


def apply_fn(params, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["a"]["kernel"] + params["a"]["bias"])
    return hidden @ params["b"]["kernel"]


def explicit_apply_fn(params, images):
    """As a user writes it in Explicit mode, whose words Auto mode would refuse."""
    where = jax.typeof(images).sharding.spec
    whole = jax.tree.map(lambda leaf: reshard(leaf, P(*[None] * leaf.ndim)), params)
    flat = images.reshape(len(images), -1, out_sharding=P(where[0], None))
    hidden = jnp.tanh(
        jnp.einsum("bi,ih->bh", flat, whole["a"]["kernel"], out_sharding=P(where[0], None))
        + whole["a"]["bias"]
    )
    return hidden @ whole["b"]["kernel"]


def loss_of(fn):
    def loss(params, images, labels):
        return -(jax.nn.log_softmax(fn(params, images)) * jax.nn.one_hot(labels, 8)).sum(1).mean()

    return loss


def losses_of(fn):
    def losses(params, images, labels):
        found = -(jax.nn.log_softmax(fn(params, images)) * jax.nn.one_hot(labels, 8)).sum(1)
        return found, found

    return losses


def of_attack(attack):
    def run(fn, params, images, labels):
        found = attack(Partial(fn, params), KEY, images, labels)
        names = ("images", "success", "loss")
        return {name: getattr(found, name) for name in names if hasattr(found, name)}

    return run


def of_optimizer(make):
    def run(fn, params, images, labels):
        optimizer = make()

        def step(params, images, labels):
            grad_fn = jax.grad(loss_of(fn))
            grads, state = grad_fn(params, images, labels), optimizer.init(params)
            extra = {"grad_fn": lambda p: grad_fn(p, images, labels)}
            if make is rwp:
                extra = {"losses_fn": lambda p: losses_of(fn)(p, images, labels)}
                extra["grad_fn"] = lambda p: grad_fn(p, images, labels)
            return {"params": optimizer.update(grads, state, params, **extra)[0]}

        return jax.jit(step)(params, images, labels)

    return run


def rwp():
    return weights.rwp(optax.sgd(0.1), gamma=0.1, c_min=1e9, steps=2)


def functions():
    a, small = attacks, {"steps": 4}
    found = {
        "pgd": of_attack(a.PGD(0.1, steps=3, restarts=2, momentum=0.9)),
        "pgd l2": of_attack(a.PGD(0.5, norm="l2", **small)),
        "pgd l1": of_attack(a.PGD(2.0, norm="l1", **small)),
        "apgd": of_attack(a.APGD(0.1, **small)),
        "apgd l1": of_attack(a.APGD(2.0, norm="l1", **small)),
        "apgd-t": of_attack(a.APGDTargeted(0.1, targets=2, **small)),
        "fab": of_attack(a.FAB(0.1, **small)),
        "fab-t": of_attack(a.FABTargeted(0.1, targets=2, **small)),
        "square": of_attack(a.Square(0.1, steps=10)),
        "square l2": of_attack(a.Square(0.5, norm="l2", steps=10)),
        "spsa": of_attack(a.SPSA(0.1, steps=2, samples=8)),
        "ddn": of_attack(a.DDN(**small)),
        "fmn": of_attack(a.FMN(**small)),
    }
    for scope in ("leaf", "global", "filter", "element"):
        ball = WeightBall(0.1, scope=scope)
        found[f"awp {scope}"] = of_optimizer(
            lambda ball=ball: weights.awp(optax.sgd(0.1), ball=ball)
        )
    found["sam"] = of_optimizer(lambda: weights.sam(optax.sgd(0.1)))
    found["asam"] = of_optimizer(lambda: weights.asam(optax.sgd(0.1)))
    found["rwp"] = of_optimizer(rwp)
    found["random"] = of_optimizer(
        lambda: weights.random_weight_perturbation(optax.sgd(0.1), gamma=0.1, key=KEY)
    )

    def both(name, make):
        found[name] = lambda fn, *given: dict(
            zip(("loss", "params"), make(fn)(*given)[:2], strict=True)
        )

    both("value_and_grad", lambda fn: weights.value_and_grad(loss_of(fn), gamma=0.1))
    both(
        "robust_value_and_grad",
        lambda fn: weights.robust_value_and_grad(
            lambda *given: losses_of(fn)(*given)[0], gamma=0.1, c_min=1e9, steps=2
        ),
    )

    def measured(fn, params, images, labels):
        pgd = attacks.PGD(0.1, steps=2)
        each = {"clean": None, "pgd": pgd}
        settings = {"key": KEY, "batch_size": 8}
        told = evaluation.measure_each(
            Partial(fn, params), images, labels, each, **settings
        )  # fmt: skip
        whole = evaluation.evaluate(
            Partial(fn, params), KEY, images, labels, {"pgd": pgd}, batch_size=8
        )
        classes = evaluation.predict(Partial(fn, params), images)[0]
        return {
            "told": {k: (v.accuracy, v.loss) for k, v in told.items()},
            "whole": whole.outcomes["pgd"].images,
            "classes": classes,
        }

    found["measured"] = measured

    def cascade(fn, params, images, labels):
        plan = [("apgd-ce", attacks.APGD(0.05, **small)), ("square", attacks.Square(0.05, steps=9))]
        result = attacks.autoattack(
            Partial(fn, params), KEY, images, labels, epsilon=0.05, version="custom", attacks=plan,
            batch_size=8,
        )  # fmt: skip
        return {"images_found": result.images, "robust": result.robust}

    found["autoattack"] = cascade

    def landscapes(fn, params, images, labels):
        given, options = (fn, params, images, labels), {"batch_size": 8}
        pgd = attacks.PGD(0.1, steps=1)
        along = landscape.directions(KEY, params)
        drawn = landscape.average_flatness(*given, KEY, attack=pgd, xi=0.3, draws=2, **options)
        worst = landscape.worst_case_flatness(*given, KEY, attack=pgd, xi=0.1, steps=2, **options)
        curve = landscape.surface(
            fn, params, along, images, labels, axes=[landscape.axis(3)], **options
        )
        top = landscape.hessian_spectrum(*given, KEY, count=1, **options)
        trace = landscape.hessian_trace(*given, KEY, draws=2, **options)
        return {
            "flatness": [drawn.flatness, worst.flatness],
            "curve": curve.loss,
            "hessian": [top.eigenvalues, trace.trace],
        }

    found["landscapes"] = landscapes
    return found


def numbers(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf is not None]
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def misplaced(found, params, images):
    """Results that are not sharded as what they belong to."""
    wrong = []
    for name, like in {"params": params, "images": images}.items():
        if name not in found:
            continue
        pairs = zip(jax.tree.leaves(found[name]), jax.tree.leaves(like), strict=True)
        for mine, its in pairs:
            if not mine.sharding.is_equivalent_to(its.sharding, mine.ndim):
                wrong.append(f"{name} {mine.shape}: {mine.sharding.spec}, not {its.sharding.spec}")
    return wrong


def main(*places):
    chosen = functions()
    if places[0].startswith("--names="):
        names = places[0].removeprefix("--names=")
        chosen = {name: chosen[name] for name in names.split(",")} if names else chosen
        places = places[1:]
    params, images, labels = problem()
    whole = jax.tree.map(jnp.asarray, (params, images, labels))
    given = {place: split_among(place, params, images, labels) for place in places}
    for name, function in chosen.items():
        want = function(apply_fn, *whole)
        for place, (mesh, split) in given.items():
            row = {"name": name, "place": place}
            try:
                row |= compared(name, function, want, mesh, split)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            print(json.dumps(row), flush=True)


def split_among(place, params, images, labels):
    """A mesh such as ``"auto 4x2"``, and the problem on it."""
    mode, shape = place.split()
    kind = AxisType.Explicit if mode == "explicit" else AxisType.Auto
    sizes = tuple(map(int, shape.split("x")))
    mesh = jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(kind, kind))

    def put(tree, specs):
        return jax.tree.map(lambda a, s: jax.device_put(a, NamedSharding(mesh, s)), tree, specs)

    return mesh, (put(params, SPECS), put(images, P("data")), put(labels, P("data")))


def compared(name, function, want, mesh, split):
    explicit = AxisType.Explicit in mesh.axis_types
    # The library's own functions need no mesh of the context; a user's gradients do.
    of_user = name.split()[0] not in ATTACKS and explicit
    with jax.set_mesh(mesh) if of_user else contextlib.nullcontext():
        got = function(explicit_apply_fn if explicit else apply_fn, *split)
    pairs = zip(numbers(want), numbers(got), strict=True)
    return {
        "difference": max(float(np.abs(a - b).max()) for a, b in pairs if a.size),
        "misplaced": misplaced(got, split[0], split[1]),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
