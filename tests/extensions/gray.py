"""A mapper: the model sees gray images."""

from smallobj_d2.engines.torchvision import MAPPERS, SmallObjectMapper


@MAPPERS.register()  # SMALLOBJ.MAPPER: "Gray"
class Gray(SmallObjectMapper):
    """For Detectron2, import both names from smallobj_d2.engines.detectron2."""

    def __call__(self, record):
        sample = super().__call__(record)
        image = sample["image"]
        sample["image"] = image.float().mean(0).to(image.dtype).expand_as(image).contiguous()
        return sample
