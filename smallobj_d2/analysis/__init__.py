"""Section 3 of the paper for any dataset: Table 2, pictures, and advice.

From the bottom up: `objects` and `coco_file` (a dataset as arrays), `protocols` and `matching`
(anchors), `table2`, `presented` (what a config's draws show), `advice`, `figures`; `analyze` counts
all of it, and `report` tells it.
"""
