"""Scores of protocols, one per arm and run, stand in the table beside fine-tuning's, and no test is made of them."""

from bissl_fast.evaluation.protocols import Score
from bissl_fast.evaluation.results import Results
from bissl_fast.evaluation.table import results_table, scores_grid
from bissl_fast.evaluation.verdict import verdict

ARMS = {
    "bissl": {"scores": {"top1": [52.0, 52.6], "linear_top1": [40.1], "knn_top1": [33.0], "fewshot_5w1s": [61.5]}},
    "baseline": {"scores": {"top1": [49.1, 49.9], "linear_top1": [42.0], "knn_top1": [30.0], "fewshot_5w1s": [60.0]}},
}


def results() -> Results:
    return Results.from_json({"dataset": "dtd", "classes": 47, "arms": ARMS})


def test_each_has_a_row_and_one_sentence_says_why_there_is_no_p() -> None:
    text = results_table(results()).to_markdown()
    assert "| Linear top-1 | 40.1 | 42.0 | −1.9 | — |" in text
    assert "| k-NN top-1 | 33.0 | 30.0 | +3.0 | — |" in text
    reason = "Linear top-1, k-NN top-1 and 5-way 1-shot: one seed has no spread, so no test can be made."
    assert reason in text
    assert text.count("has no spread") == 1
    assert "brackets" not in text  # two seeds have no interval that the caption would speak of


def test_arms_are_judged_by_fine_tuning() -> None:
    assert results().metrics[0].key == "top1"
    assert "top-1 accuracy" in verdict(results())
    assert "linear" not in verdict(results())


def test_arms_that_were_not_fine_tuned_are_judged_by_the_first_protocol() -> None:
    arms = {name: {"scores": {"knn_top1": [value]}} for name, value in (("gessl", 31.0), ("baseline", 30.0))}
    found = verdict(Results.from_json({"dataset": "dtd", "classes": 47, "arms": arms}))
    assert "top-1 accuracy of nearest neighbours" in found


def test_a_grid_of_scores_has_a_row_per_score_and_a_column_per_backbone() -> None:
    found = {
        "baseline": {"fewshot_5w1s": Score(50.04, 0.86), "fewshot_7w2s": Score(3.0, 0.1)},
        "mine": {"fewshot_5w1s": Score(70.0, 0.5), "fewshot_7w2s": Score(4.0, 0.2)},
    }
    text = scores_grid("omniglot-fewshot", found).to_markdown()
    assert "| Test score (%) | Only FT | mine |" in text
    assert "| 5-way 1-shot | 50.0 ± 0.9 | 70.0 ± 0.5 |" in text
    assert "| fewshot 7w2s | 3.0 ± 0.1 | 4.0 ± 0.2 |" in text
    assert "mean ± 95 % interval over the episodes" in text
