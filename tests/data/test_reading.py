"""What a file's pixels become: depth, transparency, rotation, colour spaces, ranges; and what is refused."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

import diffinf_lib as di
from diffinf_lib.data.reading import look_at_images, looked_at_before
from diffinf_lib.errors import ConfigurationError, DataError

RED_CORNER = np.array([[[255, 0, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60]]], dtype=np.uint8)


def read(folder, **options):
    return di.read_image_folder(folder, **options)


def pixel(folder, row=0, column=0, **options):
    """One pixel of the folder's first image, from 0 to 1, channel by channel."""
    return ((read(folder, **options).images.images[0, :, row, column].double() + 1) / 2).tolist()


def deep_png(path, array, colour_type):
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    encoded = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(encoded))


def test_eight_bits_are_read_as_they_always_were(tmp_path):
    Image.fromarray(RED_CORNER).save(tmp_path / "a.png")
    found = read(tmp_path)
    assert torch.equal(found.images.images[0], di.data.to_unit_range(torch.from_numpy(RED_CORNER)).permute(2, 0, 1))
    assert found.notes == () and found.images.images.dtype == torch.float32


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_of_grey_keep_their_depth(tmp_path, name):
    values = np.array([[0, 1, 257], [1000, 40_000, 65_535]], dtype=np.uint16)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 3 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    found = read(tmp_path).images
    torch.testing.assert_close(
        (found.images[0, 0].double() + 1) / 2, torch.from_numpy(values / 65_535), rtol=0, atol=1e-7
    )


def test_a_turned_image_of_sixteen_bits_keeps_both(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[0, 1000], [2000, 3000]], dtype=np.uint16)).save(tmp_path / "a.png", exif=exif)
    found = read(tmp_path).images.images[0, 0].double()
    expected = torch.tensor([[2000, 0], [3000, 1000]], dtype=torch.float64)  # a quarter turn clockwise
    torch.testing.assert_close((found + 1) / 2 * 65_535, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_of_colour_keep_their_depth(tmp_path, colour_type, channels):
    values = np.arange(4 * channels).reshape(2, 2, channels) * 4001
    deep_png(tmp_path / "a.png", values, colour_type)
    found = read(tmp_path)
    colour = values.astype(np.float64)
    if channels in (2, 4):
        alpha = colour[..., -1:] / 65_535
        colour = alpha * colour[..., :-1] + (1 - alpha) * 65_535
        assert "had transparency, laid on white" in found.notes[0]
    expected = torch.from_numpy(colour).permute(2, 0, 1) / 65_535
    torch.testing.assert_close((found.images.images[0].double() + 1) / 2, expected, rtol=0, atol=1e-6)


def test_twelve_bits_in_tiff_go_to_4095(tmp_path):
    """Two pixels, 4095 and 0, packed into three bytes; tags: size, bits, no compression, black is zero, one strip."""
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 110), (277, 1), (279, 3)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    start = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + b"\0" * 4
    assert len(start) == 110
    (tmp_path / "a.tif").write_bytes(start + bytes([0xFF, 0xF0, 0x00]))
    assert pixel(tmp_path, 0, 0) == pytest.approx([1.0], abs=1e-6) and pixel(tmp_path, 0, 1) == [0.0]


def test_a_tiff_whose_white_is_zero_is_inverted(tmp_path):
    for bits, kind, top in ((8, "B", 255), (16, "H", 65_535)):
        entries = [(256, 2), (257, 1), (258, bits), (259, 1), (262, 0), (273, 110), (277, 1), (279, bits // 4)]
        directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        start = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + b"\0" * 4
        (tmp_path / "a.tif").write_bytes(start + struct.pack(f"<2{kind}", 0, top))
        assert pixel(tmp_path, 0, 0) == [1.0] and pixel(tmp_path, 0, 1) == [0.0]


@pytest.mark.parametrize(("top", "kind"), [(1.0, "float32"), (255, "float32"), (255, "int32"), (65_535, "int32")])
def test_a_range_that_is_evident_is_used_and_said(tmp_path, top, kind):
    Image.fromarray(np.array([[0.5 * top, 0.2 * top]]).astype(kind)).save(tmp_path / "dark.tif")
    Image.fromarray(np.array([[0, 0.9 * top]]).astype(kind)).save(tmp_path / "light.tif")
    found = read(tmp_path)
    assert found.notes == (f"2 of 2 images state no range, read as 0…{top:g} (dark.tif, light.tif)",)
    assert pixel(tmp_path)[0] == pytest.approx(0.5, abs=0.5 / top if kind == "int32" else 1e-6)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([-1.0, 1.0], "float32", r"a\.tif: pixels from -1 to 1, and its format does not say what is white; scale"),
        ([0.0, 3.7], "float32", r"a\.tif: pixels from 0 to 3\.7, "),
        ([0.0, float("nan")], "float32", r"a\.tif: pixels from nan to nan, "),
        ([0, 100_000], "int32", r"a\.tif: pixels from 0 to 100000, "),
        ([0, 100], "int32", r"a\.tif: pixels from 0 to 100, "),
    ],
)
def test_a_range_that_is_not_evident_is_refused(tmp_path, values, kind, message):
    Image.fromarray(np.array([values], dtype=kind)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


def test_ranges_that_disagree_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 0.9]], dtype=np.float32)).save(tmp_path / "a.tif")
    Image.fromarray(np.array([[0, 200]], dtype=np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"a\.tif: pixels from 0 to 0\.9, .* \(b\.tif goes to 200\)"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["RGBA", "palette", "LA", "tRNS", "grey16"])
def test_transparent_pixels_are_laid_on_white(tmp_path, kind):
    path, channels = tmp_path / "a.png", 3 if kind in ("RGBA", "palette", "tRNS") else 1
    if kind == "RGBA":
        image = Image.fromarray(np.array([[[255, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8))
        image.save(path)
    elif kind == "palette":
        Image.fromarray(np.array([[[255, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)).quantize(2).save(path)
        assert Image.open(path).mode == "P"
    elif kind == "LA":
        Image.fromarray(np.array([[[9, 0], [0, 51]]], dtype=np.uint8), mode="LA").save(path)
    elif kind == "tRNS":
        Image.fromarray(np.array([[[255, 0, 0], [204, 204, 204]]], dtype=np.uint8)).save(path, transparency=(255, 0, 0))
    else:
        Image.fromarray(np.array([[500, 52_428]], dtype=np.uint16)).save(path, transparency=500)
    assert pixel(tmp_path) == pytest.approx([1.0] * channels) and pixel(tmp_path, 0, 1) == pytest.approx(
        [0.8] * channels
    )
    assert read(tmp_path).notes == ("1 of 1 images had transparency, laid on white (a.png)",)


def test_an_opaque_alpha_channel_changes_nothing(tmp_path):
    Image.fromarray(RED_CORNER).convert("RGBA").save(tmp_path / "a.png")
    found = read(tmp_path)
    assert found.notes == () and torch.equal(
        found.images.images[0], di.data.to_unit_range(torch.from_numpy(RED_CORNER)).permute(2, 0, 1)
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_carried_out(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter clockwise
    upright = Image.new("RGB", (16, 32), "black")
    upright.paste("white", (0, 0, 16, 16))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"a.{suffix}", exif=exif)
    found = read(tmp_path)
    assert found.images.shape == (3, 32, 16)
    assert found.images.images[0, :, :15].min() > 0.9 and found.images.images[0, :, 17:].max() < -0.9
    assert found.notes == (f"1 of 1 images were turned as their EXIF orientation says (a.{suffix})",)


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_the_first_of_several_frames_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black", "red")]
    extra = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **extra)
    assert read(tmp_path).notes == (f"1 of 1 images hold several frames or pages; the first is read (a.{suffix})",)
    assert set(pixel(tmp_path)) == {1.0}


def test_colour_spaces_become_rgb(tmp_path):
    cases = {
        "cmyk.jpg": (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), [0, 1, 1]),
        "cmyk.tif": (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), [0, 0, 0]),
        "lab.tif": (Image.new("LAB", (8, 8), (255, 128, 128)), [1, 1, 1]),
        "palette.gif": (Image.new("RGB", (8, 8), (255, 0, 0)).quantize(4), [1, 0, 0]),
        "ycbcr.jpg": (Image.new("YCbCr", (8, 8), (255, 128, 128)), [1, 1, 1]),
        "one-bit.png": (Image.new("1", (8, 8), 1), [1]),
        "one-bit.tif": (Image.new("1", (8, 8), 0), [0]),
        "grey.jpg": (Image.new("L", (8, 8), 255), [1]),
    }
    for name, (image, expected) in cases.items():
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        image.save(folder / name)
        assert pixel(folder) == pytest.approx(expected, abs=0.02), name


def test_colour_of_sixteen_bits_in_tiff_is_said_to_be_read_with_eight(tmp_path):
    entries = [(256, 1), (257, 1), (258, 0), (259, 1), (262, 2), (273, 0), (277, 3), (279, 6)]
    place = 8 + 2 + 12 * len(entries) + 4
    entries[5] = (273, place + 6)
    directory = b"".join(
        struct.pack("<HHII", tag, 3, 3, place) if tag == 258 else struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in entries
    )
    start = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + b"\0" * 4 + struct.pack("<3H", 16, 16, 16)
    (tmp_path / "a.tif").write_bytes(start + struct.pack("<3H", 65_535, 0x8000, 0))
    assert pixel(tmp_path) == pytest.approx([1, 0.5, 0], abs=0.005)
    assert "have 16 bits a colour in a form that is read with 8" in read(tmp_path).notes[0]


def test_channels_are_brought_to_the_number_asked_for(tmp_path):
    Image.fromarray(RED_CORNER).save(tmp_path / "a.png")
    Image.new("L", (2, 2), 51).save(tmp_path / "b.png")
    grey, colour = read(tmp_path, channels=1).images.images, read(tmp_path, channels=3).images.images
    assert grey.shape == (2, 1, 2, 2) and colour.shape == (2, 3, 2, 2)
    assert ((grey[0, 0, 0] + 1) / 2).tolist() == pytest.approx([0.299, 0.114], abs=1e-6)
    assert torch.equal(colour[1], grey[1].expand(3, 2, 2)) and torch.equal(read(tmp_path).images.images, colour)
    with pytest.raises(ConfigurationError, match="channels=4: give 1 for grey, or 3 for RGB"):
        read(tmp_path, channels=4)


def test_the_central_square_is_scaled_alike_at_every_depth(tmp_path):
    levels = np.random.default_rng(0).integers(256, size=(12, 20), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(levels).resize((6, 6), Image.Resampling.BICUBIC, box=(4, 0, 16, 12)))
    for name, array in {"a": levels, "b": levels.astype(np.uint16) * 257, "c": levels.astype(np.float32)}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(array).save(tmp_path / name / "a.tif")
        found = (read(tmp_path / name, image_size=6).images.images[0, 0] + 1) * 127.5
        np.testing.assert_allclose(found.numpy(), expected, atol=1.01)  # Pillow rounds 8 bits twice
    assert read(tmp_path / "a", image_size=6).images.images.dtype == torch.float32


def test_scaling_leaves_the_range_of_no_depth(tmp_path):
    stripes = np.tile(np.array([0, 0, 0, 65_535, 65_535, 65_535], dtype=np.uint16), (24, 4))
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert read(tmp_path, image_size=17).images.images.abs().max() <= 1


def test_files_that_cannot_be_read_are_named_in_one_line(tmp_path, monkeypatch):
    good = tmp_path / "source.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)).save(good)
    whole = good.read_bytes()
    good.unlink()
    broken = {"empty.png": b"", "text.jpg": b"not an image", "short.png": whole[: len(whole) // 2], "head.png": whole[:30],
              "noise.png": whole[:100] + b"x" * 200 + whole[300:]}  # fmt: skip
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: cannot be read as an image; remove or replace it") as raised:
            read(tmp_path)
        assert "\n" not in str(raised.value)
        (tmp_path / name).unlink()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: cannot be read \(No such file"):
        read(tmp_path)


def test_a_huge_image_is_named_in_one_line(tmp_path, monkeypatch, recwarn):
    Image.new("L", (50, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # 2500 pixels: Pillow's warning only
    assert len(read(tmp_path).images) == 1 and not recwarn
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        DataError, match=r"a\.png: too large to be read \(Image size \(2500 pixels\) .*\); scale it down"
    ):
        read(tmp_path)


def test_sixteen_bit_signed_tiff_is_not_taken_for_unsigned(tmp_path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[339] = 2
    Image.fromarray(np.array([[-5, 30_000]], dtype=np.int32)).save(tmp_path / "a.tif", tiffinfo=info)
    with pytest.raises(DataError, match=r"a\.tif: pixels from -5 to 30000"):
        read(tmp_path)


def test_images_that_look_unscaled_are_told_of(recwarn):
    """ToTensor without Normalize gives [0, 1], which nothing surely tells from bright images of [−1, 1]."""

    def made(pixels):
        return di.ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.long), torch.arange(len(pixels)))

    bright = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for pixels in (2 * bright - 1, bright[:1], bright[:, :, :2, :2], torch.zeros(6, 1, 8, 8), 3 * bright):
        made(pixels)
    mixed = bright.clone()
    mixed[5] -= 0.5
    made(mixed).subset([0])
    assert not recwarn
    with pytest.warns(
        UserWarning, match=r"images: all pixels of 6 images lie between .*give 2 \* images - 1"
    ) as caught:
        made(bright)
    assert "\n" not in str(caught[0].message)


def test_what_was_found_is_enough_to_read_the_files_again(tmp_path):
    """Of a range that is not stated, transparency, turned pages, and pictures that are cut to one size."""
    Image.fromarray(np.linspace(0, 200, 12, dtype=np.float32).reshape(3, 4)).save(tmp_path / "a.tif")
    Image.fromarray(np.full((5, 4, 4), 90, dtype=np.uint8)).save(tmp_path / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RED_CORNER).save(tmp_path / "c.png", exif=exif)
    paths = sorted(tmp_path.iterdir())
    names, asked = [path.name for path in paths], {"image_size": 3, "channels": 3}
    first = look_at_images(paths, names, **asked)
    again = looked_at_before(paths, names, first.findings, **asked)
    assert again.shape == first.shape and again.notes == first.notes and len(first.notes) >= 4
    assert torch.equal(again.rows(), first.rows())
