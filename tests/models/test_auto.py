"""What transformers calls by another name from release to release."""

from __future__ import annotations

import pytest

from pad_fast.models.auto import recompute_activations


class Named:
    """A model that has the methods of one release."""

    def __init__(self, *kinds: str) -> None:
        self.called: list[str] = []
        for kind in kinds:
            for word in ("enable", "disable"):
                name = f"{kind}_checkpointing_{word}"
                setattr(self, name, lambda name=name: self.called.append(name))


@pytest.mark.parametrize(
    ("kinds", "called"),
    [
        (("activation",), "activation"),
        (("gradient",), "gradient"),
        (("gradient", "activation"), "activation"),  # the old name warns
    ],
)
def test_activations_are_recomputed_by_the_name_that_there_is(kinds, called):
    model = Named(*kinds)
    recompute_activations(model)
    recompute_activations(model, False)
    assert model.called == [f"{called}_checkpointing_enable", f"{called}_checkpointing_disable"]
