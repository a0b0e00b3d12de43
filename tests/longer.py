"""Which of many cases run by default: the rest is marked exhaustive, see pyproject.toml."""

import pytest


def longer(*cases):
    """Cases that only ``make test-all`` runs."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.exhaustive)
        for case in cases
    ]


def some(cases, chosen):
    """All cases, of which only those ``chosen`` by name run by default."""
    return [case if case in chosen else longer(case)[0] for case in cases]
