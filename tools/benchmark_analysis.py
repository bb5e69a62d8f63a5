#!/usr/bin/env python3
"""Time and memory of Table 2 at the size of COCO, and the ratio to brute force.

tools/benchmark_analysis.py coco_2017_train
tools/benchmark_analysis.py --json annotations.json --num-images 5000 --annotations 36781
"""

import argparse
import sys
import tempfile
from pathlib import Path

import _path

from smallobj_d2.analysis.benchmark import benchmark, write_resampled
from smallobj_d2.analysis.coco_file import CocoFile
from smallobj_d2.analysis.protocols import training_protocol
from smallobj_d2.coco import dataset_info
from smallobj_d2.config import load_cfg
from smallobj_d2.errors import SmallObjError

BASE = _path.ROOT / "configs" / "base.yaml"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", default="coco_2017_train", help="to resample from")
    parser.add_argument("--json", metavar="FILE", help="COCO annotations to resample from instead")
    parser.add_argument("--config-file", "--config", metavar="FILE", default=BASE)
    parser.add_argument("--num-images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--sample", type=int, default=40, help="images to measure brute force on")
    args = parser.parse_args(argv)
    try:
        json_file = Path(args.json) if args.json else dataset_info(args.dataset).json_file
        training = training_protocol(load_cfg(args.config_file))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "resampled.json"
            source = CocoFile(json_file, json_file.parent)
            write_resampled(source, path, args.num_images, args.annotations)
            benchmark(path, training, sample=args.sample)
    except SmallObjError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
