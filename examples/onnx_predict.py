"""Label photographs with an exported classifier: python onnx_predict.py student.onnx photo.jpg …

Needs onnxruntime, numpy and pillow, and nothing of Coterie: all the rest is in the file.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read_pixels(path, side):
    """The whole picture, upright, as RGB: uint8 [side, side, 3]."""
    with Image.open(path) as image:
        picture = ImageOps.exif_transpose(image)
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip and not scale
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def main(model, *photos):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["coterie"])
    for photo in photos:  # one by one; a batch of any size works too
        try:
            pixels = read_pixels(photo, about["image_size"]).transpose(2, 0, 1)[None]
        except Exception as error:  # of a damaged file, a decoder may raise anything
            sys.exit(f"{photo} cannot be read: {error}")
        scores, labels = session.run(["scores", "labels"], {"pixels": pixels})
        for number in np.argsort(-scores[0]):
            if labels[0, number]:
                print(f"{photo}\t{about['class_names'][number]}\t{scores[0, number]:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
