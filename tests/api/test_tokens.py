"""Verification of tokens by a secret and by the keys of a file."""

import base64
import hashlib
import hmac
import json
import os
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tokens import AUDIENCE, SECRET, signed

from fundsvc.api.http.errors import ExpiredToken, Problem, WrongToken
from fundsvc.api.http.tokens import Caller, KeyFile, Tokens, mint
from fundsvc.config.settings import ConfigError, TokenConfig

RSA = rsa.generate_private_key(65537, 2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
KEY = SECRET.encode()
BY_SECRET = Tokens(TokenConfig(secret=SECRET))


def jwk(key, key_id=None, **fields):
    """Returns the public key as in a key file."""
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    public = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**public, **({"kid": key_id} if key_id else {}), **fields}


def write(path, *keys):
    """Replaces a key file atomically."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"keys": keys}))
    new.replace(path)
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "keys.json", jwk(RSA, "one"), jwk(CURVE, "two"))


@pytest.fixture
def by_keys(path):
    return Tokens(TokenConfig(keys=str(path)))


def problem_of(tokens, token):
    with pytest.raises(Problem) as raised:
        tokens.read(token)
    assert raised.value.status == 401
    assert len(token) < 20 or token not in str(raised.value)
    return raised.value


@pytest.mark.parametrize(
    ("claims", "caller"),
    [
        ({"role": "trader", "account": "anna"}, Caller("trader", "anna", "")),
        ({"role": "trader", "account": "anna", "sub": "phone"}, Caller("trader", "anna", "phone")),
        ({"role": "engine", "account": "ignored"}, Caller("engine", "", "")),
        ({"role": "risk", "sub": "bert", "more": 1}, Caller("risk", "", "bert")),
        ({"role": "risk", "aud": ["elsewhere", AUDIENCE]}, Caller("risk", "", "")),
        ({"role": "risk", "iat": None, "nbf": int(time.time())}, Caller("risk", "", "")),
    ],
)
def test_valid_token_identifies_its_caller(claims, caller):
    assert BY_SECRET.read(signed(**claims)) == caller


@pytest.mark.parametrize("claims", [{"exp": -400}, {"nbf": 400}, {"iat": 400}])
def test_clock_difference_up_to_the_leeway_is_accepted(claims):
    """Uses the longest leeway, because the test may take minutes on a loaded machine."""
    ((name, seconds),) = claims.items()
    now = int(time.time())
    lenient = Tokens(TokenConfig(secret=SECRET, leeway_seconds=600))
    assert lenient.read(signed(**{name: now + seconds})).role == "risk"
    late = problem_of(lenient, signed(**{name: now + 2 * seconds}))
    assert isinstance(late, ExpiredToken)
    assert "get a new token" in str(late)
    with pytest.raises(ExpiredToken):
        Tokens(TokenConfig(secret=SECRET, leeway_seconds=0)).read(signed(**{name: now + seconds}))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"exp": "soon"},
        {"exp": [1]},
        {"exp": float("inf")},
        {"aud": None},
        {"aud": "elsewhere"},
        {"aud": ""},
        {"aud": 5},
        {"role": None},
        {"role": "operator"},
        {"role": ["risk"]},
        {"role": "trader"},
        {"role": "trader", "account": ""},
        {"role": "trader", "account": 5},
        {"role": "trader", "account": "a" * 65},
        {"role": "trader", "account": "an\0na"},
        {"sub": 5},
        {"sub": "s" * 257},
        {"nbf": "now"},
    ],
)
def test_invalid_claims_are_rejected(claims):
    assert isinstance(problem_of(BY_SECRET, handmade({"alg": "HS256"}, {**standard(), **claims})), WrongToken)


NOW = int(time.time())


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("shape", [str, lambda seconds: f" {seconds} ", lambda seconds: f"{seconds:_}", lambda _: True])
def test_time_that_is_not_a_number_is_rejected(name, shape):
    problem = problem_of(
        BY_SECRET, handmade({"alg": "HS256"}, {**standard(), name: shape(NOW + 9 if name == "exp" else NOW - 9)})
    )
    assert problem.code in ("400003", "400004")
    assert "seconds" in str(problem)


@pytest.mark.parametrize("scale", [10**3, 10**6, 10**9, 1e3, 1e200])
def test_expiry_in_another_unit_is_rejected_with_the_unit(scale):
    problem = problem_of(BY_SECRET, handmade({"alg": "HS256"}, {**standard(), "exp": (NOW + 60) * scale}))
    assert (problem.code, "exp must be a number of seconds" in str(problem)) == ("400003", True)


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_nbf_and_iat_in_milliseconds_are_rejected_with_the_unit(name):
    assert "seconds" in str(problem_of(BY_SECRET, handmade({"alg": "HS256"}, {**standard(), name: NOW * 1000})))


@pytest.mark.parametrize("more", [60.5, 60.0], ids=["fraction of a second", "whole seconds"])
def test_fractional_expiry_is_accepted(more):
    exp = int(time.time()) + more
    assert BY_SECRET.read(handmade({"alg": "HS256"}, {**standard(), "exp": exp})).role == "risk"


def standard():
    return {"aud": AUDIENCE, "exp": int(time.time()) + 60, "role": "risk"}


def handmade(header, claims, key=KEY, digest=hashlib.sha256):
    """Returns a token that no library would sign. Claims of None are omitted."""
    claims = {name: value for name, value in claims.items() if value is not None}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signature = hmac.new(key, b".".join(parts), digest).digest() if key else b""
    return b".".join((*parts, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS384", "HS512", "RS256", "ES256", "", None, 5, ["HS256"]])
def test_other_algorithms_are_rejected(algorithm, by_keys):
    digest = hashlib.sha512 if algorithm == "HS512" else hashlib.sha256
    for key in (b"", KEY):
        token = handmade({"alg": algorithm}, standard(), key, digest)
        assert isinstance(problem_of(BY_SECRET, token), WrongToken)
        assert isinstance(problem_of(by_keys, token), WrongToken)


def test_correct_handmade_token_is_accepted():
    assert BY_SECRET.read(handmade({"alg": "HS256"}, standard())).role == "risk"


@pytest.mark.parametrize("key", [RSA, CURVE])
def test_public_key_cannot_be_used_as_secret(path, key):
    public = key.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for tokens in (Tokens(TokenConfig(keys=str(path))), Tokens(TokenConfig(keys=str(path), secret=SECRET))):
        for stolen in (pem, pem.strip(), path.read_bytes()):
            for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "one"}):
                assert isinstance(problem_of(tokens, handmade(header, standard(), stolen)), WrongToken)


def test_key_in_a_token_is_ignored(by_keys):
    header = {"jwk": jwk(OTHER), "jku": "https://example.com/keys", "x5c": ["x"]}
    token = jwt.encode(standard(), OTHER, "ES256", {**header, "kid": "two"})
    assert isinstance(problem_of(by_keys, token), WrongToken)


@pytest.mark.parametrize(("key", "algorithm", "key_id"), [(RSA, "RS256", "one"), (CURVE, "ES256", "two")])
def test_public_key_is_selected_by_id_or_by_uniqueness(path, key, algorithm, key_id):
    tokens = Tokens(TokenConfig(keys=str(path)))
    assert tokens.read(signed(key=key, algorithm=algorithm, kid=key_id)).role == "risk"
    assert tokens.read(signed(key=key, algorithm=algorithm)).role == "risk"
    assert "kid" in str(problem_of(tokens, signed(key=key, algorithm=algorithm, kid="three")))
    write(path, jwk(RSA, "one"), jwk(CURVE, "two"), jwk(OTHER, "three"))
    assert tokens.read(signed(key=OTHER, algorithm="ES256", kid="three")).role == "risk"
    assert "kid" in str(problem_of(tokens, signed(key=OTHER, algorithm="ES256")))
    assert "Signature" in str(problem_of(tokens, signed(key=OTHER, algorithm="ES256", kid="two")))


def test_keys_rotate_without_a_restart(path, by_keys):
    old, new = signed(key=CURVE, algorithm="ES256", kid="two"), signed(key=OTHER, algorithm="ES256", kid="new")
    assert by_keys.read(old)
    assert "kid" in str(problem_of(by_keys, new))
    write(path, jwk(CURVE, "two"), jwk(OTHER, "new"))
    assert by_keys.read(old) == by_keys.read(new)
    write(path, jwk(OTHER, "new"))
    assert by_keys.read(new)
    assert "kid" in str(problem_of(by_keys, old))


def test_unreadable_key_file_keeps_the_keys_and_is_logged_once(path, by_keys):
    token = signed(key=CURVE, algorithm="ES256", kid="two")
    path.write_text("{")
    with capture_logs() as logs:
        assert by_keys.read(token)
        assert by_keys.read(token)
    assert [line["log_level"] for line in logs] == ["warning"]
    path.unlink()
    with capture_logs() as logs:
        assert by_keys.read(token)
        assert by_keys.read(token)
    assert [line["log_level"] for line in logs] == ["warning"]
    write(path, jwk(OTHER, "new"))
    assert "kid" in str(problem_of(by_keys, token))


def test_key_file_must_contain_supported_public_keys(tmp_path):
    path = tmp_path / "keys.json"
    private = jwt.algorithms.ECAlgorithm.to_jwk(CURVE, as_dict=True)
    for keys in (
        [{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MTI"}],
        [private],
        [jwk(RSA, alg="RS512")],
        [jwk(ec.generate_private_key(ec.SECP384R1()))],
        [{"kty": "EC"}],
        [5],
    ):
        with pytest.raises(ConfigError, match=r"token\.keys"):
            KeyFile(write(path, *keys))
    for text in ("", "[]", "{}", '{"keys": 5}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"token\.keys"):
            KeyFile(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"token\.keys"):
        KeyFile(path)
    for nothing in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot read"):
            KeyFile(nothing)


def test_no_token_is_accepted_without_keys():
    tokens = Tokens(TokenConfig())
    assert not tokens.configured
    for token in (signed(), signed(key=CURVE, algorithm="ES256"), handmade({"alg": "none"}, standard(), b"")):
        assert isinstance(problem_of(tokens, token), WrongToken)
    assert isinstance(problem_of(tokens, handmade({"alg": "HS256"}, standard(), b"\0")), WrongToken)


def test_short_secret_is_rejected():
    with pytest.raises(ConfigError, match=r"token\.secret has 31 characters"):
        Tokens(TokenConfig(secret="s" * 31))


def test_minted_token_is_accepted_until_it_expires():
    config = TokenConfig(secret=SECRET, audience="here")
    token = mint(config, "trader", "anna", "phone", 3600)
    assert Tokens(config).read(token)[:3] == ("trader", "anna", "phone")
    assert 3000 < jwt.decode(token, options={"verify_signature": False})["exp"] - time.time() <= 3600


@pytest.mark.parametrize("hours", [87_600, 169, 168.1])
def test_token_that_is_valid_for_too_long_is_rejected(hours):
    problem = problem_of(BY_SECRET, signed(exp=int(time.time() + hours * 3600)))
    assert isinstance(problem, WrongToken)
    assert "it may be 168 (token.hours_max)" in str(problem)


def test_token_that_is_valid_for_the_longest_time_is_accepted():
    assert BY_SECRET.read(signed(exp=int(time.time() + 168 * 3600)))


def test_revocations_are_read_again_without_a_restart(tmp_path):
    path = tmp_path / "revoked"
    path.write_text("# none\n")
    tokens = Tokens(TokenConfig(secret=SECRET, revoked=str(path)))
    one, two, without_id = signed(jti="one"), signed(jti="two"), signed()
    assert all(map(tokens.read, (one, two, without_id)))
    path.write_text("one  # stolen\n\n")
    assert "the token is revoked" in str(problem_of(tokens, one))
    assert all(map(tokens.read, (two, without_id)))
    path.unlink()
    with capture_logs() as logs:
        assert "the token is revoked" in str(problem_of(tokens, one))
        assert tokens.read(two)
    assert [(line["event"], line["log_level"]) for line in logs] == [("revocations unreadable", "warning")]
    path.write_text("two\n")
    assert tokens.read(one)
    assert "the token is revoked" in str(problem_of(tokens, two))


def test_absent_or_binary_file_of_revocations_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"token\.revoked: cannot read"):
        Tokens(TokenConfig(secret=SECRET, revoked=str(tmp_path / "absent")))
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"token\.revoked: .* is not text"):
        Tokens(TokenConfig(secret=SECRET, revoked=str(tmp_path / "binary")))


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda data: base64.urlsafe_b64encode(data).decode() + ".e30.x"))
@example("")
@example("..")
@example("\udcff")
@example(base64.urlsafe_b64encode(b'{"alg":' + b"[" * 6000).decode() + ".e30.x")
@example(handmade({"alg": "HS256", "crit": ["b64"], "b64": False}, {}))
def test_arbitrary_text_is_rejected(text):
    assert isinstance(problem_of(BY_SECRET, text), WrongToken)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_changed_token_is_rejected(position, change):
    token = TOKEN.encode()
    position %= len(token)
    changed = token[:position] + bytes([token[position] ^ change]) + token[position + 1 :]
    # The last character of a part has unused bits. Changing them does not change the token.
    if [decoded(part) for part in changed.split(b".")] != [decoded(part) for part in token.split(b".")]:
        problem_of(BY_SECRET, changed.decode("latin-1"))


TOKEN = signed(exp=int(time.time()) + 10_000)


def decoded(part):
    try:
        return base64.urlsafe_b64decode(part + b"==")
    except ValueError:
        return os.urandom(16)
