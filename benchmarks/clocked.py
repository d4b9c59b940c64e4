"""Where the time within a traced half of a product goes."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import fx


class Clocked(fx.Interpreter):
    """Runs a half and adds up what its nodes take.

    Args:
        half: the graph.
        kind_of: what a node's time counts into.
        clock: seconds, of the processor or of the wall.

    Attributes:
        seconds: by kind.
    """

    def __init__(self, half: fx.GraphModule, kind_of: Callable[[fx.Node], str], clock: Callable[[], float]) -> None:
        super().__init__(half)
        self._kind_of, self._clock = kind_of, clock
        self.seconds: dict[str, float] = defaultdict(float)

    def run_node(self, n: fx.Node) -> Any:
        started = self._clock()
        found = super().run_node(n)
        if n.op == "call_function":
            self.seconds[self._kind_of(n)] += self._clock() - started
        return found
