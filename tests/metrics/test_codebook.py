"""Usage and perplexity are those of the whole epoch."""

import keras
import numpy as np
import pytest

from keras_vqdit.metrics.codebook import CodebookPerplexity, CodebookUsage

BATCHES = np.array([[3, 0, 1, 0, 0, 9], [0, 0, 2, 0, 5, 1], [1, 0, 0, 0, 0, 0]], "float32")


def epoch(metric, batches=BATCHES):
    for counts in batches:
        metric.update_state(counts)
    return float(metric.result())


def test_usage_is_that_of_all_batches_together():
    assert epoch(CodebookUsage(6)) == pytest.approx(4 / 6)  # the batches alone: 3/6, 3/6, 1/6


def test_perplexity_is_that_of_all_batches_together():
    p = BATCHES.astype("float64").sum(axis=0) / BATCHES.sum()
    assert epoch(CodebookPerplexity(6)) == pytest.approx(np.exp(-np.sum(p * np.log(p + 1e-10))), rel=1e-5)


@pytest.mark.parametrize("used", [1, 7, 64])
def test_perplexity_of_equally_frequent_codes_is_their_number(used):
    counts = np.where(np.arange(64) < used, 1e4, 0.0)
    assert epoch(CodebookPerplexity(64), [counts]) == pytest.approx(used, rel=1e-4)


@pytest.mark.parametrize("metric", [CodebookUsage, CodebookPerplexity])
def test_nothing_seen_is_zero_and_reset_forgets(metric):
    metric = metric(6)
    assert float(metric.result()) == 0.0
    epoch(metric)
    metric.reset_state()
    assert float(metric.result()) == 0.0


@pytest.mark.parametrize("metric", [CodebookUsage, CodebookPerplexity])
def test_config(metric):
    clone = keras.metrics.deserialize(keras.metrics.serialize(metric(6, name="used")))
    assert type(clone) is metric and clone.num_embeddings == 6 and clone.name == "used"
    assert epoch(clone) == epoch(metric(6))


def test_counts_stay_exact_in_low_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        metric = CodebookPerplexity(2)
    finally:
        keras.config.set_dtype_policy("float32")
    assert epoch(metric, [[60_000.0, 60_001.0]] * 3) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("metric", [CodebookUsage, CodebookPerplexity])
def test_errors(metric):
    with pytest.raises(ValueError, match="`num_embeddings` must be a positive integer. Received: num_embeddings=0"):
        metric(0)
    with pytest.raises(ValueError, match=r"`counts` must be of shape \(6,\). Received: counts.shape=\(5,\)"):
        metric(6).update_state(np.zeros(5))
