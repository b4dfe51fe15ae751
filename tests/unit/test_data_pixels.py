"""Pixel formats of image files."""

import numpy as np
import pytest
from data_sets import check_samples, opened, pixels
from PIL import Image, ImageOps

from difformer.data import ImageError, as_rgb, read_image


class TestPixelFormats:
    def saved(self, tmp_path, name, image, **options):
        path = tmp_path / f"train/a/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        return path

    def test_grey_and_transparent_images_become_rgb(self, tmp_path):
        for i, mode in enumerate(("L", "RGBA", "P", "CMYK", "1", "LA")):
            suffix = "jpg" if mode == "CMYK" else "png"
            self.saved(tmp_path, f"{i}.{suffix}", Image.fromarray(pixels(i)).convert(mode))
        check_samples(opened("folder", tmp_path, "train"))

    @pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
    @pytest.mark.parametrize("order", ["<u2", ">u2"])
    def test_sixteen_bits_keep_the_upper_eight(self, tmp_path, suffix, order):
        deep = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
        path = tmp_path / f"x.{suffix}"
        if suffix == "pgm":
            path.write_bytes(b"P5 32 32 65535\n" + deep.astype(">u2").tobytes())
        else:
            Image.fromarray(deep.astype(order)).save(path)
        grey = np.asarray(read_image(path))
        assert np.array_equal(grey, np.repeat((deep >> 8)[..., None], 3, axis=2))

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_pixels_without_a_known_range_are_refused(self, tmp_path, dtype):
        self.saved(tmp_path, "x.tif", Image.fromarray(np.ones((8, 8), dtype)))
        with pytest.raises(ImageError, match=r"x\.tif .* have no known range"):
            opened("folder", tmp_path, "train")

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turned_as_pillow_does(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = self.saved(tmp_path, "x.png", Image.fromarray(pixels(0)), exif=exif)
        with Image.open(path) as image:
            assert np.array_equal(read_image(path), ImageOps.exif_transpose(image))

    @pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.webp"])
    def test_what_is_upright_is_not_turned_again(self, tmp_path, name):
        exif = Image.Exif()
        exif[0x0112] = 6
        upright = read_image(self.saved(tmp_path, name, Image.fromarray(pixels(0)), exif=exif))
        assert upright.size == (24, 30)
        assert np.array_equal(as_rgb(upright), upright)

    def test_a_damaged_exif_block_spoils_no_image(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        exif[0x011A] = 72.0
        damaged = bytearray(exif.tobytes())
        # The resolution is a fraction; its type becomes that of bytes.
        damaged[damaged.index(b"\x01\x1a\x00\x05") + 3] = 1
        path = self.saved(tmp_path, "x.jpg", Image.fromarray(pixels(0)), exif=bytes(damaged))
        assert read_image(path).size == (24, 30)
