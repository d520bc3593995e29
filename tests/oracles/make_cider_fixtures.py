"""Write what pycocoevalcap's Cider gives for some captions, for the tests of `metrics.cider`.

Run in an environment with pycocoevalcap: `python tests/oracles/make_cider_fixtures.py`.
"""

import json
from pathlib import Path

from pycocoevalcap.cider.cider import Cider

FOLDER = Path(__file__).parent / "fixtures"

# Of words and spaces alone, for Cider takes captions that are cut into words. Every case is (candidate, references).
CORPORA = {
    "one_reference": [
        ("a red heart on a white ground", ["a red heart"]),
        ("a black cat sleeps in the snow", ["a black cat in the deep snow"]),
        ("the the the the dog", ["the dog runs after the ball on the grass"]),
        ("two boats", ["a house by the sea"]),
    ],
    "many_references": [
        (
            "a man rides a horse on the beach",
            ["a man on a horse", "a person rides a brown horse along the sea", "a horse"],
        ),
        ("two girls play in the park", ["two girls play in a park", "children play"]),
        ("a dog", ["the brown dog jumps over a fence", "a dog jumps very high over a wooden fence in the garden"]),
        ("", ["nobody is here", "an empty street"]),
        ("a man plays the guitar on the stage", ["a man plays the guitar on the stage", "musician with guitar"]),
    ],
    "alike": [("a digit", ["a digit"]), ("a digit", ["a digit"])],
    "chinese": [("红 色 的 心", ["一 颗 红 心", "红 色 的 心 形"]), ("黑 猫", ["一 只 黑 猫 在 雪 里"])],
}

if __name__ == "__main__":
    fixtures = {}
    for name, corpus in CORPORA.items():
        score, scores = Cider().compute_score(
            {i: references for i, (_, references) in enumerate(corpus)}, {i: [c] for i, (c, _) in enumerate(corpus)}
        )
        fixtures[name] = {
            "candidates": [candidate for candidate, _ in corpus],
            "references": [references for _, references in corpus],
            "score": float(score),
            "scores": [float(s) for s in scores],
        }
    text = json.dumps(fixtures, ensure_ascii=False, indent=1)
    (FOLDER / "cider.json").write_text(text + "\n", encoding="utf-8")
