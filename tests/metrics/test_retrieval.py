"""Recall among the first k and the median rank."""

import numpy as np
import pytest

from keras_vqdit.metrics import median_rank, recall_at_k, retrieval_ranks

SCORES = np.array([[0.9, 0.1, 0.3, 0.2], [0.8, 0.4, 0.6, 0.1], [0.1, 0.2, 0.3, 0.4]])


def test_ranks_count_the_better_candidates():
    np.testing.assert_array_equal(retrieval_ranks(SCORES), [1, 3, 2])
    np.testing.assert_array_equal(retrieval_ranks(SCORES, [3, 3, 3]), [3, 4, 1])
    assert [recall_at_k(SCORES, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert median_rank(SCORES) == 2.0


def test_the_best_of_several_right_candidates_counts():
    several = [[1, 2], [1], [0, 1, 2]]
    mask = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0]], bool)
    for targets in (several, mask):
        np.testing.assert_array_equal(retrieval_ranks(SCORES, targets), [2, 3, 2])


def test_scores_that_tell_nothing_find_nothing():
    same = np.zeros((5, 5), "int64")
    np.testing.assert_array_equal(retrieval_ranks(same), 5)
    assert recall_at_k(same, 4) == 0.0 and recall_at_k(same, 5) == 1.0
    # Right candidates do not stand in each other's way.
    np.testing.assert_array_equal(retrieval_ranks(same, np.ones((5, 5), bool)), 1)


def test_infinite_scores_are_scores():
    np.testing.assert_array_equal(retrieval_ranks([[-np.inf, -np.inf], [np.inf, 0.0]]), [2, 2])


def test_recall_of_random_scores_is_chance():
    scores = np.random.default_rng(0).normal(size=(2000, 20))
    targets = np.random.default_rng(1).integers(0, 20, 2000)
    # Standard deviation √(0.25·0.75/2000) = 0.0097; four of them.
    np.testing.assert_allclose(recall_at_k(scores, 5, targets), 0.25, atol=0.039)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros(3), 1), r"`scores` must be numbers \(queries, candidates\)"),
        ((np.full((2, 2), np.nan), 1), "must not hold NaN. Received: 4"),
        ((SCORES, 0), "`k` must be a positive integer"),
        ((SCORES.T, 1), "`targets` must be given for more queries"),
        ((SCORES, 1, [0, 1]), "one entry for each of 3 queries. Received: 2"),
        ((SCORES, 1, 5), "one entry for each of 3 queries. Received: 5"),
        ((SCORES, 1, [0, 1, 4]), "integers from 0 to 3. Received: 4 for query 2"),
        ((SCORES, 1, [0, 1, -1]), "integers from 0 to 3"),
        ((SCORES, 1, [0, 1, 0.5]), "integers from 0 to 3"),
        ((SCORES, 1, [[0], [], [1]]), "at least one candidate a query. Received: none for query 1"),
        ((SCORES, 1, np.zeros((3, 3), bool)), "of bools must be of shape"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(*arguments)
