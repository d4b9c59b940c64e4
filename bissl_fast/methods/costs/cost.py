"""What making a backbone costs, so that arms can be compared at equal budget."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Work of all stages up to a backbone. Fine-tuning, which is alike for all arms, is not in it.

    Attributes:
        images: that went through a forward and a backward pass; all views of one together count once.
        passes: forward-backward passes of a batch.
        products: second-order products of a batch through the network; those of a head alone see features and no image.
    """

    images: int = 0
    passes: int = 0
    products: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.images + other.images, self.passes + other.passes, self.products + other.products)

    def told(self, unlabelled: int) -> dict[str, float]:
        """As `results.json` has it, with `model_epochs`: images over those of the unlabelled set."""
        return {**vars(self), "model_epochs": self.images / unlabelled}


def steps_cost(steps: int, batch_size: int) -> Cost:
    """Of steps with one pass each."""
    return Cost(steps * batch_size, steps)
