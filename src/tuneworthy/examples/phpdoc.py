"""phpdoc: PHP functions -> their docblocks in Laravel's house style.

The style is uniform and strict (a verb first, two spaces after a tag, one blank line), so that a
model must learn it or be shown it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tuneworthy.examples.php import functions
from tuneworthy.registry import Deb, Say, fetch_debs
from tuneworthy.store import write_jsonl, write_text

VERSION = "8.83.26+dfsg-2"
ROOT = "usr/share/php/Illuminate/"
MAX_CODE_CHARACTERS = 800

SHA256 = {
    "auth": "13af3f57b53471bfc1633088dc5a5c83e3fc8791f00df25c8bb1e246c8b5639a",
    "broadcasting": "2ddf11ceff7bf1131d3688569e1917a005a217a631563498ab2a9204cb6839ef",
    "bus": "82d5ae65f3fcafa4019d221bb68e7d7057953079421dffb3c7e28fa0fb7a09b3",
    "cache": "57896735506f66f195d53d3920d7e1d348bd3a3a8cd3f4aacde613c154a79899",
    "collections": "c5c066e9f31c11548823d0572e566bccb219cb8d7e8b1e8fba2d150324f36fd2",
    "config": "c73eede061f380d0f31aa669106901b3415a5ea66be999d49ed251444860f055",
    "console": "b2c10431f2e6588f83d7377ab33cbd5a1296b43f3476c0face32021f29aaa3b8",
    "container": "b1c2c2510f43fb4166ef0357fe1753c63a7f56b48153abf44277e0808a4c8f98",
    "contracts": "76e7ca5e7cae90ee1603c92f857eed3fb39629b1124c9514ebc50ac002307a6e",
    "cookie": "2dfeb623c36dadfa8b55871d822c07e85287a525e73f5907eda9d8d5f7beb7a9",
    "database": "e7f5fe25fac9a755b436b640dedcfc84bfa3adbd4b6feed9fa19a1871fd411d0",
    "encryption": "a44f5405846fa2ff4406c9db0114d7c9d3744f684b63cef1f72d9d837d0b196c",
    "events": "dc8dc12e56c4ae5b028e8ad2ba282ec18409ba7223c763edb52b99a069046f72",
    "filesystem": "c9fa18bda6a5723b52c634fe3bdec1aa34459d9e653ae3bce76d0770affb18dd",
    "hashing": "f143ee54df7b410aea97013d128c905601958bf7c1d9398cba45be875e568c59",
    "http": "a617a30d60cecf589aedfbefa7d471410e36960f4a9de5c5f06e1a3d74f58f61",
    "log": "7dc1f1c896dbe40eec1acfef88d28a5f1406fcc4e542c5a9616fc73f4e87295e",
    "macroable": "0b0da2515fcd0ec2555c7d129f7be499849c0c095cafd8da96720d4c692d670d",
    "mail": "900eaee42f153c2c4ff5397b1f1651f48cbebc557d7e1c3f6b4f54361001211a",
    "notifications": "e1165e301d03c3085ab21cc7d7ef1d0b2b6c0d2dacc2572866878931db22f55e",
    "pagination": "a43dc8ff41fc8ef4924d62a4197ab2bba6fd3c6537125a4a442a9af759263846",
    "pipeline": "a6c099517d9f913d8f8c7059348c5637fa0b3b044e6ccddd0bbad9a2159e597c",
    "queue": "a77a8c83edd650aea4c16497df51a089bd2802c9eb182fb1892c0547e05f5e83",
    "redis": "b503681b2ef41677ea134f1e9a4106fb61c6d1ecbb16a41d5b6f30f8b61875a1",
    "routing": "98d5f33ffa3769a80ba470d44355f48818eb89f0a678306ca0c04c5cd13ba64d",
    "session": "d2060da2b2a8dea4291c40e46771840603d065e983f288a6d326343a532eb39d",
    "support": "5c847ee37325715051ca102286e7854e6ffab310caad5ad005e8c92a4205f640",
    "testing": "8e324caad1ead5665585544d87fe42c39c7c1a0c135e67dc5a7c6650eaa5dd8a",
    "translation": "56017f77c2724d3fb972aae2933dccb49c7b0f8a992c7b304f2543d86ab0de6e",
    "validation": "92ed21d4a20d8bb69c02155845767a67f427e81688f7df0defd2969cc18b28f9",
    "view": "27a925d97f255dafff875f796271fc77c6a20e707381156f26b420c05a3982d4",
}
"""Part of the framework -> sha256 of its package in Debian 12."""

README = """# phpdoc

{rows} PHP functions with the docblocks that their authors wrote, in the house style of Laravel.

Source: {packages} packages `php-illuminate-*` {version} of Debian 12 (MIT, Taylor Otwell and the
Laravel contributors). A row is a named function or method with a body of fewer than
{characters} characters, and the comment right before it. Exact copies and comments that only
point elsewhere (`@inheritdoc`) are left out. The same short code sometimes carries different
comments in different files; such rows are kept, as they are in life.

`file` names the package and the file of a row. Rows of one file never straddle a split.
"""


def build(folder: Path, say: Say) -> None:
    """Write examples.jsonl and README.md into `folder`."""
    debs = [
        Deb(f"php-illuminate-{part}", VERSION, sha256, (ROOT,)) for part, sha256 in SHA256.items()
    ]
    sources = [
        (f"{deb.package}/{file.relative_to(root / ROOT).as_posix()}", file)
        for deb, root in zip(debs, fetch_debs(debs, say), strict=True)
        for file in sorted((root / ROOT).rglob("*.php"))
    ]
    rows = pairs((name, file.read_text(encoding="utf-8")) for name, file in sources)
    say(f"found {len(rows)} documented functions in {len({row['file'] for row in rows})} files")
    text = README.format(
        rows=len(rows), packages=len(debs), version=VERSION, characters=MAX_CODE_CHARACTERS
    )
    write_jsonl(folder / "examples.jsonl", rows)
    write_text(folder / "README.md", text)


def pairs(sources: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Rows from pairs of a file's name and its source, in their order, without copies."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, source in sources:
        for function in functions(source):
            if len(function.code) >= MAX_CODE_CHARACTERS:
                continue
            if "@inheritdoc" in function.docblock.lower():
                continue
            row = {"prompt": function.code, "completion": function.docblock, "file": name}
            rows.setdefault((function.code, function.docblock), row)
    return list(rows.values())
