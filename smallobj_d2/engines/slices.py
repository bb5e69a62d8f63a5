"""Large images in slices, through SAHI (https://github.com/obss/sahi), which is optional.

SAHI keeps masks as polygons through the centres of their outermost pixels, which takes a pixel off
the width and the height of every object, much for a small one. `SahiModel` gives it outlines along
the edges of the pixels, which are the masks exactly; holes are filled.
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from sahi.models.base import DetectionModel
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction
from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list

from smallobj_d2.datasets.images import Pixels
from smallobj_d2.engines.predictions import Predict, Result, TrainedRun
from smallobj_d2.errors import SmallObjError
from smallobj_d2.masks.outlines import outline_of


class SahiModel(DetectionModel):
    """A trained run as a model of SAHI, for its ``get_sliced_prediction`` and the like.

    Args:
        run: what `smallobj_d2.engines.predictions.load_run` gives.
        score: leave out detections below.

    Attributes:
        numbers: SAHI's id by category id. SAHI takes only numbers; strings are counted from 1.
    """

    def __init__(self, run: TrainedRun, score: float = 0.5) -> None:
        counted = enumerate(run.categories, 1)
        self.numbers = {i: i if isinstance(i, int) else number for number, i in counted}
        super().__init__(
            model=run,
            device=run.cfg.MODEL.DEVICE,
            confidence_threshold=score,
            category_mapping={str(self.numbers[i]): name for i, name in run.categories.items()},
        )

    def set_model(self, model: Any, **_: Any) -> None:
        """Take the run."""
        self.model = model

    def perform_inference(self, image: NDArray[Any]) -> None:
        """Look at one image, (H, W, 3) RGB."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[NDArray[Any]]) -> None:
        """Look at several at a time."""
        self._original_predictions = self.model(images, self.confidence_threshold)

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        shifts = fix_shift_amount_list(shift_amount_list or [0, 0])
        shapes: list[Any] = fix_full_shape_list(full_shape_list) or [None]
        everything = zip(self._original_predictions, shifts, shapes, strict=True)
        self._object_prediction_list_per_image = [
            [p for r in results if (p := self._prediction(r, shift, shape))]
            for results, shift, shape in everything
        ]

    def _prediction(self, result: Result, shift: Any, shape: Any) -> ObjectPrediction | None:
        x, y, width, height = result["bbox"]
        mask = result.get("segmentation")
        outline = outline_of(mask) if mask else None
        if outline == []:  # a mask without a pixel
            return None
        return ObjectPrediction(
            bbox=[x, y, x + width, y + height],
            category_id=self.numbers[result["category_id"]],
            category_name=self.model.categories[result["category_id"]],
            segmentation=outline,
            score=result["score"],
            shift_amount=shift,
            full_shape=shape or (mask and mask["size"]),
        )


def in_slices(
    run: TrainedRun, size: int, *, overlap: float = 0.2, score: float = 0.5, batch: int = 1
) -> Predict:
    """Detections in large images: in slices and in the whole image, each object once.

    Of detections of one class that overlap by half of the smaller box, the best is kept. SAHI's own
    default joins their masks; so a small object gets the coarse mask that the whole image gave it.

    Args:
        run: what looks at them.
        size: width and height of a slice, in pixels of the image.
        overlap: of neighboring slices, as a share of `size`; objects up to that size are whole in
            one of them.
        score: leave out detections below.
        batch: slices that the model takes at a time.
    """
    if size < 1 or not 0 <= overlap < 1:
        raise SmallObjError(
            f"--slices {size} --overlap {overlap}: a slice is one pixel or more, and the overlap a "
            "share from 0 to below 1."
        )
    model = SahiModel(run, score)
    ids = {number: i for i, number in model.numbers.items()}

    def predict(images: Sequence[Pixels]) -> list[list[Result]]:
        return [
            [
                {"category_id": ids[p.category.id], **_as_result(p)}
                for p in get_sliced_prediction(
                    image,
                    model,
                    slice_height=size,
                    slice_width=size,
                    overlap_height_ratio=overlap,
                    overlap_width_ratio=overlap,
                    perform_standard_pred=True,
                    postprocess_type="NMS",
                    postprocess_match_metric="IOS",
                    batch_size=batch,
                    verbose=0,
                ).object_prediction_list
            ]
            for image in images
        ]

    return predict


def _as_result(prediction: ObjectPrediction) -> Result:
    result: Result = {
        "bbox": [float(v) for v in prediction.bbox.to_xywh()],
        "score": float(prediction.score.value),
    }
    if prediction.mask is not None:
        height, width = prediction.mask.full_shape
        polygons = [p for p in prediction.mask.segmentation if len(p) >= 6]
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        result["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}
    return result
