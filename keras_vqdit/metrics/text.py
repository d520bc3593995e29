"""How close captions are to those that people wrote, BLEU, ROUGE-L and CIDEr; and nats as bits."""

import importlib.util
import math
import re
import unicodedata
from collections import Counter

import numpy as np

from keras_vqdit.checks import number, positive_integer

# Scripts without spaces between words: ideographs, and the syllables of Japanese.
ALONE = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
TOKENS = re.compile(rf"[{ALONE}]|[^\W_{ALONE}]+(?:['\u2019][^\W_{ALONE}]+)*")


def bits_per_token(nats):
    """A mean loss in nats as bits: divided by ln 2.

    Args:
        nats: number or array; the mean cross-entropy of a token, or a bound on it.

    Returns:
        The same in bits, a float or an array. 2 to the power of it is the perplexity.

    Example:

    >>> round(bits_per_token(math.log(27)), 3)  # of 27 letters, all equally likely
    4.755
    """
    bits = np.asarray(nats, "float64") / math.log(2.0)
    return float(bits) if bits.ndim == 0 else bits


def caption_tokens(text):
    """The words of a caption in small letters, without punctuation, as all scores of captions count them.

    Chinese and Japanese put no spaces between words: there each character counts as a word. All other scripts go by words;
    numbers are words.

    Args:
        text: `str`.

    Returns:
        List of `str`.

    Example:

    >>> caption_tokens("The digit 7, drawn quickly.")
    ['the', 'digit', '7', 'drawn', 'quickly']
    >>> caption_tokens("数字7。")
    ['数', '字', '7']
    """
    return TOKENS.findall(unicodedata.normalize("NFKC", text).lower())


def caption_scores(candidates, references):
    """BLEU, ROUGE-L and CIDEr of captions, over one tokenization, `caption_tokens`.

    Args:
        candidates: list of N captions.
        references: list of N lists of captions, at least one each, to compare them with.

    Returns:
        Dict of floats:

        - "bleu", from 0 to 100: the precision of phrases of up to 4 words over the whole corpus, by sacrebleu (smoothing
          "exp"). Lengths that no candidate has do not count, so that short captions can be right.
        - "rouge_l", from 0 to 1: the F-measure with the best reference of each, by rouge-score, and their mean.
        - "cider", from 0 to 10: `cider`.

    Raises:
        ValueError: if there are not as many candidates as lists of references, or none.
        TypeError: if they are no texts.
        ImportError: if sacrebleu or rouge-score is not installed.

    Example:
        ```python
        scores = caption_scores(["a red heart", "a blue cat"], [["a red heart"], ["the cat is blue", "a blue cat"]])
        scores["bleu"], scores["rouge_l"], scores["cider"]
        ```

    References:
        - [BLEU](https://aclanthology.org/P02-1040)
        - [A Call for Clarity in Reporting BLEU Scores](https://arxiv.org/abs/1804.08771)
        - [ROUGE](https://aclanthology.org/W04-1013)
        - [CIDEr](https://arxiv.org/abs/1411.5726)
    """
    sacrebleu, rouge_scorer = _libraries()
    hypotheses, several = _tokenized(candidates, references)
    hypotheses = [" ".join(words) for words in hypotheses]
    several = [[" ".join(words) for words in group] for group in several]

    # sacrebleu takes streams, each with one reference of every candidate; None where there are fewer.
    streams = [[group[i] if i < len(group) else None for group in several] for i in range(max(map(len, several)))]
    score = sacrebleu.corpus_bleu(hypotheses, streams, tokenize="none", force=True, use_effective_order=True).score
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Spaces())
    overlaps = [scorer.score_multi(group, words)["rougeL"].fmeasure for words, group in zip(hypotheses, several)]
    return {"bleu": float(score), "rouge_l": float(np.mean(overlaps)), "cider": cider(candidates, references)}


def cider(candidates, references, *, max_length=4, sigma=6.0):
    """CIDEr-D of captions: how alike they are in the phrases that tell one example from another.

    Phrases of n words are counted and weighted by ln(N / d), d being the number of the N examples with the phrase in a
    reference. With these vectors c and r, cut off where a candidate repeats a phrase, the score is the mean over references
    and n of 10·exp(−Δ²/2σ²)·Σ min(c, r)·r / (‖c‖·‖r‖), with Δ the difference in length. It depends on the whole corpus, and is 0
    for a corpus of one.

    Args:
        candidates: list of N captions.
        references: list of N lists of captions, at least one each.
        max_length: longest phrase, default 4 words.
        sigma: difference in length that costs 39 %, default 6 words.

    Returns:
        float from 0 to 10, the mean over the candidates, as the COCO evaluation computes it. Papers often print 100 times as
        much.

    Raises:
        ValueError: if there are not as many candidates as lists of references, or none.
        TypeError: if they are no texts.

    Example:

    >>> captions = ["a red heart on white", "two black cats in snow"]
    >>> round(cider(captions, [[caption] for caption in captions]), 6)
    10.0

    References:
        - [CIDEr: Consensus-based Image Description Evaluation](https://arxiv.org/abs/1411.5726), section 5
    """
    max_length = positive_integer("max_length", max_length)
    sigma = number("sigma", sigma, above=0)
    hypotheses, several = _tokenized(candidates, references)
    candidate_counts = [_phrases(words, max_length) for words in hypotheses]
    reference_counts = [[_phrases(words, max_length) for words in group] for group in several]
    documents = Counter(phrase for group in reference_counts for phrase in set().union(*group))
    everywhere = math.log(len(hypotheses))

    def vectors(counts):
        """One `{phrase: weight}` for each length."""
        by_length = [{} for _ in range(max_length)]
        for phrase, count in counts.items():
            by_length[len(phrase) - 1][phrase] = count * (everywhere - math.log(max(documents[phrase], 1)))
        return by_length

    def similarity(i, j):
        """Of candidate i and its reference j."""
        cosines = []
        for c, r in zip(vectors(candidate_counts[i]), vectors(reference_counts[i][j])):
            norms = math.hypot(*c.values()) * math.hypot(*r.values())
            product = sum(min(weight, r[phrase]) * r[phrase] for phrase, weight in c.items() if phrase in r)
            cosines.append(product / norms if norms else 0.0)
        difference = len(hypotheses[i]) - len(several[i][j])
        return math.exp(-(difference**2) / (2.0 * sigma**2)) * np.mean(cosines)

    scores = [np.mean([similarity(i, j) for j in range(len(group))]) for i, group in enumerate(several)]
    return 10.0 * float(np.mean(scores))


def _tokenized(candidates, references):
    """The words of each candidate, and of each reference of each."""
    for name, values in (("candidates", candidates), ("references", references)):
        if isinstance(values, (str, bytes)):
            raise TypeError(f"`{name}` must be a list. Received: {values!r}")
    candidates, references = (
        list(candidates),
        [group if isinstance(group, (str, bytes)) else list(group) for group in references],
    )
    if len(candidates) != len(references) or not candidates:
        raise ValueError(
            "`candidates` and `references` must be of one length, at least 1. "
            f"Received: {len(candidates)} and {len(references)}"
        )
    for i, (candidate, group) in enumerate(zip(candidates, references)):
        if isinstance(group, (str, bytes)):
            raise TypeError(f"`references` must be a list of lists of captions. Received: {group!r} for candidate {i}")
        if not group:
            raise ValueError(f"`references` must hold at least one caption each. Received: none for candidate {i}")
        for text in (candidate, *group):
            if not isinstance(text, str):
                raise TypeError(f"Captions must be str. Received: {text!r} of type {type(text).__name__}")
    return [caption_tokens(c) for c in candidates], [[caption_tokens(r) for r in group] for group in references]


def _phrases(words, max_length):
    """How often each phrase of 1 to `max_length` words occurs."""
    return Counter(
        tuple(words[i : i + length]) for length in range(1, max_length + 1) for i in range(len(words) - length + 1)
    )


class _Spaces:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text):
        return text.split()


def _libraries():
    if not (importlib.util.find_spec("sacrebleu") and importlib.util.find_spec("rouge_score")):
        raise ImportError(
            'Captions are scored by sacrebleu and rouge-score. Install them by: pip install "keras_vqdit[text]"'
        )
    import sacrebleu
    from rouge_score import rouge_scorer

    return sacrebleu, rouge_scorer
