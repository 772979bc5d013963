"""The hostile corpus: headers and payloads that were signed by the right key, and texts that nobody signed."""

import hmac
import json
from collections.abc import Callable

from joserfc.jwk import ECKey
from tests.unit.authority.forge import ABSENT, Forge, Json, b64url, changed, unb64url

from jobengine.authority.guard import MAX_TOKEN_CHARACTERS

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

Change = Callable[[Json], Json | bytes]

HEADERS: dict[str, Change] = {
    "typ missing": lambda good: changed(good, typ=ABSENT),
    "typ JWT": lambda good: changed(good, typ="JWT"),
    "typ of a security event": lambda good: changed(good, typ="secevent+jwt"),
    "typ in capitals": lambda good: changed(good, typ="AT+JWT"),
    "typ null": lambda good: changed(good, typ=None),
    "kid missing": lambda good: changed(good, kid=ABSENT),
    "kid of a stranger": lambda good: changed(good, kid="../../dev/null"),
    "kid no text": lambda good: changed(good, kid=["k"]),
    "kid null": lambda good: changed(good, kid=None),
    "alg missing": lambda good: changed(good, alg=ABSENT),
    "alg none": lambda good: changed(good, alg="none"),
    "alg HS256": lambda good: changed(good, alg="HS256"),
    "alg ES384": lambda good: changed(good, alg="ES384"),
    "alg in small letters": lambda good: changed(good, alg="es256"),
    "jku beside": lambda good: changed(good, jku="https://evil.example/jwks"),
    "jwk beside": lambda good: changed(good, jwk=ECKey.generate_key("P-256").as_dict(private=False)),
    "x5u beside": lambda good: changed(good, x5u="https://evil.example/cert"),
    "crit beside": lambda good: changed(good, crit=["exp"]),
    "b64 beside": lambda good: changed(good, b64=False, crit=["b64"]),
    "zip beside": lambda good: changed(good, zip="DEF"),
    "cty beside": lambda good: changed(good, cty="JWT"),
    "alg twice": lambda good: json.dumps(good).encode().replace(b"{", b'{"alg":"none",', 1),
    "no object": lambda _: b'["alg","typ","kid"]',
    "no JSON": lambda _: b"alg",
    "empty": lambda _: b"{}",
    "BOM": lambda good: b"\xef\xbb\xbf" + json.dumps(good).encode(),
    "UTF-16": lambda good: json.dumps(good).encode("utf-16"),
    "bad UTF-8": lambda good: json.dumps(good).encode() + b"\xff",
    "something after it": lambda good: json.dumps(good).encode() + b"{}",
    "5,000 deep": lambda _: b"[" * 5000,
    "many escaped quotes": lambda _: b'{"' + b'\\"' * 2500,
}


def with_text(claims: Json, old: str, new: str) -> bytes:
    text = json.dumps(claims)
    assert old in text
    return text.replace(old, new, 1).encode()


PAYLOADS: dict[str, Change] = {
    "scope twice, the last an admin's": lambda good: with_text(good, "{", '{"scope":"orch:quota",'),
    "nested name twice": lambda good: with_text(good, "{", '{"x":{"a":1,"a":2},'),
    "exp as text": lambda good: changed(good, exp=str(good["exp"])),
    "exp as a float": lambda good: changed(good, exp=1e300),
    "exp with a fraction": lambda good: with_text(good, f'"exp": {good["exp"]}', f'"exp": {good["exp"]}.5'),
    "exp in scientific notation": lambda good: with_text(good, f'"exp": {good["exp"]}', '"exp": 1e308'),
    "exp NaN": lambda good: with_text(good, f'"exp": {good["exp"]}', '"exp": NaN'),
    "exp infinite": lambda good: with_text(good, f'"exp": {good["exp"]}', '"exp": Infinity'),
    "exp of 401 digits": lambda good: with_text(good, f'"exp": {good["exp"]}', f'"exp": {"9" * 401}'),
    "exp beyond 2^53": lambda good: changed(good, exp=2**53),
    "exp beyond the calendar": lambda good: changed(good, exp=253402300800),
    "exp true": lambda good: changed(good, exp=True),
    "exp null": lambda good: changed(good, exp=None),
    "exp negative": lambda good: changed(good, exp=-1),
    "a float in an unknown claim": lambda good: with_text(good, "{", '{"x":1.5,'),
    "lone surrogate": lambda good: with_text(good, '"acme"', '"acme","x":"\\ud800"'),
    "lone surrogate in a name": lambda good: with_text(good, "{", '{"\\udc00":1,'),
    "lone surrogate in a list": lambda good: with_text(good, '"Orch.Viewer"', '"\\ud800"'),
    "U+0000": lambda good: with_text(good, '"sub": "jec_1"', '"sub": "jec_1\\u0000"'),
    "BOM": lambda good: b"\xef\xbb\xbf" + json.dumps(good).encode(),
    "UTF-16": lambda good: json.dumps(good).encode("utf-16"),
    "UTF-16 without BOM": lambda good: json.dumps(good).encode("utf-16-le"),
    "bad UTF-8": lambda good: with_text(good, '"acme"', '"acme"').replace(b"acme", b"acme\xff"),
    "a list": lambda _: b"[]",
    "empty": lambda _: b"{}",
    "2,800 deep": lambda _: b"[" * 2800 + b"]" * 2800,
    "900 deep": lambda good: with_text(good, "{", '{"x":' + "[" * 900 + "]" * 900 + ","),
    "9 deep": lambda good: with_text(good, "{", '{"x":' + "[" * 9 + "]" * 9 + ","),
    "a comment": lambda good: with_text(good, "{", "{/**/"),
    "a comma too many": lambda good: json.dumps(good).encode().replace(b"}", b",}"),
    **{
        f"{name} missing": lambda good, name=name: changed(good, **{name: ABSENT})
        for name in ("iss", "aud", "sub", "client_id", "iat", "exp", "jti")
    },
    **{
        f"{name} {value!r}": lambda good, name=name, value=value: changed(good, **{name: value})
        for name in ("iss", "sub", "client_id", "jti", "owner")
        for value in ("", 7, None, ["jec_1"], "x" * 257, "a\nb", "a\u202eb")
    },
    "iss of a stranger": lambda good: changed(good, iss="https://evil.example"),
    "iss with a slash": lambda good: changed(good, iss="https://jobs.example/"),
    "aud of a stranger": lambda good: changed(good, aud="other"),
    "aud a list of strangers": lambda good: changed(good, aud=["other", "jobengine2"]),
    "aud an empty list": lambda good: changed(good, aud=[]),
    "aud a list with a number": lambda good: changed(good, aud=["jobengine", 7]),
    "aud a list in a list": lambda good: changed(good, aud=[["jobengine"]]),
    "aud an object": lambda good: changed(good, aud={"jobengine": True}),
    "iat in the future": lambda good: changed(good, iat=int(str(good["iat"])) + 31),
    "iat as text": lambda good: changed(good, iat=str(good["iat"])),
    "iat true": lambda good: changed(good, iat=True),
    "nbf in the future": lambda good: changed(good, nbf=int(str(good["iat"])) + 31),
    "nbf as text": lambda good: changed(good, nbf="0"),
    "nbf null": lambda good: changed(good, nbf=None),
    "expired this second": lambda good: changed(good, exp=good["iat"]),
    "tenant null": lambda good: changed(good, tenant=None),
    "tenant empty": lambda good: changed(good, tenant=""),
    "tenant of the platform": lambda good: changed(good, tenant="_platform"),
    "tenant in capitals": lambda good: changed(good, tenant="ACME"),
    "tenant a list": lambda good: changed(good, tenant=["acme"]),
    "scope a list": lambda good: changed(good, scope=["orch:read"]),
    "scope empty": lambda good: changed(good, scope=""),
    "scope null": lambda good: changed(good, scope=None),
    "scope with a no-break space": lambda good: changed(good, scope="orch:read\u00a0orch:quota"),
    "scope with a tab": lambda good: changed(good, scope="orch:read\torch:quota"),
    "scope with two spaces": lambda good: changed(good, scope="orch:read  orch:quota"),
    "roles as text": lambda good: changed(good, roles="Orch.Admin"),
    "roles with a number": lambda good: changed(good, roles=["Orch.Admin", 7]),
    "roles null": lambda good: changed(good, roles=None),
    "audit_leaf no hash": lambda good: changed(good, audit_leaf="ab"),
    "audit_leaf in capitals": lambda good: changed(good, audit_leaf="AB" * 32),
    "batch without a token": lambda good: changed(good, batch="0198c0de-0000-7000-8000-000000000000"),
    "batch with token 0": lambda good: changed(good, batch="0198c0de-0000-7000-8000-000000000000:0"),
    "batch with token 07": lambda good: changed(good, batch="0198c0de-0000-7000-8000-000000000000:07"),
    "batch with no id": lambda good: changed(good, batch="b1:7"),
    "batch a number": lambda good: changed(good, batch=7),
    "200 kB": lambda good: changed(good, x="x" * 200_000),
    "a little over 8 KiB": lambda good: changed(good, x="x" * 6200),
}


Unsigned = Callable[[Forge, str, str, str], str]


def raw(signature: str) -> bytes:
    return unb64url(signature)


def with_header(forge: Forge, alg: str) -> str:
    return b64url(json.dumps({**forge.header, "alg": alg}).encode())


def mac(forge: Forge, signed: str) -> str:
    """Sign as the classic confusion does: HMAC under the bytes of the public key."""
    return f"{signed}.{b64url(hmac.digest(forge.key.private.as_pem(private=False), signed.encode(), 'sha256'))}"


def s_plus_order(signature: str) -> str:
    s = int.from_bytes(raw(signature)[32:])
    return b64url(raw(signature)[:32] + ((s + P256_ORDER) % 2**256).to_bytes(32))


UNSIGNED: dict[str, Unsigned] = {
    "empty": lambda _, _h, _p, _s: "",
    "dots": lambda _, _h, _p, _s: "..",
    "one segment": lambda _, h, _p, _s: h,
    "two segments": lambda _, h, p, _s: f"{h}.{p}",
    "four segments": lambda _, h, p, s: f"{h}.{p}.{s}.x",
    "no header": lambda _, _h, p, s: f".{p}.{s}",
    "no payload": lambda _, h, _p, s: f"{h}..{s}",
    "no signature": lambda _, h, p, _s: f"{h}.{p}.",
    "alg none without a signature": lambda f, _h, p, _s: f"{with_header(f, 'none')}.{p}.",
    "alg none with a signature": lambda f, _h, p, s: f"{with_header(f, 'none')}.{p}.{s}",
    "HS256 over the public key": lambda f, _h, p, _s: mac(f, f"{with_header(f, 'HS256')}.{p}"),
    "HMAC under the header of ES256": lambda f, h, p, _s: mac(f, f"{h}.{p}"),
    "another key": lambda f, _h, _p, _s: f.sign_with(ECKey.generate_key("P-256")),
    "another payload": lambda f, h, _p, s: f"{h}.{b64url(json.dumps({**f.claims, 'tenant': 'globex'}).encode())}.{s}",
    "padding": lambda _, h, p, s: f"{h}.{p}.{s}==",
    "padding in the middle": lambda _, h, p, s: f"{h}=.{p}.{s}",
    "space before": lambda _, h, p, s: f" {h}.{p}.{s}",
    "line end after": lambda _, h, p, s: f"{h}.{p}.{s}\n",
    "plus and slash": lambda _, h, p, _s: f"{h}.{p}.{'+/' * 43}",
    "dirty last bits": lambda _, h, p, s: f"{h}.{p}.{s[:-1]}{chr(ord(s[-1]) + 1)}",
    "short signature": lambda _, h, p, s: f"{h}.{p}.{b64url(raw(s)[:-1])}",
    "long signature": lambda _, h, p, s: f"{h}.{p}.{b64url(raw(s) + bytes(1))}",
    "zero signature": lambda _, h, p, _s: f"{h}.{p}.{b64url(bytes(64))}",
    "signature of ones": lambda _, h, p, s: f"{h}.{p}.{'_' * len(s[:-1])}w",
    "signature plus the order": lambda _, h, p, s: f"{h}.{p}.{s_plus_order(s)}",
    "halves swapped": lambda _, h, p, s: f"{h}.{p}.{b64url(raw(s)[32:] + raw(s)[:32])}",
    "Cyrillic letters": lambda _, h, p, s: f"{h}.{p}.{s}".replace("e", "\u0435"),
    "full-width dots": lambda _, h, p, s: f"{h}\uff0e{p}\uff0e{s}",
    "lone surrogate": lambda _, h, p, _s: f"{h}.{p}.\ud800",
    "NUL": lambda _, h, p, s: f"{h}.{p}.{s}\x00",
    "as long as allowed": lambda _, _h, _p, _s: "e" * (MAX_TOKEN_CHARACTERS - 4) + ".e.e",
    "one million characters": lambda _, h, _p, s: f"{h}.{'A' * 1_000_000}.{s}",
}
