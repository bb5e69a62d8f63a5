"""How many small objects may be copied, by each criterion; the figures of docs/review/fidelity.md.

DETECTRON2_DATASETS=datasets python -m proofs.sources --dataset coco_2017_train
"""

import numpy as np

from smallobj_d2.commands import CommandLine
from smallobj_d2.copy_paste import SourceRule
from smallobj_d2.copy_paste.scene import Scene
from smallobj_d2.datasets.coco import load_dataset
from smallobj_d2.sizes import is_small

RULES = {
    "one connected piece": SourceRule(inside=False, max_covered=1),
    "not cut off by the border": SourceRule(connected=False, max_covered=1),
    "covered by a tenth at most": SourceRule(connected=False, inside=False),
    "not covered at all": SourceRule(connected=False, inside=False, max_covered=0),
    "all three criteria": SourceRule(),
}


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("--dataset", default="coco_2017_train", metavar="NAME")
    args = parser.parse_args()
    rows = []
    for record in load_dataset(args.dataset).records:
        small = sum(is_small(a) and a["area"] > 0 for a in record["annotations"])
        if small:
            scene = Scene(record["annotations"], record["height"], record["width"])
            rows.append([small, *(len(rule.candidates(scene)) for rule in RULES.values())])
    counts = np.array(rows)
    # Objects of one image are alike, so images are resampled, not objects.
    resampled = counts[np.random.default_rng(0).integers(len(rows), size=(10_000, len(rows)))]
    sums = resampled.sum(axis=1)
    print(f"{len(rows)} small-object images with {counts[:, 0].sum()} small objects, 95% intervals")
    for k, name in enumerate(RULES, 1):
        shares = sums[:, k] / sums[:, 0]
        print(_line(name, counts[:, k].sum() / counts[:, 0].sum(), shares))
    none = (resampled[:, :, -1] == 0).mean(axis=1)
    print(_line("images without any", (counts[:, -1] == 0).mean(), none))


def _line(name: str, share: float, resampled: np.ndarray) -> str:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return f"{name:28} {share:.0%} ({low:.0%} to {high:.0%})"


if __name__ == "__main__":
    main()
