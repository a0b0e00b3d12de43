"""The ensemble: survivors, resuming, verdicts, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import programs_of
from jax.tree_util import Partial

from awp_jax.attacks import (
    APGD,
    PGD,
    APGDTargeted,
    AttackResult,
    AutoAttackState,
    FABTargeted,
    Square,
    autoattack,
    ensemble,
    run_stage,
    start_state,
)
from awp_jax.attacks._survivors import batch_sizes, batches, padded, stepping_sizes
from awp_jax.attacks._told import Account, padded_count
from awp_jax.balls import InputBall, input_norms

KEY = jax.random.key(0)


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


def problem(count=20):
    weights = jax.random.normal(jax.random.key(7), (16, 4))
    images = np.array(0.3 + 0.4 * jax.random.uniform(jax.random.key(0), (count, 4, 4, 1)))
    labels = np.asarray(linear(weights, images).argmax(1), np.int32)
    return Partial(linear, weights), images, labels


def short(epsilon, norm="linf"):
    return [
        ("apgd-ce", APGD(epsilon, 10, norm)),
        ("apgd-t", APGDTargeted(epsilon, 10, norm)),
        ("fab-t", FABTargeted(epsilon, 10, norm)),
        ("square", Square(epsilon, 100, norm)),
    ]


@pytest.mark.core
def test_batches_have_a_few_fixed_sizes():
    assert batch_sizes(100) == (100, 34, 12)
    assert batch_sizes(1) == (1,)
    parts = batches(np.arange(230), (100, 34, 12))
    assert [len(part) for part in parts] == [100, 100, 30]
    rows = padded(parts[-1], (100, 34, 12))
    assert len(rows) == 34 and set(rows[30:]) == {200}


@pytest.mark.core
def test_versions_are_the_published_ones():
    assert [name for name, _ in ensemble()] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    plan = dict(ensemble(norm="l2", epsilon=0.5))
    assert (plan["square"].steps, plan["apgd-t"].targets, plan["fab-t"].steps) == (5000, 9, 100)
    rand = ensemble("rand")
    assert [name for name, _ in rand] == ["apgd-ce", "apgd-dlr"]
    assert all(attack.eot == 20 for _, attack in rand)
    plus = dict(ensemble("plus"))
    assert len(plus) == 6 and plus["fab"].restarts == 5 and plus["apgd-t"].restarts == 1
    assert [name for name, _ in ensemble(attacks="square, apgd-ce")] == ["square", "apgd-ce"]


@pytest.mark.core
def test_versions_in_l1_are_the_published_ones():
    plan = dict(ensemble(norm="l1", epsilon=12))
    assert list(plan) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert plan["apgd-ce"].larger_radii and plan["apgd-ce"].restarts == 5
    targeted = plan["apgd-t"]
    assert targeted.larger_radii and (targeted.targets, targeted.restarts) == (5, 1)
    assert (plan["fab-t"].targets, plan["fab-t"].restarts, plan["square"].steps) == (9, 1, 5000)
    for version in ("plus", "rand"):
        plan = dict(ensemble(version, norm="l1", epsilon=12))
        assert not plan["apgd-ce"].larger_radii and not plan["apgd-dlr"].larger_radii
    custom = ensemble("custom", ball=InputBall("l1", 12), attacks=["apgd-dlr"])
    assert custom[0][1].larger_radii and custom[0][1].loss == "dlr"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_batch_size_changes_nothing_and_images_are_inside(digits, norm):
    epsilon = {"linf": 0.16, "l2": 0.7, "l1": 1.5}[norm]
    images, labels = digits.images[:40], digits.labels[:40]
    args = digits.logits_fn, KEY, images, labels
    kwargs = {"norm": norm, "epsilon": epsilon, "version": "custom"}
    kwargs["attacks"] = short(epsilon, norm)[:2] if norm == "linf" else short(epsilon, norm)[2:]
    if norm == "l1":
        kwargs["attacks"] = [
            # Ten passes: after more, what is found already leaves a small batch, and goes on in a
            # large one, to another misclassified iterate.
            ("apgd-ce", APGD(epsilon, 8, norm, larger_radii=True)),
            ("square", Square(epsilon, 20, norm)),
        ]
    large = autoattack(*args, **kwargs, batch_size=40)
    small = autoattack(*args, **kwargs, batch_size=25)
    np.testing.assert_array_equal(large.robust, small.robust)
    np.testing.assert_allclose(large.images, small.images, atol=1e-4)
    for a, b in zip(large.rows, small.rows, strict=True):
        assert a[:4] == b[:4]
    change = np.asarray(large.images, np.float64) - np.asarray(images, np.float64)
    assert input_norms(change, norm).max() <= epsilon + 1e-6
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    lengths = np.linalg.norm(change.reshape(len(change), -1), order, axis=1)
    assert lengths.max() <= epsilon * (1 + 1e-6)
    assert large.images.min() >= 0 and large.images.max() <= 1
    wrong = np.asarray(digits.logits_fn(jnp.asarray(large.images)).argmax(1) != labels)
    np.testing.assert_array_equal(wrong, ~large.robust)
    assert (
        large.clean_accuracy == large.rows[0].accuracy > large.accuracy == large.rows[-1].accuracy
    )
    total = sum(row.broke for row in large.rows)
    assert total == (~large.robust).sum()


def test_survivors_only_go_on():
    function, images, labels = problem()
    seen = []

    def first(logits_fn, key, x, y):
        seen.append(len(y))
        del key
        same = jnp.broadcast_to(images[:1], x.shape)
        return AttackResult(same, logits_fn(same).argmax(1) != y, y * 0.0)

    def second(logits_fn, key, x, y):
        return first(logits_fn, key, x, y)

    result = autoattack(
        function, KEY, images, labels, epsilon=1.0, version="custom",
        attacks=[("first", first), ("second", second)], batch_size=20,
    )  # fmt: skip
    assert seen[0] == 20
    np.testing.assert_array_equal(result.robust, labels == labels[0])
    assert result.rows[1].median_steps is None
    assert seen[1:] == [min(n for n in (20, 7, 3) if n >= result.robust.sum())]


def test_an_attack_that_cheats_is_projected_and_judged_anew():
    function, images, labels = problem()

    def cheats(logits_fn, key, x, y):
        del logits_fn, key
        return AttackResult(1 - x, jnp.ones(len(y), bool), y * 0.0)

    result = autoattack(
        function, KEY, images, labels, epsilon=1e-4, version="custom", attacks=[("cheat", cheats)]
    )
    assert np.abs(result.images - images).max() <= 1e-4 + 1e-6
    np.testing.assert_array_equal(
        result.robust, np.asarray(function(result.images).argmax(1)) == labels
    )


def test_resumes_between_attacks(tmp_path):
    function, images, labels = problem()
    plan = short(0.05)[:2]
    kwargs = {"epsilon": 0.05, "version": "custom", "attacks": plan}
    whole = autoattack(function, KEY, images, labels, **kwargs)
    state = start_state(plan, function, KEY, images, labels)
    state = run_stage(plan, state, function, KEY, images, labels, ball=InputBall("linf", 0.05))
    np.savez(tmp_path / "state.npz", images=state.images, robust=state.robust)
    with np.load(tmp_path / "state.npz") as saved:
        loaded = AutoAttackState(saved["images"], saved["robust"], state.rows)
    assert loaded.finished == 1
    stages = []
    resumed = autoattack(
        function, KEY, images, labels, **kwargs, state=loaded, on_stage=stages.append
    )
    np.testing.assert_array_equal(resumed.images, whole.images)
    assert [row[:4] for row in resumed.rows] == [row[:4] for row in whole.rows]
    assert len(stages) == 1 and stages[0].finished == 2
    # Saved without them, as programs may do that know images and verdicts only.
    assert resumed.broken_by is None and "broken_by" not in repr(resumed)
    again = autoattack(function, KEY, images, labels, **kwargs, state=state)
    for name in ("broken_by", "loss", "prediction"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    with pytest.raises(ValueError, match="All 2 attacks have run"):
        run_stage(plan, stages[0], function, KEY, images, labels)
    with pytest.raises(ValueError, match="The state holds"):
        run_stage(plan, loaded, function, KEY, images[:3], labels[:3])


def test_progress_only_grows():
    function, images, labels = problem()
    events = []
    autoattack(
        function, KEY, images, labels, epsilon=0.02, version="custom",
        attacks=short(0.02)[:2], progress=events.append,
    )  # fmt: skip
    for name in ("apgd-ce", "apgd-t"):
        shares = [event.done for event in events if event.attack == name]
        assert shares == sorted(shares) and shares[-1] == 1.0
    robust = [event.robust for event in events]
    assert robust == sorted(robust, reverse=True) and events[0].examples == 20
    for name in ("share", "computed", "seconds"):
        values = [getattr(event, name) for event in events]
        assert values == sorted(values) and values[0] >= 0
    assert events[-1].share == 1.0 and all(e.computed <= e.share + 1e-9 for e in events)


def test_what_is_spared_counts_as_done_and_not_as_computed():
    function, images, labels = problem()
    options = {"epsilon": 0.5, "version": "custom", "attacks": short(0.5)[:2]}
    events, states = [], []
    autoattack(
        function, KEY, images, labels, **options, progress=events.append, on_stage=states.append
    )
    # The first attack breaks all in a ball this large: nothing of the second is computed.
    assert events[-1].robust == 0 and events[-1].share == 1.0
    # 20 passes of 20 and, with three targets, 60
    assert events[-1].computed == pytest.approx(0.25)
    events = []
    autoattack(function, KEY, images, labels, **options, progress=events.append, state=states[1])
    assert all(event.computed == 0.0 for event in events) and events[-1].share == 1.0


def test_what_is_left_of_an_attack_by_hand():
    said = []
    account = Account(lambda *now: said.append(now), passes=10, runs=3, sizes=(8, 3), robust=9)
    account.begin(0, size=8, later=3)
    account.stepped(4)  # 6 steps of 8 examples, then 10 of 3, then two runs of 11
    assert said[-1] == (32.0, 6 * 8 + 10 * 3 + 2 * 10 * 11, 9)
    account.reach(5, 3, broken=0)
    account.leave(4)
    account.stepped(100)  # more than there are
    assert said[-1] == (40.0 + 5 * 3, 10 * 3 + 2 * 10 * 8, 4)
    account.finish()
    assert said[-1] == (55.0, 0, 4)
    assert [padded_count(rows, (8, 3)) for rows in (0, 1, 3, 4, 8, 17)] == [0, 3, 3, 8, 8, 19]


@pytest.mark.parametrize("given", [{"progress": "text"}, {"verbose": True}])
def test_a_ready_printer(given, capsys):
    function, images, labels = problem()
    options = {"epsilon": 0.02, "version": "custom", "attacks": short(0.02)[:2]}
    silent = autoattack(function, KEY, images, labels, **options)
    assert capsys.readouterr() == ("", "")
    result = autoattack(function, KEY, images, labels, **options, **given)
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    left = f"{result.robust.sum()} of 20 images left, robust accuracy {result.accuracy:.2%} so far"
    assert not printed.out and last.startswith(f"autoattack apgd-t 100%, {left}")
    assert "apgd-ce 100%" in printed.err and last.endswith("100% done")
    np.testing.assert_array_equal(result.images, silent.images)


def test_broken_by_is_the_stage_after_which_an_image_is_no_longer_robust():
    function, images, labels = problem()
    labels = np.where(np.arange(20) < 3, (labels + 1) % 4, labels).astype(np.int32)
    weak = [("weak", PGD(0.02, 1, step_size=0.004)), *short(0.02)[:2]]
    stages = []
    result = autoattack(
        function, KEY, images, labels, epsilon=0.02, version="custom", attacks=weak,
        on_stage=stages.append,
    )  # fmt: skip
    robust = np.stack([state.robust for state in stages])
    expected = np.where(robust[-1], -1, robust.argmin(axis=0))
    np.testing.assert_array_equal(result.broken_by, expected)
    assert {0, 1, -1} <= set(result.broken_by.tolist()) and result.broken_by.dtype == np.int32
    assert result.names == ("clean", "weak", "apgd-ce", "apgd-t")
    broke = [int((result.broken_by == place).sum()) for place in range(4)]
    assert broke == [row.broke for row in result.rows]
    logits = np.asarray(function(result.images), np.float64)
    np.testing.assert_array_equal(result.prediction, logits.argmax(1))
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(20), labels]
    np.testing.assert_allclose(result.loss, losses, rtol=1e-4, atol=1e-5)


def test_epsilon_zero_is_the_clean_accuracy():
    function, images, labels = problem()
    labels = np.where(np.arange(20) < 5, (labels + 1) % 4, labels).astype(np.int32)
    result = autoattack(function, KEY, images, labels, epsilon=0)
    assert result.accuracy == result.clean_accuracy == 0.75
    np.testing.assert_array_equal(result.images, images)


def test_all_misclassified():
    function, images, labels = problem()
    wrong = ((labels + 1) % 4).astype(np.int32)
    result = autoattack(function, KEY, images, wrong, epsilon=0.1, attacks=["apgd-ce", "square"])
    assert result.accuracy == 0 and [row.broke for row in result.rows] == [20, 0, 0]


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_classes_than_targets(classes):
    weights = jax.random.normal(jax.random.key(1), (16, classes))
    _, images, _ = problem(8)
    labels = np.asarray(linear(weights, images).argmax(1), np.int32)
    result = autoattack(
        Partial(linear, weights), KEY, images, labels, epsilon=0.3, version="custom",
        attacks=short(0.3)[1:3],
    )  # fmt: skip
    assert result.accuracy == 0


def test_rand_for_randomised_models():
    def noisy(images, key):
        return linear(weights, images) + 0.01 * jax.random.normal(key, (1, 4))

    function, images, labels = problem(8)
    weights = function.args[0]
    plan = [("apgd-ce", APGD(0.3, 5, eot=2)), ("apgd-dlr", APGD(0.3, 5, eot=2, loss="dlr"))]
    kwargs = {"epsilon": 0.3, "version": "custom"}
    assert autoattack(noisy, KEY, images, labels, **kwargs, attacks=plan).accuracy < 1
    with pytest.raises(ValueError, match="do not mix"):
        autoattack(noisy, KEY, images, labels, **kwargs, attacks=[*plan, "square"])


def test_compiles_for_no_new_parameters():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return linear(weights, images)

    function, images, labels = problem()
    kwargs = {"epsilon": 0.05, "version": "custom", "attacks": short(0.05)[:1]}
    weights = function.args[0]
    autoattack(Partial(counted, weights), KEY, images, labels, **kwargs)
    before = len(traces)
    autoattack(Partial(counted, 1.0 * weights), jax.random.key(1), images, labels, **kwargs)
    sizes = {shape[0] for shape in traces}
    assert len(traces) - before <= 3 * 4 and sizes <= {20, 7, 3}


def test_few_examples_are_not_padded_to_the_whole_batch():
    def second(left, steps=900, multiple=1):
        return stepping_sizes(batch_sizes(64, multiple), steps, left, multiple)

    assert [second(left) for left in (5, 22, 23, 32, 33, 43)] == [
        (64, 22), (64, 22), (64, 32), (64, 32), (64, 43), (64, 43)
    ]  # fmt: skip
    assert second(44) == second(1000) == (64, 22)  # a tail, or what is left when more are broken
    assert second(23, multiple=8) == (64, 24)
    assert second(23, steps=100) == (64,)
    assert stepping_sizes((1,), 900, 1, 1) == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": []}, "No attacks were selected"),
        ({"attacks": ["apgd"]}, "Unknown attack 'apgd'"),
        ({"attacks": [3]}, "neither a name nor a pair"),
        ({"version": "custom"}, "No attacks were selected"),
        ({"version": "standart"}, "Did you mean 'standard'"),
        ({"norm": "l3"}, "Unknown norm"),
        ({"epsilon": -1}, "at least 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"labels": np.full(20, 9, np.int32)}, "below 4"),
        ({"images": np.full((20, 4, 4, 1), 255.0, np.float32)}, "values in"),
        ({"logits_fn": lambda x: x.reshape(20, -1)[:, :4] * np.nan}, "NaN for 20 of 20 clean"),
        ({"key": 0}, "typed key"),
        ({"progress": "loud"}, "Unknown progress 'loud'"),
        ({"verbose": 2}, "verbose is 2, but True or False"),
    ],
)
def test_bad_input(changes, message):
    function, images, labels = problem()
    arguments = {"logits_fn": function, "key": KEY, "images": images, "labels": labels} | changes
    with pytest.raises(ValueError, match=message):
        autoattack(**arguments)


def test_a_plain_attack_may_join():
    function, images, labels = problem()
    result = autoattack(
        function, KEY, images, labels, epsilon=0.1, version="custom",
        attacks=[("pgd-20", PGD(0.1, 20))],
    )  # fmt: skip
    assert result.rows[1].name == "pgd-20" and result.accuracy < 1


@pytest.mark.parametrize(
    ("norm", "epsilon", "most"), [("linf", 0.005, 12), ("l2", 0.02, 13), ("linf", 0.1, 18)]
)
def test_a_standard_run_compiles_few_programs(norm, epsilon, most):
    # 1,000 images in batches of 256, with all runs of every attack and fewer steps. Of the first
    # two most are robust; of the last so few that long attacks go on in a smaller batch.
    function, images, labels = problem(1000)
    short = {"apgd-ce": 20, "apgd-t": 200, "fab-t": 200, "square": 600}
    plan = [
        (name, dataclasses.replace(attack, steps=short[name]))
        for name, attack in ensemble(norm=norm, epsilon=epsilon)
    ]
    arguments = (function, KEY, images, labels)
    kwargs = {"norm": norm, "epsilon": epsilon, "version": "custom", "attacks": plan}
    results = []
    count = programs_of(lambda: results.append(autoattack(*arguments, **kwargs, batch_size=256)))
    robust = results[0].robust.sum()
    assert robust < 86 if epsilon == 0.1 else robust > 512
    assert count <= most
