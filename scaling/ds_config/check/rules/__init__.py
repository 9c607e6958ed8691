"""The rule table. The first letter says Scale, the second of what: C configuration, O optimizer and precision, Z ZeRO
and offload, P parallelism, M experts."""

from scaling.ds_config.check.rule import Rule
from scaling.ds_config.check.rules import (
    batch,
    data,
    keys,
    optimizer,
    parallel,
    precision,
    scheduler,
    syntax,
    wrong_values,
    zero,
)  # fmt: skip

_SUBJECTS = (syntax, keys, wrong_values, batch, precision, optimizer, scheduler, zero, parallel, data)

RULES: dict[str, Rule] = {
    rule.id: rule
    for rule in sorted((rule for subject in _SUBJECTS for rule in subject.RULES), key=lambda rule: rule.id)
}
