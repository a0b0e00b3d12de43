"""Names that people know from other libraries."""

import copy
import pickle

import pytest

from awp_jax import attacks


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (attacks.PGD, {"eps": 0.1}, "PGD has no 'eps': did you mean epsilon?"),
        (attacks.PGD, {"alpha": 0.1}, "did you mean step_size"),
        (attacks.APGD, {"n_iter": 5}, "APGD has no 'n_iter': did you mean steps"),
        (attacks.APGD, {"verbose": True}, "APGD has no 'verbose': an attack prints nothing"),
        (attacks.Square, {"seed": 1}, "from the key of the call"),
        (attacks.FeatureAttack, {"targeted": True}, "labels are the true ones"),
        (attacks.FAB, {"n_restarts": 2}, "did you mean restarts"),
        (attacks.DDN, {"clip_min": 0}, "did you mean low"),
        (attacks.SPSA, {"clip_min": 0}, "bounds belong to the ball"),
        (attacks.FGSM, {"eps": 0.1}, "FGSM has no 'eps'"),
        (attacks.FeatureAttack, {"alpha": 0.1}, "FeatureAttack has no 'alpha'"),
        (attacks.ensemble, {"attacks_to_run": ["square"]}, "did you mean attacks"),
        (attacks.autoattack, {"eps": 0.1}, "autoattack has no 'eps': did you mean epsilon"),
        (attacks.PGD, {"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_words_of_other_libraries(make, settings, message):
    with pytest.raises(TypeError, match=message):
        make(**settings)


def test_attacks_are_still_values():
    attack = attacks.APGD("8/255", 7)
    assert copy.deepcopy(attack) == attack == pickle.loads(pickle.dumps(attack))
    assert hash(attack) == hash(attacks.APGD("8/255", 7))
