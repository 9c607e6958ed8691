"""The data-efficiency block: what has to stand beside what is switched on."""

from collections.abc import Callable, Iterator

from scaling.ds_config.check.outcome import AT_START
from scaling.ds_config.check.rule import Hit, Rule
from scaling.ds_config.check.view import View

_SAMPLING = ("data_efficiency", "data_sampling")


def _without(block: str, needs: str, like: str) -> Callable[[View], Iterator[Hit]]:
    def find(view: View) -> Iterator[Hit]:
        path = (*_SAMPLING, block)
        where = ".".join(path)
        # DeepSpeed asks whether it is true, not whether it is True.
        if view.raw(f"{where}.enabled") and view.says(f"{where}.enabled") and not view.says(f"{where}.{needs}"):
            yield Hit(path=(*path, "enabled"), says=f"{block} is enabled without {needs}", mend=f'"{needs}": {like}')

    return find


_SOURCE = "runtime/data_pipeline/config.py"

RULES = (
    Rule(
        id="SC045", title="curriculum learning without its metrics", outcome=AT_START,
        does="AssertionError: curriculum_metrics must be specified",
        find=_without("curriculum_learning", "curriculum_metrics", "{...}"),
        source=f"{_SOURCE}:get_curriculum_learning",
        mend='"curriculum_metrics": {...}',
    ),
    Rule(
        id="SC046", title="dynamic batching without max_tokens", outcome=AT_START, since="0.16.5",
        does="AssertionError: max_tokens must be specified",
        find=_without("dynamic_batching", "max_tokens", "8192, or another number"),
        source=f"{_SOURCE}:get_dynamic_batching",
        mend='"max_tokens": a number',
    ),
)  # fmt: skip
