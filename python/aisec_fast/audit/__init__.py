"""A one-run audit of a private training: a lower bound on epsilon, with its confidence. docs/audit.md has the proof.

    def train(attach):
        model, optimizer, loader = engine.make_private(...)
        attach(optimizer)
        ...  # the training loop

    print(audit.one_run(train, delta=1e-5))

_canaries  samples whose gradient is one coordinate of one parameter
_guests    the canaries in the training: who takes part, and what each release says of each
_bounds    from guesses to epsilon
_report    what is found
"""

from ._guests import GradientCanaries, one_run
from ._report import AuditReport

__all__ = ["AuditReport", "GradientCanaries", "one_run"]
