"""Shapes of instances: polygons and run lengths, which the method and the datasets both use."""

import cv2

from smallobj_d2.errors import SmallObjError

if tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 10):
    raise SmallObjError(
        f"This is OpenCV {cv2.__version__}; before 4.10, its boxes of tiny masks can be wrong. "
        "Install 4.10 or newer."
    )
