"""What ``awp-jax train`` says of a run that ends before its time."""

import pytest
from small_flags import SMALL

from awp_jax import cli
from awp_jax.training import _loop

FLAGS = ["--config=digits_resnet:at", *SMALL, "--config.checkpoint.every_epochs=1"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("at", "said"),
    [(1, "no checkpoint was saved yet, the same command begins anew: "), (3, "saved is step 2, ")],
)
def test_an_interrupted_run_says_from_where_it_goes_on(tmp_path, capsys, monkeypatch, at, said):
    calls = []

    def interrupted(self):
        calls.append(None)
        if len(calls) == at:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(_loop._Run, "_stop_requested", interrupted)  # asked after every step
    assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *FLAGS]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"awp-jax train: interrupted; {said}") and last.endswith("run")
