"""Label photographs with an exported classifier: python onnx_predict.py student.onnx photo.jpg …

Needs onnxruntime, numpy and pillow, and nothing of Coterie: all the rest is in the file.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read_pixels(path, side):
    """The whole picture, upright, as RGB: uint8 [3, side, side]."""
    with Image.open(path) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def main(model, *photos):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["coterie"])
    for photo in photos:  # one by one; a batch of any size works too
        pixels = read_pixels(photo, about["image_size"])[None]
        scores, labels = session.run(["scores", "labels"], {"pixels": pixels})
        for number in np.argsort(-scores[0]):
            if labels[0, number]:
                print(f"{photo}\t{about['class_names'][number]}\t{scores[0, number]:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
