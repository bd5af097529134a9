"""Bytes to characters: what is detected, what is refused, and that damage is found where it is."""

import gzip
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.corpus import encodings

SIMPLIFIED = "这家酒店的服务非常好，房间也很干净。早餐一般，位置离地铁站不远，下次还会再来。"
TRADITIONAL = "這家酒店的服務非常好，房間也很乾淨。早餐一般，位置離地鐵站不遠，下次還會再來。"
ENCODINGS = ["utf-8", "utf-8-sig", "gb18030", "gbk", "big5", "utf-16", "utf-16-le", "utf-16-be"]


def text_in(encoding):
    return TRADITIONAL if encoding == "big5" else SIMPLIFIED


def write(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def detected(path):
    return encodings.resolve(path, "auto")


def read(path, encoding="auto"):
    return "".join(line for _, line in encodings.lines(path, encodings.resolve(path, encoding)))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [8, 20, 38])
def test_short_texts_are_read_in_the_encoding_that_they_are_in(tmp_path, encoding, size):
    text = text_in(encoding)
    for start in range(len(text) - size + 1):
        path = write(tmp_path / f"{start}.txt", text[start : start + size], encoding)
        assert read(path) == text[start : start + size]


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16-le", "utf-16-be"])
def test_mostly_ascii_file_is_judged_by_what_is_not_ascii(tmp_path, encoding):
    text = "".join(f'{{"id": {n}, "url": "http://example.com/{n}"}}\n' for n in range(40_000))
    text += '{"text": "' + text_in(encoding)[:12] + '"}\n'
    assert len(text) > 1 << 20  # more than one block
    assert read(write(tmp_path / "a.jsonl", text, encoding)) == text


def test_ascii_in_utf_16_without_mark_is_not_taken_for_utf_8(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nfine,1\n", "utf-16-le")
    assert detected(path) == "utf-16-le"


def test_big5_with_characters_of_windows_alone_is_read_as_such(tmp_path):
    path = write(tmp_path / "a.txt", TRADITIONAL + "那裏恒好", "cp950")
    assert detected(path) == "cp950"
    assert read(path) == TRADITIONAL + "那裏恒好"


def test_empty_and_ascii_files_are_utf_8(tmp_path):
    assert detected(write(tmp_path / "a.txt", "")) == "utf-8"
    assert detected(write(tmp_path / "b.txt", "text,label\n")) == "utf-8"


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=60)
)
def test_whatever_is_utf_8_is_read_as_utf_8(tmp_path_factory, text):
    path = write(tmp_path_factory.getbasetemp() / "utf8.txt", text)
    assert encodings.read_text(path, detected(path)) == text


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16-le", "utf-16-be"])
def test_byte_order_mark_is_no_part_of_the_text(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "\ufeff" + SIMPLIFIED, encoding)
    for declared in ("auto", encoding):
        assert read(path, declared) == SIMPLIFIED
        assert encodings.read_text(path, encodings.resolve(path, declared)) == SIMPLIFIED
        assert encodings.read_text(path, encodings.resolve(path, declared), size=99) == SIMPLIFIED


def test_characters_that_straddle_blocks_are_whole(tmp_path):
    text = "a" + "好\n" * 700_000
    path = write(tmp_path / "a.txt", text)
    assert encodings.read_text(path, "utf-8") == text


def test_a_file_that_has_changed_is_detected_anew(tmp_path):
    path = write(tmp_path / "a.txt", SIMPLIFIED, "gb18030")
    assert [detected(path), detected(path)] == ["gb18030", "gb18030"]
    write(path, TRADITIONAL, "utf-16")
    assert detected(path) == "utf-16"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (SIMPLIFIED.encode("gb18030"), "offset 0 is not utf-8; it seems to be gb18030: pass --"),
        (TRADITIONAL.encode("big5"), "it seems to be big5: pass"),
        (SIMPLIFIED.encode("utf-16"), "it seems to be utf-16-le: pass"),
        (SIMPLIFIED.encode("utf-16-be"), "encoding=utf-16-be"),
        (b"\n" + SIMPLIFIED.encode() + b"\n\xff\n", ":3: byte 0xff at offset 119 is not utf-8"),
        (SIMPLIFIED.encode() + b"\xff\n", "damaged utf-8: repair that line"),
        (b"text,label\n" + bytes(range(128, 256)), ":2: byte 0x80 at offset 11 is not utf-8"),
        (b"text,label\n" + bytes(range(128, 256)), "convert it to UTF-8"),
        (SIMPLIFIED.encode()[:-1], "byte 0xe3 at offset 114"),
    ],
)
def test_wrong_declaration_names_place_and_likely_encoding(tmp_path, raw, said):
    path = write(tmp_path / "a.csv", raw)
    with pytest.raises(ValueError) as error:
        read(path, "utf-8")
    assert str(error.value).startswith(f"{path}:")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (SIMPLIFIED.encode() + b"\n\xff\n", ":2: byte 0xff at offset 118 is not utf-8"),
        (SIMPLIFIED.encode() + b"\n\xff\n", "damaged utf-8: repair that line"),
        ((SIMPLIFIED + "\n").encode("gb18030") + b"\xff\xff", "damaged gb18030"),
        (b"\n" + bytes(range(128, 256)), "name its encoding with --config.data.encoding=NAME"),
        (b"caf\xe9 na\xefve\n", ":1: byte 0xe9 at offset 3"),
        ("Привет, мир\0".encode(), "it holds NUL characters"),
    ],
)
def test_detection_refuses_rather_than_guesses(tmp_path, raw, said):
    path = write(tmp_path / "a.csv", raw)
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:")
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["utf-9", "base64"])
def test_unknown_encoding_names_the_key(tmp_path, name):
    with pytest.raises(ValueError, match=rf"config\.data\.encoding: .*'{name}'"):
        read(write(tmp_path / "a.csv", SIMPLIFIED), name)


def test_damage_in_a_later_block_is_placed_by_line_and_offset(tmp_path):
    content = SIMPLIFIED.encode() + b"\n"
    raw = content * 20_000 + b"\xff\n"
    path = write(tmp_path / "a.txt", raw)
    with pytest.raises(ValueError, match=rf":20001: .* at offset {len(content) * 20_000}"):
        read(path, "utf-8")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"text" + raw])
def test_damaged_gzip_file_is_named(tmp_path, damage):
    path = write(tmp_path / "a.txt.gz", damage(gzip.compress(SIMPLIFIED.encode() * 100)))
    with pytest.raises(ValueError, match=r"a\.txt\.gz: not a whole gzip file"):
        read(path)


def test_gzip_is_unpacked_whatever_the_encoding(tmp_path):
    path = write(tmp_path / "a.txt.gz", gzip.compress(SIMPLIFIED.encode("gb18030")))
    assert (detected(path), read(path)) == ("gb18030", SIMPLIFIED)
    assert encodings.read_bytes(path, 8) == SIMPLIFIED.encode("gb18030")[:8]
    assert not encodings.read_bytes(write(tmp_path / "b.gz", gzip.compress(b"")), 8)


def test_line_of_200_megabytes_is_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n')
        for _ in range(200):
            file.write(b"x" * 1_000_000)
    encoding = detected(path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.jsonl:2: the line has more than 10,000,000 char"):
        read(path, encoding)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    path.unlink()
    assert peak < 60e6


def test_utf_16_without_its_bom_is_named_with_what_helps(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("好的\n".encode("utf-16-le"))
    for read in (
        lambda: list(encodings.lines(path, "utf-16")),
        lambda: encodings.read_text(path, "utf-16"),
        lambda: encodings.read_text(path, "utf-16", size=1),
    ):
        with pytest.raises(ValueError, match=r"a\.txt: .*encoding=utf-16-le"):
            read()
    assert encodings.read_text(path, "utf-16-le") == "好的\n"
