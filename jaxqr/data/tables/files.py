"""Files to columns: one `.csv` or `.parquet` file becomes an Arrow table of texts."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from pyarrow import csv as arrow_csv

from jaxqr.data.tables.columns import fault, is_text, to_text

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

_UTF8 = 'save it as UTF-8 (in Excel: "CSV UTF-8")'
_KINDS = (
    (b"PAR1", "a parquet file", "let its name end in .parquet"),
    (b"\xff\xfe\0\0", "encoded as UTF-32", _UTF8),
    (b"\0\0\xfe\xff", "encoded as UTF-32", _UTF8),
    (b"\xff\xfe", "encoded as UTF-16", _UTF8),
    (b"\xfe\xff", "encoded as UTF-16", _UTF8),
    (b"\x1f\x8b", "compressed by gzip", "unpack it"),
    (b"BZh", "compressed by bzip2", "unpack it"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or export CSV"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "export it as CSV"),
    (b"<!", "HTML", "download the file itself"),
    (b"<html", "HTML", "download the file itself"),
    (b"<?xml", "XML", "write it as CSV or parquet"),
    (b'{"', "JSON", "write it as CSV or parquet"),
    (b"[{", "JSON", "write it as CSV or parquet"),
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull`"),
)
"""First bytes of files that are no CSV, what they are, and what to do."""

_BLOCK = 1 << 20
_LARGEST_BLOCK = (1 << 31) - 1


class _Header(NamedTuple):
    names: list[str]
    separator: str
    skipped: int  # lines before it
    is_all: bool  # whether the file ends with it


def find(folder: Path, name: str) -> Path:
    """The file of one table.

    Raises:
      FileNotFoundError: there is none.
      ValueError: there are two.
    """
    found = [
        path
        for path in (folder / f"{name}.parquet", folder / f"{name}.csv")
        if path.exists()
    ]
    if not found:
        present = sorted(path.name for path in folder.iterdir())[:10]
        raise FileNotFoundError(
            f"{folder} has neither {name}.parquet nor {name}.csv; add one of them "
            f"(it has {', '.join(present) or 'no files'})"
        )
    if len(found) == 2:
        raise ValueError(
            f"{folder} has both {name}.parquet and {name}.csv; remove one of them"
        )
    return found[0]


def read(
    path: Path,
    *,
    required: Sequence[str],
    optional: Iterable[str] = (),
    typed: Sequence[str] = (),
    encoding: str = "utf-8",
) -> pa.Table:
    """Reads the named columns of one `.parquet` or `.csv` file, texts as strings.

    Absent optional columns are left out. Whole numbers become their decimal digits,
    except in `typed` columns.

    Args:
      path: the file; its suffix says how it is written.
      required: columns that must be there.
      optional: columns that may be.
      typed: those of them that hold numbers or bools; a parquet file's stay as they
        are, for `to_numbers` and `to_bools`.
      encoding: of a .csv file that is not UTF-8, such as ISO-8859-1; column names are
        ASCII.

    Raises:
      PermissionError: the file may not be read.
      ValueError: unreadable, no rows, a required column is missing, a column occurs
        twice, is neither text nor whole numbers, or is not UTF-8.
    """
    wanted = list(dict.fromkeys([*required, *optional]))
    _check_kind(path)
    try:
        table = (_read_csv if path.suffix == ".csv" else _read_parquet)(
            path, required, wanted
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is not a readable {path.suffix} file: {error} (an interrupted "
            "download? fetch it again)"
        ) from error
    if not len(table):
        raise ValueError(f"{path} has no rows; expected at least one")
    columns = {}
    for name in table.column_names:
        column = table[name]
        if encoding != "utf-8" and pa.types.is_binary(column.type):
            texts = (x and x.decode(encoding) for x in column.to_pylist())
            column = pa.chunked_array([pa.array(texts, pa.string())])
        if name in typed and pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if name not in typed or is_text(column.type):
            column = to_text(path, name, column)
        columns[name] = column
    return pa.table(columns)


def data_rows(table: pa.Table) -> Int[np.ndarray, " R"]:
    """Row numbers as error messages count them: 1 is the first after the header."""
    return np.arange(1, len(table) + 1)


def _check_kind(path: Path) -> None:
    """Raises if the file's first bytes belong to another kind of file."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; expected one file (if it holds the parts of a table, "
            "join them)"
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except PermissionError as error:
        raise PermissionError(
            f"{path} may not be read by this user; change its permissions (chmod +r)"
        ) from error
    if not start:
        raise ValueError(f"{path} is empty; write the table again")
    expects_parquet = path.suffix != ".csv"
    if expects_parquet and start.startswith(b"PAR"):
        return
    for magic, kind, remedy in _KINDS:
        if start.startswith(magic):
            raise ValueError(f"{path} is {kind}, not a {path.suffix} file; {remedy}")
    if expects_parquet:
        raise ValueError(
            f"{path} is not a parquet file: it begins with {start[:20]!r}; if it is "
            "CSV, let its name end in .csv, else fetch it again"
        )


def _positions(
    path: Path, names: Sequence[str], required: Sequence[str], wanted: Sequence[str]
) -> Mapping[str, int]:
    """Where the wanted columns are among the file's, whose names may have spaces."""
    stripped = [name.strip() for name in names]
    for name in wanted:
        if stripped.count(name) > 1:
            raise ValueError(
                f"{path} has {stripped.count(name)} columns {name!r}; rename or remove "
                "all but one"
            )
    missing = [name for name in required if name not in stripped]
    if missing:
        separators = (
            f" (separators may be {', '.join(SEPARATORS.values())})"
            if path.suffix == ".csv"
            else ""
        )
        raise ValueError(
            f"{path} lacks the columns {missing}; it has {stripped}. Rename or add "
            f"them{separators}."
        )
    return {name: stripped.index(name) for name in wanted if name in stripped}


def _read_parquet(
    path: Path, required: Sequence[str], wanted: Sequence[str]
) -> pa.Table:
    # `pq.read_table` would also make columns of folders that are called "split=test".
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        positions = _positions(path, names, required, wanted)
        table = file.read(columns=[names[i] for i in positions.values()])
    return pa.table({name: table[names[i]] for name, i in positions.items()})


def _read_csv(path: Path, required: Sequence[str], wanted: Sequence[str]) -> pa.Table:
    """Reads columns as bytes, so that `to_text` can name a row with bad UTF-8."""
    header = _read_header(path, required)
    with pa.memory_map(str(path)) as file:
        buffer = file.read_buffer()
    data = memoryview(buffer)
    data = data[3:] if data[:3] == b"\xef\xbb\xbf" else data
    _check_bytes(path, data, header)
    positions = _positions(path, header.names, required, wanted)
    if header.is_all:
        raise ValueError(f"{path} has no rows after its header; expected at least one")
    names = [str(i) for i in range(len(header.names))]
    parse = arrow_csv.ParseOptions(delimiter=header.separator, newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.binary()),
        include_columns=[names[i] for i in positions.values()],
    )
    block = _BLOCK
    while True:
        options = arrow_csv.ReadOptions(
            block_size=block,
            column_names=names,
            skip_rows=header.skipped,
            skip_rows_after_names=1,
        )
        try:
            table = arrow_csv.read_csv(pa.BufferReader(buffer), options, parse, convert)
            return pa.table({name: table[names[i]] for name, i in positions.items()})
        except pa.ArrowInvalid:
            # A record may be longer than a block.
            if block >= min(buffer.size, _LARGEST_BLOCK):
                _check_fields(path, data, header)
                raise
            block = min(8 * block, _LARGEST_BLOCK)


def _read_header(path: Path, required: Sequence[str]) -> _Header:
    """The names of the columns, split where most of the required ones result."""
    candidates = list(SEPARATORS)
    skipped = 0
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = []
        for line in file:
            if not lines and (excel := re.fullmatch(r"sep=(.)[\r\n]+", line)):
                candidates = [excel[1]]
                skipped += 1
            elif not lines and not line.strip("\r\n"):
                skipped += 1
            else:
                lines.append(line)
                # A name may have line breaks inside quotes.
                if "".join(lines).count('"') % 2 == 0 or len(lines) == 100:
                    break
    headers = []
    for separator in candidates:
        reader = csv.reader(lines, delimiter=separator)
        try:
            names = next(reader, [])
        except csv.Error as error:
            raise ValueError(
                f"{path} has a header that cannot be read: {error}; expected one line "
                "with the names of the columns"
            ) from error
        last = lines[reader.line_num - 1] if lines else ""
        headers.append(_Header(names, separator, skipped, last.strip("\r\n") == last))
    text = "".join(headers[0].names)
    if "\0" in text:
        raise ValueError(f"{path} has NUL bytes in its header (UTF-16?); {_UTF8}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path} has a header that is not UTF-8; {_UTF8}") from error
    wanted = {*required}
    return max(headers, key=lambda h: len(wanted & {name.strip() for name in h.names}))


def _quoted(separator: str) -> tuple[bytes, bytes]:
    """Patterns of a field in quotes, and of a quote that belongs to the text."""
    near = re.escape(separator.encode()) + rb"\r\n"
    field = rb'"[^"]*+(?:""[^"]*+)*+"(?![^%b])' % near
    return field, rb'(?<=[^%b])"' % near


def _rows(data: bytes | memoryview, header: _Header) -> list[bytes]:
    """The rows from the header on, each field in quotes made a letter."""
    field, literal = _quoted(header.separator)
    plain = re.sub(
        rb"%b|%b" % (literal, field),
        lambda match: match[0] if len(match[0]) == 1 else b"q",
        data,
    )
    lines = re.split(rb"\r\n?|\n", plain)[header.skipped :]
    return [line for line in lines if line]


def _check_bytes(path: Path, data: memoryview, header: _Header) -> None:
    """Raises for NUL bytes, and for quoted fields that go on after a closing quote.

    Arrow's reader would take what follows into the field, other rows too.
    """
    # One match over the whole file: no object per field.
    field, literal = _quoted(header.separator)
    sound = re.match(rb'[^"]*+(?:(?:%b|%b)[^"]*+)*+' % (literal, field), data)
    assert sound is not None
    wrong = sound.end()
    if wrong < len(data):
        start = bytes(data[wrong : wrong + 30]).decode(errors="replace")
        problem = (
            f"the field that begins with {start!r} has no closing quote before a "
            "separator or line end; close it, and double the quotes that belong to "
            "its text"
        )
    elif nul := re.search(rb"\0", data):
        wrong = nul.start()
        problem = f"has a NUL byte; {_UTF8}"
    else:
        return
    # The quote closes a field that a NUL is in; elsewhere it is a letter as any other.
    rows = _rows(bytes(data[:wrong]) + b'"', header)
    names = [*header.names, "after the last"]
    column = names[min(rows[-1].count(header.separator.encode()), len(names) - 1)]
    raise fault(path, len(rows) - 1, column, problem)


def _check_fields(path: Path, data: memoryview, header: _Header) -> None:
    """Raises for the first row that has not as many fields as the header."""
    for row, line in enumerate(_rows(data, header)):
        fields = line.count(header.separator.encode()) + 1
        if fields != len(header.names):
            separators = SEPARATORS.get(header.separator, header.separator)
            problem = (
                f"the row has {fields} fields, the header {len(header.names)}; put "
                f"fields that contain {separators} in double quotes"
            )
            raise fault(path, row, header.names[-1], problem)
