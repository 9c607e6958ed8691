"""The rule table. The first letter says Scale, the second of what: C configuration, O optimizer and precision, Z ZeRO
and offload, P parallelism, K checkpoints, M experts."""

from scaling.ds_config.check.rule import Rule
from scaling.ds_config.check.rules import batch, data, keys, optimizer, parallel, precision, scheduler, zero

RULES: dict[str, Rule] = {
    rule.id: rule
    for rule in sorted(
        (
            *keys.RULES, *batch.RULES, *precision.RULES, *optimizer.RULES, *scheduler.RULES, *zero.RULES,
            *parallel.RULES, *data.RULES,
        ),
        key=lambda rule: rule.id,
    )
}  # fmt: skip
